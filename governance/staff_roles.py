"""The roles that a member of staff holds: read, given and told in the log. A superuser's power is told as a role."""

from collections.abc import Iterable
from typing import Any, Final

from django.contrib.auth.models import Group, User

from audit.staff_log import tell
from governance.roles import ADMINISTRATOR, ROLES

SUPERUSER: Final = "Superuser"


def held_by(user: User) -> list[str]:
    """The names of the roles, in the order of ROLES, then groups of other names; a superuser is one first."""
    order = {name: number for number, name in enumerate(ROLES)}
    names = sorted(user.groups.values_list("name", flat=True), key=lambda name: (order.get(name, len(order)), name))
    return [*([SUPERUSER] if user.is_superuser else []), *names]


def give(user: User, roles: Iterable[str]) -> None:
    """These roles, and no other group. Raises LookupError where a migration has not made one of them."""
    wanted = set(roles)
    groups = list(Group.objects.filter(name__in=wanted))
    if missing := wanted - {group.name for group in groups}:
        raise LookupError(f"there is no group for the role {', '.join(sorted(missing))}; run migrate")
    user.groups.set(groups)


def name_of(user: User) -> str:
    """What people call somebody; the log protects it."""
    return (user.get_full_name() or user.get_username())[:150]


def tell_about(
    actor: str, name: str, action: str, user: User, private: dict[str, Any] | None = None, **members: Any
) -> None:
    """Have it recorded that `actor` did something to the account of `user`: by its number, the name is protected."""
    tell(actor, name, action, {"about_name": name_of(user), **(private or {})}, about=f"staff:{user.pk}", **members)


def _one_at_a_time() -> None:
    """Locks a role, so that those who change the staff at once do it one after the other: within a transaction."""
    Group.objects.select_for_update().filter(name=ADMINISTRATOR).first()


def as_now(number: Any) -> User | None:
    """An account as it is once nobody else is changing the staff; None for one that is not active or not there. Within
    a transaction."""
    _one_at_a_time()
    return User.objects.filter(pk=number, is_active=True, is_staff=True).first()


def others_can_administer(user: User) -> bool:
    """Whether somebody but `user` can still look after the staff, which nobody can who is confined to tenants; those
    who leave at once do it one after the other: within a transaction."""
    _one_at_a_time()
    staff = User.objects.filter(is_active=True, is_staff=True, tenants=None).exclude(pk=user.pk)
    return staff.filter(groups__name=ADMINISTRATOR).exists() or staff.filter(is_superuser=True).exists()
