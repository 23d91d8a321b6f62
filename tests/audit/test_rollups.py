"""Counts over time: every record once in every width and cut, whatever runs at the same time, crashes or is deleted."""

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock
from uuid import uuid4

import pytest
from django.core.exceptions import PermissionDenied
from django.db import DataError, connection, connections, transaction
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import rollups
from audit.models import Head, Record, Rollup, RollupState
from audit.viewer import Viewer
from tests.audit.filling import START, fill
from tests.reset import reset
from tests.world import build

ALL = Viewer("staff:1", "Mara", records=True)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def counted() -> None:
    while rollups.count(100):
        pass


def sums(cut: str = "all", span: str = "1h") -> Counter[Any]:
    """What the rows of a cut say: dimensions -> count."""
    found: Counter[Any] = Counter()
    for row in Rollup.objects.filter(cut=cut, span=span):
        found[(row.at, *(getattr(row, name) for name in rollups.DIMENSIONS))] += row.count
    return found


def truth(cut: str = "all", span: str = "1h") -> Counter[Any]:
    """The same, counted from the records."""
    found: Counter[Any] = Counter()
    told = rollups.CUTS[cut] | rollups.EVERYWHERE
    denied_only = cut == "all" and span in rollups.DENIED_ONLY
    for record in Record.objects.filter(decision="deny") if denied_only else Record.objects.all():
        values = (getattr(record, name) if name in told else None for name in rollups.DIMENSIONS)
        found[(rollups.floor(record.at, span), *("" if v is None else v for v in values))] += 1
    return found


ENTRIES = st.lists(
    st.fixed_dictionaries({
        "type": st.sampled_from(["decision", "evaluation", "outcome", "policy"]),
        "decision": st.sampled_from(["allow", "deny", None]), "reason": st.sampled_from(["granted", None]),
        "flagged": st.booleans(), "client": st.sampled_from(["claude", "chatgpt", None]),
        "tool": st.sampled_from(["a", "b", None]), "backend": st.sampled_from(["inner", "outer"]),
        "tenant": st.sampled_from(["acme", None]),
    }),
    max_size=40,
)  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(parts=st.lists(st.tuples(ENTRIES, st.integers(1, 7)), max_size=4), every=st.sampled_from([7, 400, 50_000]))
def test_the_sum_over_every_cut_and_width_is_the_records(db: None, parts: Any, every: int) -> None:
    reset()
    for entries, most in parts:
        fill(entries, timedelta(seconds=every))
        rollups.count(most)  # some are counted, while more arrive
    counted()
    for cut in rollups.CUTS:
        assert sums(cut, "1w") == truth(cut, "1w")
    assert sums("all", "1d") == truth("all", "1d")
    if Head.objects.get().at - START < DAY:
        assert sums("all", "5m") == truth("all", "5m") and sums("ct", "1h") == truth("ct", "1h")


def test_counting_again_changes_nothing(db: None) -> None:
    fill({"tool": f"t{n % 3}"} for n in range(50))
    assert rollups.count() == 50
    before = sums()
    assert rollups.count() == 0 and rollups.count() == 0
    assert sums() == before == truth()


def test_two_that_count_at_once_count_each_record_once(db: None) -> None:
    fill({"tool": f"t{n % 7}"} for n in range(600))
    faults: list[BaseException] = []

    def run() -> None:
        try:
            while rollups.count(37):
                pass
        except BaseException as error:
            faults.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    fill(({"tool": f"u{n % 7}"} for n in range(200)), timedelta(milliseconds=3))
    for thread in threads:
        thread.join()
    counted()
    assert not faults
    assert sums() == truth() and sum(sums().values()) == 800


def test_a_crash_after_the_counting_leaves_nothing_behind(db: None) -> None:
    fill({} for _ in range(20))
    crash = mock.patch.object(rollups, "PRUNE", "SELECT 1/0, %s, %s, %s, %s, %s")
    with crash, pytest.raises(DataError, match="division by zero"):
        rollups.count()
    assert not Rollup.objects.exists() and not RollupState.objects.exists()
    counted()
    assert sums() == truth()


