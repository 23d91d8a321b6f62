"""Kill switches: what is stopped now, and stopping and resuming a client, backend, tool, issuer or user. Each is a
change of one row, in force from its commit on; who made it and why reaches the log through the triggers on that row.

A tool that is suspended because its definition changed since it was approved is not stopped by anybody: it waits for a
decision in the inbox.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.core.exceptions import PermissionDenied
from django.db import connection
from django.db.models import QuerySet
from django.utils import timezone

from audit import tenants
from audit.admin_base import Refused
from audit.models import Subject
from audit.outbox import acting
from audit.record_words import short_uid
from audit.viewer import tenants_of
from clients.models import Client, Issuer
from tools import approval
from tools.models import Backend, Tool

MOST, MOST_NAMED = 100, 4  # of a kind on the page; in all on the banner
MOST_DEACTIVATED = 20
AS_WELL = "The identity provider deactivated this user as well: after a resume they stay refused."


@dataclass(frozen=True, slots=True)
class Switch:
    """One kind of thing that can be stopped: what it is called, the permissions to see and to change it, its table,
    what is stopped of it, and what stopping does."""

    kind: str
    noun: str
    view: str
    change: str
    table: str
    stopped: Callable[[], QuerySet[Any]]
    explanation: str


def _suspended() -> QuerySet[Tool]:
    return Tool.objects.filter(status="suspended").exclude(pk__in=approval.waiting().values("pk"))


SWITCHES: Mapping[str, Switch] = {
    switch.kind: switch
    for switch in (
        Switch("client", "client", "clients.view_client", "clients.change_client", "clients_client",
               lambda: Client.objects.filter(status="suspended").order_by("slug"),
               "From the next call on, everything that it asks is refused, for every user."),
        Switch("backend", "backend", "tools.view_backend", "tools.change_backend", "tools_backend",
               lambda: Backend.objects.filter(enabled=False).order_by("slug"),
               "From the next call on, its keys do not work: every call of it is answered 401."),
        Switch("tool", "tool", "tools.view_tool", "tools.change_tool", "tools_tool",
               lambda: _suspended().select_related("backend").order_by("backend__slug", "name"),
               "From the next call on, every call of it is refused, through every client."),
        Switch("issuer", "issuer", "clients.view_issuer", "clients.change_issuer", "clients_issuer",
               lambda: Issuer.objects.filter(enabled=False).order_by("issuer"),
               "From the next call on, none of its tokens is accepted."),
        Switch("user", "user", "audit.view_subject", "audit.change_subject", "audit_subject",
               lambda: Subject.objects.filter(blocked_at__isnull=False, erased_at=None).order_by("-blocked_at"),
               "From the next call on, every call for this user is refused, through every client."),
    )
}  # fmt: skip
# In one query for all, read with every page: the kind, and what names it.
BANNER = {
    "client": "SELECT 'client', name FROM clients_client WHERE status = 'suspended' ORDER BY name",
    "backend": "SELECT 'backend', name FROM tools_backend WHERE NOT enabled ORDER BY name",
    "tool": "SELECT 'tool', name FROM tools_tool t WHERE status = 'suspended' AND NOT EXISTS (SELECT"
    " FROM tools_approveddefinition a WHERE a.tool_id = t.id AND a.changed_at IS NOT NULL) ORDER BY name",
    "issuer": "SELECT 'issuer', issuer FROM clients_issuer WHERE NOT enabled ORDER BY issuer",
    "user": "SELECT 'user', uid FROM audit_subject WHERE blocked_at IS NOT NULL AND erased_at IS NULL"
    " ORDER BY blocked_at DESC",
}


@dataclass(frozen=True, slots=True)
class Stop:
    """Something that is stopped. `key` names it in a URL, `row` is its id as the log has it; `since` is known here for
    users only: of the others the log knows. `note` is what a resume would leave as it is."""

    kind: str
    noun: str
    key: str
    name: str
    row: str
    since: datetime | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Banner:
    """What is stopped, for one line: noun and name of the first few, and whether there is more."""

    named: list[tuple[str, str]]
    more: bool


def visible(user: Any) -> list[Switch]:
    """The kinds that a member of staff may see: who is confined to tenants, users alone, since all else is shared."""
    confined = tenants_of(user) is not None
    return [s for s in SWITCHES.values() if user.has_perm(s.view) and (s.kind == "user" or not confined)]


def banner(user: Any) -> Banner | None:
    """What is stopped of all that the member of staff may see; None where nothing is."""
    selects = [f"({BANNER[switch.kind]} LIMIT {MOST_NAMED + 1})" for switch in visible(user)]
    if not selects:
        return None
    if (seen := tenants_of(user)) is not None:
        uids = tenants.users(seen).filter(blocked_at__isnull=False, erased_at=None).order_by("-blocked_at")
        rows = [("user", uid) for uid in uids.values_list("uid", flat=True)[: MOST_NAMED + 1]]
        return _banner(rows)
    with connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(selects))
        return _banner(cursor.fetchall())


def _banner(rows: list[tuple[str, str]]) -> Banner | None:
    found = [(SWITCHES[kind].noun, short_uid(name) if kind == "user" else name) for kind, name in rows]
    return Banner(found[:MOST_NAMED], len(found) > MOST_NAMED) if found else None


def now_stopped(user: Any) -> list[Stop]:
    """What is stopped of all that the member of staff may see, at most 100 of a kind."""
    seen = tenants_of(user)
    found = {switch: switch.stopped() for switch in visible(user)}
    if seen is not None:
        found = {switch: rows.filter(pk__in=tenants.users(seen).values("pk")) for switch, rows in found.items()}
    return [as_stop(switch, row) for switch, rows in found.items() for row in rows[:MOST]]


def as_stop(switch: Switch, row: Any) -> Stop:
    """One row of a kind, as what is or could be stopped."""
    since = row.blocked_at if switch.kind == "user" else None
    note = AS_WELL if switch.kind == "user" and row.deactivated_at is not None else ""
    return Stop(switch.kind, switch.noun, key_of(switch, row), name_of(switch, row), str(row.pk), since, note)


def deactivated(user: Any) -> list[Stop]:
    """The users whom their identity provider deactivated last, of all that the member of staff may see, and whom staff
    did not stop besides; at most 20. They are stopped, and nobody here can resume them. They are in no banner: of an
    organisation whose people leave there are always more."""
    switch = SWITCHES["user"]
    if not user.has_perm(switch.view):
        return []
    found = tenants.users(tenants_of(user)).filter(deactivated_at__isnull=False, blocked_at=None, erased_at=None)
    return [
        Stop("user", switch.noun, row.uid, short_uid(row.uid), row.uid, row.deactivated_at)
        for row in found.order_by("-deactivated_at")[:MOST_DEACTIVATED]
    ]


def key_of(switch: Switch, row: Any) -> str:
    """What names it in a URL: slug, `backend/tool`, issuer or uid."""
    match switch.kind:
        case "tool":
            return f"{row.backend.slug}/{row.name}"
        case "issuer":
            return str(row.issuer)
        case "user":
            return str(row.uid)
    return str(row.slug)


def name_of(switch: Switch, row: Any) -> str:
    """What people call it."""
    return short_uid(row.uid) if switch.kind == "user" else str(row)


def may_change(user: Any, kind: str, row: str) -> bool:
    """Whether somebody may stop and resume the one with this id: who is confined, a user all of whose tenants are
    theirs."""
    seen = tenants_of(user)
    theirs = seen is None or (kind == "user" and tenants.may_change(seen, row))
    return bool(theirs and user.has_perm(SWITCHES[kind].change))


def find_for(user: Any, kind: str, key: str) -> Any:
    """The row of this kind that is called so, where this member of staff may see it, else None."""
    row, seen = find(kind, key), tenants_of(user)
    hidden = seen is not None and row is not None and not (kind == "user" and tenants.sees(seen, row.uid))
    return None if hidden else row


def find(kind: str, key: str, lock: bool = False) -> Any:
    """The row of this kind that is called so; None where there is none. `lock`: locked, within a transaction."""
    rows: QuerySet[Any]
    match kind:
        case "client":
            rows = Client.objects.filter(slug=key)
        case "backend":
            rows = Backend.objects.filter(slug=key)
        case "tool":
            backend, _, name = key.partition("/")
            rows = Tool.objects.select_related("backend").filter(backend__slug=backend, name=name)
        case "issuer":
            rows = Issuer.objects.filter(issuer=key)
        case _:
            rows = Subject.objects.filter(uid=key)
    return (rows.select_for_update(of=("self",)) if lock else rows).first()


def is_stopped(kind: str, row: Any) -> bool:
    """Whether it is stopped now."""
    match kind:
        case "client":
            return bool(row.status == "suspended")
        case "tool":
            return bool(row.status == "suspended") and not _waits(row)
        case "user":
            return row.blocked_at is not None and row.erased_at is None
    return not row.enabled


def _waits(tool: Tool) -> bool:
    return approval.waiting().filter(pk=tool.pk).exists()


def objection(kind: str, row: Any, stopping: bool) -> str | None:
    """Why it can't be stopped (or resumed) as it is now, in words; None where it can."""
    if kind == "user" and row.erased_at is not None:
        return "This user was erased; nothing is left to stop."
    if kind == "tool" and (words := _tool_objection(row, stopping)) is not None:
        return words
    if kind == "user" and not stopping and row.blocked_at is None and row.deactivated_at is not None:
        return "The identity provider deactivated this user, and it alone can take that back."
    if is_stopped(kind, row) == stopping:
        return "It is stopped already." if stopping else "It is not stopped."
    return None


