"""Grants go on and off while two web processes verify: whether a decision was fresh is judged from the log alone."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg
import pytest
from django.utils import timezone

from audit.models import Head
from audit.outbox import acting
from clients.models import Grant
from tests.audit import chain
from tests.live import Answer, Load, until, web
from tests.world import World, build, token

USERS = [f"user{number}" for number in range(24)]


@dataclass
class Toggle:
    """One change of the grant: when it was begun and when it had committed (monotonic seconds)."""

    on: bool
    begun: float
    done: float
    version: int


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def switches(world: World, owner_url: str, superuser_url: str) -> Iterator[list[Callable[[bool], None]]]:
    """The ways to switch the grant: as staff do, and by psql as the owner, the serving role and the superuser."""
    number = world.grant.pk
    urls = (owner_url, os.environ["DATABASE_URL"], superuser_url)
    connections = [psycopg.connect(url, autocommit=True) for url in urls]

    def as_staff(on: bool) -> None:
        with acting("staff:7", "Sam Staff", "race"):
            Grant.objects.filter(pk=number).update(revoked_at=None if on else timezone.now())

    def by_psql(connection: psycopg.Connection) -> Callable[[bool], None]:
        value = "CASE WHEN %s THEN NULL ELSE now() END"
        return lambda on: connection.execute(  # type: ignore[return-value]
            f"UPDATE clients_grant SET revoked_at = {value} WHERE id = %s", [on, number]
        )

    # An odd number of ways, so that each of them switches on and off.
    owner, serving, superuser = map(by_psql, connections)
    yield [as_staff, owner, as_staff, serving, superuser]
    for connection in connections:
        connection.close()


def load(world: World, servers: list) -> Load:
    """16 callers for 24 users, half of them at each of two web processes."""
    tokens = {user: token(sub=user) for user in USERS}
    return Load([server.port for server in servers], world.key, tokens, threads=16)


def toggle(switch: Callable[[bool], None], on: bool) -> Toggle:
    """Switch the grant. Nobody else changes the policy, so the head's version is the change's own."""
    begun = time.monotonic()
    switch(on)
    done = time.monotonic()
    return Toggle(on, begun, done, Head.objects.get().policy)


def drained(_: World) -> None:
    """Wait until the log has every policy version."""
    until(lambda: (head := Head.objects.get()).drained == head.policy, 15)


def race(world: World, switches: list[Callable[[bool], None]], times: int, pause: float) -> None:
    """Switch the grant under load, then judge."""
    with web(servers=2, workers=1) as servers:
        with load(world, servers) as callers:
            callers.wait_for(50)
            toggles = []
            for turn in range(times):
                toggles.append(toggle(switches[turn % len(switches)], on=turn % 2 == 1))
                time.sleep(pause)
            callers.wait_for(20)
        drained(world)
    assert not callers.faults and not callers.lost
    assert len(callers.answers) > 5 * times / 10
    # Five refusals in a row are answered 503: rare, and never an answer.
    assert set(callers.refused) <= {503} and len(callers.refused) <= len(callers.answers) / 20
    judge(world, callers.answers, toggles)


def judge(world: World, answers: list[Answer], toggles: list[Toggle]) -> None:
    """What was answered and recorded, against what the policy records say of the grant."""
    log = chain.records(os.environ["DATABASE_URL"])
    history = chain.replay(log)
    assert chain.findings(os.environ["DATABASE_URL"]) == []
    assert max(history) == Head.objects.get().policy
    grants = {version: tables.get("clients_grant", {}).get(world.grant.pk) for version, tables in history.items()}
    on = {version: grant is not None and grant["revoked_at"] is None for version, grant in grants.items()}
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
    race(world, switches, times=200, pause=0.03)


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
            time.sleep(3)
            held = callers.since(opened)
            staff.commit()
        committed = time.monotonic()
        callers.wait_for(50)
    assert len(held) > 100
    assert {answer.body["decision"] for answer in held} == {"allow"}
    assert max(answer.ended - answer.started for answer in held) < 1.0
    assert {answer.body["decision"] for answer in callers.since(committed)} == {"deny"}
    assert not callers.refused and not callers.lost and not callers.faults
