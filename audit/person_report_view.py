"""Evidence > everything the AI did with one person's data: GET shows the form and how much there is, POST the report,
as a page or as a PDF. A report that is shown is in the log first; it never stays on the server."""

from datetime import date, timedelta
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.views.decorators.http import require_http_methods, require_POST

from audit import person_report, recent_sign_in
from audit.admin_base import PlainForm
from audit.log_page import download
from audit.models import Subject
from audit.people import UID
from audit.person_report import Period, Report
from audit.record_view import UNTOLD
from audit.staff_log import tell
from audit.tenants import users
from audit.viewer import Viewer, viewer_of

EARLIEST = date(2000, 1, 1)
LONGEST = timedelta(days=3660)


class PeriodForm(PlainForm):
    """Which days, both included."""

    since = forms.DateField(label="From", widget=forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d"))
    until = forms.DateField(label="To", widget=forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d"))

    def clean(self) -> dict[str, Any]:
        data, today = self.cleaned_data, timezone.now().date()
        since, until = data.get("since"), data.get("until")
        if since and until and not EARLIEST <= since <= until:
            raise forms.ValidationError("The period ends before it begins.")
        if since and since > today:
            raise forms.ValidationError("The period lies in the future.")
        if since and until and until - since > LONGEST:
            raise forms.ValidationError("A report covers ten years at most.")
        return data

    def period(self) -> Period:
        """What was chosen, up to today. Call it on a valid form only."""
        return Period(self.cleaned_data["since"], min(self.cleaned_data["until"], timezone.now().date()))


class PersonReportViews:
    """The pages, for one admin site, which tells by `directory()` what things are called."""

    def __init__(self, site: Any) -> None:
        self.site: AdminSite = site
        self.directory = site.directory

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        wrap, page = self.site.admin_view, require_http_methods(["GET", "HEAD", "POST"])(self.page)
        return [
            path("people/<str:uid>/report/", wrap(page), name="person_report"),
            path("people/<str:uid>/report/pdf/", wrap(require_POST(self.pdf)), name="person_report_pdf"),
        ]

    def page(self, request: HttpRequest, uid: str) -> HttpResponse:
        """GET: the form, and how much there is. POST: the report, to be read and printed."""
        viewer, user = self._asked(request, uid)
        if request.method != "POST":
            return self._form(request, viewer, user, PeriodForm({**usual(), **request.GET.dict()}))
        form = PeriodForm(request.POST)
        if not form.is_valid():
            return self._form(request, viewer, user, form)
        report = self._made(request, viewer, uid, form.period(), "page")
        if report is None:
            return HttpResponseRedirect(here(uid, form.period()))
        context = {**self.site.each_context(request), "title": "Everything the AI did with this person's data"}
        return kept_nowhere(TemplateResponse(request, "admin/person_report.html", context | {"report": report}))

    def pdf(self, request: HttpRequest, uid: str) -> HttpResponse:
        """POST: the report as a PDF, for who has just shown who they are."""
        viewer, user = self._asked(request, uid)
        if not (viewer.personal and viewer.export):
            raise PermissionDenied
        form = PeriodForm(request.POST)
        if not form.is_valid():
            return self._form(request, viewer, user, form)
        period = form.period()
        if not recent_sign_in.is_recent(request):
            return recent_sign_in.ask_again(request, here(uid, period))
        report = self._made(request, viewer, uid, period, "pdf")
        if report is None:
            return HttpResponseRedirect(here(uid, period))
        from audit.person_report_pdf import render  # only who makes a PDF pays for what makes it

        name = f"muniment-report-{uid}-{period.since}-{period.until}.pdf"
        return kept_nowhere(download(render(report), name, "application/pdf"))

    def _asked(self, request: HttpRequest, uid: str) -> tuple[Viewer, Subject]:
        viewer = viewer_of(request.user)
        if not viewer.records:
            raise PermissionDenied
        user = users(viewer.tenants).filter(uid=uid).first() if UID.match(uid) else None
        if user is None:
            raise Http404("No such user.")
        return viewer, user

    def _made(self, request: HttpRequest, viewer: Viewer, uid: str, period: Period, form: str) -> Report | None:
        """The report, once it is recorded that it was made; None where that could not be."""
        report = person_report.gather(viewer, uid, period, self.directory().clients)
        try:
            tell(viewer.actor, viewer.name, "person.report", **person_report.told(report, form))
        except DatabaseError:
            messages.error(request, UNTOLD)
            return None
        return report

    def _form(self, request: HttpRequest, viewer: Viewer, user: Subject, form: PeriodForm) -> HttpResponse:
        period = form.period() if form.is_valid() else None
        counted = person_report.count(viewer, user.uid, period) if period else None
        reach = counted.reach if counted else None
        further = period and reach and reach < period.until
        context = {
            **self.site.each_context(request), "title": "Everything the AI did with this person's data", "person": user,
            "form": form, "period": period, "counted": counted, "may_see": viewer.personal,
            "may_take": viewer.personal and viewer.export, "periods": periods(user.uid), "most": person_report.MOST,
            "before": here(user.uid, Period(period.since, reach)) if period and reach and further else None,
        }  # fmt: skip
        return TemplateResponse(request, "admin/person_report_ask.html", context, status=200 if period else 400)


def usual() -> dict[str, str]:
    """The last twelve months."""
    today = timezone.now().date()
    return {"since": (today - timedelta(days=365)).isoformat(), "until": today.isoformat()}


def periods(uid: str) -> list[tuple[str, str]]:
    """Periods that are often asked for: words and where."""
    today = timezone.now().date()
    begun = {
        "the last 30 days": today - timedelta(days=30), "this year": today.replace(month=1, day=1),
        "the last 12 months": today - timedelta(days=365), "the last 5 years": today - timedelta(days=5 * 365),
    }  # fmt: skip
    return [(words, here(uid, Period(since, today))) for words, since in begun.items()]


def here(uid: str, period: Period) -> str:
    """The form for a user and a period."""
    query = urlencode({"since": period.since.isoformat(), "until": period.until.isoformat()})
    return f"{reverse('admin:person_report', args=[uid])}?{query}"


def kept_nowhere(answer: HttpResponse) -> HttpResponse:
    """An answer that no cache keeps."""
    answer["Cache-Control"] = "no-store"
    return answer
