"""One verify call, from the token to the answer: identity -> decision -> recording (DESIGN.md sections 4 and 5).

The policy may move on between deciding and recording; then the recorder refuses, and the call is decided again
from the newer policy. Nothing is answered that is not recorded.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from audit import inbox, subjects
from audit.entries import Entry, Receipt, entry
from audit.protection import KeyDestroyed, token_digest
from audit.recording import Stale, SubjectChanged, Unavailable
from clients import introspected, keysets
from clients.dpop import Proof
from clients.replays import request_name
from clients.tokens import AskIssuer, Identity, Refused, UnknownKey, identify
from governance import possession
from governance.contract import Call
from governance.decision import Decision, Question, SubjectState, decide, refuse
from governance.limiting import Purse
from governance.possession import Hint, Proofs
from governance.process import recorder
from governance.snapshot import BackendPolicy, Snapshot, snapshots
from tools import credentials
from tools.credentials import Credential

ATTEMPTS = 6  # one decision, and five refusals of it
MOST_SCOPES, MOST_GRANTS, MOST_LIMITS = 100, 500, 100  # in a statement
State = tuple[bool, datetime | None, bool]
UNTOUCHED: State = (False, None, False)


class PolicyMoved(Exception):
    """A newer policy was loaded while a call was being decided: decide again from it, from the start."""


class NotAuthenticated(Exception):
    """The backend key is missing, unknown, wrong, expired or revoked."""


@dataclass(slots=True)
class Verdict:
    """A decided call: what the statement and the answer are made from."""

    call: Call
    snapshot: Snapshot
    backend: BackendPolicy
    decision: Decision
    digest: bytes | None
    identity: Identity | None = None
    uid: str | None = None
    state: State = UNTOUCHED
    receipt: Receipt | None = None
    # Of a token that is bound to a key: its proof, to be used before anything is recorded, and what the answer says.
    proof: Proof | None = None
    hint: Hint | None = None

    def holds(self) -> bool:
        """Whether the database agrees, now, with what was assumed of policy and subject; for an answer that is
        given again without being recorded again."""
        if self.uid is None or subjects.state(self.uid) != self.state:
            return False
        return snapshots.at_head().version == self.snapshot.version


def authenticate(credential: Credential | None, look: bool = True) -> tuple[Snapshot, BackendPolicy]:
    """The backend that calls. A key that this process would refuse may be new, or good again: then, once, the
    database is asked for its policy version (unless `look` is off). Raises NotAuthenticated."""
    now = time.time()
    snapshot = snapshots.current()
    backend = snapshot.authenticate(credential, now)
    if backend is None and credential is not None and look:
        snapshot = snapshots.at_head()
        backend = snapshot.authenticate(credential, now)
    if backend is None or credential is None:
        raise NotAuthenticated
    credentials.touch(credential.key_id)
    return snapshot, backend


def verify(
    credential: Credential | None, calls: Sequence[Call], fits: Callable[[BackendPolicy], bool] | None = None,
    requests: Sequence[str] = (),
) -> list[Verdict]:  # fmt: skip
    """Decide and record calls of one backend; the verdicts in the calls' order. One without a receipt could not be
    recorded, and must not be answered. `fits` says whether the calls are still those that a policy asks for; `requests`
    names, for each call, the request that it is part of (else each is one of its own), which may use one proof.

    Raises NotAuthenticated, QueueFull or Unavailable, and PolicyMoved where they do not fit any more; then nothing may
    be answered."""
    found: list[Verdict | None] = [None] * len(calls)
    purse, proofs = Purse(), Proofs(requests or [request_name() for _ in calls])
    try:
        with introspected.patience():
            return _verified(credential, calls, fits, proofs, purse, found)
    finally:
        purse.close([place for place, verdict in enumerate(found) if verdict is None or verdict.receipt is None])


def _verified(
    credential: Credential | None, calls: Sequence[Call], fits: Callable[[BackendPolicy], bool] | None, proofs: Proofs,
    purse: Purse, verdicts: list[Verdict | None],
) -> list[Verdict]:  # fmt: skip
    """`verify`, with the proofs that the calls use, what they pay, and the verdicts as they are settled."""
    states = [UNTOUCHED] * len(calls)
    waiting = list(range(len(calls)))
    for _ in range(ATTEMPTS):
        snapshot, backend = authenticate(credential)
        if fits is not None and not fits(backend):
            raise PolicyMoved
        try:
            judged = {place: judge(snapshot, backend, calls[place], states[place]) for place in waiting}
            proofs.settle(judged)  # before limits: who is not established pays nothing
            purse.settle(judged)
            made = [prepared(place, verdict, proofs, purse) for place, verdict in judged.items()]
        except PolicyMoved:
            continue
        results = recorder().record([entry for _, entry in made])
        asked, waiting = waiting, []
        for position, (verdict, _), result in zip(asked, made, results, strict=True):
            match result:
                case Receipt():
                    verdict.receipt = result
                    verdicts[position] = verdict
                case SubjectChanged():
                    states[position] = subject_changed(verdict, result.state)
                    waiting.append(position)
                case Stale():
                    waiting.append(position)
                case _:  # it fails alone: without a receipt there is no answer for it
                    verdicts[position] = verdict
        if not waiting:
            return [verdict for verdict in verdicts if verdict is not None]
        snapshots.at_head()
    raise Unavailable("the policy kept changing")


def prepared(place: int, verdict: Verdict, proofs: Proofs, purse: Purse) -> tuple[Verdict, Entry]:
    """A decided call, by its place among those that are decided together, and its record to be."""
    try:
        return verdict, to_entry(verdict)
    except KeyDestroyed:  # the user was erased a moment ago, and is met as a new one
        subjects.forget(verdict.uid or "")
        verdict = judge(verdict.snapshot, verdict.backend, verdict.call)
        proofs.settle({place: verdict})
        purse.settle({place: verdict})
        return verdict, to_entry(verdict)


def subject_changed(verdict: Verdict, state: State) -> State:
    """What to assume of the subject when the call is decided again; an erased one is met as a new user."""
    gone = state[2]
    if gone and verdict.uid:
        subjects.forget(verdict.uid)
    return UNTOUCHED if gone else state


def judge(snapshot: Snapshot, backend: BackendPolicy, call: Call, state: State = UNTOUCHED) -> Verdict:
    """Decide one call under one policy. Never raises for anything that a token or a call may hold."""
    now = time.time()
    digest = None if call.token is None else token_digest(call.token)
    try:
        identity = establish(snapshot, backend, call, digest, now)
        proof, hint = possession.look(call, identity, backend, now)
    except Refused as refusal:
        return unestablished(call, snapshot, backend, digest, refusal)
    uid = subjects.resolve(identity.issuer, identity.sub, identity.email, identity.tenant)
    question = Question(
        backend_id=backend.id,
        tool=call.tool,
        issuer=identity.issuer,
        client_id=identity.client_id,
        subject=uid,
        tenant=identity.tenant,
        roles=frozenset(identity.roles),
        token_scopes=identity.scopes,
        issued_at=identity.issued_at,
        asked_tenant=call.tenant,
        mode=call.agent.mode,
        agent_scopes=None if call.agent.scopes is None else tuple(call.agent.scopes),
    )
    subject = SubjectState.of(state)
    decision = decide(snapshot.policy, question, subject, now)
    return Verdict(call, snapshot, backend, decision, digest, identity, uid, state, proof=proof, hint=hint)


def unestablished(
    call: Call, snapshot: Snapshot, backend: BackendPolicy, digest: bytes | None, refusal: Refused
) -> Verdict:  # fmt: skip
    """The verdict on a caller who could not be established (rows 1 to 8)."""
    hint = refusal.hint if isinstance(refusal, possession.Unproved) else None
    return Verdict(call, snapshot, backend, refuse(refusal.reason, refusal.detail), digest, hint=hint)


def establish(snapshot: Snapshot, backend: BackendPolicy, call: Call, digest: bytes | None, now: float) -> Identity:
    """Whose token it is (rows 1 to 7, and what it is bound to). One that this snapshot has verified is looked up by its
    digest; a key that the snapshot does not have may be fetched. Raises Refused, or PolicyMoved when a fetch brought
    other keys."""
    key = (backend.id, digest or b"")
    identity = snapshot.tokens.get(key)
    if identity is None or now >= (identity.good_until or identity.expires_at):
        try:
            identity = identified(snapshot, backend, call.token, digest, now)
        except UnknownKey as unknown:
            fetch_keys(snapshot, unknown)
            raise
    issuer = backend.issuers[identity.issuer]
    # Who was asked has answered just now; its keys have a part in that only where they sign the answers.
    by_keys = identity.good_until is None or (issuer.introspection is not None and issuer.introspection.signed)
    if by_keys and not snapshots.keys_are_fresh(snapshot, issuer.id, now):
        raise Refused("issuer_unavailable", "The keys that we have of it are too old.")
    snapshot.remember(key, identity)
    return identity


def identified(
    snapshot: Snapshot, backend: BackendPolicy, token: str | None, digest: bytes | None, now: float
) -> Identity:  # fmt: skip
    """Who a token speaks of that this snapshot has not seen, or not lately: by its signature, else by asking its issuer
    (RFC 7662). Raises Refused."""
    try:
        return identify(token, backend.issuers, backend.audiences, now)
    except AskIssuer as ask:
        return introspected.identify(
            token or "", digest or b"", ask.issuer, backend.audiences, now, snapshot.version
        )  # fmt: skip


def fetch_keys(snapshot: Snapshot, unknown: UnknownKey) -> None:
    """Fetch the issuer's keys, if it is time to, because they may have changed: raises PolicyMoved when they have.
    While they cannot be had, or are being fetched, it can't be told whether the key exists: an outage, which is
    raised as one. A fetch that is under way is not waited for."""
    outcome = keysets.claim_and_refresh(unknown.issuer_id)
    if snapshots.at_head().version != snapshot.version:
        raise PolicyMoved
    if outcome == "busy":
        raise Refused("issuer_unavailable", "Its keys are being fetched.")
    if outcome == "failed" or (outcome == "too_soon" and keysets.last_attempt_failed(unknown.issuer_id)):
        raise Refused("issuer_unavailable", "Its newest keys could not be fetched.")


def to_entry(verdict: Verdict) -> Entry:
    """The record of a decision: its statement, and what of it is private (DESIGN.md section 6)."""
    if verdict.decision.reason in ("client_unknown", "tool_unknown"):
        note_unknown(verdict)
    holder, bound = bound_of(verdict)
    return entry(statement(verdict), private(verdict), holder, **bound)


def bound_of(verdict: Verdict) -> tuple[str, dict[str, Any]]:
    """Under whose key the private members fall, and what the recording transaction is to check."""
    # Callers that could not be established fall under a key of the backend's day, with a retention of its own.
    holder = verdict.uid or f"backend:{verdict.backend.slug}:{datetime.now(UTC):%Y-%m-%d}"
    bound: dict[str, Any] = {"version": verdict.snapshot.version, "established": verdict.uid is not None}
    if verdict.uid:
        bound |= {"subject": verdict.uid, "subject_state": verdict.state}
    return holder, bound


def statement(verdict: Verdict) -> dict[str, Any]:
    """What is hashed: nothing in it names a person, or is free for a caller to fill."""
    call, decision, identity, tool = verdict.call, verdict.decision, verdict.identity, verdict.decision.tool
    return {
        "type": "decision",
        "backend": verdict.backend.slug,
        "client": decision.client.slug if decision.client else None,
        "client_id": identity.client_id if identity else None,
        "issuer": identity.issuer if identity else None,
        "subject": verdict.uid,
        "tenant": identity.tenant if identity else None,
        "tool": call.tool,
        "decision": "allow" if decision.allowed else "deny",
        "reason": decision.reason,
        "policy": {"version": verdict.snapshot.version, "digest": verdict.snapshot.digest},
        "required": list(decision.required),
        "token_scopes": list(decision.token_scopes),
        "effective": within(decision.effective, decision.required),
        "grants": list(decision.grants[:MOST_GRANTS]),
        "roles": list(identity.roles) if identity else [],
        "agent": {
            "mode": call.agent.mode,
            "chain": [*call.agent.chain, *(reversed(identity.actors) if identity else ())],
            "scopes": call.agent.scopes,
        },
        "access": tool.access if tool else None,
        "sensitive": tool.sensitive if tool else False,
        "flagged": decision.flagged,
        "token": verdict.digest.hex() if verdict.digest else None,
        "parent": None,
    } | more(verdict)


def more(verdict: Verdict) -> dict[str, Any]:
    """The members that only some statements have: the limits that refused a call, and of a token that was bound, and so
    came with its proof, to what (`key`, `certificate`); never to which."""
    bound, limits = verdict.identity and verdict.identity.bound, verdict.decision.limits[:MOST_LIMITS]
    return ({"limits": list(limits)} if limits else {}) | ({"bound": list(bound.ways)} if bound else {})


def within(effective: tuple[str, ...], required: tuple[str, ...]) -> list[str]:
    """The effective scopes; of very many, which implications can make, those that the tool needs: a statement has
    a bound. The answer names them all."""
    if len(effective) <= MOST_SCOPES:
        return list(effective)
    return [scope for scope in effective if scope in required]


def private(verdict: Verdict) -> dict[str, Any]:
    """What becomes protected disclosures; None is left out."""
    call, identity, info = verdict.call, verdict.identity, verdict.call.request
    return {
        "sub": identity.sub if identity else None,
        "email": identity.email if identity else None,
        "request_id": info.id,
        "trace_id": info.trace_id,
        "session_id": info.session_id,
        "ip": info.ip,
        "user_agent": info.user_agent or None,
        "resource": {"type": call.resource.type, "id": call.resource.id} if call.resource else None,
        "arguments_digest": call.arguments_digest,
        "asked_tenant": call.tenant,
    }


def note_unknown(verdict: Verdict) -> None:
    """Let the unknown client or tool land in the inbox."""
    identity = verdict.identity
    if identity is None:
        return
    if verdict.decision.reason == "tool_unknown":
        inbox.note("tool", verdict.backend.slug, verdict.call.tool)
    elif identity.client_id is not None:
        inbox.note("client", identity.issuer, identity.client_id)
