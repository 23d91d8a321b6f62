"""Staff who are confined to tenants: which permissions they keep, whatever their roles give. Deny by default: a page
that nobody made for tenants asks for a permission that is not here, and so is closed to them.

What they then see of it is up to the page, by `audit.viewer.tenants_of`: records, users and grants of their tenants,
and of what all tenants share (clients, tools, scopes) what it is, not how much it is used by others."""

from collections.abc import Iterable
from typing import Any, Final

from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import User
from django.db.models import QuerySet

from audit.viewer import tenants_of

KEPT: Final = frozenset({
    "audit.view_record", "audit.export_record", "audit.view_personal", "audit.view_subject", "audit.change_subject",
    "audit.view_export", "audit.add_export",
    "clients.view_client", "clients.view_grant", "clients.add_grant", "clients.change_grant",
    "clients.view_accessrequest", "clients.decide_accessrequest", "clients.view_limit",
    "tools.view_tool", "tools.view_scope",
})  # fmt: skip
# Lines of the navigation whose permission is kept, though what they show is about the platform as a whole.
WHOLE: Final = frozenset({"admin:log", "admin:evidence_packs"})


def is_confined(user: Any) -> bool:
    """Whether a member of staff sees some tenants only."""
    return tenants_of(user) is not None


def kept(user: Any, permissions: Iterable[str]) -> set[str]:
    """What of these permissions somebody keeps."""
    found = set(permissions)
    return found & KEPT if found and is_confined(user) else found


class ConfinedBackend(ModelBackend):
    """Django's, but that confinement takes permissions away. Both ways to sign in ask it."""

    def get_user_permissions(self, user_obj: Any, obj: Any = None) -> set[str]:
        """What the account has by itself."""
        return kept(user_obj, super().get_user_permissions(user_obj, obj))

    def get_group_permissions(self, user_obj: Any, obj: Any = None) -> set[str]:
        """What its roles give."""
        return kept(user_obj, super().get_group_permissions(user_obj, obj))

    def user_can_authenticate(self, user: Any) -> bool:
        """Whether somebody may be signed in at all. A superuser is asked no permissions by Django, so one whom
        somebody confined past the pages is nobody until that is settled."""
        return bool(super().user_can_authenticate(user)) and not (user.is_superuser and is_confined(user))

    def with_perm(self, perm: Any, *given: Any, **more: Any) -> QuerySet[User]:
        """Who has a permission: without who is confined, where that takes it away."""
        found: QuerySet[User] = super().with_perm(perm, *given, **more)
        return found if perm in KEPT else found.filter(tenants=None)
