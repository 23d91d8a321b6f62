"""The explainer: whether a user may use a tool through a client, with every rule that was checked, in order, the one
that decided, and the grants that took part. The rules and their order are what `decide()` itself noted; the words are
those of the page of a record."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from audit import record_words
from audit.reasons import REASONS
from audit.record_words import Step
from governance import limiting, reach, whatif
from governance.decision import Decision, SubjectState
from governance.snapshot import Snapshot

RULES = ("client", "subject", "tenant", "tool", "consent", "grants", "delegation")
# What a rule asks, for those that come after the one that decided.
QUESTIONS = {
    "client": "Whether the token was issued to a known and active client",
    "subject": "Whether the user is blocked",
    "tenant": "Which tenant the user belongs to",
    "tool": "Whether the tool is known and active",
    "consent": "Whether the user consented to the scopes that the tool needs",
    "grants": "Whether the client is granted them, and no block forbids it",
    "delegation": "Whether the agent was handed them",
}
MOST_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Asked:
    """One question. Ids are of rows; `user` None is somebody whom no grant names; `scopes` None: the token carries all
    that the tool needs; `handed` None: no agent was handed fewer scopes."""

    client_id: int
    client: str
    client_name: str
    backend_id: int
    backend: str
    backend_name: str
    tool: str
    user: str | None = None
    issuer: str | None = None
    state: SubjectState = field(default_factory=SubjectState)
    tenant: str | None = None
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] | None = None
    mode: str = "interactive"
    handed: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Yes or no, why, and what of the policy took part: ids of grants that decided, of grants that would allow it if
    no block forbade it, and of grants that come close and do not fit."""

    allowed: bool
    flagged: bool
    reason: str
    sentence: str
    steps: list[Step]
    decision: Decision | None
    decided: tuple[int, ...] = ()
    outweighed: tuple[int, ...] = ()
    near: tuple[int, ...] = ()


def explain(snapshot: Snapshot, asked: Asked) -> Answer:
    """The answer under one snapshot of the policy."""
    issuers = reach.issuers_of(snapshot.policy, asked.client_id)
    obstacle = reach.obstacle(snapshot, asked.backend_id, issuers, asked.issuer)
    if obstacle is not None:
        words = _obstacle_words(asked, obstacle)
        steps = [Step("stopped", words), *_unchecked(RULES, asked)]
        sentence = f"No: {_lower(words) if obstacle == reach.BACKEND_DISABLED else words}"
        return Answer(False, False, obstacle, sentence, steps, None)
    decision = ask(snapshot, asked)
    statement = _statement(asked, decision)
    names = {asked.client: asked.client_name}
    refusal = record_words.refusal(statement, names)
    steps = [_given(snapshot, asked, issuers), *_checked(asked, decision, statement, names)]
    steps += _counted(snapshot, asked, decision)
    return Answer(
        allowed=decision.allowed,
        flagged=decision.flagged,
        reason=decision.reason,
        sentence=_yes(asked, decision) if decision.allowed else f"No: {_lower(refusal)}",
        steps=steps,
        decision=decision,
        decided=decision.grants,
        outweighed=_outweighed(snapshot, asked, decision),
        near=_near(snapshot, asked, decision),
    )


def ask(snapshot: Snapshot, asked: Asked, without: Iterable[int] = ()) -> Decision:
    """The decision, with what was checked; `without` some grants, by their ids."""
    policy = snapshot.policy
    for number in without:
        policy = whatif.without_grant(policy, number)
    return whatif.answer(
        policy, asked.client_id, asked.backend_id, asked.tool, subject=asked.user or whatif.ANYBODY,
        state=asked.state, tenant=asked.tenant, roles=asked.roles, scopes=asked.scopes, mode=asked.mode,
        agent_scopes=asked.handed, explain=True,
    )  # fmt: skip


def whom(asked: Asked) -> str:
    """Who is asked about, in words."""
    user = f"user {record_words.short_uid(asked.user)}" if asked.user else "somebody"
    parts = [
        user,
        f"with the role {', '.join(asked.roles)}" if asked.roles else "",
        f"in tenant {asked.tenant}" if asked.tenant else "",
        f"in {asked.mode} mode" if asked.mode != "interactive" else "",
    ]
    return " ".join(filter(None, parts))


def _yes(asked: Asked, decision: Decision) -> str:
    marked = ", and each call is marked for review" if decision.flagged else ""
    return f"Yes: {asked.client_name} may use {asked.tool} for {whom(asked)}{marked}."


