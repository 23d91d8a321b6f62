"""Grants go on and off while two web processes verify: whether a decision was fresh is judged from the log alone."""

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.cookiejar import CookieJar
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPCookieProcessor, HTTPRedirectHandler, build_opener

import psycopg
import pytest
from django.contrib.auth import get_user_model
from django.utils import timezone

from audit.models import Head
from audit.outbox import acting
from clients.models import Grant
from tests.audit import chain
from tests.governance.test_newcomer import Staff
from tests.granting import hidden_in
from tests.live import Answer, Load, until, web
from tests.world import World, build, token

USERS = [f"user{number}" for number in range(24)]
# What makes a grant hold for every call of its client, at any time.
UNLIMITED: dict[str, object] = {
    "effect": "allow", "subject_id": None, "role": None, "tenant": None, "tool_id": None, "modes": [],
    "starts_at": None, "expires_at": None, "revoked_at": None,
}  # fmt: skip
Switch = Callable[[bool], None]


@dataclass
class Toggle:
    """One change of the grant: when it was begun and when it had committed (monotonic seconds)."""

    switch: Switch
    on: bool
    begun: float
    done: float
    version: int


class Stay(HTTPRedirectHandler):
    """Does not go where an answer leads."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Pages(Staff):
    """The grant pages of a live web process, for a superuser who signs in there with a password."""

    def __init__(self, world: World, port: int) -> None:
        super().__init__(f"http://127.0.0.1:{port}")
        self.opener = build_opener(HTTPCookieProcessor(CookieJar()), Stay())
        self.world = world
        name, password = f"mara-{secrets.token_hex(4)}", secrets.token_urlsafe()
        self.actor = f"staff:{get_user_model().objects.create_superuser(name, '', password).pk}"
        self.send("/admin/login/?next=/admin/", username=name, password=password)

    def send(self, path: str, **fields: str) -> str:
        """Fill in the form at this path and send it; where it leads. By then the change has committed, so that the
        page there would only hide what is decided meanwhile."""
        try:
            page = self.post(path, **fields)
        except HTTPError as led:
            assert led.code == 302
            return str(led.headers["Location"])
        raise AssertionError(f"the form was not taken: {re.findall('(?s)errorlist.*?</ul>|errornote.*?</p>', page)}")

    def __call__(self, on: bool) -> None:
        """Revoke the grant, or make another: in the admin what is revoked stays so."""
        if not on:
            self.send(f"/admin/clients/grant/{self.world.grant.pk}/act/revoke/", reason="race")
            return
        client, scope = self.world.client.pk, self.world.grant.scopes.get().pk
        add = "/admin/clients/grant/add/"
        seen = self.post(add, client=str(client), scopes=str(scope), effect="allow", ends="never", reason="race")
        fields = {name: values[0] for name, values in hidden_in(seen).items()}
        led = self.send(add, **fields | {"step": "confirm"})
        made = re.fullmatch(r"/admin/clients/grant/(\d+)/change/", led)
        assert made and int(made[1]) != self.world.grant.pk
        self.world.grant = Grant.objects.get(pk=made[1])


@pytest.fixture
def world(db: None) -> World:
    """Its grant is the newest, which is the one that is switched."""
    return build()


@pytest.fixture
def switches(world: World, owner_url: str, superuser_url: str) -> Iterator[list[Switch]]:
    """The ways to switch the grant but for the pages: in a transaction of staff, and by psql as the owner, the
    serving role and the superuser."""
    urls = (owner_url, os.environ["DATABASE_URL"], superuser_url)
    connections = [psycopg.connect(url, autocommit=True) for url in urls]

    def as_staff(on: bool) -> None:
        with acting("staff:7", "Sam Staff", "race"):
            Grant.objects.filter(pk=world.grant.pk).update(revoked_at=None if on else timezone.now())

    def by_psql(connection: psycopg.Connection) -> Switch:
        value = "CASE WHEN %s THEN NULL ELSE now() END"
        return lambda on: connection.execute(  # type: ignore[return-value]
            f"UPDATE clients_grant SET revoked_at = {value} WHERE id = %s", [on, world.grant.pk]
        )

    yield [as_staff, *map(by_psql, connections)]
    for connection in connections:
        connection.close()


def load(world: World, servers: list) -> Load:
    """16 callers for 24 users, half of them at each of two web processes."""
    tokens = {user: token(sub=user) for user in USERS}
    return Load([server.port for server in servers], world.key, tokens, threads=16)


def toggle(switch: Switch, on: bool) -> Toggle:
    """Switch the grant. Nobody else changes the policy, so the head's version is the change's own."""
    begun = time.monotonic()
    switch(on)
    done = time.monotonic()
    return Toggle(switch, on, begun, done, Head.objects.get().policy)


def drained(_: World) -> None:
    """Wait until the log has every policy version."""
    until(lambda: (head := Head.objects.get()).drained == head.policy, 60)


def race(world: World, switches: list[Switch], times: int, pause: float) -> None:
    """Switch the grant under load, each fifth time in the admin of one of the web processes, then judge."""
    with web(servers=2, workers=1) as servers:
        pages = Pages(world, servers[0].port)
        ways: list[Switch] = [pages, *switches]
        assert len(ways) % 2 == 1, "each way is to switch on and off"
        with load(world, servers) as callers:
            callers.wait_for(50)
            toggles = []
            for turn in range(times):
                toggles.append(toggle(ways[turn % len(ways)], on=turn % 2 == 1))
                time.sleep(pause)
                if turn == times - 2:  # off for the last time: where calls are slow, few fit into the times before
                    until(lambda: len(callers.since(toggles[-1].done)) > 20, 60)
            callers.wait_for(20)
        drained(world)
    assert not callers.faults and not callers.lost
    assert len(callers.answers) > 5 * times / 10
    # Five refusals in a row are answered 503: rare, and never an answer.
    assert set(callers.refused) <= {503} and len(callers.refused) <= len(callers.answers) / 20
    log = chain.records(os.environ["DATABASE_URL"])
    judge(world, log, callers.answers, toggles)
    switched_in_the_admin(pages, log, toggles)


def allows(tables: chain.Tables, world: World) -> bool:
    """Whether any grant of the client, as the log has them, allows every call for memory:read."""
    read = [row["id"] for row in tables.get("tools_scope", {}).values() if row["name"] == "memory:read"]
    held = [row["grant_id"] for row in tables.get("clients_grant_scopes", {}).values() if row["scope_id"] in read]
    on = UNLIMITED | {"client_id": world.client.pk}
    grants = tables.get("clients_grant", {}).values()
    return any(row["id"] in held and all(row[name] == on[name] for name in on) for row in grants)


def switched_in_the_admin(pages: Pages, log: list[chain.Logged], toggles: list[Toggle]) -> None:
    """What was done on the pages is in the log as the superuser's, on and off, and nothing else is."""
    policy = [record for record in log if record.columns["type"] == "policy"]
    theirs = {record.version for record in policy if record.said["actor"] == pages.actor}
    assert theirs == {change.version for change in toggles if change.switch is pages}
    assert len(theirs) * 5 >= len(toggles)
    assert {change.on for change in toggles if change.switch is pages} == {False, True}


