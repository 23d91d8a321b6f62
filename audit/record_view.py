"""Evidence > one record in full: the page, verifying it, and opening what it protects. Everything here only reads, but
that a look at protected details is recorded before they are shown."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_POST, require_safe

from audit import details, record_page, search
from audit.models import Record
from audit.people import UID
from audit.staff_log import tell
from audit.viewer import Viewer, viewer_of

UNTOLD = "The look could not be recorded, so nothing is shown. Try again in a moment."


class RecordView:
    """The pages of one record, for one admin site. `directory` tells what things are called."""

    def __init__(self, site: AdminSite, directory: Callable[[], Any]) -> None:
        self.site, self.directory = site, directory

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        wrap = self.site.admin_view
        return [
            path("records/<uuid:record>/", wrap(require_safe(self.record)), name="record"),
            path("records/<uuid:record>/verify/", wrap(require_POST(self.verify)), name="record_verify"),
            path("records/<uuid:record>/details/", wrap(require_POST(self.details)), name="record_details"),
        ]

    def record(self, request: HttpRequest, record: UUID) -> HttpResponse:
        """One record in full; what does not hold of it is said at once."""
        viewer, found = self._found(request, record)
        return self._page(request, viewer, found, asked=False)

    def verify(self, request: HttpRequest, record: UUID) -> HttpResponse:
        """POST: the same page, with what verifying found, also when that is nothing."""
        viewer, found = self._found(request, record)
        return self._page(request, viewer, found, asked=True)

    def details(self, request: HttpRequest, record: UUID) -> HttpResponse:
        """POST: the same page with what the record protects, and what its outcome does. The look is recorded first."""
        viewer, found = self._found(request, record)
        if not viewer.personal:
            raise PermissionDenied
        # Of whom it is, the statement says, under whose key it is opened; the columns may have been changed.
        said = record_page.read(found).get("subject")
        about = said if said and UID.match(said) else found.subject
        try:
            tell(viewer.actor, viewer.name, "personal.view", record=str(found.id), subject=about)
        except DatabaseError:
            messages.error(request, UNTOLD)
            return HttpResponseRedirect(reverse("admin:record", args=[found.id]))
        outcome = search.outcome_of(found) if found.type == "decision" else None
        if outcome is not None and record_page.read(outcome).get("parent") != str(found.id):
            outcome = None
        shown = [show(viewer, one) for one in (found, outcome) if one is not None]
        return self._page(request, viewer, found, asked=False, shown=shown, looked=True)

    def _found(self, request: HttpRequest, record: UUID) -> tuple[Viewer, Record]:
        viewer = viewer_of(request.user)
        found = search.one(viewer, record)
        if found is None:
            raise Http404("No such record.")
        return viewer, found

    def _page(self, request: HttpRequest, viewer: Viewer, record: Record, **more: Any) -> HttpResponse:
        context = {**self.site.each_context(request), "may_look": viewer.personal, **more}
        context |= record_page.page(record, self.directory().clients, viewer)
        answer = TemplateResponse(request, "admin/record.html", context)
        answer["Cache-Control"] = "no-store"
        return answer


def show(viewer: Viewer, record: Record) -> dict[str, Any]:
    """What a record protects and not everybody may read, in words. Raises PermissionDenied for who may not."""
    if not viewer.personal:
        raise PermissionDenied
    statement = record_page.read(record)
    found = details.opened(record, statement)
    closed = found.shown(personal=True if details.of_staff(record, statement) else None)
    return {"record": record, "state": found.state, "details": closed}
