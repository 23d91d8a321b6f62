"""Requests: somebody on the staff asks for a grant, another decides. The only writer of them; every step is a record.

A request is time-boxed, and lapses when nobody decides. What is approved is what was asked for, or shorter; the grant
is made in the same transaction. Who may decide is checked where it is done (`clients.grants.SecondPerson`)."""

from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db import connection, transaction
from django.db.models import QuerySet
from django.utils import timezone

from audit.staff_log import tell
from clients import grant_checks, grants, proposals, tenants
from clients.grants import DECIDE, Actor, GrantError, SecondPerson, checked_reason, hold_request, identity
from clients.models import AccessRequest, Grant
from clients.proposals import Proposal

MOST_WAITING = 50  # of one person at once
MOST_SCOPES = 200  # of one request: each step of it is a record that names them all, and a record has a bound
MOST_SHOWN = 100  # counted no further, for the navigation


def waiting(now: datetime | None = None) -> QuerySet[AccessRequest]:
    """Requests that somebody may still decide."""
    return AccessRequest.objects.filter(status="waiting", lapses_at__gt=now or timezone.now())


def to_decide(user: Any) -> QuerySet[AccessRequest]:
    """What waits for this member of staff: what they may decide and did not ask for."""
    if not user.has_perm(DECIDE):
        return AccessRequest.objects.none()
    return waiting().filter(tenants.own(tenants.of(user))).exclude(asked_by=f"staff:{user.pk}")


def waiting_for(user: Any) -> int:
    """How many requests wait for this member of staff, counted no further than 100."""
    return to_decide(user).order_by()[:MOST_SHOWN].count()


def state(asked: AccessRequest, now: datetime | None = None) -> str:
    """Its status; one that nobody decided in time has lapsed at once, whether it is marked yet or not."""
    if asked.status == "waiting" and asked.lapses_at <= (now or timezone.now()):
        return "lapsed"
    return asked.status


def is_own(asked: AccessRequest, user: Any) -> bool:
    """Whether this member of staff asked for it."""
    return asked.asked_by == f"staff:{user.pk}"


def ask(user: Any, wanted: Proposal, reason: str) -> AccessRequest:
    """Ask for a grant, or (`wanted.kind` extend) for a longer life of one. `wanted` has days or an end. Raises
    PermissionDenied for who is not on the staff, or confined to other tenants, and GrantError."""
    made = _unsaved(wanted, checked_reason(reason))
    with transaction.atomic():
        fresh = get_user_model()._default_manager.filter(pk=user.pk).first()
        if fresh is None or not fresh.is_active or not fresh.is_staff:
            raise PermissionDenied
        tenants.check_new(tenants.of(fresh), made)
        actor = Actor.of(fresh)
        made.asked_by, made.asked_by_name = actor
        made.lapses_at = timezone.now() + timedelta(days=settings.MUNIMENT_REQUEST_DAYS)
        _refuse(made, wanted)
        made.save(force_insert=True)
        made.scopes.set(wanted.scopes)
        _tell(actor, "request.ask", made, reason=made.reason)
    return made


def _unsaved(wanted: Proposal, reason: str) -> AccessRequest:
    plain = wanted.unsaved()
    if wanted.kind == "extend" and wanted.grant is None:
        raise ValueError("which grant to extend is not said")
    return AccessRequest(
        extends=wanted.grant if wanted.kind == "extend" else None, effect=plain.effect, client=plain.client,
        subject=plain.subject, role=grants.checked_name(plain.role, "role"),
        tenant=grants.checked_name(plain.tenant, "tenant"), tool=plain.tool, modes=sorted(set(plain.modes)),
        starts_at=plain.starts_at if wanted.kind == "grant" else None, days=wanted.days,
        expires_at=None if wanted.days is not None else plain.expires_at, reason=reason,
    )  # fmt: skip


def _refuse(made: AccessRequest, wanted: Proposal) -> None:
    """Raise GrantError for what cannot be asked for."""
    if made.days is None and made.expires_at is None:
        raise GrantError("A request says until when.", "ends")
    if len(wanted.scopes) > MOST_SCOPES:
        raise GrantError(f"A request is for at most {MOST_SCOPES} scopes.", "scopes")
    if made.days is not None and not 1 <= made.days <= 3650:
        raise GrantError("A request is for at least a day, and at most ten years.", "ends")
    _refuse_nonsense(wanted)
    if made.extends is not None and not grants.lasts_longer(made.extends.expires_at, wanted.expires_at):
        raise GrantError(f"Grant {made.extends.pk} does not end before that.", "ends", grant=made.extends.pk)
    with connection.cursor() as cursor:
        # Two who ask for the same at once must not overlook each other, nor one who asks fifty times.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('muniment.request', 0))")
    if waiting().filter(asked_by=made.asked_by).count() >= MOST_WAITING:
        raise GrantError(f"{MOST_WAITING} of your requests wait already. Withdraw some first.")
    new = wanted.identity()
    for one in waiting().filter(extends=made.extends).prefetch_related("scopes"):
        if identity(one) == new:
            raise GrantError(f"Request {one.pk} asks for this already, and waits.", request=one.pk)


