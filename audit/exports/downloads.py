"""Taking the kept file of an export run: by a link that is good for a quarter of an hour, for the one who asked for it,
in a session of theirs, with the rights that they have now. Each download is on record before its first byte.

A link in an e-mail leads to the run's page, from where one is made: the mail itself opens nothing. The worker, which
sends it, has no key to sign links with; that such a link is over, and for whom it is, is looked up (`mailed_until`).
"""

import time
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.admin import AdminSite
from django.contrib.auth import get_user_model
from django.core import signing
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_POST

from audit.exports import rights, store
from audit.exports.store import StoreFailed
from audit.models import ExportRun
from audit.recent_sign_in import ask_again, is_recent
from audit.staff_log import tell
from audit.viewer import tenants_of, viewer_of

LINK_SECONDS = 15 * 60
MAILED = timedelta(days=7)
SALT = "muniment.export-download"
MAX_TOKEN = 500
UNTOLD = "It could not be recorded, so it was not done. Try again in a moment."
TYPES = {
    ".csv": "text/csv; charset=utf-8", ".json": "application/json", ".jsonl": "application/x-ndjson",
    ".zip": "application/zip", ".parquet": "application/vnd.apache.parquet",
}  # fmt: skip
OVER = "The link is over"


def may_take(user: Any, run: ExportRun) -> bool:
    """Whether somebody may take the file of a run, asked of their rights now: who may take records out may take any;
    who may only make exports, their own. One with personal data takes the right to see personal data besides. Who is
    confined to tenants takes their own alone, of which nothing is of others."""
    if not (user.is_active and user.is_staff and user.has_perm("audit.view_record")):
        return False
    if run.personal and not user.has_perm("audit.view_personal"):
        return False
    tenants = tenants_of(user)
    if tenants is not None and not (rights.may_see(user, run) and rights.within(run, tenants)):
        return False
    own = run.owner == f"staff:{user.pk}" and user.has_perm("audit.add_export")
    return own or user.has_perm("audit.export_record")


def link(user: Any, run: ExportRun, *, manifest: bool = False) -> str:
    """The path of a download, for this user and a quarter of an hour. Only where sessions are signed (web, manage)."""
    said = {"run": run.pk, "staff": user.pk, "until": int(time.time()) + LINK_SECONDS, "manifest": manifest}
    return reverse("admin:export_download", args=[signing.Signer(salt=SALT).sign_object(said)])


def mailed_link(run: int) -> str:
    """The whole address that an e-mail about a run has."""
    return f"{settings.MUNIMENT_URL.rstrip('/')}/admin/exports/mailed/{run}/"


def mailed_until(run: ExportRun) -> datetime | None:
    """Until when the link in the e-mail about a run leads to it; None where none was sent."""
    return run.mailed_at + MAILED if run.mailed_at else None


class DownloadViews:
    """The pages, for one admin site."""

    def __init__(self, site: AdminSite) -> None:
        self.site = site

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        wrap, get = self.site.admin_view, require_http_methods(["GET"])
        return [
            path("exports/runs/<int:run>/download/", wrap(require_POST(self.make)), name="export_run_download"),
            path("exports/download/<str:token>/", wrap(get(self.take)), name="export_download"),
            path("exports/mailed/<int:run>/", wrap(get(self.mailed)), name="export_mailed"),
        ]

    def make(self, request: HttpRequest, run: int) -> HttpResponse:
        """POST, `what` file or manifest: to a fresh link, for somebody who has just shown who they are."""
        found = _run(request, run)
        if not may_take(request.user, found):
            raise PermissionDenied
        if not is_recent(request):
            return ask_again(request, page_of(found))
        return HttpResponseRedirect(link(request.user, found, manifest=request.POST.get("what") == "manifest"))

    def take(self, request: HttpRequest, token: str) -> HttpResponseBase:
        """GET: the file. The record that it was taken is committed before its first byte leaves."""
        said = _read(token)
        if said is None or said["staff"] != request.user.pk:
            raise Http404("Not a link of this member of staff.")
        run = _run(request, said["run"])
        if not may_take(request.user, run):
            raise PermissionDenied
        if said["until"] < time.time():
            return self._gone(request, OVER, "A link to a file is good for 15 minutes.", run, 410)
        try:
            file = store.open_kept(run, manifest=said["manifest"])
        except StoreFailed as error:
            return self._gone(request, "The file is not here", str(error), run, 404)
        try:
            _told(request, run, said["manifest"])
        except DatabaseError:
            file.close()
            messages.error(request, UNTOLD)
            return HttpResponseRedirect(page_of(run))
        return _answer(file, run.file + (store.MANIFEST if said["manifest"] else ""))

    def mailed(self, request: HttpRequest, run: int) -> HttpResponse:
        """GET: from an e-mail to the run's page, within a week, for whom it was sent to."""
        found = _run(request, run)
        until = mailed_until(found)
        if until is None or request.user.pk not in found.mailed:
            raise Http404("No such e-mail was sent to this member of staff.")
        if not may_take(request.user, found):
            raise PermissionDenied
        if until < timezone.now():
            return self._gone(request, OVER, "A link in an e-mail is good for a week.", found, 410)
        return HttpResponseRedirect(page_of(found))

    def _gone(self, request: HttpRequest, title: str, words: str, run: ExportRun, status: int) -> HttpResponse:
        more = "The page of the run says what there is of it."
        context = {**self.site.each_context(request), "title": title, "words": words, "next": more, "status": status}
        return TemplateResponse(request, "admin/error.html", context, status=status)


def page_of(run: ExportRun) -> str:
    """The path of a run's page."""
    return reverse("admin:export_run", args=[run.pk])


def staff_of(numbers: list[int]) -> list[Any]:
    """These members of staff, as they are now."""
    return list(get_user_model().objects.filter(pk__in=numbers).order_by("pk"))


def _run(request: HttpRequest, number: int) -> ExportRun:
    found = ExportRun.objects.filter(pk=number).first() if 0 < number < 2**63 else None
    if found is None or not rights.may_see(request.user, found):
        raise Http404("No such run.")
    return found


def _read(token: str) -> dict[str, Any] | None:
    """What a link says; None for one that is not ours."""
    if len(token) > MAX_TOKEN:
        return None
    try:
        said = signing.Signer(salt=SALT).unsign_object(token)
    except (signing.BadSignature, ValueError):
        return None
    return said if isinstance(said, dict) and said.keys() == {"run", "staff", "until", "manifest"} else None


def _told(request: HttpRequest, run: ExportRun, manifest: bool) -> None:
    viewer = viewer_of(request.user)
    tell(
        viewer.actor, viewer.name, "export.downloaded", export=run.export, run=run.pk, slot=run.slot.isoformat(),
        file="manifest" if manifest else "export", records=run.records, sha256=run.sha256, personal=run.personal,
    )  # fmt: skip


def _answer(file: Any, name: str) -> FileResponse:
    """The file, piece by piece, to be saved and never shown or kept by a cache."""
    suffix = name[name.rindex(".") :] if "." in name else ""
    answer = FileResponse(
        file, as_attachment=True, filename=name, content_type=TYPES.get(suffix, "application/octet-stream")
    )
    answer["X-Content-Type-Options"] = "nosniff"
    answer["Cache-Control"] = "no-store"
    return answer
