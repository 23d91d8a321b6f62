"""The audit application: evidence."""

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


def prepare_database(sender: AppConfig, using: str, **kwargs: Any) -> None:
    """After every migration, give the serving role what it needs and no more, make the partitions that are due, so
    that a new installation does not begin in the default one, and erase again whom a restore brought back."""
    from audit.erasure.restoring import mend
    from audit.maintenance import make_partitions
    from audit.rights import grant

    grant(using)
    if using == "owner":
        make_partitions()
        mend()


class AuditConfig(AppConfig):
    """Registers what follows each migration."""

    name = "audit"

    def ready(self) -> None:
        """Connect to Django's own signal for it; no signal is on the verify path."""
        post_migrate.connect(prepare_database, sender=self)
