"""What a change of grants would do, before it is made: which tools would open or close for whom, and how many of the
last week's calls would be decided otherwise. Both by asking the same `decide()` under the policy now and under the
policy with the change; nothing here guesses, and nothing is saved."""

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256

import msgspec

from audit import subjects
from audit.viewer import Viewer
from clients.models import MODES
from clients.proposals import Proposal
from governance import replay, whatif
from governance.decision import ClientPolicy, Decision, GrantPolicy, Policy, Question, SubjectState, ToolPolicy, decide
from governance.replay import Replay, outcome
from governance.snapshot import Snapshot, snapshots

NEW = 0  # the id of a grant that is not there yet; those of rows begin at 1
MOST_EFFECTS = 20_000  # of a tool through a client


@dataclass(frozen=True, slots=True)
class Effect:
    """What would become of one tool through one client. `before` and `after` are allow, flag or deny; `modes` the agent
    modes in which that is so, empty for all that were asked about; `why` explains a refusal that stays."""

    client: str
    client_name: str
    backend: str
    tool: str
    modes: tuple[str, ...]
    before: str
    after: str
    why: str
    kept: bool

    @property
    def turns(self) -> bool:
        """Whether it would be decided otherwise."""
        return self.before != self.after

    @property
    def words(self) -> str:
        """`Claude may call memory.capture`, with the modes where it is not so in all."""
        who, tool = self.client_name, self.tool
        match self.before, self.after:
            case "deny", "allow" | "flag" if self.kept:
                said = f"{who} can go on calling {tool}"
            case ("deny", "allow" | "flag") | ("allow", "flag"):
                said = f"{who} may call {tool}"
            case _, "deny" if self.turns and self.kept:
                said = f"{tool} goes on being refused to {who}"
            case _, "deny" if self.turns:
                said = f"{who} can no longer call {tool}"
            case "flag", "allow":
                said = f"{who} may call {tool}, no longer marked for review"
            case _, "deny":
                said = f"{tool} stays refused to {who}"
            case _:
                said = f"{who} may call {tool} as before"
        marked = ", each call marked for review" if self.after == "flag" and self.turns else ""
        *first, last = self.modes or ("",)
        modes = f" in {', '.join(first)}{' and ' if first else ''}{last} mode" if self.modes else ""
        return f"{said}{modes}{marked}"


@dataclass(frozen=True, slots=True)
class Impact:
    """What a change would do, under one version of the policy. `turned` and `same` are the tools that it concerns;
    `partial` says that there are more clients and tools than were asked about; `replay` is None for viewers who may not
    read records."""

    version: int
    turned: tuple[Effect, ...]
    same: tuple[Effect, ...]
    partial: bool
    replay: Replay | None

    @property
    def refused(self) -> tuple[Effect, ...]:
        """What stays refused, and why: what somebody who grants would not expect."""
        return tuple(effect for effect in self.same if effect.after == "deny")

    @property
    def allowed(self) -> tuple[Effect, ...]:
        """What was allowed and stays so."""
        return tuple(effect for effect in self.same if effect.after != "deny")

    @property
    def digest(self) -> str:
        """Equal for equal effects, whatever else changed in the policy: hex."""
        told = [(e.client, e.backend, e.tool, e.modes, e.before, e.after, e.why) for e in (*self.turned, *self.same)]
        return sha256(msgspec.json.encode([told, self.partial])).hexdigest()


def of(wanted: Proposal, viewer: Viewer | None = None) -> Impact:
    """What a proposal would do, as if it were in force now. With a viewer who may read records, the last seven days'
    calls that they may see are decided again."""
    snapshot, now = snapshots.at_head(), time.time()
    grant = _policy_of(wanted)
    before, after = _policies(snapshot.policy, grant, wanted)
    kept = wanted.kind == "extend" and _in_force(snapshot.policy, grant.id, now)
    tools = dict(_concerned(snapshot, grant))
    effects, partial = _effects(snapshot, before, after, grant, tools, kept)
    seen = None
    if viewer is not None and viewer.records:
        slug = wanted.client.slug if wanted.client else None
        seen = replay.over(viewer, snapshot, before, after, grant, slug, sorted({name for _, name in tools}))
    turned = tuple(effect for effect in effects if effect.turns)
    return Impact(snapshot.version, turned, tuple(e for e in effects if not e.turns), partial, seen)


def _policy_of(wanted: Proposal) -> GrantPolicy:
    """The grant as `decide` sees it, once it has begun and before it ends; one that has ended gives nothing back."""
    return GrantPolicy(
        id=wanted.grant.pk if wanted.grant else NEW,
        effect=wanted.effect,
        client_id=wanted.client.pk if wanted.client else None,
        scopes=frozenset(wanted.scope_names()),
        subject=wanted.subject.uid if wanted.subject else None,
        role=wanted.role or None,
        tenant=wanted.tenant or None,
        tool_id=wanted.tool.pk if wanted.tool else None,
        modes=frozenset(wanted.modes),
        starts_at=None,
        expires_at=wanted.expires_at.timestamp() if wanted.kind == "revoke" and wanted.expires_at else None,
    )


