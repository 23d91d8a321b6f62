"""The decision: pure, no Django, no I/O. Rows 9 to 15 of the table in DESIGN.md section 5, in their order.

Rows 1 to 8 (who the caller is) are decided in clients.tokens; `refuse` gives them the same shape.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from audit.reasons import REASONS


@dataclass(frozen=True, slots=True)
class ClientPolicy:
    """An AI client as policy knows it."""

    id: int
    slug: str
    name: str
    status: str


@dataclass(frozen=True, slots=True)
class ToolPolicy:
    """A tool of one backend, with the scopes that it needs."""

    id: int
    name: str
    access: str
    status: str
    scopes: tuple[str, ...]
    sensitive: bool


@dataclass(frozen=True, slots=True)
class GrantPolicy:
    """A grant; None and the empty set mean any. Times are POSIX seconds."""

    id: int
    effect: str
    client_id: int | None
    scopes: frozenset[str]
    subject: str | None
    role: str | None
    tenant: str | None
    tool_id: int | None
    modes: frozenset[str]
    starts_at: float | None
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class LimitPolicy:
    """A limit; None and the empty set mean any. `seconds` is the length of its period, `burst` at most `count`."""

    id: int
    per: str
    count: int
    seconds: int
    burst: int
    client_id: int | None
    tool_id: int | None
    tenant: str | None
    modes: frozenset[str]
    on_outage: str


@dataclass(frozen=True, slots=True)
class Policy:
    """What `decide` decides from. `implied` maps a scope to itself and all that it implies."""

    clients: Mapping[tuple[str, str], ClientPolicy]  # (issuer, OAuth client id)
    tools: Mapping[tuple[int, str], ToolPolicy]  # (backend id, tool name)
    grants_of_client: Mapping[int | None, tuple[GrantPolicy, ...]]  # under None: those for any client
    implied: Mapping[str, frozenset[str]]
    limits: tuple[LimitPolicy, ...] = ()

    def closure(self, scopes: Iterable[str]) -> frozenset[str]:
        """The scopes and all that they imply; an unknown scope implies only itself."""
        found: set[str] = set()
        for scope in scopes:
            found |= self.implied.get(scope) or {scope}
        return frozenset(found)


@dataclass(frozen=True, slots=True)
class SubjectState:
    """What ends one subject's access: read by the recording transaction itself, not part of the policy version.
    `signed_out_at` is in POSIX seconds; `gone` says that the subject was erased."""

    blocked: bool = False
    signed_out_at: float | None = None
    gone: bool = False

    @classmethod
    def of(cls, state: tuple[bool, datetime | None, bool]) -> "SubjectState":
        """From what the database holds: blocked, signed out at, erased."""
        blocked, signed_out, gone = state
        return cls(blocked, signed_out.timestamp() if signed_out else None, gone)


@dataclass(frozen=True, slots=True)
class Question:
    """One call to decide: who (established by the token), through which client, for which tool."""

    backend_id: int
    tool: str
    issuer: str
    client_id: str | None
    subject: str
    tenant: str | None
    roles: frozenset[str]
    token_scopes: tuple[str, ...]
    issued_at: float | None
    asked_tenant: str | None = None
    mode: str = "interactive"
    agent_scopes: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One rule that was checked: its name, whether it held, and what was seen, in words."""

    rule: str
    passed: bool
    words: str


@dataclass(slots=True)
class Decision:
    """Allow or deny, why, and everything that the statement and the answer say about it."""

    reason: str = "granted"
    detail: str = ""
    client: ClientPolicy | None = None
    tool: ToolPolicy | None = None
    flagged: bool = False
    required: tuple[str, ...] = ()
    token_scopes: tuple[str, ...] = ()
    granted: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    grants: tuple[int, ...] = ()
    limits: tuple[int, ...] = ()  # those that refused
    retry_after: int | None = None  # whole seconds
    checks: list[Check] | None = None  # kept where somebody asked to be told

    @property
    def allowed(self) -> bool:
        """Only one reason allows."""
        return self.reason == "granted"

    @property
    def explanation(self) -> str:
        """One or two sentences for people."""
        sentence, detail = REASONS[self.reason].sentence, self.detail
        if detail[:1].islower():  # what is wrong with a token goes on from the sentence, and often with a claim's name
            return f"{sentence.removesuffix('.')}: {detail.removesuffix('.')}."
        return f"{sentence} {detail}" if detail else sentence

    def passed(self, rule: str, words: Callable[[], str]) -> None:
        """Note a rule that held; the words are made only for those who want them."""
        if self.checks is not None:
            self.checks.append(Check(rule, True, words()))

    def stop(self, rule: str, reason: str, detail: str = "") -> "Decision":
        """Note the rule that decided."""
        self.reason, self.detail = reason, detail
        if self.checks is not None:
            self.checks.append(Check(rule, False, self.explanation))
        return self


