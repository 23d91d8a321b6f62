"""The navigation of the admin, by task: which pages there are, who may see each, and what waits there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest
from django.urls import reverse

from audit.admin_base import HERE
from governance.confined import WHOLE, is_confined

MOST_SHOWN = 99
# Label, route, and the permission that seeing the page takes; None: everybody on the staff.
Line = tuple[str, str, str | None]
NAVIGATION: list[tuple[str, list[Line]]] = [
    ("Access", [
        ("Grants", "admin:clients_grant_changelist", "clients.view_grant"),
        ("Limits", "admin:clients_limit_changelist", "clients.view_limit"),
        ("Access matrix", "admin:access_matrix", "clients.view_grant"),
        ("Can they?", "admin:access_explain", "clients.view_grant"),
        ("Requests", "admin:clients_accessrequest_changelist", None),
        ("Inbox", "admin:inbox", "audit.view_sighting"),
        ("Reviews", "admin:clients_review_changelist", "clients.view_review"),
        ("Kill switches", "admin:access_stops", "clients.view_client"),
        ("Clients", "admin:clients_client_changelist", "clients.view_client"),
        ("Tools", "admin:tools_tool_changelist", "tools.view_tool"),
        ("Scopes", "admin:tools_scope_changelist", "tools.view_scope"),
    ]),
    ("Evidence", [
        ("Audit search", "admin:records", "audit.view_record"),
        ("People", "admin:people", "audit.view_record"),
        ("Users", "admin:audit_subject_changelist", "audit.view_subject"),
        ("Exports", "admin:exports", "audit.view_export"),
        ("Evidence packs", "admin:evidence_packs", "audit.view_export"),
        ("Retention", "admin:retention", "audit.view_retentionrule"),
        ("Legal holds", "admin:holds", "audit.view_hold"),
        ("Erasures", "admin:erasures", "audit.view_erasure"),
        ("Log", "admin:log", "audit.view_record"),
        ("Why calls are refused", "admin:reasons", None),
        ("Outbox", "admin:audit_outbox_changelist", "audit.view_outbox"),
        ("Published keys", "admin:audit_publishedkey_changelist", "audit.view_publishedkey"),
    ]),
    ("System", [
        ("Issuers", "admin:clients_issuer_changelist", "clients.view_issuer"),
        ("Issuers' keys", "admin:clients_keyset_changelist", "clients.view_keyset"),
        ("SCIM", "admin:clients_scimconnection_changelist", "clients.view_scimconnection"),
        ("Signal streams", "admin:clients_signalstream_changelist", "clients.view_signalstream"),
        ("Backends", "admin:tools_backend_changelist", "tools.view_backend"),
        ("Backend keys", "admin:tools_backendkey_changelist", "tools.view_backendkey"),
        ("Staff keys", "admin:governance_staffkey_changelist", "audit.view_record"),
        ("Staff", "admin:auth_user_changelist", "auth.view_user"),
        ("Roles", "admin:auth_group_changelist", "auth.view_group"),
        ("Schedules", "admin:django_celery_beat_periodictask_changelist", "django_celery_beat.view_periodictask"),
        ("Streams", "admin:streams", "audit.view_stream"),
        ("Notifications", "admin:notifications", None),
        ("API reference", "reference", None),
    ]),
]  # fmt: skip
# Pages below a line's own path are its; these stand elsewhere.
BELONGS = {
    "/admin/access/ask/": "admin:clients_accessrequest_changelist",
    "/admin/timeline/user/": "admin:people",
    "/admin/timeline/client/": "admin:clients_client_changelist",
    "/admin/timeline/tool/": "admin:tools_tool_changelist",
}


@dataclass(frozen=True, slots=True)
class Link:
    """One line of the navigation; `count` is what waits there, in words."""

    label: str
    url: str
    here: bool
    count: str = ""


def capped(number: int) -> str:
    """`7`, `99+`; nothing for none."""
    return f"{MOST_SHOWN}+" if number > MOST_SHOWN else str(number or "")


def _requests(user: Any) -> int:
    from clients.requests import waiting_for

    return waiting_for(user)


def _inbox(user: Any) -> int:
    from clients.inbox import waiting_count

    return waiting_count()


def _releases(user: Any) -> int:
    from audit.holds_page import waiting_for

    return waiting_for(user)


COUNTS: dict[str, Callable[[Any], int]] = {
    "admin:holds": _releases,
    "admin:clients_accessrequest_changelist": _requests,
    "admin:inbox": _inbox,
}


def lines() -> Iterator[Line]:
    """Every line, in order."""
    for _, found in NAVIGATION:
        yield from found


def permission_for(path: str) -> str | None:
    """The permission that the line of the navigation takes which a path belongs to; None where there is no such line,
    or everybody on the staff may see it."""
    for _, route, permission in lines():
        if _is_here(path, route, reverse(route)):
            return permission
    return None


def _is_here(path: str, route: str, url: str) -> bool:
    elsewhere = next((home for prefix, home in BELONGS.items() if path.startswith(prefix)), None)
    return path.startswith(url) if elsewhere is None else elsewhere == route


def navigation(request: HttpRequest) -> list[tuple[str, list[Link]]]:
    """The sections that the viewer has a page in, with what waits for them. A view whose path does not say which line
    it belongs to says so by the attribute HERE of the request."""
    sections, told = [], getattr(request, HERE, None)
    for name, found in NAVIGATION:
        links = []
        for label, route, permission in found:
            if permission is not None and not request.user.has_perm(permission):
                continue
            if route in WHOLE and is_confined(request.user):
                continue
            url = reverse(route)
            count = capped(COUNTS[route](request.user)) if route in COUNTS else ""
            here = _is_here(request.path, route, url) if told is None else told == route
            links.append(Link(label, url, here, count))
        if links:
            sections.append((name, links))
    return sections
