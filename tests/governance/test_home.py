"""Home: figures from the rollups that lead to what they count, what waits, what a grant would solve; each to those
alone who may see it."""

import re
import time
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client as HttpClient
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from audit import inbox, rollups
from audit.models import Sighting
from clients.models import Client, Grant
from governance import snapshot
from tests.audit.filling import fill
from tests.staff import administrator, drained, member
from tests.world import World, build, token

QUERIES = 50
"""What home asks of the database, whatever the log holds; one more needs a reason."""
REFUSED = {"decision": "deny", "reason": "not_granted", "tool": "memory.capture"}


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def http(world: World) -> HttpClient:
    return administrator()


def counted() -> None:
    drained()
    while rollups.count():
        pass


def seen() -> None:
    """Wait for the inbox to have what was named: a process writes its counts now and then."""
    inbox.flush()
    until = time.monotonic() + 30
    while not Sighting.objects.exists() and time.monotonic() < until:
        time.sleep(0.05)


def home(http: HttpClient, query: str = "") -> Any:
    response = http.get(f"/admin/{query}")
    assert response.status_code == 200
    return response


def history(before: timedelta, **members: Any) -> None:
    """One record of some time ago."""
    fill([{"at": timezone.now() - before, **members}])


class TestFigures:
    def test_calls_and_denials_are_those_of_the_log(self, world: World, http: HttpClient) -> None:
        for _ in range(5):
            world.verify()
        world.verify(tool="memory.capture")
        world.verify(token=None)
        counted()
        response = home(http)
        figures = response.context["figures"]
        assert (figures.calls, figures.denied, figures.ungoverned) == (7, 2, 0)
        assert "ungoverned" not in response.content.decode()
        assert [(row.label, row.calls, row.denied) for row in figures.clients] == [
            ("Claude", 6, 1), ("No registered client", 1, 1),
        ]  # fmt: skip
        assert {(row.label, row.calls) for row in figures.reasons} == {("Not granted", 1), ("No token", 1)}
        assert sum(bucket.calls for bucket in figures.chart.buckets) == 7 and len(figures.chart.buckets) == 48

    def test_each_number_leads_to_a_search_that_finds_as_many(self, world: World, http: HttpClient) -> None:
        for _ in range(3):
            world.verify()
        world.verify(tool="memory.capture")
        world.verify(token=None)
        counted()
        figures = home(http).context["figures"]
        pairs = [(figures.url, figures.calls), (figures.denied_url, figures.denied)]
        pairs += [(row.url, row.calls) for row in (*figures.clients, *figures.reasons) if row.url]
        pairs += [(row.denied_url, row.denied) for row in figures.clients if row.denied_url]
        assert len(pairs) == 8
        for url, number in pairs:
            response = http.get(url)
            assert response.status_code == 200 and len(response.context["rows"]) == number > 0, url

    def test_ungoverned_calls_are_told_beside_the_calls_and_lead_to_their_records(
        self, world: World, http: HttpClient
    ) -> None:
        let_through: dict[str, Any] = {"type": "ungoverned", "decision": None, "reason": None, "client": None}
        history(timedelta(days=3), **let_through)
        for minutes in (6, 5):
            history(timedelta(minutes=minutes), **let_through)
        world.verify()
        counted()
        response = home(http)
        figures = response.context["figures"]
        assert (figures.calls, figures.ungoverned) == (1, 2)
        assert "2 ungoverned calls</a>: let through by backends" in response.content.decode()
        assert len(http.get(figures.ungoverned_url).context["rows"]) == 2

    def test_what_is_older_is_not_in_the_window_but_in_what_is_usual(self, world: World, http: HttpClient) -> None:
        history(timedelta(days=10), decision="deny", reason="not_granted")
        for days in (9, 8, 7):
            history(timedelta(days=days))
        history(timedelta(minutes=5))
        counted()
        figures = home(http).context["figures"]
        assert (figures.calls, figures.denied, figures.usual) == (1, 0, 25.0)
        month = home(http, "?window=30d").context["figures"]
        assert (month.calls, month.denied, month.usual) == (5, 1, None)
        assert len(month.chart.buckets) == 30

    def test_a_window_that_there_is_not_is_the_usual_one(self, world: World, http: HttpClient) -> None:
        world.verify()
        counted()
        for query in ("?window=%00", "?window=1000d", "?window="):
            assert home(http, query).context["chosen"] == "48h"

    def test_what_is_not_counted_yet_is_said(self, world: World, http: HttpClient) -> None:
        history(timedelta(hours=3))
        while rollups.count():
            pass
        history(timedelta(minutes=5))
        history(timedelta(seconds=1))
        assert "Counted up to" in home(http).content.decode()
        while rollups.count():
            pass
        assert "Counted up to" not in home(http).content.decode()

    def test_other_clients_are_summed_up(self, world: World, http: HttpClient) -> None:
        now = timezone.now() - timedelta(minutes=30)
        fill([{"client": f"c{n}", "at": now + timedelta(seconds=n)} for n in range(9)])
        counted()
        rows = home(http).context["figures"].clients
        assert [row.calls for row in rows] == [1, 1, 1, 1, 1, 1, 3] and rows[-1].label == "3 other clients"