def refuse(reason: str, detail: str = "") -> Decision:
    """A denial for a caller who could not be established (rows 1 to 8)."""
    return Decision().stop("token", reason, detail)


def decide(policy: Policy, question: Question, subject: SubjectState, now: float, explain: bool = False) -> Decision:
    """Rows 9 to 15 in order; the first that fails gives the reason. `now` is POSIX seconds; `explain` keeps every
    rule that was checked, in words."""
    decision = Decision(token_scopes=question.token_scopes, checks=[] if explain else None)
    # Known before the rules, so that a denial by an earlier rule still says which tool and what it needs.
    decision.tool = policy.tools.get((question.backend_id, question.tool))
    decision.required = decision.tool.scopes if decision.tool else ()
    if question.client_id is not None:
        decision.client = policy.clients.get((question.issuer, question.client_id))
    return (
        _client(decision, question)
        or _subject(decision, question, subject)
        or _tool(decision, question)
        or _consent(decision, policy, question)
        or _grants(decision, policy, question, now)
        or _delegation(decision, policy, question)
        or decision
    )


def decide_any_tool(policy: Policy, question: Question, subject: SubjectState, now: float) -> Decision:
    """Rows 9 to 11, where a token was shown and no tool named. `effective` are those of its scopes that grants cover
    whatever the tool, less those that a deny grant names; one that denies all, whatever the tool, denies here too."""
    decision = Decision(token_scopes=question.token_scopes)
    if question.client_id is not None:
        decision.client = policy.clients.get((question.issuer, question.client_id))
    return _client(decision, question) or _subject(decision, question, subject) or _any(decision, policy, question, now)


def _any(decision: Decision, policy: Policy, question: Question, now: float) -> Decision:
    assert decision.client is not None  # row 9 held
    candidates = policy.grants_of_client.get(decision.client.id, ()) + policy.grants_of_client.get(None, ())
    matching = [grant for grant in candidates if grant.tool_id is None and _applies(grant, question, None, now)]
    denying = [grant for grant in matching if grant.effect == "deny"]
    allowing = [grant for grant in matching if grant.effect != "deny"]
    granted = frozenset().union(*(policy.closure(grant.scopes) for grant in allowing))
    denied = frozenset().union(*(grant.scopes for grant in denying))
    decision.granted = tuple(sorted(granted))
    decision.effective = tuple(sorted((granted & policy.closure(question.token_scopes)) - denied))
    if total := [grant.id for grant in denying if not grant.scopes]:
        decision.grants, decision.effective = tuple(total), ()
        return decision.stop("grants", "grant_denied", f"Grant {total[0]} forbids it.")
    decision.grants = tuple(grant.id for grant in allowing)
    decision.flagged = any(grant.effect == "flag" for grant in allowing)
    return decision


def _client(decision: Decision, question: Question) -> Decision | None:
    """Row 9."""
    client = decision.client
    if client is None:
        words = "The token names no OAuth client id." if question.client_id is None else ""
        return decision.stop("client", "client_unknown", words)
    if client.status != "active":
        return decision.stop("client", "client_suspended", f"{client.name} is {client.status}.")
    decision.passed("client", lambda: f"It was issued to {client.name}, an active client.")
    return None


def _subject(decision: Decision, question: Question, state: SubjectState) -> Decision | None:
    """Rows 10 and 11."""
    if state.blocked:
        return decision.stop("subject", "subject_blocked")
    # RFC 7519 `iat` is optional; a token that does not say when it was issued cannot show that it is newer. One of the
    # same second cannot either.
    if state.signed_out_at is not None and (question.issued_at or 0) <= state.signed_out_at:
        return decision.stop("subject", "token_expired", "The user was signed out everywhere after it was issued.")
    decision.passed("subject", lambda: "The user is not blocked.")
    if question.asked_tenant is not None and question.asked_tenant != question.tenant:
        return decision.stop("tenant", "tenant_mismatch")
    if question.tenant is not None:
        decision.passed("tenant", lambda: f"The user belongs to tenant {question.tenant}.")
    return None


