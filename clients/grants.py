"""The only writer of grants: create, extend, revoke. Each says who and why, and each becomes a policy record.

A grant is never deleted and never changed in what it grants: what differs is another grant. Revoked ones stay
as history; the policy snapshot leaves them out.

Who gives more use of a sensitive scope needs the word of a second person, which is checked here, where the change is
made: a `SecondPerson` cannot be had without the check. So is that staff who are confined to tenants write grants of
those alone (`clients.tenants`). Management commands are the operator's, and exempt of both.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from unicodedata import category

from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.db.models import Q, QuerySet
from django.utils import timezone

from audit.models import EARLIEST, LATEST, Head, Subject
from audit.outbox import acting
from clients import tenants
from clients.models import MODES, AccessRequest, Client, Grant
from clients.sensitive import sensitive_among
from tools.models import Scope, Tool

EFFECTS = ("allow", "flag", "deny")
MAX_REASON = 500
MAX_NAME = 255  # characters of a role or tenant, as in tokens (clients.claims): any of theirs can be blocked
DECIDE = "clients.decide_accessrequest"
FIELDS = {"start": "starts_at", "expiry": "expires_at"}


class Actor(NamedTuple):
    """Who changes policy: `staff:<user id>` or `command:<name>` (a management command, whose operator the
    database cannot know), and a name for people to read. In the log the name is protected."""

    id: str
    name: str

    @classmethod
    def of(cls, user: Any) -> "Actor":
        """A member of staff, as the log names them."""
        return cls(f"staff:{user.pk}", (user.get_full_name() or user.get_username())[:150])


class GrantError(ValueError):
    """The grant cannot be made, extended or revoked, or the request not decided; the message is for the person who
    asked. `field` names what it is about, `grant` and `request` the numbers of those in the way, where there are."""

    def __init__(
        self, message: str, field: str | None = None, *, grant: int | None = None, request: int | None = None
    ) -> None:
        super().__init__(message)
        self.field, self.grant, self.request = field, grant, request


class NeedsApproval(GrantError):
    """It gives more use of a sensitive scope: one asks, another approves. `scopes` are the names of those."""

    def __init__(self, scopes: Sequence[str]) -> None:
        are = "is" if len(scopes) == 1 else "are"
        super().__init__(
            f"{', '.join(scopes)} {are} sensitive: a second person has to approve it. Ask for it instead.", "scopes"
        )
        self.scopes = list(scopes)


class PolicyMoved(GrantError):
    """The policy is not the one any more that somebody looked at."""

    def __init__(self) -> None:
        super().__init__("The policy changed a moment ago. Look once more.")


def only_at(version: int) -> None:
    """Let the rest of this transaction commit only if the policy is still at this version. Say it last: it holds the
    head, for which every record waits. Raises PolicyMoved, which must roll back what was changed."""
    if Head.objects.select_for_update().get().policy != version:
        raise PolicyMoved


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


def identity(grant: Grant | AccessRequest) -> Identity:
    """The identity of a grant that is stored, or asked for; prefetch `scopes` where there are many."""
    return identity_with(grant, grant.scopes.all())


def identity_with(grant: Grant | AccessRequest, scopes: Iterable[Scope]) -> Identity:
    """The identity of a grant that would have these scopes."""
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


def end_of(asked: AccessRequest, now: datetime) -> datetime | None:
    """When what was asked for ends, if it is approved now; None where it is for good, which nobody can ask for."""
    return asked.expires_at if asked.days is None else now + timedelta(days=asked.days)


class SecondPerson:
    """Somebody who decides on what another asked. It is made within the transaction that decides, and checks as it is
    made that they may, so that nothing can be decided without the check. It holds the request's row: of two who
    decide at once the second finds it decided. `user` is of the admin; what they may is read anew."""

    def __init__(self, number: int, user: Any) -> None:
        """Raises PermissionDenied, GrantError (decided or lapsed meanwhile, or their own), or RuntimeError outside of
        a transaction."""
        if not connection.in_atomic_block:
            raise RuntimeError("a request is decided within a transaction")
        self.request = hold_request(number)
        fresh = get_user_model()._default_manager.filter(pk=user.pk).first()
        if fresh is None or not fresh.is_staff or not fresh.has_perm(DECIDE):
            raise PermissionDenied
        tenants.check(tenants.of(fresh), self.request)
        self.actor = Actor.of(fresh)
        if self.request.asked_by == self.actor.id:
            raise GrantError("You asked for this yourself: a second person decides.")
        if (other := self._asked_the_same()) is not None:
            raise GrantError(f"You asked for the same in request {other}: a third person decides.", request=other)

    def _asked_the_same(self) -> int | None:
        """A request of their own, of late, for the same grant: who wants it is not the one to approve it, least of
        all after it was rejected."""
        since = self.request.asked_at - (self.request.lapses_at - self.request.asked_at)
        own = AccessRequest.objects.filter(asked_by=self.actor.id, asked_at__gte=since).exclude(status="approved")
        wanted = identity(self.request)
        return next((one.pk for one in own.prefetch_related("scopes") if identity(one) == wanted), None)

    def covers(self, wanted: Identity, starts_at: datetime | None, expires_at: datetime | None) -> None:
        """Raise GrantError unless this is what was asked for, or shorter."""
        if identity(self.request) != wanted or self.request.starts_at != starts_at:
            raise GrantError("This is not what was asked for.")
        end = end_of(self.request, timezone.now())
        if end is None or expires_at is None or expires_at > end:
            raise GrantError("It may end sooner than was asked for, not later.", "expires_at")

    def why(self, reason: str) -> str:
        """What the policy record gives as the reason."""
        return f"Request {self.request.pk}: {reason}"


def hold_request(number: int) -> AccessRequest:
    """A request that waits, locked against another decision. Raises GrantError where it does not wait any more."""
    held = AccessRequest.objects.select_for_update(of=("self",)).filter(pk=number).first()
    if held is None:
        raise GrantError("There is no such request.")
    if held.status != "waiting":
        by = f" by {held.decided_by_name}" if held.decided_by_name else ""
        raise GrantError(f"Request {held.pk} was {held.status}{by} already.")
    if held.lapses_at <= timezone.now():
        raise GrantError(f"Request {held.pk} has lapsed: nobody decided in time. It can be asked again.")
    return held


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
    approval: SecondPerson | None = None,
) -> Grant:
    """Make a grant. None (for `modes`: empty) means any; a deny grant without scopes denies all it matches.

    Dates are timezone-aware. Raises GrantError, also where an active grant is the same but for reason and
    dates: extend or revoke that one; NeedsApproval, for staff who allow a sensitive scope by themselves; and
    PermissionDenied, for staff who are confined to other tenants."""
    wanted = sorted(set(scopes), key=lambda scope: scope.name)
    made = Grant(
        effect=effect,
        client=client,
        subject=subject,
        role=checked_name(role, "role"),
        tenant=checked_name(tenant, "tenant"),
        tool=tool,
        modes=sorted(set(modes), key=str),
        starts_at=starts_at,
        expires_at=expires_at,
        reason=checked_reason(reason),
        created_by=(actor.name or actor.id)[:150],
    )
    check(made, wanted)
    with acting(actor.id, actor.name, approval.why(made.reason) if approval else made.reason):
        tenants.check_new(tenants.of_actor(actor.id), made)
        _approved(actor, approval, made, wanted)
        _refuse_duplicate(identity_with(made, wanted))
        made.save(force_insert=True)
        made.scopes.set(wanted)
    return made


def extend(
    grant: Grant, *, actor: Actor, reason: str, expires_at: datetime | None, approval: SecondPerson | None = None
) -> None:
    """Let a grant end at another time, or never (None); an expired one comes back. The reason goes to the
    log. Raises GrantError; NeedsApproval, for staff who let a sensitive scope last longer by themselves;
    PermissionDenied, for staff who are confined to other tenants."""
    reason = checked_reason(reason)
    with acting(actor.id, actor.name, approval.why(reason) if approval else reason):
        held = _hold(actor, grant)
        check_dates(held.starts_at, expires_at)
        if approval or lasts_longer(held.expires_at, expires_at):
            asked = Grant(
                effect=held.effect, client_id=held.client_id, subject_id=held.subject_id, role=held.role,
                tenant=held.tenant, tool_id=held.tool_id, modes=held.modes, expires_at=expires_at,
            )  # fmt: skip
            if approval and approval.request.extends_id != held.pk:
                raise GrantError("This is not what was asked for.")
            if not lasts_longer(held.expires_at, expires_at):
                raise GrantError(f"Grant {held.pk} does not end before that.", "expires_at", grant=held.pk)
            _approved(actor, approval, asked, held.scopes.all())
        _refuse_duplicate(identity(held), but=held.pk)
        held.expires_at = expires_at
        held.save(update_fields=["expires_at"])
    grant.expires_at = expires_at


def revoke(grant: Grant, *, actor: Actor, reason: str) -> None:
    """End a grant for good: from the commit on no call is allowed by it. Raises GrantError where it is
    revoked already, PermissionDenied for staff who are confined to other tenants."""
    reason = checked_reason(reason)
    with acting(actor.id, actor.name, reason):
        held = _hold(actor, grant)
        held.revoked_at = timezone.now()
        held.save(update_fields=["revoked_at"])
    grant.revoked_at = held.revoked_at


def lasts_longer(old: datetime | None, new: datetime | None) -> bool:
    """Whether a grant that ended at `old` would then end later, or never (None)."""
    return old is not None and (new is None or new > old)


def needs_second_person(effect: str, scopes: Iterable[str]) -> list[str]:
    """The sensitive scopes for which staff need another to approve a grant of these; none for a block."""
    return [] if effect == "deny" else sensitive_among(scopes)


def _approved(actor: Actor, approval: SecondPerson | None, grant: Grant, scopes: Iterable[Scope]) -> None:
    """Raise NeedsApproval where a second person is needed, GrantError where what they approved is something else."""
    if approval is not None:
        if approval.actor != actor:
            raise GrantError("Somebody else approved it.")
        approval.covers(identity_with(grant, scopes), grant.starts_at, grant.expires_at)
        return
    exempt = actor.id.startswith("command:")
    if not exempt and (found := needs_second_person(grant.effect, [scope.name for scope in scopes])):
        raise NeedsApproval(found)


def _hold(actor: Actor, grant: Grant) -> Grant:
    """The grant as it is now, locked against another change of it; of the actor's tenants, where they are confined."""
    held = Grant.objects.select_for_update().filter(pk=grant.pk).first()
    if held is None:
        raise GrantError("There is no such grant.")
    tenants.check(tenants.of_actor(actor.id), held)
    if held.revoked_at is not None:
        raise GrantError(f"Grant {held.pk} is revoked already; a revoked grant stays so.")
    return held