def _obstacle_words(asked: Asked, obstacle: str) -> str:
    if obstacle == reach.BACKEND_DISABLED:
        return f"The backend {asked.backend_name} is disabled: its keys do not work, so nothing is allowed."
    whose = "the issuer of this user" if asked.issuer is not None else "an issuer that is enabled"
    return (
        f"{asked.backend_name} accepts no token for it: {asked.client_name} would need an OAuth client id at {whose}"
        " and accepted by the backend."
    )


def _given(snapshot: Snapshot, asked: Asked, issuers: frozenset[str]) -> Step:
    """Rows 1 to 8, which only a token can show."""
    accepted = issuers & snapshot.backends[asked.backend_id].issuers.keys()
    by = asked.issuer or " or ".join(sorted(accepted)) or "an issuer that it accepts"
    return Step(
        "given",
        f"Taken as given: the token is genuine. It is there and well formed, issued and signed by {by}, made for"
        f" {asked.backend_name}, in its time, and names a user",
    )


def _statement(asked: Asked, decision: Decision) -> dict[str, Any]:
    """What the record of such a call would say, as far as its words need it (governance.verification.statement)."""
    return {
        "type": "evaluation",
        "decision": "allow" if decision.allowed else "deny",
        "reason": decision.reason,
        "backend": asked.backend,
        "client": decision.client.slug if decision.client else None,
        "subject": asked.user,
        "tenant": asked.tenant,
        "tool": asked.tool,
        "required": list(decision.required),
        "token_scopes": list(decision.token_scopes),
        "grants": list(decision.grants),
        "roles": list(asked.roles),
        "agent": {"mode": asked.mode, "scopes": None if asked.handed is None else list(asked.handed)},
    }


def _checked(asked: Asked, decision: Decision, statement: Mapping[str, Any], names: Mapping[str, str]) -> list[Step]:
    """The rules that were checked, in their order, and those that were not."""
    words = dict(record_words.rules(statement, names))
    if asked.user is None:
        words["subject"] = "The user is somebody who is not blocked, and whom no grant names"
    steps = []
    checks = decision.checks or []
    for check in checks:
        if check.passed:
            steps.append(Step("passed", words[check.rule]))
        else:
            refusal = record_words.refusal(statement, names)
            known = decision.reason in ("client_suspended", "tool_suspended")  # then the detail says how it is
            steps.append(Step("stopped", f"{refusal} {decision.detail}" if known else refusal))
    if decision.allowed:
        return steps
    return [*steps, *_unchecked(RULES[RULES.index(checks[-1].rule) + 1 :], asked)]


def _counted(snapshot: Snapshot, asked: Asked, decision: Decision) -> list[Step]:
    """Row 16: the limits that an allowed call counts against. How far they are used up is another question at every
    moment."""
    if not (decision.allowed and decision.client and decision.tool):
        return []
    found = limiting.applying(snapshot.policy, decision.client, decision.tool, asked.tenant, asked.mode)
    return [
        Step("given", f"Taken as given: limit {limit.id} is not used up. {words}")
        for limit in found[:MOST_SHOWN]
        if (words := limiting.words(limit, decision.client, decision.tool))
    ]


def _unchecked(rules: Iterable[str], asked: Asked) -> list[Step]:
    left = {"tenant": asked.tenant is None, "delegation": asked.handed is None}
    return [Step("unknown", f"Not checked: {_lower(QUESTIONS[rule])}") for rule in rules if not left.get(rule)]


def _lower(words: str) -> str:
    return words[:1].lower() + words[1:]


def _outweighed(snapshot: Snapshot, asked: Asked, decision: Decision) -> tuple[int, ...]:
    """The grants by which it would be allowed if the blocks that forbid it were not there."""
    if decision.reason != "grant_denied":
        return ()
    without = ask(snapshot, asked, decision.grants)
    return without.grants if without.allowed else ()


def _near(snapshot: Snapshot, asked: Asked, decision: Decision) -> tuple[int, ...]:
    """All grants that allow some of what is needed, but not this call: for others, in another mode, over, or not
    enough. Who is shown some picks those that they see first, so that others' do not hide theirs."""
    tool = decision.tool
    if decision.reason != "not_granted" or tool is None:
        return ()
    policy, required = snapshot.policy, set(decision.required)
    candidates = policy.grants_of_client.get(asked.client_id, ()) + policy.grants_of_client.get(None, ())
    near = [
        grant
        for grant in candidates
        if grant.effect != "deny" and (policy.closure(grant.scopes) & required or grant.tool_id == tool.id)
    ]
    near.sort(key=lambda grant: -(grant.expires_at or float("inf")))  # those that are over come last
    return tuple(grant.id for grant in near)


def title_of(reason: str) -> str:
    """A reason in two or three words."""
    if reason in REASONS:
        return REASONS[reason].title
    return {reach.BACKEND_DISABLED: "Backend disabled", reach.NO_ISSUER: "No issuer in common"}[reason]
