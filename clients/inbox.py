"""The inbox: OAuth client ids and tools that calls named and nobody registered, tools that wait for approval, tools
that changed since. All of it is refused until staff decide. Who may decide is checked here, where the change is made.

A name that became known in another way (its backend declared the tool, a policy file named the id) is not in the inbox,
whether or not its sighting is still there: sightings are counted in the background, and may come a moment late."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from django.core.exceptions import PermissionDenied
from django.db import DataError, IntegrityError, connection, transaction
from django.db.models import OuterRef, QuerySet, Subquery
from django.urls import reverse
from django.utils import timezone

from audit.admin_base import words_of
from audit.models import Sighting
from audit.outbox import acting
from audit.record_words import amount
from audit.staff_log import tell
from clients.grants import Actor
from clients.models import Client, Issuer, OAuthClientId
from tools import approval
from tools.difference import visible
from tools.models import Backend, Scope, Tool

MOST_COUNTED = 100  # of what waits: the navigation shows 99+


class InboxError(ValueError):
    """It cannot be done; the message is for the person who asked, `field` names the field of the form it is about."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class WaitingItem:
    """One thing that waits for a decision: `kind` is client, tool (undeclared), pending or changed."""

    kind: str
    sentence: str
    url: str


# --- what waits ------------------------------------------------------------------------------------------------


def unknown(kind: str, ignored: bool = False) -> QuerySet[Sighting]:
    """Sightings of `kind` client or tool whose name is still unknown, the last seen first."""
    known: QuerySet[Any]
    if kind == "client":
        known = OAuthClientId.objects.filter(issuer__issuer=OuterRef("source"), oauth_id=OuterRef("name"))
    else:
        known = Tool.objects.filter(backend__slug=OuterRef("source"), name=OuterRef("name")).order_by()
    # Looked up by index, one by one: as a join it is planned by statistics that a table which grew a moment ago lacks,
    # and then takes seconds.
    seen = Sighting.objects.filter(kind=kind, ignored_at__isnull=not ignored)
    unknown_yet = seen.alias(known=Subquery(known.values("pk")[:1])).filter(known__isnull=True)
    return unknown_yet.order_by("-last_seen", "-pk")


def pending() -> QuerySet[Tool]:
    """Tools that their backends declared and nobody approved yet, the newest first."""
    return Tool.objects.filter(status="pending").select_related("backend").order_by("-pk")


def changed() -> QuerySet[Tool]:
    """Tools that changed since they were approved, and are suspended until somebody decides; the newest first."""
    return _seen(approval.waiting())


def drifted() -> QuerySet[Tool]:
    """Tools that changed since they were approved, and can be called all the same; the newest first."""
    return _seen(approval.drifted())


def _seen(tools: QuerySet[Tool]) -> QuerySet[Tool]:
    known = tools.select_related("backend", "approved").prefetch_related("scopes")
    return known.order_by("-approved__changed_at", "-pk")


def waiting_count() -> int:
    """How much waits for a decision, counted up to 100. What is ignored does not wait."""
    statement, parameters = _counting()
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return int(cursor.fetchone()[0])


@cache
def _counting() -> tuple[str, tuple[Any, ...]]:
    """The statement, which is always the same: every page asks it, and to put it together takes longer than to answer
    it."""
    parts: list[QuerySet[Any]] = [unknown("client"), unknown("tool"), pending(), approval.waiting()]
    ids = [part.order_by().values_list("pk") for part in parts]
    statement, parameters = ids[0].union(*ids[1:], all=True)[:MOST_COUNTED].query.sql_with_params()
    return f"SELECT count(*) FROM ({statement}) AS waiting", parameters  # noqa: S608 - the ORM's own, with parameters