class TestDenialsThatAGrantWouldSolve:
    def test_they_come_most_frequent_first_with_a_link_that_makes_the_grant(
        self, world: World, http: HttpClient
    ) -> None:
        for _ in range(2):
            world.verify(tool="memory.capture")
        counted()
        response = home(http)
        [one] = response.context["solvable"]
        assert (one.client, one.tool, one.calls, one.scopes) == ("Claude", "memory.capture", 2, ("memory:write",))
        assert one.grant == "/admin/clients/grant/add/?client=claude&scope=memory%3Awrite"
        assert "Claude wanted to use <strong>memory.capture</strong>; it is not granted memory:write" in (
            response.content.decode()
        )

    def test_what_was_granted_since_is_gone(self, world: World, http: HttpClient) -> None:
        world.verify(tool="memory.capture")
        counted()
        assert home(http).context["solvable"]
        Grant.objects.create(client=world.client, reason="pilot").scopes.set(
            world.backend.tools.get(name="memory.capture").scopes.all()
        )
        assert home(http).context["solvable"] == []

    def test_what_is_blocked_suspended_or_unknown_is_not_solved_by_a_grant(
        self, world: World, http: HttpClient
    ) -> None:
        world.verify(tool="memory.capture")
        history(timedelta(hours=1), **REFUSED | {"tool": "memory.gone"})
        history(timedelta(minutes=50), **REFUSED | {"client": "gone"})
        history(timedelta(minutes=40), **REFUSED | {"backend": "gone"})
        counted()
        assert len(home(http).context["solvable"]) == 1
        block = Grant.objects.create(effect="deny", reason="incident")
        assert home(http).context["solvable"] == []
        block.delete()
        world.backend.tools.filter(name="memory.capture").update(status="suspended")
        assert home(http).context["solvable"] == []

    def test_old_denials_do_not_count(self, world: World, http: HttpClient) -> None:
        history(timedelta(days=9), **REFUSED)
        history(timedelta(minutes=1))
        counted()
        assert home(http).context["solvable"] == []

    def test_a_tenant_is_suggested_where_it_is_only_one(self, world: World, http: HttpClient) -> None:
        history(timedelta(hours=2), **REFUSED | {"tenant": "acme"})
        rollups.count()
        [one] = home(http).context["solvable"]
        assert one.tenant == "acme" and "tenant=acme" in one.grant
        history(timedelta(hours=1), **REFUSED | {"tenant": "other"})
        rollups.count()
        [one] = home(http).context["solvable"]
        assert (one.tenant, one.tenants, one.calls) == (None, 2, 2) and "tenant" not in one.grant

    def test_who_may_not_grant_asks_for_it(self, world: World) -> None:
        world.verify(tool="memory.capture")
        counted()
        response = home(member("noor", "audit.view_record", "clients.view_grant"))
        [one] = response.context["solvable"]
        assert one.grant == "/admin/access/ask/?client=claude&scope=memory%3Awrite"
        assert "Grant…" not in response.content.decode()


