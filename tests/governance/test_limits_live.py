"""Limits across web processes: agents of one user that fan out over four of them get no more than the limit together,
every denial is on record, and another user is not affected."""

import time
from collections import Counter

import pytest

from audit.models import Record
from clients.models import Limit
from tests.live import Load, until, web
from tests.world import build, token

AGENTS, CALLS, MOST, PERIOD = 5, 20, 60, 60.0


class Agent(Load):
    """One agent of a user: so many calls, one after the other, over a connection of its own."""

    def _work(self, number: int) -> None:
        self.left = CALLS
        super()._work(number)

    def _call(self, connection: object, user: str, request: str) -> None:
        super()._call(connection, user, request)  # type: ignore[arg-type]
        self.left -= 1
        if not self.left:
            self.stopping.set()


@pytest.mark.usefixtures("db")
def test_five_agents_over_four_processes_share_the_limit_of_their_user() -> None:
    world = build()
    limit = Limit.objects.create(per="subject", count=MOST, period="minute", reason="test")
    with web(workers=4) as [server]:
        until(lambda: len(server.alive()) == 4, 30)
        users = ["alice"] * AGENTS + ["bob"]
        agents = [Agent([server.port], world.key, {user: token(user)}, threads=1) for user in users]
        begun = time.monotonic()
        for agent in agents:
            agent.__enter__()
        until(lambda: all(agent.stopping.is_set() or agent.faults for agent in agents), 120)
        took = time.monotonic() - begun
        for agent in agents:
            agent.__exit__()
    assert not any(agent.faults or agent.refused or agent.lost for agent in agents)
    said = Counter((answer.user, answer.body["reason"]) for agent in agents for answer in agent.answers)
    windows = 1 + int(took // PERIOD)  # a machine so slow that the minute was over
    assert said["alice", "granted"] <= MOST * windows and said["alice", "granted"] >= MOST
    assert said["alice", "granted"] + said["alice", "rate_limited"] == AGENTS * CALLS
    assert said["bob", "granted"] == CALLS, "another user has a budget of their own"
    recorded = Record.objects.filter(type="decision", decision="deny", reason="rate_limited")
    assert recorded.count() == said["alice", "rate_limited"] > 0
    assert {bytes(one.statement).count(b'"limits":[%d]' % limit.pk) for one in recorded} == {1}
    denied = [a.body for agent in agents for a in agent.answers if a.body["decision"] == "deny"]
    assert all(body["status"] == 429 and 1 <= body["retry_after"] <= PERIOD for body in denied)
