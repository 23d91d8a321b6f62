"""The governance application: the project and the decision plane."""

from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig


class GovernanceConfig(AppConfig):
    """Registers the system checks."""

    name = "governance"

    def ready(self) -> None:
        """Importing the module registers its checks."""
        from governance import checks  # noqa: F401


class GovernanceAdminConfig(AdminConfig):
    """Django's admin, as our own site."""

    default_site = "governance.admin_site.MunimentAdminSite"