def test_a_record_that_is_not_committed_yet_is_not_passed_over(db: None) -> None:
    """Its writer holds the head row: nobody sees the index that it will have, nor a later one."""
    fill({} for _ in range(5))
    with transaction.atomic():
        fill({"tool": "late"} for _ in range(3))
        done: list[int] = []

        def run() -> None:
            done.append(rollups.count())
            connections.close_all()

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(30)
        assert done == [5]
    assert rollups.count() == 3
    assert sums() == truth()


def test_a_gap_that_retention_left_is_passed_over_at_once(db: None, superuser_url: str) -> None:
    import psycopg

    fill({} for _ in range(300))
    with psycopg.connect(superuser_url) as superuser:
        superuser.execute("SET session_replication_role = replica")
        superuser.execute("DELETE FROM audit_record WHERE index < 290")
    assert rollups.count(20) == 10
    assert RollupState.objects.get().next == 300
    with psycopg.connect(superuser_url) as superuser:
        superuser.execute("SET session_replication_role = replica")
        superuser.execute("DELETE FROM audit_record")
    assert rollups.count(20) == 0 and RollupState.objects.get().next == 300
    assert sum(sums().values()) == 10, "what was counted stays counted when its records go"
    fill({} for _ in range(4))
    assert rollups.count(20) == 4


def test_narrow_spans_go_when_they_are_old_and_weeks_stay(db: None) -> None:
    fill([{}, {"at": START + HOUR}])
    counted()
    assert set(Rollup.objects.values_list("span", flat=True)) == {"5m", "1h", "1d", "1w"}
    fill([{"at": START + timedelta(days=3)}])
    counted()
    assert Rollup.objects.filter(span="5m", at__lt=START + DAY).count() == 0
    assert Rollup.objects.filter(span="1h", at__lt=START + DAY, cut="sum").count() == 2
    fill([{"at": START + timedelta(days=500)}])
    counted()
    assert set(Rollup.objects.filter(at__lt=START + DAY).values_list("span", flat=True)) == {"1w"}


def test_old_history_that_is_counted_late_makes_no_rows_that_would_go_at_once(db: None) -> None:
    fill([{}, {"at": START + timedelta(days=60)}])
    rollups.count()
    assert Rollup.objects.filter(span="5m", cut="all").count() == 1
    assert Rollup.objects.filter(span="1h", cut="all").count() == 1
    assert Rollup.objects.filter(span="1d", cut="sum").count() == 2


def test_weeks_start_on_monday_and_days_at_midnight_in_utc(db: None) -> None:
    fill([{"at": datetime(2026, 3, 8, 23, 59, 59, tzinfo=UTC)}, {"at": datetime(2026, 3, 9, 0, 0, tzinfo=UTC)}])
    counted()
    days = list(Rollup.objects.filter(cut="sum", span="1d").order_by("at").values_list("at", flat=True))
    weeks = list(Rollup.objects.filter(cut="sum", span="1w").order_by("at").values_list("at", flat=True))
    assert days == [datetime(2026, 3, 8, tzinfo=UTC), datetime(2026, 3, 9, tzinfo=UTC)]
    assert weeks == [datetime(2026, 3, 2, tzinfo=UTC), datetime(2026, 3, 9, tzinfo=UTC)]


def test_nobody_outside_of_the_database_knows_which_names_collide(db: None) -> None:
    fill([{"tool": "a"}])
    counted()
    [before] = Rollup.objects.filter(cut="t", span="1h").values_list("key", flat=True)
    RollupState.objects.update(salt=uuid4())
    fill([{"tool": "a"}])
    counted()
    after = dict(Rollup.objects.filter(cut="t", span="1h").values_list("key", "count"))
    assert after == {before: 1} | {key: 1 for key in after if key != before} and len(after) == 2
    assert sums("t") == truth("t"), "with another salt the sums are as they were"