def _tool_objection(tool: Tool, stopping: bool) -> str | None:
    if tool.status in ("pending", "retired"):
        return f"It is {tool.status}, so no call of it is allowed as it is."
    if tool.status == "suspended" and _waits(tool):
        return "Its definition changed since it was approved, so it is suspended until somebody decides in the inbox."
    if not stopping and tool.status == "suspended" and approval.approved(tool) is None:
        return "Nobody ever approved it. Approve it as it is now, on its own page."
    if not stopping and tool.status == "suspended" and approval.changed(tool):
        # What was approved is another tool: to resume it would be to approve this one unread.
        return "Its definition changed since it was approved. Approve it as it is now, on its own page."
    return None


def stop(user: Any, actor: tuple[str, str], kind: str, key: str, reason: str) -> Stop:
    """Stop it. `user` is the member of staff, `actor` how the log names them. Raises PermissionDenied, and Refused with
    words for people."""
    return _change(user, actor, kind, key, reason, stopping=True)


def resume(user: Any, actor: tuple[str, str], kind: str, key: str, reason: str) -> Stop:
    """Let it be decided by the policy again. Raises as `stop`."""
    return _change(user, actor, kind, key, reason, stopping=False)


def _change(user: Any, actor: tuple[str, str], kind: str, key: str, reason: str, stopping: bool) -> Stop:
    switch = SWITCHES[kind]
    if not user.has_perm(switch.change):
        raise PermissionDenied
    if not reason.strip():
        raise Refused("A reason is needed.")
    with acting(*actor, reason):
        held = find(kind, key, lock=True)
        if held is None:
            raise Refused(f"There is no such {switch.noun}.")
        if not may_change(user, kind, str(held.pk)):
            raise PermissionDenied
        if (words := objection(kind, held, stopping)) is not None:
            raise Refused(words)
        _set(kind, held, stopping)
    return as_stop(switch, held)


def _set(kind: str, held: Any, stopping: bool) -> None:
    if kind == "tool" and stopping:
        approval.before_change(held)  # so that a change while it is stopped is seen before it is resumed
    match kind:
        case "client" | "tool":
            column, held.status = "status", "suspended" if stopping else "active"
        case "user":
            column, held.blocked_at = "blocked_at", timezone.now() if stopping else None
        case _:
            column, held.enabled = "enabled", not stopping
    held.save(update_fields=[column])
    if kind == "tool" and stopping:
        approval.settle(held)  # what of it waits in the inbox is decided: it is stopped
