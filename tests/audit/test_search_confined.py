"""What a search tells somebody who is confined to a tenant is the same whatever others did: not only the records, also
how far a look got, the counts and the charts."""

from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from audit import records_summary, rollups, search, search_scan, timeline_figures, timeline_reading
from audit.models import SubjectTenant
from audit.rollups import TooMany
from audit.search import Query
from audit.timeline_figures import Names
from audit.timeline_reading import Who
from audit.viewer import Viewer
from tests.audit.filling import START, fill
from tests.audit.test_search import COMBINATIONS, DAY, HOUR, KEY, mixed
from tests.reset import reset

NOOR = Viewer("staff:2", "Noor", records=True, tenants=frozenset({"acme"}))
BOTH = Viewer("staff:3", "Ines", records=True, tenants=frozenset({"acme", "other"}))
SEARCHES = [*COMBINATIONS, ({"tenant": "acme"}, {}), ({"tenant": "acme", "client": "claude"}, {}),
            ({"subject": "usr_a"}, {}), ({"subject": "usr_stranger"}, {}),
            ({"client": "rare", "reason": "rare"}, {})]  # fmt: skip


def logs(crowd: int) -> None:
    """The same records of acme; with a crowd, so many of others among them, before and after: of the same clients and
    users, with the same ids."""
    own = [one | {"tenant": "acme", "at": START + 3 * HOUR * n} for n, one in enumerate(mixed(90))]
    others = [
        one | {"tenant": [None, "other"][n % 2], "at": START + (n - crowd // 4) * HOUR / 2 + timedelta(minutes=7)}
        for n, one in enumerate(mixed(crowd, seed=2))
    ]  # fmt: skip
    # Client and reason are everywhere; both together acme has on one day, others on many.
    for n, one in enumerate(own):
        one |= {"client": "rare"} if n % 10 == 0 else {"reason": "rare"} if n % 10 == 5 else {}
    for one in [own[40], *others[::50]]:
        one |= {"client": "rare", "reason": "rare"}
    for one in others[::7]:
        one |= {"subject": "usr_a", "request_key": KEY, "resource_key": KEY}
    fill(sorted([*own, *others], key=lambda one: one["at"]))
    while rollups.count():
        pass


def told(viewer: Viewer) -> dict[str, Any]:
    """All that searches, counts and charts say to a viewer, in words and figures."""
    since, until = START - 30 * DAY, START + 60 * DAY
    found: dict[str, Any] = {}
    for number, (filters, lookups) in enumerate(SEARCHES):
        asked = Query(since, until, filters, lookups)
        page = search.find(viewer, asked)
        oldest = search.find(viewer, Query(since, until, filters, lookups, oldest=True))
        spread = search.spread_of(viewer, asked, 50, DAY, rollups.ORIGIN)
        summary = records_summary.summary(viewer, asked, page, until, lambda *_: "")
        found[f"{number} {filters} {sorted(lookups)}"] = (
            [[r.at for r in one.records] for one in (page, oldest)], page.older, page.newer, page.reached,
            oldest.reached, spread, summary.count, summary.note, summary.chart and summary.chart.words,
        )  # fmt: skip
    for kind, name in (("user", "usr_a"), ("client", "claude"), ("tool", "inner/a")):
        who = Who(kind, name)
        top = timeline_reading.look(viewer, who, since, until, most=20)
        lines = timeline_reading.page(viewer, who, since, until, top, None, None)
        found[name] = [row for row, _ in top.rows], top.cut, lines.newer, lines.further
        found[f"{name} before"] = timeline_reading.earlier(viewer, who, lines)
        if kind != "user":
            figures = timeline_figures.of_many(viewer, who, top, "30d", since, until, Names({}))
            found[f"{name} figures"] = figures.totals, figures.parts, figures.note
    return found


@pytest.mark.parametrize("budget", [12, pytest.param(10_000, marks=pytest.mark.soak)])
def test_what_others_do_changes_nothing_that_a_confined_viewer_is_told(
    db: None, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    monkeypatch.setattr(search, "PAGE", 7)
    monkeypatch.setattr(search_scan, "BUDGET", budget)
    logs(0)
    alone = told(NOOR)
    reset()
    logs(900)
    crowded = told(NOOR)
    assert {name: crowded[name] for name in alone if crowded[name] != alone[name]} == {}
    everybody = told(Viewer("staff:1", "Mara", records=True))
    assert sum(everybody[name] != alone[name] for name in alone) > len(alone) / 2, "else it could not fail"


def test_a_viewer_of_two_tenants_finds_both_and_nothing_of_none(db: None) -> None:
    logs(200)
    query = Query(START - 30 * DAY, START + 2 * DAY)
    tenants = {r.tenant for r in search.find(BOTH, query).records}
    assert tenants == {"acme", "other"}
    calls = [sum(b.calls for b in rollups.series(one, query.since, query.until, "1d")) for one in (NOOR, BOTH)]
    assert 0 < calls[0] < calls[1]


def test_a_tenant_that_is_not_theirs_is_looked_for_nowhere(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    logs(200)
    monkeypatch.setattr(search_scan, "_run", lambda *_: pytest.fail("the records were read"))
    for filters in ({"tenant": "other"}, {"tenant": None}, {"tenant": "never"}):
        page = search.find(NOOR, Query(START - 30 * DAY, timezone.now(), filters))
        assert (page.records, page.older, page.newer, page.reached) == ([], False, False, None)


def test_a_count_that_is_kept_for_all_tenants_together_is_refused_to_who_sees_some(db: None) -> None:
    logs(60)
    since, until = START - DAY, START + 30 * DAY
    with pytest.raises(TooMany):
        rollups.groups(NOOR, ["backend", "tool", "decision"], since, until, "1d", client="claude")


def test_a_timeline_is_looked_for_among_their_records_however_many_others_there_are(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_scan, "BUDGET", 40)
    logs(300)
    since, until = START - 30 * DAY, START + 60 * DAY
    for who in (Who("client", "claude"), Who("tool", "inner/a")):
        times, before = [], until
        for _ in range(20):
            found = timeline_reading.look(NOOR, who, since, before, most=9)
            times += [row.at for row, _ in found.rows]
            if not found.cut or found.last is None:
                break
            before = found.last
        wanted = search.visible(NOOR, since, until).filter(**who.filters).order_by("-at")
        assert times == list(wanted.values_list("at", flat=True)) and len(times) > 9
        oldest = timeline_reading.look(NOOR, who, since, until, most=9, oldest_first=True)
        assert [row.at for row, _ in oldest.rows][::-1] == times[::-1][: len(oldest.rows)]


def test_whose_tenants_the_log_knows_is_known_of_users_after_the_migration(db: None) -> None:
    told = [("usr_a", "acme", "decision"), ("usr_a", "other", "decision"), ("usr_b", None, "decision"),
            (None, "acme", "decision"), ("usr_c", "acme", "ungoverned"), ("usr_a", "acme", "decision")]  # fmt: skip
    fill([{"subject": user, "tenant": tenant, "type": kind} for user, tenant, kind in told])
    for _ in range(2):
        with connection.cursor() as cursor:
            cursor.execute(import_module("audit.migrations.0016_ends_of_access").SEEN)
        assert set(SubjectTenant.objects.values_list("subject", "tenant")) == {("usr_a", "acme"), ("usr_a", "other")}
