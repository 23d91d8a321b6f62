"""Django's admin as the shell for compliance staff: navigation by task, a home page, and the evidence pages."""

from dataclasses import dataclass
from typing import Any

from django.contrib.admin import AdminSite
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, reverse
from django.utils import timezone

# What a member of staff may see is asked of the permission that each line names.
NAVIGATION = [
    ("Access", [
        ("Grants", "admin:clients_grant_changelist", "clients.view_grant"),
        ("Inbox", "admin:audit_sighting_changelist", "audit.view_sighting"),
        ("Clients", "admin:clients_client_changelist", "clients.view_client"),
        ("Tools", "admin:tools_tool_changelist", "tools.view_tool"),
        ("Scopes", "admin:tools_scope_changelist", "tools.view_scope"),
        ("Users", "admin:audit_subject_changelist", "audit.view_subject"),
    ]),
    ("Evidence", [
        ("Records", "admin:records", "audit.view_record"),
        ("Log", "admin:log", "audit.view_record"),
        ("Outbox", "admin:audit_outbox_changelist", "audit.view_outbox"),
        ("Published keys", "admin:audit_publishedkey_changelist", "audit.view_publishedkey"),
    ]),
    ("System", [
        ("Issuers", "admin:clients_issuer_changelist", "clients.view_issuer"),
        ("Issuers' keys", "admin:clients_keyset_changelist", "clients.view_keyset"),
        ("Backends", "admin:tools_backend_changelist", "tools.view_backend"),
        ("Backend keys", "admin:tools_backendkey_changelist", "tools.view_backendkey"),
        ("Staff", "admin:auth_user_changelist", "auth.view_user"),
        ("Roles", "admin:auth_group_changelist", "auth.view_group"),
        ("Schedules", "admin:django_celery_beat_periodictask_changelist", "django_celery_beat.view_periodictask"),
    ]),
]  # fmt: skip
MOST_SHOWN = 99


@dataclass(frozen=True, slots=True)
class Link:
    """One line of the navigation; `count` is what waits there, in words."""

    label: str
    url: str
    here: bool
    count: str = ""


def waiting() -> str:
    """How many entries the inbox has, counted no further than is shown."""
    from audit.models import Sighting

    found = len(Sighting.objects.order_by().values_list("id")[: MOST_SHOWN + 1])
    return f"{MOST_SHOWN}+" if found > MOST_SHOWN else str(found or "")


def navigation(request: HttpRequest) -> list[tuple[str, list[Link]]]:
    """The sections that the viewer has a page in."""
    sections = []
    for name, lines in NAVIGATION:
        links = []
        for label, route, permission in lines:
            if request.user.has_perm(permission):
                url = reverse(route)
                count = waiting() if route == "admin:audit_sighting_changelist" else ""
                links.append(Link(label, url, request.path.startswith(url), count))
        if links:
            sections.append((name, links))
    return sections


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
        """Home: how much there is, whether the log is sound, what waits, where to go."""
        from audit.log_health import health
        from audit.log_page import notices
        from audit.models import Head

        head = Head.objects.get()
        name = request.user.get_short_name() if request.user.is_authenticated else ""
        context = self.each_context(request)
        state, may_look = health(context["pulse"]), request.user.has_perm("audit.view_record")
        context |= {
            "title": f"Welcome{name and chr(32)}{name}", "head": head,
            "health": state, "notices": notices(state.pulse.alerts if may_look else []),
            "newest": head.at if head.next else None, "waiting": waiting(), "now": timezone.now(),
            "undrained": head.policy - head.drained, **(extra_context or {}),
        }  # fmt: skip
        request.current_app = self.name
        return TemplateResponse(request, "admin/index.html", context)


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
