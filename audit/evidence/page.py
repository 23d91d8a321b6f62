"""Evidence > Evidence packs: for a period and some standards, one click makes an export of the format `evidence` with
one run; and the packs that were made."""

from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import count, islice
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.views.decorators.http import require_http_methods

from audit.admin_base import PlainForm
from audit.evidence import controls
from audit.exports import definitions as exports
from audit.exports.definitions import Definition
from audit.exports.page import RunLine, allowed, last_runs, line
from audit.models import Export
from audit.staff_names import names_of
from audit.viewer import check_whole

MOST = 100
EARLIEST = date(2000, 1, 1)
LONGEST = timedelta(days=3660)
DAY = timedelta(days=1)
OWN = "own"
HOLDS = (
    "access reviews, with what was kept and revoked", "grants made and revoked, with their reasons",
    "requests and approvals", "refused calls, by reason, client and tool", "retention, legal holds and erasures",
    "verifications of the log, anchoring and key rotations", "sign-ins and roles of staff, and exports",
)  # fmt: skip


def quarter_before(today: date) -> tuple[date, date]:
    """The first and the last day of the calendar quarter before this one."""
    begins = date(today.year, 3 * ((today.month - 1) // 3) + 1, 1)
    last = begins - DAY
    return date(last.year, last.month - 2, 1), last


def month_before(today: date) -> tuple[date, date]:
    """The first and the last day of the month before this one."""
    last = today.replace(day=1) - DAY
    return last.replace(day=1), last


def year_before(today: date) -> tuple[date, date]:
    """The first and the last day of the year before this one."""
    return date(today.year - 1, 1, 1), date(today.year - 1, 12, 31)


PERIODS = {"quarter": quarter_before, "month": month_before, "year": year_before}


class PackForm(PlainForm):
    """For which days, both included, and which standards."""

    period = forms.ChoiceField(label="Period", widget=forms.RadioSelect)
    since = forms.DateField(
        label="From", required=False, widget=forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d")
    )
    until = forms.DateField(
        label="To", required=False, widget=forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d")
    )
    frameworks = forms.MultipleChoiceField(
        label="For", widget=forms.CheckboxSelectMultiple, error_messages={"required": "Choose at least one standard."},
        choices=[(one.slug, one.name) for one in controls.FRAMEWORKS],
    )  # fmt: skip

    def __init__(self, data: Any = None) -> None:
        self.today = timezone.now().astimezone(UTC).date()
        everything = [one.slug for one in controls.FRAMEWORKS]
        super().__init__(data, initial={"period": "quarter", "frameworks": everything})
        named = [(name, f"Last {name}: {days_words(*days(self.today))}") for name, days in PERIODS.items()]
        self.fields["period"].choices = [*named, (OWN, "Days of my own")]  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if data.get("period") in PERIODS:
            data["since"], data["until"] = PERIODS[data["period"]](self.today)
            for name in ("since", "until"):
                self.errors.pop(name, None)
        elif data.get("period") == OWN and not {"since", "until"} & self.errors.keys():
            self._check_days(data)
        return data

    def _check_days(self, data: dict[str, Any]) -> None:
        since, until = data.get("since"), data.get("until")
        if since is None or until is None:
            self.add_error("since" if since is None else "until", "Say from which day to which.")
        elif not EARLIEST <= since <= until:
            self.add_error("until", "The period ends before it begins.")
        elif until >= self.today:
            self.add_error("until", "The period must be over: yesterday is the last day that it can have.")
        elif until - since > LONGEST:
            self.add_error("until", "A pack covers ten years at most.")

    @property
    def days(self) -> list[Any]:
        """The two fields of a period of one's own."""
        return [self["since"], self["until"]]

    @property
    def standards(self) -> list[Any]:
        """Which standards it is for."""
        return [self["frameworks"]]

    def definitions(self) -> Iterator[Definition]:
        """The export that it asks for, under one name after another: one's exports have names of their own. Call it on
        a valid form only."""
        data = self.cleaned_data
        since, until = (datetime.combine(day, time(), UTC) for day in (data["since"], data["until"] + DAY))
        query = urlencode({"since": f"{since:%Y-%m-%dT%H:%M:%SZ}", "until": f"{until:%Y-%m-%dT%H:%M:%SZ}"})
        name = f"Evidence pack, {days_words(data['since'], data['until'])}"
        chosen = tuple(one.slug for one in controls.FRAMEWORKS if one.slug in data["frameworks"])
        for number in count(1):
            called = name if number == 1 else f"{name} ({number})"
            yield Definition(name=called, format="evidence", query=query, frameworks=chosen)


@dataclass(frozen=True, slots=True)
class Pack:
    """One pack in the list."""

    export: Export
    by: str
    frameworks: str
    run: RunLine | None
    downloadable: bool


def days_words(since: date, until: date) -> str:
    """`Jul to Sep 2026`, `October 2026`, `2025`, `3 Nov 2026`, `3 Nov to 9 Nov 2026`."""
    whole = since.day == 1 and until.day == monthrange(until.year, until.month)[1]
    if whole and (since.year, since.month, until.month) == (until.year, 1, 12):
        return f"{since.year}"
    if whole and (since.year, since.month) == (until.year, until.month):
        return f"{since:%B %Y}"
    if whole:
        return f"{since:%b}{_year(since, until)} to {until:%b %Y}"
    if since == until:
        return f"{since.day} {since:%b %Y}"
    return f"{since.day} {since:%b}{_year(since, until)} to {until.day} {until:%b %Y}"


def _year(since: date, until: date) -> str:
    return "" if since.year == until.year else f" {since.year}"


class PackViews:
    """The page, for one admin site."""

    def __init__(self, site: AdminSite) -> None:
        self.site = site

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        view = self.site.admin_view(require_http_methods(["GET", "HEAD", "POST"])(self.packs))
        return [path("packs/", view, name="evidence_packs")]

    def packs(self, request: HttpRequest) -> HttpResponse:
        """GET: what to ask for, and what was made. POST: make one."""
        allowed(request)
        check_whole(request.user)
        form = PackForm(request.POST if request.method == "POST" else None)
        if request.method == "POST":
            if not exports.may_make(request.user):
                raise PermissionDenied
            if form.is_valid() and (answer := self._make(request, form)):
                return answer
        context = {
            **self.site.each_context(request), "title": "Evidence packs", "form": form, "holds": HOLDS,
            "may_add": exports.may_make(request.user), **_made(),
        }  # fmt: skip
        return TemplateResponse(request, "admin/packs.html", context, status=400 if form.errors else 200)

    def _make(self, request: HttpRequest, form: PackForm) -> HttpResponse | None:
        """To the run that makes it; None where it was refused, which the form then says."""
        for given in islice(form.definitions(), MOST):
            try:
                run = exports.ask(request.user, exports.make(request.user, given))
                return HttpResponseRedirect(reverse("admin:export_run", args=[run.pk]))
            except ValidationError as error:
                taken = hasattr(error, "error_dict") and list(error.error_dict) == ["name"]
                if not taken:
                    form.add_error(None, " ".join(error.messages))
                    return None
        form.add_error(None, "You have made this very often: delete one of them first.")
        return None


def _made() -> dict[str, Any]:
    found = list(Export.objects.filter(format="evidence").order_by("-created_at", "-pk")[: MOST + 1])
    shown, now = found[:MOST], timezone.now()
    runs, people = last_runs(shown), names_of(one.owner for one in shown)
    known = {one.slug: one.name for one in controls.FRAMEWORKS}
    packs = []
    for one in shown:
        run = runs.get(one.pk)
        frameworks = ", ".join(known.get(slug, slug) for slug in one.frameworks) or "all standards"
        kept = bool(run and run.sha256 and run.removed_at is None)
        packs.append(Pack(one, people.get(one.owner, ""), frameworks, line(run, now) if run else None, kept))
    return {"packs": packs, "more": len(found) > MOST}