def _tool(decision: Decision, question: Question) -> Decision | None:
    """Row 12."""
    tool = decision.tool
    if tool is None:
        return decision.stop("tool", "tool_unknown")
    if tool.status != "active":
        return decision.stop("tool", "tool_suspended", f"{tool.name} is {tool.status}.")
    needs = " ".join(tool.scopes) or "no scope, but a grant that names it"
    decision.passed("tool", lambda: f"The tool {tool.name} is active and needs {needs}.")
    return None


def _consent(decision: Decision, policy: Policy, question: Question) -> Decision | None:
    """Row 13."""
    covered = policy.closure(question.token_scopes)
    missing = [scope for scope in decision.required if scope not in covered]
    if missing:
        decision.missing = tuple(missing)
        return decision.stop("consent", "insufficient_scope", f"Missing: {' '.join(missing)}.")
    decision.passed(
        "consent", lambda: f"The user consented: the token carries {' '.join(question.token_scopes) or 'none'}."
    )
    return None


def _applies(grant: GrantPolicy, question: Question, tool: ToolPolicy | None, now: float) -> bool:
    return (
        (grant.starts_at is None or grant.starts_at <= now)
        and (grant.expires_at is None or now < grant.expires_at)
        and (grant.subject is None or grant.subject == question.subject)
        and (grant.tenant is None or grant.tenant == question.tenant)
        and (grant.role is None or grant.role in question.roles)
        and (not grant.modes or question.mode in grant.modes)
        and (grant.tool_id is None or (tool is not None and grant.tool_id == tool.id))
    )


def _grants(decision: Decision, policy: Policy, question: Question, now: float) -> Decision | None:
    """Row 14: deny beats flag beats allow; a tool that needs no scope needs a grant that names it."""
    assert decision.client is not None and decision.tool is not None  # rows 9 and 12 held
    required, tool, client = set(decision.required), decision.tool, decision.client
    candidates = policy.grants_of_client.get(client.id, ()) + policy.grants_of_client.get(None, ())
    matching = [grant for grant in candidates if _applies(grant, question, tool, now)]
    denying = [g for g in matching if g.effect == "deny" and (not g.scopes or g.scopes & required)]
    allowing = [g for g in matching if g.effect != "deny"]
    covered = {g.id: policy.closure(g.scopes) for g in allowing}
    granted = frozenset().union(*covered.values())
    decision.granted = tuple(sorted(granted))
    decision.effective = tuple(sorted(granted & policy.closure(question.token_scopes)))
    if denying:
        decision.grants = tuple(g.id for g in denying)
        return decision.stop("grants", "grant_denied", f"Grant {denying[0].id} forbids it.")
    missing = [scope for scope in decision.required if scope not in granted]
    names_it = any(g.tool_id == tool.id for g in allowing)
    if missing or not (required or names_it):
        decision.missing = tuple(missing)
        return decision.stop("grants", "not_granted", f"Missing: {' '.join(missing)}." if missing else "")
    used = [g for g in allowing if covered[g.id] & required or (not required and g.tool_id == tool.id)]
    decision.grants = tuple(g.id for g in used)
    decision.flagged = any(g.effect == "flag" for g in used)
    decision.passed("grants", lambda: f"{client.name} is granted {' '.join(decision.required) or tool.name}.")
    return None


def _delegation(decision: Decision, policy: Policy, question: Question) -> Decision | None:
    """Row 15: what the agent was handed can only narrow."""
    if question.agent_scopes is None:
        return None
    handed = policy.closure(question.agent_scopes)
    decision.effective = tuple(scope for scope in decision.effective if scope in handed)
    missing = [scope for scope in decision.required if scope not in handed]
    if missing:
        decision.missing = tuple(missing)
        return decision.stop("delegation", "delegation_exceeded", f"Missing: {' '.join(missing)}.")
    decision.passed("delegation", lambda: "The agent was handed the scopes that the tool needs.")
    return None