def waiting_items(most: int) -> list[WaitingItem]:
    """The newest of what waits, at most so many: each a sentence without full stop, and where to decide. Declared
    tools, which may be many at once, are one item, the last."""
    now, names = timezone.now(), backend_names()
    timed = [(one.last_seen, item_of(one, names, now)) for kind in ("client", "tool") for one in unknown(kind)[:most]]
    timed += [(tool.approved.changed_at or now, _changed_item(tool)) for tool in changed()[:most]]
    items = [item for _, item in sorted(timed, key=lambda pair: pair[0], reverse=True)]
    declared = _declared_item()
    return [*items[: most - 1], declared] if declared and most else items[:most]


def backend_names() -> dict[str, str]:
    """Slug -> name."""
    return dict(Backend.objects.values_list("slug", "name"))


def item_of(one: Sighting, names: dict[str, str], now: datetime) -> WaitingItem:
    """`Unknown client claude-desktop-beta: 17 calls since Friday, all refused`."""
    calls = f"{amount(one.count, 'call')} {since_words(one.first_seen, now)}, all refused"
    url = f"{reverse('admin:inbox')}#{one.kind}-{one.pk}"
    if one.kind == "client":
        return WaitingItem("client", f"Unknown client {visible(one.name)}: {calls}", url)
    return WaitingItem(
        "tool", f"Undeclared tool {visible(one.name)} of {names.get(one.source, one.source)}: {calls}", url
    )


def changed_words(tool: Tool) -> str:
    """`memory.recall of Inner changed its description`, or that it is as it was approved again."""
    if not approval.changed(tool):
        return f"{tool} of {tool.backend} changed, and is as it was approved again"
    return f"{tool} of {tool.backend} changed {approval.change_words(tool)}"


def _changed_item(tool: Tool) -> WaitingItem:
    url = reverse("admin:tools_tool_decide", args=[tool.pk])
    return WaitingItem("changed", f"{changed_words(tool)}: suspended until somebody approves it again", url)


def _declared_item() -> WaitingItem | None:
    found = list(pending()[:MOST_COUNTED])
    if not found:
        return None
    first = f"{found[0]} of {found[0].backend}"
    if len(found) == 1:
        url = reverse("admin:tools_tool_decide", args=[found[0].pk])
        return WaitingItem("pending", f"{first} was declared: refused until somebody approves it", url)
    more = "100 and more" if len(found) == MOST_COUNTED else str(len(found))
    words = f"{more} declared tools wait for approval, {first} among them"
    return WaitingItem("pending", words, f"{reverse('admin:inbox')}#pending")


def since_words(at: datetime, now: datetime) -> str:
    """`since 10:04`, `since Friday`, `since 3 May`, `since 3 May 2025`; in UTC."""
    at, now = at.astimezone(timezone.get_default_timezone()), now.astimezone(timezone.get_default_timezone())
    if at.date() == now.date():
        return f"since {at:%H:%M}"
    if now.date() - at.date() < timedelta(days=7):
        return f"since {at:%A}"
    return f"since {at.day} {at:%b}" + ("" if at.year == now.year else f" {at.year}")


# --- deciding --------------------------------------------------------------------------------------------------


def issuer_of(one: Sighting) -> Issuer | None:
    """The issuer of an unknown client id, if we know it: only its ids can be attached."""
    return Issuer.objects.filter(issuer=one.source).first()


def attach(number: int, client: Client, *, user: Any, reason: str) -> OAuthClientId:
    """The unknown client id is this client's from now on: its calls are decided by the client's grants. Raises
    PermissionDenied, or InboxError."""
    _require(user, "clients.change_client")
    one = _sighting(number, "client")
    try:
        with acting(*Actor.of(user), reason):
            made = _name(one, client)
            one.delete()
            return made
    except (IntegrityError, DataError) as error:
        raise _taken(one, error) from None