def _refuse_nonsense(wanted: Proposal, codes: frozenset[str] = frozenset()) -> None:
    """Raise GrantError for the first thing that is wrong with it; `codes` are warnings that count as wrong."""
    for problem in grant_checks.problems(wanted):
        if problem.error or problem.code in codes:
            raise GrantError(problem.words, problem.field, grant=problem.grant)


def approve(
    number: int, user: Any, *, answer: str = "", expires_at: datetime | None = None, version: int | None = None
) -> AccessRequest:
    """Approve a request, and make or extend its grant in the same transaction. `expires_at` is a sooner end than was
    asked for; None: as it was asked. With `version`, only while the policy is still at that one. Raises
    PermissionDenied, GrantError; PolicyMoved where it is not."""
    answer = checked_reason(answer, needed=False)
    with transaction.atomic():
        approval = SecondPerson(number, user)
        asked = approval.request
        wanted = proposals.of_request(asked, timezone.now())
        wanted = wanted if expires_at is None else wanted.until(expires_at)
        _refuse_nonsense(wanted, grant_checks.STOPPED)
        asked.grant = _carry_out(approval, wanted)
        _close(asked, "approved", approval.actor, answer)
        if version is not None:
            grants.only_at(version)
    return asked


def _carry_out(approval: SecondPerson, wanted: Proposal) -> Grant:
    how: dict[str, Any] = {"actor": approval.actor, "reason": approval.request.reason, "approval": approval}
    if wanted.grant is None:
        return grants.create(**wanted.members(), **how)
    grants.extend(wanted.grant, expires_at=wanted.expires_at, **how)
    return wanted.grant


def reject(number: int, user: Any, *, answer: str) -> AccessRequest:
    """Reject a request, saying why. Raises PermissionDenied, GrantError."""
    answer = checked_reason(answer)
    with transaction.atomic():
        decided = SecondPerson(number, user)
        _close(decided.request, "rejected", decided.actor, answer)
    return decided.request


def withdraw(number: int, user: Any, *, answer: str = "") -> AccessRequest:
    """Take one's own request back. Raises PermissionDenied for another's, GrantError."""
    answer = checked_reason(answer, needed=False)
    with transaction.atomic():
        asked = hold_request(number)
        if not is_own(asked, user):
            raise PermissionDenied
        _close(asked, "withdrawn", Actor.of(user), answer)
    return asked


def lapse() -> int:
    """Mark the requests that nobody decided in time, and have it recorded. Returns how many."""
    marked = 0
    with transaction.atomic():
        late = AccessRequest.objects.filter(status="waiting", lapses_at__lte=timezone.now())
        for asked in late.select_for_update(of=("self",), skip_locked=True).order_by("pk")[:500]:
            _close(asked, "lapsed", Actor("system", ""), "")
            marked += 1
    return marked


STEPS = {"approved": "approve", "rejected": "reject", "withdrawn": "withdraw", "lapsed": "lapse"}


def _close(asked: AccessRequest, status: str, actor: Actor, answer: str) -> None:
    asked.status, asked.decided_at, asked.answer = status, timezone.now(), answer
    asked.decided_by, asked.decided_by_name = actor
    asked.save(update_fields=["status", "decided_at", "decided_by", "decided_by_name", "answer", "grant"])
    _tell(actor, f"request.{STEPS[status]}", asked, answer=answer)


def _tell(actor: Actor, action: str, asked: AccessRequest, **private: str) -> None:
    """One step, for the log. Reasons are protected details; nothing else here is free text."""
    given = asked.grant or asked.extends
    until = given.expires_at if given and asked.status == "approved" else None
    tell(
        actor.id, actor.name, action, {name: text for name, text in private.items() if text}, kind="request",
        request=asked.pk, client=asked.client.slug if asked.client else None,
        scopes=[scope.name for scope in asked.scopes.all()], tool=asked.tool.name if asked.tool else None,
        backend=asked.tool.backend.slug if asked.tool else None, subject=asked.subject_id, tenant=asked.tenant,
        for_role=asked.role, modes=asked.modes or None, effect=asked.effect, days=asked.days,
        ends=asked.expires_at.isoformat() if asked.expires_at else None, grant=given.pk if given else None,
        granted_until=until.isoformat() if until else None,
    )  # fmt: skip
