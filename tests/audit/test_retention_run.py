"""A run of retention: what is due goes, what is not stays, and the log accounts for every gap."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connections

from audit import alerts
from audit.models import Outbox, Record, RetentionRule, RetentionRun, RetentionStep
from audit.retention import deciding, deleting, running
from muniment import statements
from tests.audit.retained import Past, findings, gaps, hold, past, released, rule, tables, there


@pytest.fixture
def log(db: None, tmp_path: Path) -> Iterator[Past]:
    with past(tmp_path, 2025, 1, 10) as made:
        yield made


def said(kind: str, action: str) -> list[dict[str, object]]:
    """The statements of a type and action."""
    found = [statements.decode(bytes(r.statement)) for r in Record.objects.filter(type=kind).order_by("index")]
    return [statement for statement in found if statement.get("action") == action]


def test_what_is_due_goes_once_that_is_sealed_and_the_log_still_verifies(log: Past) -> None:
    old = log.at(2025, 1, 10).call(6, outcome=True)
    young = log.at(2025, 3, 1).call(4)
    rule(30)
    log.seal()
    run = running.run(log.now, wait=0)
    assert run.state == "waiting" and there(*old) == 6
    log.seal()
    run = running.go_on(wait=0) or run
    assert (run.state, run.due, run.deleted, run.held, run.words) == ("done", 12, 12, 0, "")
    assert there(*old) == 0 and there(*young) == 4 and gaps() == 12
    [told] = said("retention", "deleted")
    assert sum(size for _, size in told["ranges"]) == 12 and told["month"] == "2025-01"  # type: ignore[attr-defined]
    assert findings() == []


def test_without_a_rule_nothing_is_deleted(log: Past) -> None:
    old = log.call(3)
    log.at(2026, 1, 1).call()
    assert log.retain().state == "done" and there(*old) == 3
    rule(30, backend="another")
    assert log.retain().state == "done" and there(*old) == 3


def test_a_month_of_which_nearly_all_goes_is_replaced_by_what_stays_guarded_as_before(
    log: Past, owner_url: str
) -> None:
    log.at(2025, 2, 3).call(40)
    kept = log.call(2, user="bob")
    log.at(2025, 4, 1).call()
    hold(subject=str(Record.objects.get(id=kept[0]).subject))
    rule(10)
    before = table(owner_url, "audit_record_202502")
    run = log.retain()
    assert (run.state, run.deleted, run.held) == ("done", 40, 2)
    after = table(owner_url, "audit_record_202502")
    assert after.pop("oid") != before.pop("oid") and after == before
    assert there(*kept) == 2 and findings() == []
    with psycopg.connect(owner_url) as owner:
        for attempt in ("DELETE FROM audit_record_202502", "TRUNCATE audit_record_202502",
                        "UPDATE audit_record_202502 SET tool = 'x'"):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege), owner.transaction():
                owner.execute(attempt)


def table(owner_url: str, name: str) -> dict[str, object]:
    """What there is of a partition besides its rows."""
    asked = {
        "oid": "SELECT %s::regclass::oid",
        "columns": "SELECT array_agg(attname || atttypid::regtype::text || attnotnull ORDER BY attnum)"
        " FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0",
        "triggers": "SELECT array_agg(tgname || tgtype || tgenabled::text ORDER BY tgname) FROM pg_trigger"
        " WHERE tgrelid = %s::regclass",
        "checks": "SELECT array_agg(pg_get_constraintdef(oid) ORDER BY pg_get_constraintdef(oid)) FROM pg_constraint"
        " WHERE conrelid = %s::regclass",
        "indexes": "SELECT array_agg(inhparent::regclass::text || indisvalid ORDER BY inhparent::regclass::text)"
        " FROM pg_index"
        " LEFT JOIN pg_inherits ON inhrelid = indexrelid WHERE indrelid = %s::regclass",
        "bound": "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = %s::regclass",
        "owner": "SELECT relowner, relpersistence FROM pg_class WHERE oid = %s::regclass",
    }
    with psycopg.connect(owner_url) as owner:
        return {what: owner.execute(query, [name]).fetchone() for what, query in asked.items()}


def test_a_month_of_which_nothing_stays_has_no_table_any_more(log: Past) -> None:
    log.at(2025, 2, 3).call(8)
    log.at(2025, 4, 1).call()
    rule(10)
    assert log.retain().deleted == 8
    assert tables() == ["audit_record_202501", "audit_record_202504"]
    assert findings() == []


def test_of_the_newest_day_nothing_is_deleted_and_its_table_is_not_replaced(log: Past) -> None:
    log.at(2025, 2, 3).call(20)
    newest = log.at(2025, 2, 28, 23).call(3)
    rule(1)
    later = datetime(2030, 1, 1, tzinfo=UTC)  # of a log in which nothing happened for years
    assert log.retain(later).deleted == 20
    assert there(*newest) == 3 and "audit_record_202502" in tables()


def test_what_is_not_sealed_is_not_deleted(log: Past) -> None:
    log.at(2025, 2, 3).call(5)
    log.seal()
    unsealed = log.at(2025, 2, 4).call(5)
    log.at(2025, 6, 1).call()
    rule(10)
    run = running.run(log.now, wait=0)
    assert (run.state, run.due) == ("waiting", 5)
    log.seal()
    run = running.go_on(wait=0) or run
    assert run.deleted == 5 and there(*unsealed) == 5
    assert findings() == []


def test_records_by_which_others_are_judged_stay_for_ever(log: Past) -> None:
    before = set(Record.objects.filter(type__in=["policy", "key", "notice"]).values_list("index", flat=True))
    log.at(2025, 2, 3).call(3)
    log.at(2026, 2, 3).call()
    rule(1)
    log.retain()
    log.at(2027, 2, 3).call()
    log.retain()
    stay = Record.objects.filter(index__in=before).count()
    assert before and stay == len(before)
    assert len(said("retention", "deleted")) == 2
    assert findings() == []


def test_a_hold_that_is_placed_after_the_log_was_told_keeps_its_records(
    log: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    for most in (20_000, 0):  # a new table, and in batches
        monkeypatch.setattr(deleting, "KEPT_MOST", most)
        log.at(log.now.year + 1, 2, 3).call(20)
        held = log.call(2, user=f"held-{most}")
        log.at(log.now.year, 6, 1).call()
        RetentionRule.objects.all().delete()
        rule(10)
        log.seal()
        running.run(log.now, wait=0)
        log.seal()
        placed = hold(subject=str(Record.objects.get(id=held[0]).subject))
        run = running.go_on(wait=0)
        assert run is not None and run.state == "done" and there(*held) == 2
        assert run.deleted == run.due - 2
        assert findings() == []
        released(placed)
        assert log.retain().deleted == 2 and there(*held) == 0  # released: told once more, and gone
        assert findings() == []


def test_rules_that_change_before_it_deletes_end_a_run(log: Past) -> None:
    old = log.at(2025, 2, 3).call(5)
    log.at(2025, 6, 1).call()
    made = rule(10)
    log.seal()
    assert running.run(log.now, wait=0).state == "waiting"
    log.seal()
    RetentionRule.objects.filter(pk=made.pk).update(days=3650)
    run = running.go_on(wait=0)
    assert run is not None and run.state == "done" and "changed" in run.words
    assert run.deleted == 0 and there(*old) == 5
    assert running.go_on(wait=0) is None
    assert findings() == []  # what was told and not done is no finding


@pytest.mark.parametrize("most", [20_000, 0], ids=["a new table", "in batches"])
def test_rules_that_change_while_it_deletes_end_a_run_before_its_next_transaction(
    log: Past, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(deleting, "KEPT_MOST", most)
    gone, spared = log.at(2025, 1, 11).call(3), log.at(2025, 2, 11).call(3)
    log.at(2025, 8, 1).call()
    made, real = rule(30), deleting.delete
    log.seal()
    running.run(log.now, wait=0)
    log.seal()

    def changed_behind(month: Any, steps: Any, until: float) -> bool:
        done = real(month, steps, until)
        RetentionRule.objects.filter(pk=made.pk).update(days=3650)
        return done

    monkeypatch.setattr(deleting, "delete", changed_behind)
    run = running.go_on(wait=0)
    assert run is not None and run.state == "done" and "changed" in run.words and run.deleted == 3
    assert there(*gone) == 0 and there(*spared) == 3
    assert running.go_on(wait=0) is None and findings() == []


def test_an_entry_that_became_something_else_deletes_nothing_and_says_so(log: Past) -> None:
    old = log.at(2025, 2, 3).call(5)
    log.at(2025, 6, 1).call()
    rule(10)
    log.seal()
    running.run(log.now, wait=0)
    log.seal()
    RetentionStep.objects.using("owner").update(ranges=[[0, 10_000]])
    run = running.go_on(wait=0)
    assert run is not None and run.state == "failed" and "does not say" in run.words
    assert there(*old) == 5
    assert [alert.kind for alert in alerts.open_alerts()] == ["retention-failed"]


def test_what_was_cleared_from_the_outbox_before_it_was_seen_is_told_again(log: Past) -> None:
    log.at(2025, 2, 3).call(5)
    log.at(2025, 6, 1).call()
    rule(10)
    log.seal()
    running.run(log.now, wait=0)
    log.seal()
    RetentionStep.objects.using("owner").update(record=None)  # the record may have been there at the first look
    Outbox.objects.using("owner").all().delete()
    assert (run := running.go_on(wait=0)) is not None and run.state == "waiting"
    log.seal()
    assert (run := running.go_on(wait=0)) is not None and (run.state, run.deleted) == ("done", 5)
    assert findings() == []


def test_it_waits_for_an_anchor_where_some_are_configured(log: Past, settings: object, tmp_path: Path) -> None:
    from audit import anchors

    log.at(2025, 2, 3).call(5)
    log.at(2025, 6, 1).call()
    rule(10)
    (tmp_path / "anchor").mkdir()
    settings.MUNIMENT_ANCHORS = [f"file://{tmp_path / 'anchor'}"]  # type: ignore[attr-defined]
    run = log.retain()
    assert run.state == "waiting" and "anchored" in run.words
    anchors.push_all()
    assert (run := running.go_on(wait=0) or run).deleted == 5 and run.state == "done"


def test_two_runs_at_once_are_one(log: Past, owner_url: str) -> None:
    with psycopg.connect(owner_url) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [running.RUNNING])
        with pytest.raises(running.Running):
            running.run(log.now, wait=0)
    assert not RetentionRun.objects.exists()
    assert running.run(log.now, wait=0).state == "done"


def test_a_lock_that_cannot_be_had_fails_the_run_in_words_and_it_is_tried_again(
    log: Past, owner_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleting, "ATTEMPTS", 2)
    monkeypatch.setattr(deleting, "PAUSE", 0.01)
    log.at(2025, 2, 3).call(8)
    log.at(2025, 6, 1).call()
    rule(10)
    log.seal()
    running.run(log.now, wait=0)
    log.seal()
    with psycopg.connect(owner_url) as reader:
        reader.execute("LOCK TABLE audit_record IN ACCESS SHARE MODE")
        run = running.go_on(wait=0)
        assert run is not None and run.state == "failed" and "lock" in run.words and run.deleted == 0
    assert (run := running.go_on(wait=0)) is not None and (run.state, run.deleted) == ("done", 8)
    assert alerts.open_alerts() == []


def test_ranges_that_fit_no_record_are_told_in_several_and_more_than_a_run_takes_by_the_next(
    log: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deciding, "MOST_RANGES", 2)
    monkeypatch.setattr(deciding, "MOST_STEPS", 3)
    monkeypatch.setattr(deciding, "PAGE", 5)
    log.at(2025, 2, 3)
    for _ in range(8):  # eight ranges, between each of which one stays
        log.call(2)
        log.call(1, user="held")
    log.at(2025, 6, 1).call()
    rule(10)
    held = Record.objects.filter(type="decision").order_by("index")[2]
    hold(subject=str(held.subject))
    run = log.retain()
    assert (run.state, run.deleted, run.held) == ("done", 12, 6)
    told = said("retention", "deleted")
    assert [len(one["ranges"]) for one in told] == [2, 2, 2]  # type: ignore[arg-type]
    assert sum(int(str(one["held"])) for one in told) == run.held
    run = log.retain()
    assert (run.state, run.deleted) == ("done", 4)
    assert Record.objects.filter(subject=held.subject, type="decision").count() == 8
    assert findings() == []


def test_a_statement_that_takes_too_long_is_asked_for_fewer_records(log: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    log.at(2025, 2, 3).call(20)
    log.at(2025, 6, 1).call()
    rule(10)
    log.seal()
    asked, real = [], deciding._ask

    def slow(question: Any, window: Any) -> list[Any]:
        asked.append(window.end - window.first)
        if window.end - window.first > 6:
            with connections["default"].cursor() as cursor:
                cursor.execute("SET statement_timeout = '100ms'")
                try:
                    cursor.execute("SELECT pg_sleep(5)")
                finally:
                    cursor.execute("RESET statement_timeout")
        return real(question, window)

    monkeypatch.setattr(deciding, "_ask", slow)
    monkeypatch.setattr(deciding, "SMALLEST", 2)
    assert log.retain().deleted == 20 and max(asked) > 6 >= min(asked)
