"""Two weeks of calls, made through the real verification and the real recorder, whose clock is set to when each
call would have been. The tokens are made now, since a token is judged by the time it is."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from audit import inbox
from audit.models import Head
from governance import demo_issuer, demo_questions, outcomes, process, verification
from governance.contract import Agent, Call, Outcome, RequestInfo, Resource, Touched
from governance.demo_issuer import mint
from tools import credentials
from tools.credentials import Credential

DAYS = 14
CALLS_A_DAY = (16, 30)
DRAIN_SECONDS = 10.0
QUESTIONS_BEFORE = timedelta(hours=30)  # the end of the history
READ, BOTH = "memory:read", "memory:read memory:write"
AGENTS = {
    "chatgpt": "ChatGPT-User/1.0",
    "claude": "Claude-User/1.0 (MCP)",
    "inner-ios": "Inner/2.4 (iPhone; iOS 18.5)",
}
RECALL, CAPTURE = "memory.recall", "memory.capture"


@dataclass(frozen=True, slots=True)
class Scene:
    """One kind of call, how often it comes among all, and how its token is made; `intent` is the reason that it
    is to end with."""

    weight: int
    intent: str
    tool: str
    client: str
    token: Callable[[str], str | None]
    agent: Agent = field(default_factory=Agent)


def fresh(client: str, scope: str, **claims: Any) -> Callable[[str], str | None]:
    """Tokens of this client with these scopes; `claims` replace what is usual."""
    return lambda user: mint(user, client, scope, **claims)


def forged(user: str) -> str:
    """A token that the issuer has not signed, though it says so."""
    headers = {"kid": demo_issuer.key_set()["keys"][0]["kid"], "typ": "at+jwt"}
    claims = jwt.decode(mint(user, "claude", READ), options={"verify_signature": False})
    return jwt.encode(claims, _strangers_key, algorithm="RS256", headers=headers)


_strangers_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EXPIRED = {"iat": int(time.time()) - 7200, "exp": int(time.time()) - 3600}
NIGHTLY = Agent(mode="background", chain=["nightly digest"])
RESEARCH = Agent(mode="subagent", chain=["planner", "reader"], scopes=[READ])
SCENES = (
    Scene(70, "granted", RECALL, "claude", fresh("claude", READ)),
    Scene(24, "granted", RECALL, "claude", fresh("claude", READ), RESEARCH),
    Scene(44, "granted", RECALL, "chatgpt", fresh("chatgpt", BOTH)),
    Scene(20, "granted", CAPTURE, "chatgpt", fresh("chatgpt", BOTH)),  # flagged, by its grant
    Scene(34, "granted", RECALL, "inner-ios", fresh("inner-ios", BOTH)),
    Scene(46, "granted", CAPTURE, "inner-ios", fresh("inner-ios", BOTH)),
    Scene(14, "not_granted", CAPTURE, "claude", fresh("claude", BOTH)),
    Scene(9, "insufficient_scope", CAPTURE, "chatgpt", fresh("chatgpt", READ)),
    Scene(7, "grant_denied", CAPTURE, "inner-ios", fresh("inner-ios", BOTH), NIGHTLY),
    Scene(12, "token_expired", RECALL, "claude", fresh("claude", READ, **EXPIRED)),
    Scene(4, "token_invalid", RECALL, "claude", forged),
    Scene(3, "token_missing", RECALL, "chatgpt", lambda user: None),
    Scene(6, "client_unknown", RECALL, "cursor-dev", fresh("cursor-dev", READ)),
    Scene(5, "tool_unknown", "memory.export", "chatgpt", fresh("chatgpt", BOTH)),
    Scene(4, "audience_mismatch", RECALL, "claude", fresh("claude", READ, aud="https://files.example/mcp")),
)


class Clock:
    """The record clock: what it is set to."""

    def __init__(self, start: datetime) -> None:
        self.now = start

    def __call__(self) -> datetime:
        return self.now

    def wait(self, time: timedelta) -> None:
        """Move on."""
        self.now += time


def write_history(key: str) -> int:
    """Make the calls, with the backend key; returns how many. The log must be empty. Raises RuntimeError where a
    call does not end as it was meant to: then the demo's policy and this file no longer fit."""
    random = Random(2)  # noqa: S311 (a picture, the same each time)
    end = datetime.now(UTC)
    clock = Clock(end - timedelta(days=DAYS))
    credential = credentials.read(f"Bearer {key}")
    assert credential is not None
    process.start_recorder(clock)
    try:
        wait_for_policy_records()
        moments = list(times(random, clock.now + timedelta(hours=1), end))
        tokens: dict[tuple[int, str, int], str | None] = {}
        evening = end - QUESTIONS_BEFORE
        for number, at in enumerate(moments):
            if at > evening and (number == 0 or moments[number - 1] <= evening):
                clock.now = max(clock.now, evening - demo_questions.TAKES)
                demo_questions.write(credential, clock, clock.wait)
            clock.now = max(clock.now, at)
            one_call(random, credential, clock, tokens)
        inbox.flush()
    finally:
        process.stop_recorder()
    return len(moments)


