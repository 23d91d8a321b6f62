"""The governance application: the project and the decision plane."""

from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig


class GovernanceConfig(AppConfig):
    """Registers the system checks, and what is done at each sign-in."""

    name = "governance"

    def ready(self) -> None:
        """Importing the modules registers them."""
        from governance import checks, staff_sessions  # noqa: F401


class GovernanceAdminConfig(AdminConfig):
    """Django's admin, as our own site."""

    default_site = "governance.admin_site.MunimentAdminSite"