def _refuse_duplicate(wanted: Identity, but: int | None = None) -> None:
    """Raise GrantError where another active grant is the same."""
    with connection.cursor() as cursor:
        # Two who make the same grant at once must not overlook each other; other grants do not wait.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"muniment.grant {wanted!r}"])
    if (found := same(wanted, but)) is not None:
        raise GrantError(
            f"Grant {found.pk} already says this and is active; extend it, or revoke it first.", grant=found.pk
        )


def same(wanted: Identity, but: int | None = None) -> Grant | None:
    """The active grant of this identity, if there is one."""
    alike = active().filter(effect=wanted.effect, client=wanted.client, subject=wanted.subject, tool=wanted.tool)
    return next((g for g in alike.prefetch_related("scopes") if g.pk != but and identity(g) == wanted), None)


def check(grant: Grant, scopes: Sequence[Scope]) -> None:
    """Raise GrantError where a grant makes no sense by itself, whatever others there are."""
    if grant.effect not in EFFECTS:
        raise GrantError(f"The effect must be one of {', '.join(EFFECTS)}.", "effect")
    if not set(grant.modes) <= set(MODES):
        raise GrantError(f"Agent modes are {', '.join(MODES)}.", "modes")
    if grant.effect != "deny" and not scopes and grant.tool is None:
        raise GrantError("A grant that allows needs at least one scope, or must name a tool.", "scopes")
    if grant.subject is not None and grant.subject.erased_at is not None:
        raise GrantError("This user was erased.", "subject")
    check_dates(grant.starts_at, grant.expires_at)


