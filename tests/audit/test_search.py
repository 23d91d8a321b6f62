"""Searching the records: exact filters in any combination, pages by key both ways, a bounded look at the log."""

import random
import re
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.core.exceptions import PermissionDenied
from django.db import connection

from audit import rollups, search, search_plan, search_scan
from audit.models import Record
from audit.search import Query
from audit.viewer import Viewer
from tests.audit.filling import START, fill

ALL = Viewer("staff:1", "Mara", records=True)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
KEY = bytes(range(16))


@pytest.mark.parametrize(
    "record",
    [
        "00000000-0000-0000-0000-000000000000",  # 1970, less a millisecond
        "00000000-0000-7000-8000-000000000000",
        "e677d21f-dbfe-7000-8000-000000000000",  # the last whose window ends in the year 9999
        "e677d21f-dbff-7000-8000-000000000000",  # of the year 9999, its window ends after it
        "e677d21f-dc00-7000-8000-000000000000",  # the year 10000
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
    ],
)
def test_an_id_of_an_extreme_time_is_no_record(db: None, record: str) -> None:
    assert search.by_id(UUID(record)) is None


def query(**more: Any) -> Query:
    return Query(**{"since": START - DAY, "until": START + 400 * DAY} | more)


def times(viewer: Viewer = ALL, **more: Any) -> list[datetime]:
    """All pages of a search from the newest down, as one."""
    found: list[datetime] = []
    page = search.find(viewer, query(**more))
    for _ in range(500):
        found += [record.at for record in page.records]
        if page.before is None:
            return found
        page = search.find(viewer, query(**more, before=page.before))
    raise AssertionError("the search does not come to an end")


def upwards(**more: Any) -> list[datetime]:
    """All pages of a search from the oldest up, as one."""
    found: list[datetime] = []
    page = search.find(ALL, query(**more, oldest=True))
    for _ in range(500):
        found += [record.at for record in reversed(page.records)]
        if page.after is None:
            return found
        page = search.find(ALL, query(**more, after=page.after))
    raise AssertionError("the search does not come to an end")


def mixed(number: int, seed: int = 1) -> list[dict[str, Any]]:
    """Records of all kinds, at random."""
    chance = random.Random(seed)
    pick = chance.choice
    found = []
    for _ in range(number):
        kind = pick(["decision"] * 6 + ["outcome", "staff"])
        refused = kind == "decision" and chance.random() < 0.3
        found.append({
            "type": kind, "client": pick(["claude", "claude", "chatgpt", None]), "tool": pick(["a", "b", "c"]),
            "backend": pick(["inner", "outer"]), "tenant": pick(["acme", "other", None]),
            "subject": pick(["usr_a", "usr_b", None]), "flagged": not refused and chance.random() < 0.1,
            "decision": None if kind != "decision" else "deny" if refused else "allow",
            "reason": None if kind != "decision" else pick(["not_granted", "token_expired"]) if refused else "granted",
            "agent": {"mode": pick(["interactive", "background"])},
            "required": pick([["m:read"], ["m:read", "m:write"]]),
            **({"request_key": KEY} if chance.random() < 0.05 else {}),
            **({"resource_key": KEY} if chance.random() < 0.2 else {}),
        })  # fmt: skip
    return found


def expected(filters: dict[str, Any], lookups: dict[str, bytes] | None = None) -> list[datetime]:
    """The truth, from every record."""
    scope = filters.get("scopes")
    plain = {name: value for name, value in filters.items() if name != "scopes"}
    plain = {(f"{k}__isnull" if v is None else k): (True if v is None else v) for k, v in plain.items()}
    found = Record.objects.filter(**plain, **(lookups or {})).order_by("-at")
    return [r.at for r in found if scope is None or scope in (r.scopes or "").split()]


COMBINATIONS: list[tuple[dict[str, Any], dict[str, bytes]]] = [
    ({}, {}), ({"client": "claude"}, {}), ({"tool": "a", "decision": "deny"}, {}), ({"flagged": True}, {}),
    ({"flagged": False, "backend": "inner"}, {}), ({"type": "staff"}, {}),
    ({"type": "outcome", "client": "chatgpt"}, {}),
    ({"reason": "granted", "mode": "background"}, {}), ({"reason": "not_granted", "tool": "b"}, {}),
    ({"scopes": "m:write"}, {}), ({"scopes": "m:read", "client": "claude", "decision": "deny"}, {}),
    ({"scopes": "m:never"}, {}), ({"subject": "usr_a", "tenant": "acme"}, {}), ({"tenant": "other", "tool": "c"}, {}),
    ({"mode": "background"}, {}), ({"client": "gone"}, {}), ({"client": "claude", "tool": "never"}, {}),
    ({}, {"request_key": KEY}), ({"decision": "allow"}, {"resource_key": KEY}),
    ({"subject": "usr_b"}, {"resource_key": KEY}),
    ({"client": None}, {}), ({"client": None, "tool": "b"}, {}), ({"tenant": None}, {}), ({"subject": None}, {}),
    ({"flagged": True, "tool": "a"}, {}), ({"type": "staff", "backend": "outer"}, {}), ({"type": "hold"}, {}),
    ({"type": "decision", "flagged": True, "mode": "interactive", "scopes": "m:write"}, {}),
]  # fmt: skip


