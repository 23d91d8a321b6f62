"""What the demo's history has beside calls: questions without a token, looks at tokens, and an outage during which the
backend let three calls through. Made by the same code as any other, as of an evening of the past."""

import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import msgspec

from governance import authzen_evaluation, authzen_search, demo_issuer, introspection, ungoverned
from governance.authzen_contract import Evaluation, ResourceSearch, SubjectSearch
from governance.authzen_evaluation import Asker
from governance.contract import Call, Report, SpoolLine
from governance.demo_issuer import mint
from muniment import statements
from tools.credentials import Credential

ALICE, BOB = ({"type": "user", "id": name} for name in demo_issuer.USERS)
RECALL, CAPTURE = ({"type": "tool", "id": name} for name in ("memory.recall", "memory.capture"))
CALL, CLAUDE = {"name": "tools/call"}, {"agent": demo_issuer.CLIENT_IDS["claude"]}
QUESTIONS: tuple[dict[str, Any], ...] = (
    {"subject": ALICE, "resource": RECALL}, {"subject": BOB, "resource": CAPTURE},
    {"subject": {"type": "user", "id": "carol"}, "resource": RECALL},
)  # fmt: skip
# Who called while the platform was away, and how many seconds before it was back.
RAN = (("alice", "claude", 170), ("bob", "chatgpt", 95), (None, "", 40))
PAUSE = timedelta(seconds=7)
OUTAGE = timedelta(minutes=4)
TAKES = OUTAGE + 8 * PAUSE  # all of it


def write(credential: Credential, now: Callable[[], datetime], wait: Callable[[timedelta], None]) -> None:
    """Ask, and report. `now` is the record clock, `wait` moves it on. Raises RuntimeError where something does not end
    as it is meant to."""
    asker = Asker(credential, "demo")
    for members in QUESTIONS:
        wait(PAUSE)
        authzen_evaluation.evaluate(asker, [_as(Evaluation, members | {"action": CALL, "context": CLAUDE})])
    wait(PAUSE)
    asked = {"action": CALL, "context": CLAUDE}
    authzen_search.search(asker, _as(SubjectSearch, asked | {"subject": {"type": "user"}, "resource": RECALL}))
    wait(PAUSE)
    authzen_search.search(asker, _as(ResourceSearch, asked | {"subject": ALICE, "resource": {"type": "tool"}}))
    for lifetime, active in ((demo_issuer.LIFETIME, True), (-3600, False)):
        wait(PAUSE)
        token = mint("alice", "claude", "memory:read", lifetime=lifetime)
        if introspection.recorded(credential, Call(token, "")).decision.allowed is not active:
            raise RuntimeError("a look at a token ended otherwise than it was meant to")
    wait(OUTAGE)
    _outage(credential, now)


def _as(kind: type[Any], members: dict[str, Any]) -> Any:
    return msgspec.convert(members, kind)


def _outage(credential: Credential, now: Callable[[], datetime]) -> None:
    """Three calls, as the spool of the SDK has them (`muniment.spool`, which no process of the platform uses)."""
    name, previous, entries = secrets.token_hex(16), ungoverned.NOTHING, []
    for sequence, (user, client, seconds) in enumerate(RAN, start=1):
        token = mint(user, client, "memory:read") if user else None
        members = {
            "spool": name, "sequence": sequence, "previous": previous, "tool": "memory.recall", "cause": "unreachable",
            "at": int((now() - timedelta(seconds=seconds)).timestamp() * 1_000_000), "request": {}, "agent": [],
            "token": sha256(token.encode()).hexdigest() if token else None,
            "claimed": {"iss": demo_issuer.issuer(), "sub": user, "client_id": demo_issuer.CLIENT_IDS[client]}
            if user else None,
        }  # fmt: skip
        line = statements.dump(members)
        entries.append(line.decode())
        previous = sha256(line).hexdigest()
    lines = [msgspec.json.decode(text, type=SpoolLine) for text in entries]
    if ungoverned.take(credential, Report(name, entries), lines) != len(RAN):
        raise RuntimeError("not every ungoverned call was taken")
