"""Which users a member of staff sees who is confined to tenants: those whose tokens have named one of them. What is
known of a user besides the records (that they are blocked, since when they are known) is theirs to see; to change it
takes all of a user's tenants, since it counts in each of them."""

from django.db.models import Exists, OuterRef, QuerySet

from audit.models import Subject, SubjectTenant

Tenants = frozenset[str] | None  # None: not confined


def users(tenants: Tenants) -> QuerySet[Subject]:
    """The users that somebody sees who is confined so."""
    if tenants is None:
        return Subject.objects.all()
    return Subject.objects.filter(Exists(SubjectTenant.objects.filter(subject=OuterRef("uid"), tenant__in=tenants)))


def seen(tenants: Tenants, uids: list[str]) -> list[str]:
    """Those of these users whom they see, in the same order."""
    if tenants is None or not uids:
        return uids
    known = set(SubjectTenant.objects.filter(subject__in=uids, tenant__in=tenants).values_list("subject", flat=True))
    return [uid for uid in uids if uid in known]


def sees(tenants: Tenants, uid: str) -> bool:
    """Whether they see this user. Of one who is not there: whether it makes no difference to them."""
    return tenants is None or bool(seen(tenants, [uid]))


def may_change(tenants: Tenants, uid: str) -> bool:
    """Whether what they do to this user concerns their tenants alone."""
    if tenants is None:
        return True
    every = set(SubjectTenant.objects.filter(subject=uid).values_list("tenant", flat=True))
    return bool(every) and every <= tenants
