"""Django's admin as the shell for compliance staff: navigation by task, a home page, and the evidence pages."""

from typing import Any

from django.contrib.admin import AdminSite
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver

from audit.viewer import tenants_of
from governance.confined import is_confined
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
        from audit.people_view import PeopleViews
        from audit.person_report_view import PersonReportViews
        from audit.record_view import RecordView
        from audit.records_view import RecordViews
        from audit.timeline_view import TimelineViews
        from clients.admin.granting import Granting
        from clients.admin.inbox import InboxViews
        from clients.admin.published import PublishedViews
        from governance import reasons_page
        from governance.explainer_view import ExplainerViews
        from governance.matrix_view import MatrixViews
        from governance.notifications_page import NotificationViews
        from governance.sign_in import SignInViews
        from governance.stops_view import StopViews

        return [
            *Granting(self).urls(),
            *MatrixViews(self).urls(),
            *ExplainerViews(self).urls(),
            *StopViews(self).urls(),
            *PeopleViews(self).urls(),
            *PersonReportViews(self).urls(),
            *TimelineViews(self).urls(),
            *RecordView(self, directory).urls(),
            *RecordViews(self, directory).urls(),
            *LogViews(self).urls(),
            *keeping(self),
            *InboxViews(self).urls(),
            *PublishedViews(self).urls(),
            *reasons_page.urls(self),
            *NotificationViews(self).urls(),
            *SignInViews(self).urls(),
            *super().get_urls(),
        ]

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[Any]:
        """None: pages are found by task, not by the application that has their model."""
        return []

    def directory(self) -> Any:
        """What staff call things today, for pages of lower applications."""
        return directory()

    def managed_by(self, uid: str) -> str | None:
        """The SCIM connection that manages a user, if one does."""
        from clients.models import ScimUser

        return ScimUser.objects.filter(subject=uid).values_list("connection__name", flat=True).first()

    def impact(self, wanted: Any, viewer: Any = None) -> Any:
        """What a change of grants (`clients.proposals.Proposal`) would do; with a viewer, also to the week's calls."""
        from governance import impact

        return impact.of(wanted, viewer)

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """The door."""
        from governance.sign_in import SignInViews

        return SignInViews(self).door(request, extra_context)

    def logout(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """Out again."""
        from governance.sign_in import SignInViews

        return SignInViews(self).leave(request, extra_context)

    def password_change(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """One's own local password."""
        from governance.sign_in import SignInViews

        return SignInViews(self).change_password(request, extra_context)

    def each_context(self, request: HttpRequest) -> dict[str, Any]:
        """With the navigation and the log's pulse, for members of staff only."""
        from audit.log_health import pulse
        from governance import stops

        context = super().each_context(request)
        if context["has_permission"]:
            context["sees"] = sorted(tenants_of(request.user) or ())
            context["confined"] = is_confined(request.user)
            context["pulse"] = None if context["confined"] else pulse()
            context["stopped"] = stops.banner(request.user)
            context["navigation"] = sections = navigation(request)
            context["here"] = next((link for _, links in sections for link in links if link.here), None)
        return context

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Home."""
        from governance.home import home

        request.current_app = self.name
        context = self.each_context(request)
        return TemplateResponse(request, "admin/index.html", context | home(request, context["pulse"]))


def keeping(site: Any) -> list[URLPattern]:
    """The pages on keeping, forgetting and handing over."""
    from audit.erasure.page import ErasureViews
    from audit.evidence.page import PackViews
    from audit.exports.downloads import DownloadViews
    from audit.exports.page import ExportViews
    from audit.exports.run_page import ExportRunViews
    from audit.holds_page import HoldViews
    from audit.retention.page import RetentionViews
    from audit.streams.page import StreamViews

    return [
        *RetentionViews(site).urls(),
        *HoldViews(site).urls(),
        *ErasureViews(site).urls(),
        *ExportViews(site).urls(),
        *ExportRunViews(site).urls(),
        *DownloadViews(site).urls(),
        *PackViews(site).urls(),
        *StreamViews(site).urls(),
    ]


def directory() -> Any:
    """What staff call things today. Small tables, read whole."""
    from audit.records_form import Directory
    from clients.models import Client
    from tools.models import Backend, Scope, Tool

    return Directory(
        dict(Client.objects.order_by("slug").values_list("slug", "name")),
        dict(Backend.objects.order_by("slug").values_list("slug", "name")),
        tuple(Tool.objects.order_by("name").values_list("name", flat=True).distinct()),
        tuple(Scope.objects.order_by("name").values_list("name", flat=True)),
    )