class TestWhatIsNew:
    def test_clients_and_tools_that_were_never_called_before(self, world: World, http: HttpClient) -> None:
        for slug in ("old", "older"):
            Client.objects.create(slug=slug, name=slug)
        history(timedelta(days=140), tool="memory.recall", client="old")
        history(timedelta(days=12), tool="memory.recall", client="older")
        history(timedelta(hours=3), tool="memory.recall", client="claude")
        history(timedelta(hours=2), tool="memory.capture", client="old")
        history(timedelta(minutes=90), tool="not.registered", client="not-registered")
        history(timedelta(hours=1), tool="memory.recall", client="older")
        counted()
        found = {(one.kind, one.name, one.label) for one in home(http).context["newcomers"]}
        assert found == {("client", "claude", "Claude"), ("tool", "inner/memory.capture", "memory.capture")}


class TestWhatWaits:
    def test_grants_that_end_within_14_days_can_be_extended(self, world: World, http: HttpClient) -> None:
        now = timezone.now()
        Grant.objects.update(expires_at=now + timedelta(days=13))
        Grant.objects.create(client=world.client, reason="later", expires_at=now + timedelta(days=15))
        Grant.objects.create(client=world.client, reason="over", expires_at=now - timedelta(days=1))
        Grant.objects.create(
            client=world.client, reason="ended", expires_at=now + timedelta(days=1), revoked_at=timezone.now()
        )
        [one] = home(http).context["ending"]
        assert one.sentence == "Claude may use memory:read for everyone"
        assert one.extend == f"/admin/clients/grant/{world.grant.pk}/act/extend/"
        assert http.get(one.extend).status_code == 200
        noor = member("noor", "clients.view_grant")
        [one] = home(noor).context["ending"]
        assert one.button == "Ask…" and noor.get(one.extend).status_code == 200
        assert noor.get(f"/admin/clients/grant/{world.grant.pk}/act/extend/").status_code == 403

    def test_the_inbox_waits_for_those_who_see_it(self, world: World, http: HttpClient) -> None:
        world.verify(token=token(client="cursor"))
        seen()
        waits = [one.what for one in home(http).context["waits"]]
        assert len(waits) == 1 and "cursor" in waits[0]
        assert home(member("noor", "clients.view_grant")).context["waits"] == []


class TestWhoSeesWhat:
    def test_no_figure_of_calls_without_the_right_to_read_records(self, world: World) -> None:
        world.verify(tool="memory.capture")
        counted()
        response = home(member("noor", "clients.view_grant", "clients.add_grant"))
        for part in ("figures", "solvable", "newcomers", "head"):
            assert part not in response.context, part
        assert not re.search(r"\bcalls?\b in 48 hours", response.content.decode())

    def test_who_has_no_role_is_told_whom_to_ask(self, world: World, http: HttpClient) -> None:
        text = home(member("noor")).content.decode()
        assert "You have no role yet" in text and "<strong>Mara</strong>" in text
        assert "Waiting for you" not in text
        assert "You have no role yet" not in home(http).content.decode()

    def test_before_the_first_call_it_says_how_to_begin(self, world: World, http: HttpClient) -> None:
        Grant.objects.all().delete()
        found = {step.words: (step.done, step.url) for step in home(http).context["start"]}
        assert found["Add the issuer that your users sign in to"][0] is True
        assert found["Grant the client the scopes that the tools need"] == (False, "/admin/clients/grant/add/")
        reader = home(member("noor", "audit.view_record")).context["start"]
        assert len(reader) == len(found) and {step.url for step in reader} == {None}
        world.verify()
        counted()
        assert "start" not in home(http).context and "how to begin" not in home(http).content.decode()


def test_home_asks_as_many_questions_for_much_as_for_little(world: World, http: HttpClient) -> None:
    world.verify(tool="memory.capture")
    counted()
    few = queries(http)
    now = timezone.now() - timedelta(hours=20)
    fill(
        [
            {"client": f"c{n % 9}", "tool": f"t{n % 13}", "tenant": f"x{n % 5}", "at": now + timedelta(minutes=n)}
            | ({"decision": "deny", "reason": "not_granted"} if n % 3 else {})
            for n in range(400)
        ]
    )
    for number in range(12):
        Grant.objects.create(
            client=world.client, reason="pilot", expires_at=timezone.now() + timedelta(days=number + 1)
        )
    counted()
    many = queries(http)
    assert few <= many <= QUERIES


def queries(http: HttpClient) -> int:
    snapshot.snapshots.at_head()
    home(http)  # what is asked once only
    with CaptureQueriesContext(
        connection,
    ) as asked:
        home(http)
    return len(asked)
