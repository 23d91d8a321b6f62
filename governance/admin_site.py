"""Django's admin as the shell for compliance staff."""

from django.contrib.admin import AdminSite


class MunimentAdminSite(AdminSite):
    """The admin under our own name."""

    site_title = "Muniment"
    site_header = "Muniment"
    index_title = "Home"
