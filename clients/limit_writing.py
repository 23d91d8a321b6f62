"""The only writer of limits: create, change, delete. Each says who and why, and each becomes a policy record.

What a limit counts never changes: what differs is another limit. Whether a member of staff may is asked here, of the
database, where the change is made; management commands are the operator's, and exempt.
"""

from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db import connection

from audit.outbox import acting
from clients.grants import Actor, GrantError, checked_name, checked_reason
from clients.limit_words import sentence
from clients.models import MODES, Limit
from clients.models.limits import MOST_CALLS

STAFF, COMMAND = "staff:", "command:"


class LimitError(ValueError):
    """The limit cannot be so; the message is for the person who asked. `field` names what it is about."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


def create(limit: Limit, *, actor: Actor, reason: str) -> Limit:
    """Store an unsaved limit. Raises LimitError, also where there is one for the same; PermissionDenied."""
    tidy(limit)
    limit.reason = _reason(reason)
    limit.created_by = (actor.name or actor.id)[:150]
    with acting(actor.id, actor.name, limit.reason):
        _may(actor, "add")
        with connection.cursor() as cursor:  # two who make the same at once must not overlook each other
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('muniment.limit', 0))")
        refuse_same(limit)
        limit.save(force_insert=True)
    return limit


def change(limit: Limit, *, actor: Actor, reason: str) -> Limit:
    """Give a stored limit the rate, the burst and the behaviour in an outage that this object has; all else stays.
    Raises LimitError or PermissionDenied."""
    tidy(limit)
    with acting(actor.id, actor.name, _reason(reason)):
        _may(actor, "change")
        if not Limit.objects.select_for_update().filter(pk=limit.pk).exists():
            raise LimitError("There is no such limit any more.")
        limit.save(update_fields=["count", "period", "burst", "on_outage"])
    return limit


def delete(limit: Limit, *, actor: Actor, reason: str) -> None:
    """Remove a limit: from the commit on no call is refused by it. Raises LimitError or PermissionDenied."""
    with acting(actor.id, actor.name, _reason(reason)):
        _may(actor, "delete")
        deleted, _ = Limit.objects.filter(pk=limit.pk).delete()
        if not deleted:
            raise LimitError("There is no such limit any more.")


def tidy(limit: Limit) -> None:
    """Bring its members into the one form in which they are compared. Raises LimitError for what makes no sense."""
    limit.modes = sorted(set(limit.modes))
    if not set(limit.modes) <= set(MODES):
        raise LimitError(f"Agent modes are {', '.join(MODES)}.", "modes")
    for name, choices in (("per", Limit.PER), ("period", Limit.PERIODS), ("on_outage", Limit.ON_OUTAGE)):
        if getattr(limit, name) not in dict(choices):
            raise LimitError("This is none of the choices.", name)
    try:
        limit.tenant = checked_name(limit.tenant, "tenant")
    except GrantError as error:
        raise LimitError(str(error), "tenant") from None
    if not 1 <= limit.count <= MOST_CALLS:
        raise LimitError(f"From 1 to {MOST_CALLS:,} calls.", "count")
    if limit.burst is not None and not 1 <= limit.burst <= limit.count:
        raise LimitError(f"From 1 to {limit.count:,}, which is all of them: then leave it empty.", "burst")


def refuse_same(limit: Limit) -> None:
    """Raise LimitError where another limit counts the same calls for the same."""
    alike = Limit.objects.filter(
        per=limit.per, client=limit.client, tool=limit.tool, tenant=limit.tenant, modes=limit.modes
    ).exclude(pk=limit.pk)
    if (found := alike.first()) is not None:
        raise LimitError(f"Limit {found.pk} counts the same already ({sentence(found)}). Change that one.", "per")


def _reason(reason: str) -> str:
    try:
        return checked_reason(reason)
    except GrantError as error:
        raise LimitError(str(error), error.field) from None


def _may(actor: Actor, permission: str) -> None:
    if actor.id.startswith(COMMAND):
        return
    number = actor.id.removeprefix(STAFF)
    fresh = get_user_model()._default_manager.filter(pk=number).first() if number.isdecimal() else None
    if fresh is None or not fresh.is_staff or not fresh.has_perm(f"clients.{permission}_limit"):
        raise PermissionDenied