def make_client(number: int, *, slug: str, name: str, kind: str, status: str, user: Any, reason: str) -> Client:
    """A new client that has the unknown client id; `status` is active or suspended. Raises PermissionDenied, or
    InboxError."""
    _require(user, "clients.add_client")
    one = _sighting(number, "client")
    try:
        with acting(*Actor.of(user), reason):
            made = Client.objects.create(slug=slug, name=name, kind=kind, status=status)
            _name(one, made)
            one.delete()
            return made
    except (IntegrityError, DataError) as error:
        if Client.objects.filter(slug=slug).exists():
            raise InboxError("There is a client of this slug already.", "slug") from None
        raise _taken(one, error) from None


def _name(one: Sighting, client: Client) -> OAuthClientId:
    issuer = issuer_of(one)
    if issuer is None:
        raise InboxError("Its issuer is not registered, so its client ids cannot be attached to anything.")
    return OAuthClientId.objects.create(client=client, issuer=issuer, oauth_id=one.name)


def _taken(one: Sighting, error: DataError | IntegrityError) -> InboxError:
    """Why the database refused, in words: mostly that somebody was faster."""
    owner = OAuthClientId.objects.filter(issuer__issuer=one.source, oauth_id=one.name).select_related("client").first()
    if owner is None:
        return InboxError(words_of(error))
    return InboxError(f"Somebody attached it a moment ago: it is {owner.client}'s.", "client")


def add_tool(
    number: int, *, access: str, scopes: Iterable[Scope], status: str, description: str, user: Any, reason: str
) -> Tool:
    """The undeclared tool, added here; `status` is active (which approves it) or suspended. Raises PermissionDenied, or
    InboxError."""
    _require(user, "tools.add_tool")
    one = _sighting(number, "tool")
    backend = Backend.objects.filter(slug=one.source).first()
    if backend is None:
        raise InboxError("Its backend is not registered any more.")
    actor = Actor.of(user)
    try:
        with acting(*actor, reason):
            made = Tool.objects.create(
                backend=backend, name=one.name, access=access, status=status, description=description
            )
            made.scopes.set(scopes)
            if status == "active":
                approval.keep(made, actor.name)
            one.delete()
            return made
    except (IntegrityError, DataError) as error:
        if Tool.objects.filter(backend=backend, name=one.name).exists():
            raise InboxError(f"{backend} declared it, or somebody added it, a moment ago.") from None
        raise InboxError(words_of(error)) from None


def ignore(number: int, *, user: Any, reason: str) -> Sighting:
    """Leave it refused and counted, out of sight. Raises PermissionDenied, or InboxError."""
    return _set_ignored(number, timezone.now(), "ignore", user, reason)


def heed(number: int, *, user: Any, reason: str) -> Sighting:
    """Back into the inbox. Raises PermissionDenied, or InboxError."""
    return _set_ignored(number, None, "heed", user, reason)


def _set_ignored(number: int, at: datetime | None, action: str, user: Any, reason: str) -> Sighting:
    _require(user, "audit.change_sighting")
    one, actor = _sighting(number), Actor.of(user)
    about = {"issuer": one.source, "client_id": one.name} if one.kind == "client" else {
        "backend": one.source, "tool": one.name
    }  # fmt: skip
    with transaction.atomic():
        done = Sighting.objects.filter(pk=one.pk, ignored_at__isnull=at is not None).update(ignored_at=at)
        if not done:
            raise InboxError("Somebody decided on it a moment ago.")
        tell(actor.id, actor.name, f"inbox.{action}_{one.kind}", {"reason": reason}, **about)
    return one


def _sighting(number: int, kind: str | None = None) -> Sighting:
    """What was seen. It is not locked: the recorder counts into the same row, and must never wait for staff."""
    found = Sighting.objects.filter(pk=number).first()
    if found is None or (kind is not None and found.kind != kind):
        raise InboxError("It is not in the inbox any more: somebody decided on it a moment ago.")
    return found


def _require(user: Any, permission: str) -> None:
    if not user.has_perm(permission):
        raise PermissionDenied
