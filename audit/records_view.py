"""Evidence > Audit search: the list with its filters, chart and paging by key, and the proof of a record as a file (its
page is record_view). What is typed to find a person or an id is in a POST, and only its uid or keyed hash comes into a
URL; whoever looks at who users are, or takes a page out as a file, is recorded first."""

from collections.abc import Callable
from io import BytesIO
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError, transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from audit import bundling, logtree, record_rows, records_csv, records_list, saved_searches, search
from audit.log_page import download
from audit.models import Record
from audit.recent_sign_in import ask_again, is_recent
from audit.records_find import IdForm, ResourceForm
from audit.records_form import Directory, FilterForm
from audit.saved_searches import SaveForm
from audit.staff_log import tell
from audit.viewer import Viewer, check_whole, viewer_of

UNTOLD = "It could not be recorded, so it was not done. Try again in a moment."


class RecordViews:
    """The pages, for one admin site. `directory` tells what things are called; audit itself cannot know."""

    def __init__(self, site: AdminSite, directory: Callable[[], Directory]) -> None:
        self.site, self.directory = site, directory

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        wrap = self.site.admin_view
        return [
            path("records/", wrap(require_safe(self.records)), name="records"),
            path("records/find/", wrap(require_POST(self.find)), name="records_find"),
            path("records/users/", wrap(require_POST(self.users)), name="records_users"),
            path("records/csv/", wrap(require_POST(self.csv)), name="records_csv"),
            path("records/save/", wrap(require_POST(self.save)), name="records_save"),
            path("records/saved/<int:number>/delete/", wrap(require_POST(self.forget)), name="records_forget"),
            path("records/<uuid:record>/proof/", wrap(require_safe(self.proof)), name="record_proof"),
            path("records/<uuid:record>/bundle/", wrap(require_safe(self.bundle)), name="record_bundle"),
        ]

    def records(self, request: HttpRequest) -> HttpResponse:
        """The list."""
        return self._page(request, _viewer(request), self._form(request))

    def users(self, request: HttpRequest) -> HttpResponse:
        """POST: the same page, with who its users are. The look is recorded before they are shown."""
        viewer, form = _viewer(request), self._form(request)
        if not viewer.personal:
            raise PermissionDenied
        if not form.is_valid():
            return self._page(request, viewer, form)
        page = search.find(viewer, form.query())
        uids = sorted({record.subject for record in page.records if record.subject})
        try:
            with transaction.atomic():
                for uid in uids:  # a record for each, so that it is found again under each
                    tell(viewer.actor, viewer.name, "personal.view", about="search", subject=uid)
        except DatabaseError:
            messages.error(request, UNTOLD)
            return HttpResponseRedirect(form.here())
        return self._page(request, viewer, form, page=page, who=record_rows.who_are(uids), named=True)

    def csv(self, request: HttpRequest) -> HttpResponse:
        """POST: the page as a file, without personal data, for those who may take records out and have just shown who
        they are. That it was taken is recorded first."""
        viewer, form = _viewer(request), self._form(request)
        if not viewer.export:
            raise PermissionDenied
        if not form.is_valid():
            return self._page(request, viewer, form)
        if not is_recent(request):
            return ask_again(request, form.here())
        page = search.find(viewer, form.query())
        made = records_csv.write(page.records if not form.query().oldest else page.records[::-1])
        try:
            tell(viewer.actor, viewer.name, "records.csv", count=len(page.records))
        except DatabaseError:
            messages.error(request, UNTOLD)
            return HttpResponseRedirect(form.here())
        answer = download(made, f"muniment-records-{timezone.now():%Y%m%d-%H%M%S}.csv", "text/csv; charset=utf-8")
        answer["Cache-Control"] = "no-store"
        return answer

    def find(self, request: HttpRequest) -> HttpResponse:
        """POST: from an id to the same search narrowed to its records, through its keyed hash."""
        viewer, form = _viewer(request), self._form(request)
        asked = ResourceForm(request.POST) if "resource_type" in request.POST else IdForm(request.POST)
        if form.is_valid() and asked.is_valid():
            # An id is looked for in all of a preset's reach; a range of one's own is kept.
            return HttpResponseRedirect(form.url(**asked.narrowing(), window="1y" if form.window_name else None))
        name = "resource" if isinstance(asked, ResourceForm) else "ids"
        return self._page(request, viewer, form, status=400, **{name: asked})

    def save(self, request: HttpRequest) -> HttpResponse:
        """POST: keep this search under a name."""
        viewer, form, asked = _viewer(request), self._form(request), SaveForm(request.POST)
        if asked.is_valid():
            try:
                saved_searches.save(viewer, asked.cleaned_data["name"], asked.cleaned_data["shared"], form)
            except saved_searches.Refused as refused:
                asked.add_error(None, str(refused))
            else:
                messages.success(request, "The search is saved.")
                return HttpResponseRedirect(form.url())
        return self._page(request, viewer, form, status=400, saving=asked)

    def forget(self, request: HttpRequest, number: int) -> HttpResponse:
        """POST: delete a saved search of one's own."""
        viewer = _viewer(request)
        if number > 2**63 - 1 or not saved_searches.delete(viewer, number):
            raise Http404("You have no such saved search.")
        messages.success(request, "The saved search is deleted.")
        return HttpResponseRedirect(self._form(request).url())

    def _form(self, request: HttpRequest) -> FilterForm:
        return FilterForm(request.GET.dict(), self.directory())

    def _page(
        self, request: HttpRequest, viewer: Viewer, form: FilterForm, status: int = 200, **more: Any
    ) -> HttpResponse:
        context = {**self.site.each_context(request), **records_list.context(viewer, form, **more)}
        status = status if form.is_valid() else 400
        answer = TemplateResponse(request, "admin/records.html", context, status=status)
        if more.get("named"):
            answer["Cache-Control"] = "no-store"
        return answer

    def proof(self, request: HttpRequest, record: UUID) -> HttpResponse:
        """The record's inclusion proof as a file (C2SP tlog-proof)."""
        found = self._found(request, record)
        try:
            text = logtree.proof_of(found).encode()
        except (LookupError, ValueError) as error:
            return self._unproven(request, found, error)
        return download(text, f"muniment-record-{found.index}.tlog-proof", "text/plain; charset=utf-8")

    def bundle(self, request: HttpRequest, record: UUID) -> HttpResponse:
        """The record's proof bundle: a ZIP that `muniment verify` checks offline, without any personal data. Not for
        who is confined to tenants: it has all policy, by which calls are judged, and the erasures of other users."""
        found = self._found(request, record)
        check_whole(request.user)
        made = BytesIO()
        try:
            bundling.write_record(made, found)
        except bundling.Refused as refused:
            messages.warning(request, f"There is no bundle: {refused}.")
            return HttpResponseRedirect(reverse("admin:record", args=[found.id]))
        return download(made.getvalue(), f"muniment-record-{found.index}.zip", "application/zip")

    def _found(self, request: HttpRequest, record: UUID) -> Record:
        found = search.one(_viewer(request), record)
        if found is None:
            raise Http404("No such record.")
        return found

    def _unproven(self, request: HttpRequest, record: Record, error: Exception) -> HttpResponse:
        """Back to the record, with why there is no proof of it."""
        words = "It is not sealed yet, so there is no proof of it yet. The sealer looks every second."
        if not isinstance(error, logtree.NotSealed):
            words = "The proof cannot be made: the stored tree is damaged. Verify the log with manage.py verify_log."
        messages.warning(request, words)
        return HttpResponseRedirect(reverse("admin:record", args=[record.id]))


def _viewer(request: HttpRequest) -> Viewer:
    """Who looks. Raises PermissionDenied for somebody who may read no records."""
    viewer = viewer_of(request.user)
    if not viewer.records:
        raise PermissionDenied
    return viewer
