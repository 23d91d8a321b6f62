"""The access matrix: what each client may call, each cell decided by the same `decide()` as a call. Pure: a snapshot
in, rows out.

Tools that are the same in all that a decision looks at (status, scopes, and whether a grant names them) are decided
once for a client; 500 tools are seldom more than a few dozen kinds.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from governance import reach, whatif
from governance.decision import Decision, Policy, SubjectState, ToolPolicy
from governance.snapshot import Snapshot

ALLOWED, FLAGGED, DENIED, MISSING, INACTIVE = "allowed", "flagged", "denied", "missing", "inactive"
KIND_OF_REASON = {
    "not_granted": MISSING, "client_unknown": INACTIVE, "client_suspended": INACTIVE,
    "tool_unknown": INACTIVE, "tool_suspended": INACTIVE,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """For whom the matrix is: everyone, or one user (`issuer` is theirs), a tenant, roles, an agent mode."""

    subject: str = whatif.ANYBODY
    issuer: str | None = None
    state: SubjectState = field(default_factory=SubjectState)
    tenant: str | None = None
    roles: frozenset[str] = frozenset()
    mode: str = "interactive"


@dataclass(frozen=True, slots=True)
class Cell:
    """One client and one tool: the kind, the reason code (or what stops every call before the rules), and the scopes
    that a grant would have to add."""

    kind: str
    reason: str
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One tool, with a cell for each of the clients that were asked for, in their order."""

    backend_id: int
    tool: ToolPolicy
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """Of so many tools, how many a client may call, and how many of those are marked for review."""

    tools: int
    allowed: int
    flagged: int


class Column:
    """One client: the policy as far as it concerns this client, and what was decided of its kinds of tools."""

    def __init__(self, snapshot: Snapshot, client_id: int, asked: Asked, now: float) -> None:
        self.snapshot, self.client_id, self.asked, self.now = snapshot, client_id, asked, now
        self.policy = _of_client(snapshot.policy, client_id)
        self.issuers = reach.issuers_of(self.policy, client_id)
        grants = [grant for found in self.policy.grants_of_client.values() for grant in found]
        self.named = {grant.tool_id for grant in grants if grant.tool_id is not None}
        self._obstacles: dict[int, str | None] = {}
        self._decided: dict[tuple[str, tuple[str, ...], int | None], Cell] = {}

    def cell(self, backend_id: int, tool: ToolPolicy) -> Cell:
        """The cell of one tool."""
        if backend_id not in self._obstacles:
            found = reach.obstacle(self.snapshot, backend_id, self.issuers, self.asked.issuer)
            self._obstacles[backend_id] = found
        if (obstacle := self._obstacles[backend_id]) is not None:
            return Cell(INACTIVE, obstacle)
        alike = (tool.status, tool.scopes, tool.id if tool.id in self.named else None)
        if alike not in self._decided:
            self._decided[alike] = cell_of(self.decision(backend_id, tool.name))
        return self._decided[alike]

    def decision(self, backend_id: int, tool: str) -> Decision:
        """What a call of the tool would be answered."""
        asked = self.asked
        return whatif.answer(
            self.policy, self.client_id, backend_id, tool, subject=asked.subject, state=asked.state,
            tenant=asked.tenant, roles=asked.roles, mode=asked.mode, now=self.now,
        )  # fmt: skip


def _of_client(policy: Policy, client_id: int) -> Policy:
    """The policy without other clients and their grants: a decision about this client is the same under it."""
    clients = {pair: client for pair, client in policy.clients.items() if client.id == client_id}
    kept = {key: grants for key, grants in policy.grants_of_client.items() if key in (client_id, None)}
    return replace(policy, clients=clients, grants_of_client=kept)


def cell_of(decision: Decision) -> Cell:
    """A decision as a cell."""
    if decision.allowed:
        return Cell(FLAGGED if decision.flagged else ALLOWED, decision.reason)
    return Cell(KIND_OF_REASON.get(decision.reason, DENIED), decision.reason, decision.missing)


def rows(
    snapshot: Snapshot,
    clients: Sequence[int],
    tools: Iterable[tuple[int, ToolPolicy]],
    asked: Asked,
    now: float | None = None,
) -> list[Row]:
    """The matrix of these clients (ids of rows) and tools (each with the id of its backend), in their order. `now` is
    POSIX seconds."""
    moment = time.time() if now is None else now
    columns = [Column(snapshot, client_id, asked, moment) for client_id in clients]
    return [Row(backend, tool, tuple(column.cell(backend, tool) for column in columns)) for backend, tool in tools]


def counts(found: Sequence[Row], clients: int) -> list[Count]:
    """What each of so many clients may call of the rows' tools."""
    kinds = [[row.cells[number].kind for row in found] for number in range(clients)]
    return [Count(len(k), k.count(ALLOWED) + k.count(FLAGGED), k.count(FLAGGED)) for k in kinds]
