"""Local passwords of staff: only in demo mode, or where MUNIMENT_LOCAL_PASSWORDS says so."""

from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.http import HttpRequest

from governance.confined import ConfinedBackend


class PasswordBackend(ConfinedBackend):
    """Django's own, where passwords are switched on; else it knows nobody, and sessions that began with one are over.
    Permissions are asked of it in any case: they are those of the account's roles, as far
    as confinement to tenants leaves them."""

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **more: Any
    ) -> User | None:
        """The active account whose password this is, or None."""
        if not settings.MUNIMENT_LOCAL_PASSWORDS:
            return None
        found: Any = super().authenticate(request, username, password, **more)
        return found

    def get_user(self, user_id: int) -> User | None:
        """The account of a session that began with a password, while it is active."""
        found: Any = super().get_user(user_id) if settings.MUNIMENT_LOCAL_PASSWORDS else None
        return found