def wait_for_policy_records() -> None:
    """The records of the demo's policy come first, as they must in any log."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while (head := Head.objects.get()).drained < head.policy:
        if time.monotonic() > deadline:
            raise RuntimeError("the records of the demo's policy were not written in time")
        time.sleep(0.02)


def times(random: Random, start: datetime, end: datetime) -> Iterator[datetime]:
    """When calls come: by day more than by night, and none in the last minute before the end."""
    for day in range(DAYS + 1):
        midnight = start.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=day)
        seconds = [random.triangular(0, 86400, 15 * 3600) for _ in range(random.randint(*CALLS_A_DAY))]
        for at in sorted(midnight + timedelta(seconds=s) for s in seconds):
            if start <= at < end - timedelta(minutes=1):
                yield at


def one_call(
    random: Random, credential: Credential, clock: Clock, tokens: dict[tuple[int, str, int], str | None]
) -> None:
    """One call as a backend would make it; and, after most that were allowed, what came of it."""
    number = random.choices(range(len(SCENES)), [scene.weight for scene in SCENES])[0]
    scene, user = SCENES[number], random.choice(demo_issuer.USERS)
    session = (number, user, clock.now.toordinal())
    if session not in tokens:
        tokens[session] = scene.token(user)
    [verdict] = verification.verify(credential, [call(random, scene, tokens[session])])
    if verdict.decision.reason != scene.intent:
        raise RuntimeError(f"a call meant to end {scene.intent} ended {verdict.decision.reason}")
    if verdict.decision.allowed and verdict.receipt and random.random() < 0.5:
        clock.now += timedelta(milliseconds=random.randint(40, 900))
        outcomes.append(credential, verdict.receipt.id, outcome(random, scene))


def call(random: Random, scene: Scene, token: str | None) -> Call:
    """What the backend would send; the addresses are of RFC 5737."""
    memory = f"m_{random.randrange(10**6):06d}"
    info = RequestInfo(
        id=f"req_{random.getrandbits(48):012x}",
        session_id=f"ses_{random.getrandbits(32):08x}",
        ip=f"203.0.113.{random.randint(2, 250)}",
        user_agent=AGENTS.get(scene.client, "cursor/0.9"),
    )
    resource = Resource(type="memory", id=memory) if scene.tool == CAPTURE else None
    return Call(token=token, tool=scene.tool, resource=resource, agent=scene.agent, request=info)


def outcome(random: Random, scene: Scene) -> Outcome:
    """What came of an allowed call: now and then an error."""
    if random.random() < 0.04:
        return Outcome(status="error", duration_ms=random.randint(1000, 5000))
    count = 1 if scene.tool == CAPTURE else random.randint(0, 5)
    touched = [Touched(type="memory", id=f"m_{random.randrange(10**6):06d}") for _ in range(count)]
    return Outcome(status="ok", resources=touched, count=count, duration_ms=random.randint(8, 220))