def judge(world: World, log: list[chain.Logged], answers: list[Answer], toggles: list[Toggle]) -> None:
    """What was answered and recorded, against what the policy records say of the client's grants."""
    history = chain.replay(log)
    assert chain.findings(os.environ["DATABASE_URL"]) == []
    assert max(history) == Head.objects.get().policy
    on = {version: allows(tables, world) for version, tables in history.items()}
    assert all(on[change.version] == change.on for change in toggles), "a switch did not do what it says"
    digests = {version: chain.digest(tables) for version, tables in history.items()}
    made = chain.decisions(log)
    assert {record.columns["decision"] for record in made} == {"allow", "deny"}
    for record in made:
        assert (record.columns["decision"] == "allow") == on[record.version], record.said
        assert record.said["policy"]["digest"] == digests[record.version]
    versions = [record.version for record in made]
    assert versions == sorted(versions), "a policy version fell while the index rose"
    recorded_as_answered({str(record.id): record for record in made}, answers)
    never_late(answers, toggles)


def recorded_as_answered(made: dict[str, chain.Logged], answers: list[Answer]) -> None:
    """Every answer is in the log, with what it said."""
    assert len({answer.body["record"] for answer in answers}) == len(answers)
    for answer in answers:
        record = made[answer.body["record"]]
        assert answer.body["decision"] == record.columns["decision"]
        assert answer.body["receipt"]["index"] == record.index
        assert answer.body["policy_version"] == record.version
        assert answer.body["subject"]["uid"] == record.columns["subject"]
        assert answer.body["subject"]["sub"] == answer.user


def never_late(answers: list[Answer], toggles: list[Toggle]) -> None:
    """By the clock: a call that starts after a change has committed is decided under that version or a later
    one; while the grant is off, none is allowed."""
    offs = 0
    for turn, change in enumerate(toggles):
        until_then = toggles[turn + 1].begun if turn + 1 < len(toggles) else float("inf")
        for answer in answers:
            if change.done < answer.started < until_then:
                assert answer.body["policy_version"] >= change.version
                if not change.on and answer.ended < until_then:
                    assert answer.body["decision"] == "deny"
                    offs += 1
    assert offs > 20, "the race was too slow to show anything"


@pytest.mark.timeout(180)
def test_no_allow_under_a_version_at_which_the_grant_was_off(world: World, switches: list) -> None:
    race(world, switches, times=40, pause=0.03)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_no_stale_allow_for_minutes(world: World, switches: list) -> None:
    race(world, switches, times=200, pause=1.0)
    race(world, switches, times=2000, pause=0.02)


def test_an_open_policy_transaction_blocks_nobody(world: World, owner_url: str) -> None:
    with web(servers=2, workers=1) as servers, load(world, servers) as callers:
        callers.wait_for(50)
        with psycopg.connect(owner_url) as staff:
            staff.execute("UPDATE clients_grant SET revoked_at = now() WHERE id = %s", [world.grant.pk])
            opened = time.monotonic()
            # Whoever waited for it would wait until it has committed, and it does not until all were answered.
            until(lambda: {answer.user for answer in callers.since(opened)} == set(USERS), 60)
            callers.wait_for(50)
            held = callers.since(opened)
            staff.commit()
        committed = time.monotonic()
        callers.wait_for(50)
    assert len(held) > 50
    assert {answer.body["decision"] for answer in held} == {"allow"}
    assert {answer.body["decision"] for answer in callers.since(committed)} == {"deny"}
    assert not callers.refused and not callers.lost and not callers.faults