def test_names_that_collide_cannot_stop_the_counting(db: None) -> None:
    weak = rollups.COUNT.replace("left(encode(sha256(", "left('0000000000000000' || encode(sha256(")
    fill({"tool": f"t{n}"} for n in range(10))
    with mock.patch.object(rollups, "COUNT", weak):
        rollups.count()
    assert sum(sums().values()) >= 10 and RollupState.objects.get().next == 10


def test_a_series_has_every_span_the_empty_ones_too(db: None) -> None:
    fill([{}, {"decision": "deny", "reason": "not_granted"}, {"type": "outcome", "decision": None}])
    fill([{"at": START + 3 * HOUR}])
    counted()
    found = rollups.series(ALL, START, START + 4 * HOUR, "1h")
    assert [(b.at, b.calls, b.denied) for b in found] == [
        (START, 2, 1), (START + HOUR, 0, 0), (START + 2 * HOUR, 0, 0), (START + 3 * HOUR, 1, 0),
    ]  # fmt: skip
    assert sum(b.calls for b in rollups.series(ALL, START, START + HOUR, "1h", type=None)) == 3
    assert [b.calls for b in rollups.series(ALL, START, START + HOUR, "1h", type="outcome")] == [1]
    within = rollups.series(ALL, START + 61 * MINUTE, START + 62 * MINUTE, "1h")
    assert [b.at for b in within] == [START + HOUR], "the span that holds the time"


@pytest.mark.parametrize(
    ("filters", "cut", "calls"),
    [
        ({}, "sum", 30), ({"decision": "deny"}, "sum", 10), ({"flagged": True}, "sum", 0), ({"client": "c1"}, "c", 10),
        ({"client": ["c1", "c2"]}, "c", 20), ({"reason": "not_granted"}, "r", 10), ({"tool": "t1"}, "t", 6),
        ({"tool": "t1", "backend": "inner"}, "t", 6), ({"tool": "t1", "client": "c1"}, "ct", 2),
        ({"tool": "t1", "reason": "granted"}, "tr", 4), ({"tool": "t1", "reason": "granted", "client": "c1"}, "all", 2),
        ({"tenant": ""}, "e", 30), ({"tenant": "acme"}, "e", 0), ({"mode": "interactive"}, "m", 30),
        ({"client": "gone"}, "c", 0),
    ],
)  # fmt: skip
def test_each_question_reads_the_smallest_cut_that_can_answer(
    db: None, filters: dict[str, Any], cut: str, calls: int, asked: list[str]
) -> None:
    refused = {"decision": "deny", "reason": "not_granted"}
    fill({"client": f"c{n % 3}", "tool": f"t{n % 5}", **(refused if n % 3 == 0 else {})} for n in range(30))
    counted()
    asked.clear()
    assert sum(b.calls for b in rollups.series(ALL, START, START + HOUR, "5m", **filters)) == calls
    assert f"'{cut}'" in asked[0]


@pytest.fixture
def asked() -> Iterator[list[str]]:
    """The statements that are sent from here on."""
    sent: list[str] = []

    def watch(execute: Any, statement: str, values: Any, many: bool, context: Any) -> Any:
        sent.append(f"{statement} {values}")
        return execute(statement, values, many, context)

    with connection.execute_wrapper(watch):
        yield sent


def test_totals_come_most_frequent_first_and_say_what_is_absent(db: None) -> None:
    fill({"client": (None, "a", "b", "b", "a", "b")[n % 6]} for n in range(12))
    counted()
    assert rollups.totals(ALL, "client", START, START + HOUR, "1h") == [("b", 6), ("a", 4), ("", 2)]
    assert rollups.totals(ALL, "client", START, START + HOUR, "1h", most=1) == [("b", 6)]
    assert rollups.totals(ALL, "flagged", START, START + HOUR, "1h") == [("false", 12)]
    assert rollups.totals(ALL, "tool", START, START + HOUR, "1h", client="a", mode="interactive") == [
        ("memory.recall", 4)
    ]


