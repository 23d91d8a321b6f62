"""Recorded calls, decided again: for how many the answer would be another under another policy.

Read are the newest calls of seven days that the viewer may see, and of them those whose caller was established; equal
questions are decided once. Decided is at this moment, with today's tools and clients, under both policies alike."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import msgspec
from django.db.models import Q, QuerySet
from django.utils import timezone

from audit import search
from audit.models import Record, Subject
from audit.record_words import NOT_ESTABLISHED
from audit.viewer import Viewer
from governance.decision import Decision, GrantPolicy, Policy, Question, SubjectState, decide
from governance.snapshot import Snapshot

WINDOW = timedelta(days=7)
AHEAD = timedelta(minutes=5)  # the log's clock is the database's, and may be ahead of ours
MOST, PAGE = 20_000, 4_000
EXAMPLES = 3
ENDED = Q(blocked_at__isnull=False) | Q(deactivated_at__isnull=False)
MOST_NAMES = 200
# Refused before or after what is decided here: no grant helps, and none is missed.
ELSEWHERE = NOT_ESTABLISHED | {"tenant_mismatch", "rate_limited"}


class _Agent(msgspec.Struct):
    mode: str = "interactive"
    scopes: list[str] | None = None


class _Call(msgspec.Struct):
    """What of a statement is decided from."""

    backend: str
    tool: str
    issuer: str
    subject: str
    reason: str
    client_id: str | None = None
    tenant: str | None = None
    roles: list[str] = []
    token_scopes: list[str] = []
    agent: _Agent = msgspec.field(default_factory=_Agent)


_read = msgspec.json.Decoder(_Call).decode


@dataclass(slots=True)
class Turn:
    """Calls of one tool through one client that would be decided otherwise: how many, of how many users, and the
    newest of them."""

    before: str
    after: str
    client: str
    client_name: str
    tool: str
    count: int = 0
    users: set[str] = field(default_factory=set)
    examples: list[tuple[UUID, datetime]] = field(default_factory=list)

    @property
    def query(self) -> str:
        """The search that finds such calls, as a query string."""
        decision = "deny" if self.before == "deny" else "allow"
        return urlencode({"window": "7d", "client": self.client, "tool": self.tool, "decision": decision})


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of it. `read` calls were looked at, since `since`; `cut` says that there were more in the week. `turns`
    are most frequent first."""

    since: datetime
    read: int
    cut: bool
    turns: tuple[Turn, ...]

    def _count(self, *pairs: tuple[str, str]) -> int:
        return sum(turn.count for turn in self.turns if (turn.before, turn.after) in pairs)

    @property
    def opened(self) -> int:
        """Calls that were refused and would be allowed, marked for review or not."""
        return self._count(("deny", "allow"), ("deny", "flag"))

    @property
    def stopped(self) -> int:
        """Calls that were allowed and would be refused."""
        return self._count(("allow", "deny"), ("flag", "deny"))

    @property
    def marked(self) -> int:
        """Calls that were allowed and would also be marked for review."""
        return self._count(("allow", "flag"))

    @property
    def unmarked(self) -> int:
        """Calls that would no longer be marked for review."""
        return self._count(("flag", "allow"))

    @property
    def users(self) -> int:
        """How many users' calls would turn."""
        return len(set().union(*(turn.users for turn in self.turns)))


def outcome(decision: Decision) -> str:
    """allow, flag or deny."""
    return "deny" if not decision.allowed else "flag" if decision.flagged else "allow"


def over(
    viewer: Viewer, snapshot: Snapshot, before: Policy, after: Policy, grant: GrantPolicy, client: str | None,
    tools: list[str],
) -> Replay:  # fmt: skip
    """Decide the calls again that the grant can matter to: of this client (its slug; None: of any) and these tools.
    Raises PermissionDenied for a viewer who may not read records."""
    now = timezone.now()
    since = now - WINDOW
    records = _narrowed(search.visible(viewer, since, now + AHEAD), grant, client, tools)
    again = _Again(snapshot, before, after)
    read = 0
    oldest = since
    for number, at, statement in _newest(records) if tools else ():
        read, oldest = read + 1, at
        again.add(number, at, statement)
    cut = read >= MOST
    turns = sorted(again.turns.values(), key=lambda turn: (-turn.count, turn.client, turn.tool))
    return Replay(oldest if cut else since, read, cut, tuple(turns))