def check_dates(starts_at: datetime | None, expires_at: datetime | None) -> None:
    """Raise GrantError for an end that is past, or before the start."""
    for name, at in (("start", starts_at), ("expiry", expires_at)):
        if at is not None and at.tzinfo is None:
            raise GrantError(f"The {name} needs a time zone.", FIELDS[name])
        if at is not None and not EARLIEST <= at <= LATEST:
            raise GrantError(f"The {name} is not a time that can be kept.", FIELDS[name])
    if expires_at is not None and expires_at <= timezone.now():
        raise GrantError("The expiry is in the past.", "expires_at")
    if starts_at is not None and expires_at is not None and starts_at >= expires_at:
        raise GrantError("The grant would expire before it starts.", "starts_at")


def checked_reason(reason: str, needed: bool = True) -> str:
    """The reason without blanks around it; line breaks are fine, other control characters are not."""
    text = reason.strip()
    if not text and needed:
        raise GrantError("A reason is needed.", "reason")
    if len(text) > MAX_REASON:
        raise GrantError(f"The reason is longer than {MAX_REASON} characters.", "reason")
    if any(category(character)[0] == "C" and character not in "\r\n\t" for character in text):
        raise GrantError("The reason holds characters that cannot be printed.", "reason")
    return text


def checked_name(value: str | None, what: str) -> str | None:
    """A role or tenant, compared as a string, so never changed; empty is none."""
    if value is None or value == "":
        return None
    if len(value) > MAX_NAME or not value.isprintable() or not value.strip():
        raise GrantError(f"The {what} must be printable and at most {MAX_NAME} characters.", what)
    return value
