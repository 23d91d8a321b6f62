"""Why calls are refused: every reason code in plain words, what to do about it, and how often it was given lately."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.views.decorators.http import require_safe

from audit import rollups
from audit.reason_help import HELP, Help
from audit.reasons import REASONS, Reason
from audit.record_words import NOT_ESTABLISHED, REMEDIES
from audit.viewer import viewer_of
from governance.home_figures import CALLS, search_url

DAYS = timedelta(days=7)
# Where staff do something about it: route, what the link says, and the permission that the page takes.
WHERE = {
    "issuer_unknown": ("admin:clients_issuer_changelist", "Issuers", "clients.view_issuer"),
    "issuer_unavailable": ("admin:clients_keyset_changelist", "Issuers' keys", "clients.view_keyset"),
    "token_invalid": ("admin:clients_issuer_changelist", "Issuers", "clients.view_issuer"),
    "audience_mismatch": ("admin:tools_backend_changelist", "Backends", "tools.view_backend"),
    "proof_required": ("admin:clients_issuer_changelist", "Issuers", "clients.view_issuer"),
    "client_unknown": ("admin:inbox", "Inbox", "audit.view_sighting"),
    "client_suspended": ("admin:access_stops", "Kill switches", "clients.view_client"),
    "subject_blocked": ("admin:access_stops", "Kill switches", "clients.view_client"),
    "tenant_mismatch": ("admin:clients_issuer_changelist", "Issuers", "clients.view_issuer"),
    "tool_unknown": ("admin:inbox", "Inbox", "audit.view_sighting"),
    "tool_suspended": ("admin:tools_tool_changelist", "Tools", "tools.view_tool"),
    "not_granted": ("admin:access_matrix", "Access matrix", "clients.view_grant"),
    "grant_denied": ("admin:clients_grant_changelist", "Grants", "clients.view_grant"),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One reason: its words, what to do and where, how often lately (None: not for this viewer) and the search that
    finds those calls."""

    reason: Reason
    remedy: str
    help: Help
    where: tuple[str, str] | None
    calls: int | None
    search: str


def urls(site: Any) -> list[URLPattern]:
    """The page, for the admin site."""

    def page(request: HttpRequest) -> TemplateResponse:
        return TemplateResponse(request, "admin/reasons.html", {**site.each_context(request), **context(request)})

    return [path("reasons/", site.admin_view(require_safe(page)), name="reasons")]


def context(request: HttpRequest) -> dict[str, Any]:
    """The reasons in the order of the checks, in two parts: who calls could not be established, and the rest."""
    user: Any = request.user
    now = timezone.now()
    since = rollups.floor(now - DAYS, "1d")
    counts: dict[str, int] | None = None
    if user.has_perm("audit.view_record"):
        found = rollups.totals(viewer_of(user), "reason", since, now, "1d", most=200, decision="deny", **CALLS)
        counts = dict(found)
    entries = [
        Entry(
            reason, REMEDIES[reason.remedy], HELP[code], _where(user, code),
            None if counts is None else counts.get(code, 0), search_url(since, reason=code),
        )
        for code, reason in REASONS.items()
        if code in HELP
    ]  # fmt: skip
    caller = [one for one in entries if one.reason.code in NOT_ESTABLISHED]
    rules = [one for one in entries if one.reason.code not in NOT_ESTABLISHED]
    parts = [("Who calls could not be established", caller), ("The user is known, the call is not allowed", rules)]
    return {"title": "Why calls are refused", "parts": parts, "since": since}


def _where(user: Any, code: str) -> tuple[str, str] | None:
    route, label, permission = WHERE.get(code, ("", "", ""))
    return (reverse(route), label) if route and user.has_perm(permission) else None
