"""Staff who are confined to tenants (`audit.viewer.Viewer.tenants`): which grants, requests and users are theirs to
see, and which they may write. A grant without a tenant decides on their users too, so they see it; it is not theirs to
change. `tenants` None is somebody who is not confined."""

from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db.models import Q

from audit.models import Subject, SubjectTenant
from audit.viewer import tenants_of
from clients.models import AccessRequest, Grant

Tenants = frozenset[str] | None
NO_USER = "There is no user with this uid."
STAFF = "staff:"


def of(user: Any) -> Tenants:
    """The tenants that a member of staff is confined to; None where they are not."""
    return tenants_of(user)


def of_actor(actor: str) -> Tenants:
    """The same of who acts, as the log names them, read anew. A command is the operator's, and confined to nothing."""
    number = actor.removeprefix(STAFF) if actor.startswith(STAFF) else ""
    fresh = get_user_model()._default_manager.filter(pk=number).first() if number.isdecimal() else None
    return None if fresh is None else of(fresh)


def seen(tenants: Tenants) -> Q:
    """Which grants they see: of their tenants, and those of none, unless it is for a user who is not theirs."""
    if tenants is None:
        return Q()
    users = SubjectTenant.objects.filter(tenant__in=tenants).values("subject")
    return Q(tenant__in=tenants) | Q(tenant=None) & (Q(subject=None) | Q(subject__in=users))


def own(tenants: Tenants) -> Q:
    """Which grants they may write, and which requests they see and may decide: of their tenants alone."""
    return Q() if tenants is None else Q(tenant__in=tenants)


def may_write(tenants: Tenants, one: Grant | AccessRequest) -> bool:
    """Whether this grant, or what is asked for here, is theirs to change."""
    return tenants is None or one.tenant in tenants


def knows(tenants: Tenants, subject: Subject | None) -> bool:
    """Whether this user is one of theirs: a token of one of their tenants was once theirs."""
    if tenants is None or subject is None:
        return True
    return SubjectTenant.objects.filter(subject=subject.pk, tenant__in=tenants).exists()


def check(tenants: Tenants, one: Grant | AccessRequest) -> None:
    """Raise PermissionDenied for a grant, or what was asked for, that is not theirs to write."""
    if not may_write(tenants, one):
        raise PermissionDenied


def check_new(tenants: Tenants, one: Grant | AccessRequest) -> None:
    """The same of one that is not there yet, which also must not name a user whom they do not see."""
    check(tenants, one)
    if not knows(tenants, one.subject):
        raise PermissionDenied
