"""Django's admin as the shell for compliance staff: navigation by task, a home page, and the evidence pages."""

from typing import Any

from django.contrib.admin import AdminSite
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver

from governance.navigation import navigation


class MunimentAdminSite(AdminSite):
    """The admin under our own name."""

    site_title = "Muniment"
    site_header = "Muniment"
    index_title = "Home"
    site_url = None
    enable_nav_sidebar = False

    def get_urls(self) -> list[URLPattern | URLResolver]:
        from audit.log_page import LogViews
        from audit.records_view import RecordViews

        return [*RecordViews(self, directory).urls(), *LogViews(self).urls(), *super().get_urls()]

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[Any]:
        """None: pages are found by task, not by the application that has their model."""
        return []

    def directory(self) -> Any:
        """What staff call things today, for pages of lower applications."""
        return directory()

    def each_context(self, request: HttpRequest) -> dict[str, Any]:
        """With the navigation and the log's pulse, for members of staff only."""
        from audit.log_health import pulse

        context = super().each_context(request)
        if context["has_permission"]:
            context["pulse"] = pulse()
            context["navigation"] = sections = navigation(request)
            context["here"] = next((link for _, links in sections for link in links if link.here), None)
        return context

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Home."""
        from governance.home import home

        request.current_app = self.name
        context = self.each_context(request)
        return TemplateResponse(request, "admin/index.html", context | home(request, context["pulse"]))


def directory() -> Any:
    """What staff call things today. Small tables, read whole."""
    from audit.records_view import Directory
    from clients.models import Client
    from tools.models import Backend, Tool

    return Directory(
        dict(Client.objects.order_by("slug").values_list("slug", "name")),
        dict(Backend.objects.order_by("slug").values_list("slug", "name")),
        tuple(Tool.objects.order_by("name").values_list("name", flat=True).distinct()),
    )