def test_a_viewer_of_some_tenants_is_told_of_no_other(db: None) -> None:
    fill({"tenant": (None, "acme", "other")[n % 3]} for n in range(9))
    counted()
    viewer = Viewer("staff:2", "Noor", records=True, tenants=frozenset({"acme"}))
    assert sum(b.calls for b in rollups.series(viewer, START, START + HOUR, "1h")) == 3
    assert sum(b.calls for b in rollups.series(viewer, START, START + HOUR, "1h", tenant="other")) == 0
    assert sum(b.calls for b in rollups.series(viewer, START, START + HOUR, "1h", client="claude")) == 3
    assert rollups.totals(viewer, "tenant", START, START + HOUR, "1h") == [("acme", 3)]
    nobody = Viewer("staff:3", "Ines", records=True, tenants=frozenset())
    assert rollups.totals(nobody, "tenant", START, START + HOUR, "1h") == []


def test_who_may_not_read_records_gets_no_counts(db: None) -> None:
    viewer = Viewer("staff:4", "Otto")
    with pytest.raises(PermissionDenied):
        rollups.series(viewer, START, START + HOUR, "1h")
    with pytest.raises(PermissionDenied):
        rollups.totals(viewer, "client", START, START + HOUR, "1h")


def test_what_is_no_dimension_and_what_is_too_much_is_refused(db: None) -> None:
    with pytest.raises(ValueError, match="subject"):
        rollups.series(ALL, START, START + HOUR, "1h", subject="usr_alice")
    with pytest.raises(ValueError, match="too many"):
        rollups.series(ALL, START, START + timedelta(days=366), "5m")
    fill({"client": f"c{n}"} for n in range(5))
    counted()
    assert rollups.series(ALL, START, START + HOUR, "1h", client="c1", most_rows=5)
    with pytest.raises(rollups.TooMany):
        rollups.series(ALL, START, START + HOUR, "1h", client="c1", most_rows=4)
    assert rollups.totals(ALL, "tool", START, START + HOUR, "1h", client="c1", most_rows=1), "found on an index"


def test_every_combination_is_told_apart_of_denials_for_ever_and_of_the_rest_for_a_month(db: None) -> None:
    fill({"decision": ("allow", "deny")[n % 2], "reason": ("granted", "not_granted")[n % 2]} for n in range(10))
    counted()
    of = {"client": "claude", "mode": "interactive", "tenant": ""}
    assert sum(b.calls for b in rollups.series(ALL, START, START + HOUR, "1h", **of)) == 10
    assert sum(b.calls for b in rollups.series(ALL, START, START + DAY, "1d", decision="deny", **of)) == 5
    assert sum(b.calls for b in rollups.series(ALL, START, START + DAY, "1d", reason="not_granted", **of)) == 5
    for filters in (of, of | {"decision": "allow"}, of | {"reason": "granted"}):
        with pytest.raises(rollups.TooMany):
            rollups.series(ALL, START, START + DAY, "1d", **filters)


def test_how_far_the_counting_is_can_be_asked(db: None) -> None:
    assert rollups.counted_until() is None and rollups.behind() == timedelta(0)
    made = fill({} for _ in range(10))
    assert rollups.behind() is None
    rollups.count(4)
    assert (
        rollups.counted_until() == made[3].at and rollups.behind() == timedelta(seconds=5) and rollups.uncounted() == 6
    )
    rollups.count()
    assert rollups.behind() == timedelta(0)


def test_real_calls_are_counted(db: None) -> None:
    world = build()
    world.verify()
    world.verify(tool="memory.capture")
    world.verify(token=None)
    counted()
    at = Head.objects.get().at
    assert dict(rollups.totals(ALL, "reason", at - DAY, at + DAY, "1d")) == {
        "granted": 1, "not_granted": 1, "token_missing": 1
    }  # fmt: skip
