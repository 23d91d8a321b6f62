"""A session is revoked while sixteen threads call two processes: no call that starts after the 202 is allowed."""

import http.client
import time
from typing import Any

import pytest

from audit.models import Head, Record, Subject
from tests.governance.test_signals import ALICE, URL, event, made
from tests.live import Load, Web, until, web
from tests.staff import statement
from tests.transmitter import Transmitter, running
from tests.world import World, build, token

USERS = [f"user{number}" for number in range(12)]


@pytest.fixture
def world(db: None) -> World:
    return build()


def push(server: Web, secret: str, jti: str, sub: str) -> tuple[int, float]:
    """Push an event about a user: the status, and when the answer was there (monotonic seconds)."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/secevent+jwt"}
    connection.request("POST", URL, event(jti, sub_id=ALICE | {"sub": sub}), headers)
    response = connection.getresponse()
    response.read()
    done = time.monotonic()
    connection.close()
    return response.status, done


def race(world: World, transmitter: Transmitter, users: list[str], again: int) -> None:
    """Revoke one user after the other under load; each event is sent `again` times, to whichever process takes it.
    Meanwhile the processes poll."""
    secret = made()
    made("polled", delivery="poll", poll_endpoint=transmitter.url)
    transmitter.held = {"polled": event("polled", sub_id=ALICE | {"sub": "polled"})}
    version = Head.objects.get().policy
    tokens: dict[str, Any] = {user: token(user) for user in users}
    revoked: dict[str, float] = {}
    many = {"MUNIMENT_FAILURES_BURST": "1000000"}  # all that is revoked fails, and none of it is to be turned away
    with web(servers=1, workers=2, **many) as servers, Load([s.port for s in servers], world.key, tokens) as callers:
        callers.wait_for(len(users) * 4)
        for user in users[:-1]:
            for _ in range(again):
                status, done = push(servers[0], secret, f"e-{user}", user)
                assert status == 202
                revoked.setdefault(user, done)
            callers.wait_for(20)
        callers.wait_for(len(users) * 4)
        until(lambda: transmitter.held == {}, 60)
    assert not callers.faults and not callers.lost and not callers.refused
    late = 0
    for answer in callers.answers:
        if answer.user in revoked and answer.started > revoked[answer.user]:
            assert answer.body["decision"] == "deny" and answer.body["reason"] == "token_expired", answer
            late += 1
    assert late > len(users), "the race was too slow to show anything"
    last = [answer.body["decision"] for answer in callers.answers if answer.user == users[-1]]
    assert set(last) == {"allow"}, "who was not revoked was refused"
    assert Subject.objects.exclude(signed_out_at=None).count() == len(revoked) + 1
    said = [statement(record) for record in Record.objects.filter(type="signal")]
    assert len(said) <= 2 * len(revoked) + 2, "an event was recorded twice"
    assert {answer.body["policy_version"] for answer in callers.answers} == {version}
    assert Head.objects.get().policy == version


@pytest.mark.timeout(120)
def test_no_call_that_starts_after_the_answer_is_allowed(world: World) -> None:
    with running() as transmitter:
        race(world, transmitter, USERS, 2)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_nor_of_hundreds_of_users(world: World) -> None:
    with running() as transmitter:
        race(world, transmitter, [f"user{number}" for number in range(300)], 3)


@pytest.mark.soak
@pytest.mark.timeout(180)
def test_a_process_that_is_killed_before_it_acknowledges_repeats_nothing(world: World) -> None:
    """kill -9 while the transmitter reads the acknowledgement: the process that follows is sent the event again."""
    with running() as transmitter, web(servers=1, workers=1) as [server]:
        transmitter.before_ack = server.kill_worker
        transmitter.held = {"e1": event("e1")}
        made("polled", delivery="poll", poll_endpoint=transmitter.url)
        until(lambda: transmitter.held == {}, 90)
        acknowledged = [asked for asked in transmitter.asked if asked.get("ack")]
        until(lambda: Record.objects.filter(type="signal").count() >= 2, 60)
    assert transmitter.before_ack is None and len(acknowledged) == 2, "nothing was killed"
    said = [statement(record) for record in Record.objects.filter(type="signal")]
    assert sorted(one["action"] for one in said) == ["signal.received", "subject.sign_out"]
