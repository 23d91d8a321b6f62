"""Staff who are confined to tenants: which grants and requests are theirs to see, and which they may write. A grant
without a tenant decides on their users too, so they see it; it is not theirs to change. `tenants` None is somebody who
is not confined; which users they see is said in `audit.tenants`."""

from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db.models import Q

from audit.models import Subject
from audit.tenants import Tenants, sees, users
from audit.viewer import tenants_of as of
from clients.models import AccessRequest, Grant

__all__ = ["NO_USER", "Tenants", "check", "check_new", "knows", "may_write", "of", "of_actor", "own", "seen"]

NO_USER = "There is no user with this uid."
STAFF = "staff:"


def of_actor(actor: str) -> Tenants:
    """The tenants that who acts, as the log names them, is confined to, read anew. A command is the operator's, and
    confined to nothing."""
    number = actor.removeprefix(STAFF) if actor.startswith(STAFF) else ""
    fresh: Any = get_user_model()._default_manager.filter(pk=number).first() if number.isdecimal() else None
    return None if fresh is None else of(fresh)


def seen(tenants: Tenants) -> Q:
    """Which grants they see: of their tenants, and those of none, unless it is for a user who is not theirs."""
    if tenants is None:
        return Q()
    return Q(tenant__in=tenants) | Q(tenant=None) & (Q(subject=None) | Q(subject__in=users(tenants)))


def own(tenants: Tenants) -> Q:
    """Which grants they may write, and which requests they see and may decide: of their tenants alone."""
    return Q() if tenants is None else Q(tenant__in=tenants)


def may_write(tenants: Tenants, one: Grant | AccessRequest) -> bool:
    """Whether this grant, or what is asked for here, is theirs to change."""
    return tenants is None or one.tenant in tenants


def knows(tenants: Tenants, subject: Subject | None) -> bool:
    """Whether this user is one of theirs; nobody is."""
    return subject is None or sees(tenants, subject.pk)


def check(tenants: Tenants, one: Grant | AccessRequest) -> None:
    """Raise PermissionDenied for a grant, or what was asked for, that is not theirs to write."""
    if not may_write(tenants, one):
        raise PermissionDenied


def check_new(tenants: Tenants, one: Grant | AccessRequest) -> None:
    """The same of one that is not there yet, which also must not name a user whom they do not see."""
    check(tenants, one)
    if not knows(tenants, one.subject):
        raise PermissionDenied
