"""Questions without a token, from the question to the answer: mapping -> decision -> recording.

Decided by the same `decide()` as a call, from what the asking backend says of the user. Nothing of it is verified, so
its record is of the type `evaluation`, is `asserted`, and uses no room that is kept for verified calls. The policy may
move on between deciding and recording: then it is decided again, as in `governance.verification`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from audit import inbox, subjects
from audit.entries import Entry, Receipt, entry
from audit.protection import KeyDestroyed
from audit.recording import Stale, SubjectChanged, Unavailable
from governance import authzen_mapping as mapping
from governance.authzen_contract import AskedContext, AskedSubject, Evaluation, Semantic, SubjectProperties
from governance.authzen_mapping import ANY_CLIENT, TOOL, Who
from governance.decision import Decision, Policy, Question, SubjectState, decide, refuse
from governance.problems import Problem, overloaded
from governance.process import recorder
from governance.snapshot import BackendPolicy, Snapshot, snapshots
from governance.verification import ATTEMPTS, MOST_GRANTS, UNTOUCHED, State, authenticate, within
from tools.credentials import Credential

STOPS = {"execute_all": None, "deny_on_first_deny": False, "permit_on_first_permit": True}


@dataclass(frozen=True, slots=True)
class Asker:
    """What is known of who asks: the backend's key, and what came with the request."""

    credential: Credential
    request_id: str | None = None


@dataclass(slots=True)
class Verdict:
    """A decided question: what the statement and the answer are made from."""

    asked: Evaluation
    snapshot: Snapshot
    backend: BackendPolicy
    who: Who
    decision: Decision
    tools: list[str] = field(default_factory=list)
    state: State = UNTOUCHED
    receipt: Receipt | None = None


Found = Verdict | Problem


def evaluate(asker: Asker, items: Sequence[Evaluation | Problem], semantic: Semantic = "execute_all") -> list[Found]:
    """Decide and record questions in their order, as many as the semantic wants answered (section 7.1.2.1); a verdict
    that has its receipt for each, or a Problem in its place, which counts as a denial.

    Raises NotAuthenticated, QueueFull or Unavailable; then nothing may be answered."""
    settled: dict[int, Found] = {n: item for n, item in enumerate(items) if isinstance(item, Problem)}
    states: dict[int, State] = {}
    for _ in range(ATTEMPTS):
        snapshot, backend = authenticate(asker.credential)
        run, waiting = _decided(snapshot, backend, items, semantic, settled, states)
        made = [(position, *prepared(asker, run[position])) for position in waiting]
        results = recorder().record([one for _, _, one in made])
        for (position, verdict, _), result in zip(made, results, strict=True):
            match result:
                case Receipt():
                    verdict.receipt = result
                    settled[position] = verdict
                case SubjectChanged():
                    states[position] = changed(verdict.who, result.state)
                case Stale():
                    pass
                case _:  # it fails alone
                    settled[position] = overloaded("The record could not be written, so nothing is answered.")
        if all(position in settled for position in range(len(run))):
            return _until([settled[position] for position in range(len(run))], semantic)
        snapshots.at_head()
    raise Unavailable("the policy kept changing")


def _decided(
    snapshot: Snapshot, backend: BackendPolicy, items: Sequence[Evaluation | Problem], semantic: Semantic,
    settled: dict[int, Found], states: dict[int, State],
) -> tuple[list[Found], list[int]]:  # fmt: skip
    """What each of the items comes to, up to where the semantic ends, and the places of those not recorded yet."""
    run: list[Found] = []
    waiting = []
    for position, item in enumerate(items):
        found = settled.get(position)
        if found is None:
            assert isinstance(item, Evaluation)  # what is no question was settled from the start
            found = judge(snapshot, backend, item, states.get(position, UNTOUCHED))
            waiting.append(position)
        run.append(found)
        if ends(found, semantic):
            break
    return run, waiting


def ends(found: Found, semantic: Semantic) -> bool:
    """Whether the items after this one are not answered."""
    return allowed(found) is STOPS[semantic]


def _until(run: list[Found], semantic: Semantic) -> list[Found]:
    last = next((n for n, found in enumerate(run) if ends(found, semantic)), len(run))
    return run[: last + 1]


def allowed(found: Found) -> bool:
    """What is not decided is not allowed."""
    return isinstance(found, Verdict) and found.decision.allowed


def prepared(asker: Asker, found: Found) -> tuple[Verdict, Entry]:
    """A decided question and its record to be."""
    assert isinstance(found, Verdict)
    try:
        return found, to_entry(asker, found)
    except KeyDestroyed:  # the user was erased a moment ago, and is nobody now
        subjects.forget(found.who.uid or "")
        again = judge(found.snapshot, found.backend, found.asked)
        return again, to_entry(asker, again)


def changed(who: Who, state: State) -> State:
    """What to assume of the user when the question is decided again; one who was erased is nobody then."""
    if state[2] and who.uid:
        subjects.forget(who.uid)
    return UNTOUCHED if state[2] else state


def judge(snapshot: Snapshot, backend: BackendPolicy, asked: Evaluation, state: State = UNTOUCHED) -> Verdict:
    """Decide one question under one policy. Never raises for anything that it may hold."""
    who = mapping.who(backend, asked.subject)
    if who.trouble:
        return Verdict(asked, snapshot, backend, who, refuse("subject_unknown", who.trouble))
    tools = mapping.tools_of(snapshot.policy, backend.id, asked.action, asked.resource)
    decision = decided(snapshot.policy, backend.id, who, asked.subject.properties, asked.context, tools, state)
    return Verdict(asked, snapshot, backend, who, decision, tools, state)


