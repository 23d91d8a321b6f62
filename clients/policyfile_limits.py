"""The limits of a policy file. A limit is known by what it counts, so a file can make one, give it another rate, burst
or behaviour in an outage, or (with `prune`) leave it out to delete it."""

from collections.abc import Callable
from typing import NamedTuple

from msgspec import UNSET

from clients import limit_writing
from clients.grants import Actor
from clients.limit_words import sentence
from clients.limit_writing import LimitError
from clients.models import Client, Limit
from clients.policyfile import LimitEntry, PolicyFile, PolicyFileError, find
from tools.models import Tool

# Where in an entry the fields of a limit stand.
MEMBERS = {"count": ".rate", "burst": ".burst", "tenant": ".tenant"}


class Identity(NamedTuple):
    """What makes two limits the same: everything but rate, burst, behaviour in an outage and reason."""

    per: str
    client: int | None
    tool: int | None
    tenant: str | None
    modes: tuple[str, ...]


def identity(limit: Limit) -> Identity:
    """Of a limit, stored or not."""
    modes = tuple(sorted(set(limit.modes)))
    return Identity(limit.per, limit.client_id, limit.tool_id, limit.tenant or None, modes)


class Limits:
    """One run over the limits of a file, after everything that they name was written. `note(action, kind, name,
    detail)` is told each change."""

    def __init__(self, file: PolicyFile, actor: Actor, note: Callable[[str, str, object, str], None]) -> None:
        self.file, self.actor, self.note = file, actor, note
        self.clients = {row.slug: row for row in Client.objects.all()}
        self.tools = {(row.backend.slug, row.name): row for row in Tool.objects.select_related("backend")}

    def apply(self, prune: bool) -> None:
        """Make, change and delete limits. Raises PolicyFileError."""
        if self.file.limits is UNSET:
            return
        stored = Limit.objects.select_for_update(of=("self",)).select_related("client", "tool")
        known = {identity(limit): limit for limit in stored}
        kept: dict[Identity, str] = {}
        for position, entry in enumerate(self.file.limits):
            path = f"limits[{position}]"
            wanted = self._limit(path, entry)
            if (same := identity(wanted)) in kept:
                raise PolicyFileError(path, f"counts the same as {kept[same]}")
            kept[same] = path
            try:
                self._one(wanted, known.get(same), entry.reason)
            except LimitError as error:
                raise PolicyFileError(f"{path}{MEMBERS.get(error.field or '', '')}", str(error)) from None
        if prune:
            for same, limit in known.items():
                if same not in kept:
                    number, words = limit.pk, sentence(limit)
                    limit_writing.delete(limit, actor=self.actor, reason="The policy file leaves it out.")
                    self.note("delete", "limit", number, words)

    def _limit(self, path: str, entry: LimitEntry) -> Limit:
        """The entry as an unsaved limit."""
        tool, (count, period) = entry.tool, entry.rate.split("/")
        return Limit(
            per=entry.per, count=int(count), period=period, burst=entry.burst, tenant=entry.tenant,
            client=None if entry.client is None else find(self.clients, entry.client, f"{path}.client", "client"),
            tool=None if tool is None else find(self.tools, (tool.backend, tool.name), f"{path}.tool", "tool"),
            modes=list(entry.modes), on_outage=entry.on_outage,
        )  # fmt: skip

    def _one(self, wanted: Limit, known: Limit | None, reason: str) -> None:
        limit_writing.tidy(wanted)
        if known is None:
            limit_writing.create(wanted, actor=self.actor, reason=reason)
            self.note("create", "limit", wanted.pk, sentence(wanted))
            return
        members = ("count", "period", "burst", "on_outage")
        if differing := [name for name in members if getattr(known, name) != getattr(wanted, name)]:
            for name in differing:
                setattr(known, name, getattr(wanted, name))
            limit_writing.change(known, actor=self.actor, reason=reason)
            self.note("update", "limit", known.pk, sentence(known))