@pytest.mark.parametrize("counted", [False, True], ids=["uncounted", "counted"])
@pytest.mark.parametrize("budget", [20_000, 40], ids=["in one look", "in many looks"])
def test_every_combination_finds_all_that_matches_and_nothing_else(
    db: None, monkeypatch: pytest.MonkeyPatch, budget: int, counted: bool
) -> None:
    monkeypatch.setattr(search, "PAGE", 7)
    monkeypatch.setattr(search_scan, "BUDGET", budget)
    fill(mixed(250), timedelta(hours=3))
    if counted:
        rollups.catch_up()
        fill(mixed(50, 2))  # and what came since
    for filters, lookups in COMBINATIONS:
        wanted = expected(filters, lookups)
        assert times(filters=filters, lookups=lookups) == wanted, (filters, lookups)
        assert upwards(filters=filters, lookups=lookups) == wanted[::-1], (filters, lookups)


def test_a_viewer_of_some_tenants_finds_only_theirs(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PAGE", 7)
    monkeypatch.setattr(search_scan, "BUDGET", 60)
    made = fill(mixed(200), HOUR)
    rollups.catch_up()
    viewer = Viewer("staff:2", "Noor", records=True, tenants=frozenset({"acme", "none"}))
    theirs = {r.at for r in made if r.tenant == "acme" and r.type in ("decision", "outcome")}
    assert len(theirs) < sum(r.tenant == "acme" for r in made), "what staff do is not shown, whatever tenant it names"
    for filters in ({}, {"client": "claude"}, {"subject": "usr_a"}, {"tenant": "other"}, {"scopes": "m:write"}):
        wanted = [at for at in expected(filters) if at in theirs]
        assert times(viewer, filters=filters) == wanted
    assert times(Viewer("staff:3", "Ines", records=True, tenants=frozenset())) == []


def test_who_may_not_read_records_finds_nothing(db: None) -> None:
    with pytest.raises(PermissionDenied):
        search.find(Viewer("staff:4", "Otto"), query())


@pytest.mark.parametrize("given", [{"filters": {"email": "x"}}, {"lookups": {"statement": b"x"}}])
def test_what_is_no_filter_is_refused(db: None, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a filter"):
        search.find(ALL, query(**given))


def test_the_window_is_kept_on_every_page(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PAGE", 3)
    made = fill([{} for _ in range(20)], HOUR)
    within = {"since": made[5].at, "until": made[15].at}
    assert times(**within) == [r.at for r in reversed(made[5:15])]
    assert not search.find(ALL, query(**within, before=made[2].at)).records
    page = search.find(ALL, query(**within, after=START - 5 * DAY))
    assert [r.at for r in page.records] == [r.at for r in reversed(made[5:8])] and not page.older and page.newer


def test_a_page_says_where_the_pages_beside_it_begin(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PAGE", 3)
    made = fill([{} for _ in range(8)])
    newest = search.find(ALL, query())
    assert (newest.older, newest.newer, newest.reached) == (True, False, None)
    second = search.find(ALL, query(before=newest.before))
    assert [r.index for r in second.records] == [4, 3, 2] and second.newer
    back = search.find(ALL, query(after=second.after))
    assert [r.index for r in back.records] == [7, 6, 5] and back.older and not back.newer
    oldest = search.find(ALL, query(oldest=True))
    assert [r.index for r in oldest.records] == [2, 1, 0] and (oldest.older, oldest.newer) == (False, True)
    assert oldest.after == made[2].at and oldest.before is None


def test_a_look_that_ran_out_says_how_far_it_came_and_goes_on_from_there(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_scan, "BUDGET", 10)
    made = fill([{"agent": {"mode": "api" if n == 3 else "background"}} for n in range(30)])
    first = search.find(ALL, query(filters={"mode": "api"}))
    assert first.records == [] and first.older and first.reached == made[20].at == first.before
    second = search.find(ALL, query(filters={"mode": "api"}, before=first.before))
    assert second.records == [] and second.reached == made[10].at
    third = search.find(ALL, query(filters={"mode": "api"}, before=second.before))
    assert [r.at for r in third.records] == [made[3].at] and third.reached == made[0].at
    last = search.find(ALL, query(filters={"mode": "api"}, before=third.before))
    assert (last.records, last.older, last.before) == ([], False, None)


def test_what_the_rollups_exclude_is_not_looked_at(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_scan, "BUDGET", 10)
    made = fill([{"agent": {"mode": "api" if n == 3 else "background"}} for n in range(30)], 6 * HOUR)
    rollups.catch_up()
    page = search.find(ALL, query(until=START + 20 * DAY, filters={"mode": "api"}))
    assert [r.at for r in page.records] == [made[3].at] and not page.older
    with watched() as sent:
        assert search.find(ALL, query(filters={"mode": "interactive"})).records == []
    assert len([s for s in sent if "audit_record" in s and "followed" in s]) <= 1
    late = fill([{"agent": {"mode": "interactive"}}])
    found = search.find(ALL, query(filters={"mode": "interactive"}))
    assert [r.at for r in found.records] == [late[0].at], "what is not counted yet is found too"


def test_of_several_filters_the_rarest_is_followed(db: None) -> None:
    fill(({"client": "rare" if n % 50 == 0 else "claude", "tool": "t"} for n in range(200)), HOUR)
    asked: dict[str, Any] = {"client": "rare", "tool": "t", "reason": "granted"}
    assert followed(asked) == "tool = 't'", "by custom, as long as nothing is counted"
    rollups.catch_up()
    assert followed(asked) == "client = 'rare'"
    assert followed(asked | {"subject": "usr_alice"}) == "subject = 'usr_alice'"
    assert followed({"flagged": True, "decision": "allow"}) == "flagged"
    assert followed({"decision": "allow"}) is None


class watched:
    """The statements that are sent, with their values."""

    def __enter__(self) -> list[str]:
        self.sent: list[str] = []
        self.wrapper = connection.execute_wrapper(self._watch)
        self.wrapper.__enter__()
        return self.sent

    def _watch(self, execute: Any, statement: str, values: Any, many: bool, context: Any) -> Any:
        with connection.connection.cursor() as cursor:
            self.sent.append(cursor.mogrify(statement, values) if values else statement)
        return execute(statement, values, many, context)

    def __exit__(self, *error: Any) -> None:
        self.wrapper.__exit__(*error)


def followed(filters: dict[str, Any]) -> str | None:
    """Which condition the look at records is bounded by: None for time alone, empty where there was no look."""
    with watched() as sent:
        search.find(ALL, query(filters=filters))
    form = re.compile(r"FROM audit_record WHERE at >= .* AND at < '[^']*'\S* *(?:AND (.*))?\n +ORDER BY at")
    return next((found[1] for statement in sent if (found := form.search(statement))), "")


def test_a_look_reads_no_more_rows_than_its_budget_and_never_what_is_protected(db: None) -> None:
    fill({"client": "claude", "tool": f"t{n}"} for n in range(30))
    with watched() as sent:
        search.find(ALL, query(filters={"client": "claude", "decision": "deny"}))
        search.find(ALL, query(filters={"scopes": "memory:read"}))
        search.find(ALL, query(oldest=True))
    over_records = [s for s in sent if "audit_record" in s]
    assert over_records
    for statement in over_records:
        assert "LIMIT" in statement or " IN (" in statement
        assert not re.search(r"\bOFFSET\b|LIKE|disclosures", statement)


def test_where_scopes_were_combined_in_too_many_ways_a_search_follows_time(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fill({"required": [f"s{n % 9}", f"t{n}"]} for n in range(60))
    wanted = [record.at for record in made[::-1] if record.index % 9 == made[0].index % 9]
    followed = search_plan.plan(ALL, START - DAY, START + DAY, {"scopes": "s0"})
    assert (followed.column, len(followed.values)) == ("scopes", 7) and times(filters={"scopes": "s0"}) == wanted
    monkeypatch.setattr(search_plan, "MOST_STEPS", 5)
    assert search_plan.plan(ALL, START - DAY, START + DAY, {"scopes": "s0"}).column is None
    assert times(filters={"scopes": "s0"}) == wanted


def test_outcomes_of_a_page_are_read_at_once(db: None, django_assert_num_queries: Any) -> None:
    made = fill([{}, {"decision": "deny"}, {}])
    fill([{"type": "outcome", "parent": made[0].id, "decision": None}])
    with django_assert_num_queries(1):
        found = search.outcomes_of(made)
    assert list(found) == [made[0].id] and found[made[0].id].type == "outcome"
    assert search.outcomes_of([made[1]]) == {}
