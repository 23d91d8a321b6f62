"""The audit application: evidence."""

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


def grant_rights(sender: AppConfig, using: str, **kwargs: Any) -> None:
    """After every migration, give the serving role what it needs and no more."""
    from audit.rights import grant

    grant(using)


class AuditConfig(AppConfig):
    """Registers that rights are granted anew after each migration."""

    name = "audit"

    def ready(self) -> None:
        """Connect to Django's own signal for it; no signal is on the verify path."""
        post_migrate.connect(grant_rights, sender=self)
