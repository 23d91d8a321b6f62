"""The tenants that a member of staff is confined to: read and given. Who has none sees every tenant."""

from collections.abc import Iterable

from django.contrib.auth.models import User

from audit.viewer import KNOWN
from governance.models import StaffTenant
from governance.tenant_names import check


def held_by(user: User) -> list[str]:
    """What somebody is confined to, in order; empty for every tenant."""
    return sorted(row.tenant for row in user.tenants.all())  # as fetched for a whole list


def give(user: User, names: Iterable[str]) -> None:
    """These and no other: of nothing, every tenant. Within a transaction. Raises ValueError for names that cannot
    be."""
    wanted = set(check(names))
    rows = StaffTenant.objects.filter(user=user)
    rows.exclude(tenant__in=wanted).delete()
    there = set(rows.values_list("tenant", flat=True))
    StaffTenant.objects.bulk_create([StaffTenant(user=user, tenant=name) for name in sorted(wanted - there)])
    if hasattr(user, KNOWN):  # what this object remembered of itself
        delattr(user, KNOWN)


def contradictions() -> list[int]:
    """Superusers who are confined, by number: somebody wrote that past the pages. They are nobody until it is settled
    (`governance.confined`)."""
    found = User.objects.filter(is_superuser=True, tenants__isnull=False)
    return list(found.order_by("pk").values_list("pk", flat=True).distinct()[:100])