def decided(
    policy: Policy, backend_id: int, who: Who, said: SubjectProperties, context: AskedContext, tools: Sequence[str],
    state: State = UNTOUCHED,
) -> Decision:  # fmt: skip
    """Rows 9 to 15 for each of the tools, all of which must be allowed: the first refusal, else what was decided of the
    last. Without a client those grants count that are for any. Consent (row 13) is asked for where the scopes of a
    token were given; without, there was no token that could lack them."""
    now, given = time.time(), scopes_of(context)
    if context.agent is None:
        policy = replace(policy, clients={(who.issuer or "", ""): ANY_CLIENT})
    question = Question(
        backend_id=backend_id, tool="", issuer=who.issuer or "", client_id=context.agent or "", subject=who.uid or "",
        tenant=said.tenant, roles=frozenset(mapping.roles_of(said)), token_scopes=given or (), issued_at=said.iat,
        mode=context.agent_mode,
        agent_scopes=None if context.agent_scopes is None else tuple(context.agent_scopes),
    )  # fmt: skip
    subject = SubjectState.of(state)
    decision, flagged = Decision(), False
    for tool in tools or [""]:
        known = policy.tools.get((backend_id, tool))
        carried = (known.scopes if known else ()) if given is None else given
        decision = decide(policy, replace(question, tool=tool, token_scopes=carried), subject, now)
        flagged = flagged or decision.flagged
        if not decision.allowed:
            break
    if decision.reason == "token_expired" and said.iat is None:
        decision.detail = "The user was signed out everywhere, and no `iat` says that they signed in since."
    decision.flagged = flagged and decision.allowed
    return decision


def scopes_of(context: AskedContext) -> tuple[str, ...] | None:
    """The scopes of the user's token; None where they were not given. A text is split on spaces only (RFC 6749
    section 3.3)."""
    if context.scopes is None:
        return None
    names = context.scopes.split(" ") if isinstance(context.scopes, str) else context.scopes
    return tuple(sorted({name for name in names if name}))


def to_entry(asker: Asker, verdict: Verdict) -> Entry:
    """The record of a question that was decided."""
    decision, asked = verdict.decision, verdict.asked
    # No unknown client: the inbox has those that an issuer made tokens for, which this is no sign of.
    if decision.reason == "tool_unknown" and verdict.tools:
        inbox.note("tool", verdict.backend.slug, verdict.tools[0])
    resource = None if asked.resource.type == TOOL else {"type": asked.resource.type, "id": asked.resource.id}
    private = about(asker, asked.subject, asked.context, verdict.who, decision) | {"resource": resource}
    return question_entry(verdict.snapshot, verdict.backend, verdict.who, statement(verdict), private, verdict.state)


def question_entry(
    snapshot: Snapshot, backend: BackendPolicy, who: Who, said: dict[str, Any], private: dict[str, Any], state: State
) -> Entry:
    """A record of the type `evaluation`, under the user's key where there is a user, else under the backend's of the
    day. Never `established`: that room is for calls whose token was verified."""
    holder = who.uid or f"backend:{backend.slug}:{datetime.now(UTC):%Y-%m-%d}"
    bound: dict[str, Any] = {"version": snapshot.version, "established": False}
    if who.uid:
        bound |= {"subject": who.uid, "subject_state": state}
    return entry(said, private, holder, **bound)


def about(
    asker: Asker, subject: AskedSubject | None, context: AskedContext, who: Who, decision: Decision | None
) -> dict[str, Any]:
    """What becomes protected disclosures; None is left out. What the policy does not know stands here as the backend
    said it, since anything could be in it."""
    said = subject.properties if subject else SubjectProperties()
    client = decision.client if decision else None
    return {
        "named": {"type": subject.type, "id": subject.id} if subject else None,
        "named_issuer": None if who.issuer else said.issuer or said.iss,
        "named_client": context.agent if client is None else None,
        "ip": said.ip_address,
        "request_id": asker.request_id,
    }


def statement(verdict: Verdict) -> dict[str, Any]:
    """What is hashed: as of a call, with what makes it none."""
    decision, asked, tool = verdict.decision, verdict.asked, verdict.decision.tool
    given = scopes_of(asked.context)
    last = tool.name if tool else (verdict.tools[0] if verdict.tools else None)
    special = {"tools": verdict.tools} if len(verdict.tools) > 1 else {}
    return base(verdict.snapshot, verdict.backend, verdict.who, asked.subject.properties, asked.context) | special | {
        "client": client_of(decision),
        "client_id": asked.context.agent if decision.client else None,
        "tool": last,
        "decision": "allow" if decision.allowed else "deny",
        "reason": decision.reason,
        "required": list(decision.required),
        "token_scopes": None if given is None else list(given),
        "effective": within(decision.effective, decision.required),
        "grants": list(decision.grants[:MOST_GRANTS]),
        "access": tool.access if tool else None,
        "sensitive": tool.sensitive if tool else False,
        "flagged": decision.flagged,
    }  # fmt: skip


def client_of(decision: Decision) -> str | None:
    """The client's slug; None for one that is not known, and where none was named."""
    return decision.client.slug if decision.client and decision.client is not ANY_CLIENT else None


def base(
    snapshot: Snapshot, backend: BackendPolicy, who: Who, said: SubjectProperties, context: AskedContext
) -> dict[str, Any]:
    """What all statements of questions have."""
    return {
        "type": "evaluation",
        "asserted": True,
        "backend": backend.slug,
        "issuer": who.issuer,
        "subject": who.uid,
        "tenant": said.tenant,
        "policy": {"version": snapshot.version, "digest": snapshot.digest},
        "roles": list(mapping.roles_of(said)),
        "agent": {"mode": context.agent_mode, "chain": [], "scopes": context.agent_scopes},
    }
