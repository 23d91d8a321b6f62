"""Denials that a grant would solve: calls refused because nothing grants them, as the rollups have counted them, kept
to those that the policy of now would still refuse for that reason alone."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from audit import rollups
from audit.rollups import Group
from audit.viewer import Viewer
from governance import asking, whatif
from governance.decision import Policy, ToolPolicy
from governance.home_figures import search_url
from governance.snapshot import snapshots
from tools.models import Backend

REASON = "not_granted"
DAYS = timedelta(days=7)
LOOKED_AT = 200
"""Combinations of client, tool, backend and tenant that are looked at, the most frequent first."""


@dataclass(frozen=True, slots=True)
class Solvable:
    """What was refused: through which client, which tool of which backend, for which tenant (None: none or several),
    what it lacks, how often, since the day of when, and where to grant it or to ask for that (None: nowhere)."""

    client: str
    tool: str
    backend: str
    tenant: str | None
    tenants: int
    scopes: tuple[str, ...]
    calls: int
    since: datetime
    search: str
    grant: str | None


@dataclass(frozen=True, slots=True)
class _Refused:
    client: str
    backend: str
    tool: str
    tenants: frozenset[str]
    calls: int
    first: datetime


def solvable(viewer: Viewer, user: Any, now: datetime, names: Mapping[str, str], most: int = 8) -> list[Solvable]:
    """The most frequent of the last 7 days that a grant would still solve; `names` maps slugs of clients to names.
    Raises PermissionDenied."""
    since = rollups.floor(now - DAYS, "1d")
    dimensions = ["client", "tool", "backend", "tenant"]
    groups = rollups.groups(
        viewer, dimensions, since, now, "1d", most=LOOKED_AT, type="decision", decision="deny", reason=REASON
    )
    if not groups:
        return []
    policy = snapshots.at_head().policy
    backends = dict(Backend.objects.values_list("slug", "pk"))
    found: list[Solvable] = []
    for one in _merged(groups):
        tool = _lacking(policy, one, backends.get(one.backend))
        if tool is not None:
            found.append(_solvable(one, tool, names, user, since))
        if len(found) == most:
            break
    return found


def _merged(groups: Iterable[Group]) -> list[_Refused]:
    """Each client and tool once, whatever the tenants, most frequent first."""
    of: dict[tuple[str, str, str], list[Group]] = defaultdict(list)
    for group in groups:
        of[group.values["client"], group.values["backend"], group.values["tool"]].append(group)
    merged = [
        _Refused(
            *key, frozenset(group.values["tenant"] for group in alike), sum(group.times for group in alike),
            min(group.first for group in alike),
        )
        for key, alike in of.items()
    ]  # fmt: skip
    return sorted(merged, key=lambda one: (-one.calls, one.client, one.tool))


def _lacking(policy: Policy, refused: _Refused, backend: int | None) -> ToolPolicy | None:
    """The tool, if a call of it by anybody would still be refused for want of a grant, and for nothing else."""
    client = next((one for one in policy.clients.values() if one.slug == refused.client), None)
    if client is None or backend is None:
        return None
    tenant = next(iter(refused.tenants)) if len(refused.tenants) == 1 else ""
    decision = whatif.answer(policy, client.id, backend, refused.tool, tenant=tenant or None)
    return decision.tool if decision.reason == REASON else None


def _solvable(one: _Refused, tool: ToolPolicy, names: Mapping[str, str], user: Any, since: datetime) -> Solvable:
    tenant = next(iter(one.tenants)) if len(one.tenants) == 1 else ""
    where, _ = asking.grant_url(user)
    wanted = asking.suggestion(one.client, tool.scopes, one.backend, one.tool, tenant=tenant)
    return Solvable(
        names.get(one.client, one.client), one.tool, one.backend, tenant or None, len(one.tenants - {""}), tool.scopes,
        one.calls, one.first,
        search_url(since, reason=REASON, client=one.client, tool=one.tool, backend=one.backend),
        f"{where}?{asking.query_of(wanted)}" if where else None,
    )  # fmt: skip