def _policies(policy: Policy, grant: GrantPolicy, wanted: Proposal) -> tuple[Policy, Policy]:
    """Without it and with it, in the order of before and after. Extending is compared with the grant's end."""
    without, within = whatif.without_grant(policy, grant.id), whatif.with_grant(policy, grant)
    return (within, without) if wanted.kind == "revoke" else (without, within)


def _in_force(policy: Policy, number: int, now: float) -> bool:
    known = (g for grants in policy.grants_of_client.values() for g in grants if g.id == number)
    return any(g.expires_at is None or now < g.expires_at for g in known)


def _concerned(snapshot: Snapshot, grant: GrantPolicy) -> Iterator[tuple[tuple[int, str], ToolPolicy]]:
    """The tools whose calls the grant can matter to, in order of their names."""
    given = snapshot.policy.closure(grant.scopes)
    for (backend, name), tool in sorted(snapshot.policy.tools.items(), key=lambda pair: (pair[0][1], pair[0][0])):
        if backend not in snapshot.backends or tool.status == "retired":
            continue
        if grant.tool_id not in (None, tool.id):
            continue
        needs = set(tool.scopes)
        if grant.effect == "deny":
            matters = not grant.scopes or bool(grant.scopes & needs)
        else:
            matters = bool(given & needs) or (grant.tool_id == tool.id and not needs)
        if matters:
            yield (backend, name), tool


def _effects(
    snapshot: Snapshot, before: Policy, after: Policy, grant: GrantPolicy,
    tools: dict[tuple[int, str], ToolPolicy], kept: bool,
) -> tuple[list[Effect], bool]:  # fmt: skip
    """Each concerned tool through each concerned client, asked in every mode that makes a difference. Tools and clients
    that no grant tells apart are asked about once."""
    state, modes = _state(grant.subject), _modes(before, after, grant)
    told_apart = {g.tool_id for g in _grants(before, after)}
    with_grants = {client for policy in (before, after) for client, held in policy.grants_of_client.items() if held}
    known: dict[tuple[Hashable, ...], dict[tuple[str, str, str], list[str]]] = {}
    found: list[Effect] = []
    callers = _callers(snapshot.policy, grant)
    for (backend, name), tool in tools.items():
        alike = (tool.scopes, tool.id if tool.id in told_apart or tool.status != "active" else None)
        for issuer, client_id, client in callers:
            if len(found) >= MOST_EFFECTS:
                return found, True
            key = (*alike, client.id if client.id in with_grants or client.status != "active" else None)
            if key not in known:
                question = Question(
                    backend_id=backend, tool=name, issuer=issuer, client_id=client_id, subject=grant.subject or "",
                    tenant=grant.tenant, roles=frozenset(filter(None, [grant.role])), token_scopes=tool.scopes,
                    issued_at=time.time(),
                )  # fmt: skip
                known[key] = _by_mode(before, after, question, state, modes)
            for (was, becomes, why), those in known[key].items():
                told = () if len(those) == sum(map(len, modes)) else tuple(those)
                slug = snapshot.backends[backend].slug
                found.append(Effect(client.slug, client.name, slug, name, told, was, becomes, why, kept))
    return found, False


def _grants(*policies: Policy) -> Iterator[GrantPolicy]:
    for policy in policies:
        for those in policy.grants_of_client.values():
            yield from those


def _by_mode(
    before: Policy, after: Policy, question: Question, state: SubjectState, modes: list[list[str]]
) -> dict[tuple[str, str, str], list[str]]:
    """What was and would be decided, with the modes in which it is so."""
    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    ask: Callable[[Policy, Question], Decision] = lambda policy, one: decide(policy, one, state, time.time())  # noqa: E731
    for alike in modes:
        one = replace(question, mode=alike[0])
        was, becomes = ask(before, one), ask(after, one)
        why = "" if becomes.allowed else _why(becomes)
        found[outcome(was), outcome(becomes), why].extend(alike)
    return found


def _why(refused: Decision) -> str:
    """Why a call stays refused, in the admin's words."""
    if refused.reason == "grant_denied":
        return f"Block {refused.grants[0]} forbids it."
    return refused.explanation


def _state(subject: str | None) -> SubjectState:
    """Of a user whom the grant names: whether they are blocked. When a token was issued is not asked."""
    return SubjectState() if subject is None else SubjectState(blocked=subjects.state(subject)[0])


def _callers(policy: Policy, grant: GrantPolicy) -> list[tuple[str, str, ClientPolicy]]:
    """Issuer, OAuth client id and client, for each client that the grant is for, in order of their names."""
    one_each = {client.id: (*pair, client) for pair, client in reversed([*policy.clients.items()])}
    wanted = one_each.values() if grant.client_id is None else filter(None, [one_each.get(grant.client_id)])
    return sorted(wanted, key=lambda caller: (caller[2].name, caller[2].slug))


def _modes(before: Policy, after: Policy, grant: GrantPolicy) -> list[list[str]]:
    """The modes that the grant is for, those together that no grant tells apart."""
    named = frozenset().union(*(g.modes for g in _grants(before, after)), grant.modes)
    meant = [mode for mode in MODES if not grant.modes or mode in grant.modes]
    alike = [mode for mode in meant if mode not in named]
    return [*([alike] if alike else []), *([mode] for mode in meant if mode in named)]