def _narrowed(records: QuerySet[Record], grant: GrantPolicy, client: str | None, tools: list[str]) -> QuerySet[Record]:
    """By the columns that have what the grant names."""
    exact: dict[str, Any] = {"client": client, "subject": grant.subject, "tenant": grant.tenant}
    exact = {name: value for name, value in exact.items() if value is not None}
    if len(tools) <= MOST_NAMES:
        exact["tool__in"] = tools
    if grant.modes:
        exact["mode__in"] = sorted(grant.modes)
    return records.filter(type="decision", subject__isnull=False, **exact)


def _newest(records: QuerySet[Record]) -> Iterator[tuple[UUID, datetime, bytes]]:
    """Newest first, at most MOST, by pages, so that neither memory nor a snapshot of the database is held long."""
    left, before = MOST, None
    while left > 0:
        page = records if before is None else records.filter(at__lt=before)
        size = min(PAGE, left)
        rows = list(page.order_by("-at").values_list("id", "at", "statement")[:size])
        yield from ((number, at, bytes(statement)) for number, at, statement in rows)
        left -= len(rows)
        if len(rows) < size:
            return
        before = rows[-1][1]


class _Again:
    """Calls as questions: equal ones are decided once, under both policies."""

    def __init__(self, snapshot: Snapshot, before: Policy, after: Policy) -> None:
        self.before, self.after = before, after
        self.backends = {backend.slug: backend.id for backend in snapshot.backends.values()}
        grants = [g for policy in (before, after) for those in policy.grants_of_client.values() for g in those]
        # What no grant tells apart need not be told apart here, so that a million users may be one question.
        self.blocked = set(Subject.objects.filter(ENDED).values_list("uid", flat=True)[:MOST])
        self.subjects = {g.subject for g in grants if g.subject} | self.blocked
        self.roles = {g.role for g in grants if g.role}
        self.tenants = {g.tenant for g in grants if g.tenant}
        self.known: dict[tuple[Any, ...], tuple[Decision, Decision] | None] = {}
        self.turns: dict[tuple[str, str, str, str], Turn] = {}
        self.now = time.time()

    def add(self, number: UUID, at: datetime, statement: bytes) -> None:
        """Decide one call again, and count it if the answer would be another. One that is no statement is left out."""
        try:
            call = _read(statement)
        except msgspec.DecodeError:
            return
        backend = self.backends.get(call.backend)
        if backend is None or call.reason in ELSEWHERE:
            return
        question = self._question(backend, call)
        if question not in self.known:
            self.known[question] = self._decide(question)
        if (found := self.known[question]) is None:
            return
        was, becomes = found
        self._count(was, becomes, call, number, at)

    def _question(self, backend: int, call: _Call) -> tuple[Any, ...]:
        handed = None if call.agent.scopes is None else tuple(call.agent.scopes)
        return (
            backend, call.tool, call.issuer, call.client_id, call.subject if call.subject in self.subjects else "",
            call.tenant if call.tenant in self.tenants else None, frozenset(self.roles.intersection(call.roles)),
            tuple(call.token_scopes), call.agent.mode, handed,
        )  # fmt: skip

    def _decide(self, question: tuple[Any, ...]) -> tuple[Decision, Decision] | None:
        """Both decisions; None where they are alike."""
        backend, tool, issuer, client_id, subject, tenant, roles, scopes, mode, handed = question
        asked = Question(
            backend_id=backend, tool=tool, issuer=issuer, client_id=client_id, subject=subject, tenant=tenant,
            roles=roles, token_scopes=scopes, issued_at=self.now, mode=mode, agent_scopes=handed,
        )  # fmt: skip
        state = SubjectState(blocked=subject in self.blocked)
        was, becomes = (decide(policy, asked, state, self.now) for policy in (self.before, self.after))
        return None if outcome(was) == outcome(becomes) else (was, becomes)

    def _count(self, was: Decision, becomes: Decision, call: _Call, number: UUID, at: datetime) -> None:
        client = becomes.client
        if client is None:  # an unknown client is refused under any grants
            return
        key = (outcome(was), outcome(becomes), client.slug, call.tool)
        if key not in self.turns:
            self.turns[key] = Turn(*key[:3], client.name, call.tool)
        turn = self.turns[key]
        turn.count += 1
        turn.users.add(call.subject)
        if len(turn.examples) < EXAMPLES:
            turn.examples.append((number, at))
