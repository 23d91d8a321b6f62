"""The only writer of grants: create, extend, revoke. Each says who and why, and each becomes a policy record.

A grant is never deleted and never changed in what it grants: what differs is another grant. Revoked ones stay
as history; the policy snapshot leaves them out.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple
from unicodedata import category

from django.db import connection
from django.db.models import Q, QuerySet
from django.utils import timezone

from audit.models import Subject
from audit.outbox import acting
from clients.models import MODES, Client, Grant
from tools.models import Scope, Tool

EFFECTS = ("allow", "flag", "deny")
MAX_REASON = 500
MAX_NAME = 128


class Actor(NamedTuple):
    """Who changes policy: `staff:<user id>` or `command:<name>` (a management command, whose operator the
    database cannot know), and a name for people to read. In the log the name is protected."""

    id: str
    name: str


class GrantError(ValueError):
    """The grant cannot be made, extended or revoked; the message is for the person who asked."""


class Identity(NamedTuple):
    """What makes two grants the same: everything but reason and dates. Two active grants never share it."""

    effect: str
    client: int | None
    scopes: tuple[str, ...]
    subject: str | None
    role: str | None
    tenant: str | None
    tool: int | None
    modes: tuple[str, ...]


def identity(grant: Grant) -> Identity:
    """The identity of a grant that is stored; prefetch `scopes` where there are many."""
    return _identity(grant, grant.scopes.all())


def _identity(grant: Grant, scopes: Iterable[Scope]) -> Identity:
    return Identity(
        grant.effect,
        grant.client_id,
        tuple(sorted(scope.name for scope in scopes)),
        grant.subject_id,
        grant.role or None,
        grant.tenant or None,
        grant.tool_id,
        tuple(sorted(set(grant.modes))),
    )


def active(at: datetime | None = None) -> QuerySet[Grant]:
    """Grants that are neither revoked nor expired; those that start later are among them."""
    unexpired = Q(expires_at=None) | Q(expires_at__gt=at or timezone.now())
    return Grant.objects.filter(unexpired, revoked_at=None)


def create(
    *,
    actor: Actor,
    reason: str,
    client: Client | None,
    scopes: Iterable[Scope],
    effect: str = "allow",
    subject: Subject | None = None,
    role: str | None = None,
    tenant: str | None = None,
    tool: Tool | None = None,
    modes: Iterable[str] = (),
    starts_at: datetime | None = None,
    expires_at: datetime | None = None,
) -> Grant:
    """Make a grant. None (for `modes`: empty) means any; a deny grant without scopes denies all it matches.

    Dates are timezone-aware. Raises GrantError, also where an active grant is the same but for reason and
    dates: extend or revoke that one."""
    wanted = sorted(set(scopes), key=lambda scope: scope.name)
    made = Grant(
        effect=effect,
        client=client,
        subject=subject,
        role=_name(role, "role"),
        tenant=_name(tenant, "tenant"),
        tool=tool,
        modes=sorted(set(modes), key=str),
        starts_at=starts_at,
        expires_at=expires_at,
        reason=_reason(reason),
        created_by=(actor.name or actor.id)[:150],
    )
    _check(made, wanted)
    with acting(actor.id, actor.name, made.reason):
        _refuse_duplicate(_identity(made, wanted))
        made.save(force_insert=True)
        made.scopes.set(wanted)
    return made


def extend(grant: Grant, *, actor: Actor, reason: str, expires_at: datetime | None) -> None:
    """Let a grant end at another time, or never (None); an expired one comes back. The reason goes to the
    log. Raises GrantError."""
    reason = _reason(reason)
    with acting(actor.id, actor.name, reason):
        held = _hold(grant)
        _check_dates(held.starts_at, expires_at)
        _refuse_duplicate(identity(held), but=held.pk)
        held.expires_at = expires_at
        held.save(update_fields=["expires_at"])
    grant.expires_at = expires_at


def revoke(grant: Grant, *, actor: Actor, reason: str) -> None:
    """End a grant for good: from the commit on no call is allowed by it. Raises GrantError where it is
    revoked already."""
    reason = _reason(reason)
    with acting(actor.id, actor.name, reason):
        held = _hold(grant)
        held.revoked_at = timezone.now()
        held.save(update_fields=["revoked_at"])
    grant.revoked_at = held.revoked_at


def _hold(grant: Grant) -> Grant:
    """The grant as it is now, locked against another change of it."""
    held = Grant.objects.select_for_update().filter(pk=grant.pk).first()
    if held is None:
        raise GrantError("There is no such grant.")
    if held.revoked_at is not None:
        raise GrantError(f"Grant {held.pk} is revoked already; a revoked grant stays so.")
    return held


def _refuse_duplicate(wanted: Identity, but: int | None = None) -> None:
    """Raise GrantError where another active grant is the same."""
    with connection.cursor() as cursor:
        # Two who make the same grant at once must not overlook each other; other grants do not wait.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"muniment.grant {wanted!r}"])
    alike = active().filter(effect=wanted.effect, client=wanted.client, subject=wanted.subject, tool=wanted.tool)
    for grant in alike.prefetch_related("scopes"):
        if grant.pk != but and identity(grant) == wanted:
            raise GrantError(f"Grant {grant.pk} already says this and is active; extend it, or revoke it first.")


def _check(grant: Grant, scopes: Sequence[Scope]) -> None:
    if grant.effect not in EFFECTS:
        raise GrantError(f"The effect must be one of {', '.join(EFFECTS)}.")
    if not set(grant.modes) <= set(MODES):
        raise GrantError(f"Agent modes are {', '.join(MODES)}.")
    if grant.effect != "deny" and not scopes and grant.tool is None:
        raise GrantError("A grant that allows needs at least one scope, or must name a tool.")
    if grant.subject is not None and grant.subject.erased_at is not None:
        raise GrantError("This user was erased.")
    _check_dates(grant.starts_at, grant.expires_at)


def _check_dates(starts_at: datetime | None, expires_at: datetime | None) -> None:
    for name, at in (("start", starts_at), ("expiry", expires_at)):
        if at is not None and at.tzinfo is None:
            raise GrantError(f"The {name} needs a time zone.")
    if expires_at is not None and expires_at <= timezone.now():
        raise GrantError("The expiry is in the past.")
    if starts_at is not None and expires_at is not None and starts_at >= expires_at:
        raise GrantError("The grant would expire before it starts.")


def _reason(reason: str) -> str:
    """The reason without blanks around it; line breaks are fine, other control characters are not."""
    text = reason.strip()
    if not text:
        raise GrantError("A reason is needed.")
    if len(text) > MAX_REASON:
        raise GrantError(f"The reason is longer than {MAX_REASON} characters.")
    if any(category(character)[0] == "C" and character not in "\r\n\t" for character in text):
        raise GrantError("The reason holds characters that cannot be printed.")
    return text


def _name(value: str | None, what: str) -> str | None:
    """A role or tenant, compared as a string, so never changed; empty is none."""
    if value is None or value == "":
        return None
    if len(value) > MAX_NAME or not value.isprintable() or not value.strip():
        raise GrantError(f"The {what} must be printable and at most {MAX_NAME} characters.")
    return value
