"""Evidence > the timeline of one user, client or tool: a sentence, the shares, what is unusual, and the records by day.
A user is shown by uid; who that is, by POST alone, and recorded first."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import groupby
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.views.decorators.http import require_http_methods

from audit import record_page, search, subjects, tenants, timeline, timeline_figures, timeline_reading
from audit.models import Record
from audit.people import UID
from audit.record_around import Link, link
from audit.record_page import Row
from audit.record_view import UNTOLD
from audit.record_words import amount
from audit.retention import gone
from audit.staff_log import tell
from audit.timeline import KINDS, Mark
from audit.timeline_figures import WINDOWS, Names
from audit.timeline_reading import Looked, Page, Who
from audit.viewer import Viewer, viewer_of

EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
AHEAD = timedelta(minutes=5)  # the log's clock is the database's, and may be ahead of ours
LATEST = 4 * 10**15  # microseconds: the year 2096
DEFAULT = "30d"
SLUG, TOOL = re.compile(r"[A-Za-z0-9_-]{1,64}\Z"), re.compile(r"[A-Za-z0-9_-]{1,64}/[A-Za-z0-9_./:-]{1,128}\Z")
NAMES = {"user": UID, "client": SLUG, "tool": TOOL}
SHOWN = 8  # unusual things, and acts of staff


class WindowForm(forms.Form):
    """Which part of a timeline, as its URL says it."""

    window = forms.ChoiceField(choices=list(WINDOWS.items()))
    before = forms.IntegerField(required=False, min_value=0, max_value=LATEST)
    after = forms.IntegerField(required=False, min_value=0, max_value=LATEST)

    def __init__(self, data: Mapping[str, str]) -> None:
        super().__init__({"window": DEFAULT} | {k: v for k, v in data.items() if v != ""})

    def times(self) -> tuple[datetime, datetime, datetime | None, datetime | None]:
        """since, until, before, after; of the last two at most one. Call it on a valid form only."""
        data, now = self.cleaned_data, timezone.now()
        before, after = (_time(data.get(name)) for name in ("before", "after"))
        return now - search.WINDOWS[data["window"]], now + AHEAD, before, None if before else after


@dataclass(frozen=True, slots=True)
class Line:
    """One record of the timeline: as in every list, with what came of it and what is unusual about it."""

    row: Row
    outcome: str
    marks: Sequence[Mark]


@dataclass(frozen=True, slots=True)
class Unusual:
    """A mark, when, and the record that it is of."""

    mark: Mark
    at: datetime
    record: UUID


class TimelineViews:
    """The pages, for one admin site, which tells by `directory()` what things are called, and by `managed_by(uid)` who
    manages a user."""

    def __init__(self, site: Any) -> None:
        self.site: AdminSite = site
        self.directory, self.managed_by = site.directory, site.managed_by

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        view = require_http_methods(["GET", "HEAD", "POST"])(self.timeline)
        return [path("timeline/<str:kind>/<path:name>/", self.site.admin_view(view), name="timeline")]

    def timeline(self, request: HttpRequest, kind: str, name: str) -> HttpResponse:
        """GET: the timeline. POST, of a user: the same, with who it is."""
        viewer = viewer_of(request.user)
        if not viewer.records:
            raise PermissionDenied
        if kind not in KINDS or not NAMES[kind].match(name):
            raise Http404("No such timeline.")
        form = WindowForm(request.GET.dict())
        if not form.is_valid():
            return HttpResponseRedirect(reverse("admin:timeline", args=[kind, name]))
        who, more = Who(kind, name), {}
        if request.method == "POST":
            if kind != "user":
                return HttpResponseNotAllowed(["GET", "HEAD"])
            if not viewer.personal:
                raise PermissionDenied
            try:
                tell(viewer.actor, viewer.name, "personal.view", subject=name)
            except DatabaseError:
                messages.error(request, UNTOLD)
                return HttpResponseRedirect(request.get_full_path())
            more = {"identity": identity(viewer, name)}
        context = self.site.each_context(request) | self._page(request, viewer, who, form) | more
        answer = TemplateResponse(request, "admin/timeline.html", context)
        answer["Cache-Control"] = "no-store"
        return answer

    def _page(self, request: HttpRequest, viewer: Viewer, who: Who, form: WindowForm) -> dict[str, Any]:
        since, until, before, after = form.times()
        window, names = form.cleaned_data["window"], Names(self.directory().clients)
        top = timeline_reading.look(viewer, who, since, until)
        page = timeline_reading.page(viewer, who, since, until, top, before, after)
        earlier = timeline_reading.earlier(viewer, who, page)
        marks = timeline.marks(who.kind, [row for row, _ in page.context], earlier, names.clients)
        if who.kind == "user":
            figures = timeline_figures.of_user(top, window, since, until, names)
        else:
            figures = timeline_figures.of_many(viewer, who, top, window, since, until, names)
        called = "this user" if who.kind == "user" else names.of(who.kind, who.name)
        return {
            "title": f"Timeline of {'a user' if who.kind == 'user' else called}", "who": who, "figures": figures,
            "sentence": timeline.sentence(who.kind, called, figures.totals, WINDOWS[window]),
            "parts": shares(who, window, figures), "unusual": unusual(page, marks),
            "days": days(viewer, page, marks, names.clients), "staff": staff(viewer, top, names.clients),
            "gone": gone.words(since, until), "more_staff": top.cut,
            "links": links(request, who, window), "may_look": viewer.personal,
            "managed_by": self.managed_by(who.name) if who.kind == "user" else None,
            **paging(who, window, page), **(user_context(request, viewer, who.name) if who.kind == "user" else {}),
        }  # fmt: skip


def _time(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else EPOCH + timedelta(microseconds=microseconds)


def _micros(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


def paging(who: Who, window: str, page: Page) -> dict[str, Any]:
    """The links to the pages around this one, by key, and to the other windows."""
    here = reverse("admin:timeline", args=[who.kind, who.name])
    older = f"{here}?window={window}&before={_micros(page.further)}" if page.further else None
    newest = page.lines[0][0].at if page.newer and page.lines else None
    newer = f"{here}?window={window}&after={_micros(newest)}" if newest else None
    return {
        "older": older, "newer": newer, "newest": f"{here}?window={window}" if page.newer else None,
        "here": here, "window": window, "window_words": WINDOWS[window],
        "windows": [(key, words, f"{here}?window={key}") for key, words in WINDOWS.items()],
    }  # fmt: skip


def days(
    viewer: Viewer, page: Page, marks: timeline.Marks, clients: Mapping[str, str]
) -> list[tuple[date, list[Line]]]:
    """The lines of the page, by day in UTC, newest first."""
    records = timeline_reading.records(viewer, page.lines)
    outcomes = search.outcomes_of(records)
    lines = [
        Line(record_page.row(record, clients), outcome_words(outcomes.get(record.id)), marks.get(record.at, []))
        for record in records
    ]
    return [(day, list(of)) for day, of in groupby(lines, lambda line: line.row.record.at.date())]


def outcome_words(outcome: Record | None) -> str:
    """What came of a call, shortly."""
    said = (record_page.read(outcome).get("outcome") or {}) if outcome else {}
    if not isinstance(said, dict) or not said:
        return ""
    parts = ["ended in an error"] if said.get("status") != "ok" else []
    if isinstance(number := said.get("count"), int):
        parts.append(f"{amount(number, 'item')} touched")
    if isinstance(spent := said.get("duration_ms"), int):
        parts.append(f"{spent:,} ms")
    return ", ".join(parts) or "ended well"


def unusual(page: Page, marks: timeline.Marks) -> list[Unusual]:
    """The newest unusual things among all that was looked at."""
    found = [Unusual(mark, row.at, record) for row, record in page.context for mark in marks.get(row.at, [])]
    return found[:SHOWN]


def shares(who: Who, window: str, figures: timeline_figures.Figures) -> list[tuple[str, list[tuple[Any, str]]]]:
    """Each part, with where its records are."""
    base, records = {"window": window, **who.filters}, reverse("admin:records")

    def url(share: timeline.Share) -> str:
        return f"{records}?{urlencode({**base, **dict(share.query)})}" if share.query else ""

    return [(part.heading, [(share, url(share)) for share in part.shares]) for part in figures.parts]


def staff(viewer: Viewer, top: Looked, clients: Mapping[str, str]) -> list[Row]:
    """What staff did here: the newest acts among what was looked at."""
    acts = [row for row in top.rows if row[0].type in timeline_reading.STAFF]
    return [record_page.row(record, clients) for record in timeline_reading.records(viewer, acts[:SHOWN])]


def links(request: HttpRequest, who: Who, window: str) -> list[Link]:
    """Where to go from here."""
    found = link("Search in these records", "admin:records", query={"window": window, **who.filters})
    may = request.user.has_perm
    match who.kind:
        case "user" if may("clients.view_grant"):
            found += link("The access matrix for this user", "admin:access_matrix", query={"subject": who.name})
        case "client" if may("clients.view_client"):
            found += link("The client's page", "admin:clients_client_changelist", query={"q": who.name})
        case "tool" if may("tools.view_tool"):
            found += link("The tool's page", "admin:tools_tool_changelist", query={"q": who.filters["tool"]})
    return found


def user_context(request: HttpRequest, viewer: Viewer, uid: str) -> dict[str, Any]:
    """What may be done about a user, and the state that the user is in."""
    user = tenants.users(viewer.tenants).filter(uid=uid).first()
    if user is None:
        return {"person": None}
    acts = []
    may_change = request.user.has_perm("audit.change_subject") and tenants.may_change(viewer.tenants, uid)
    if may_change and user.erased_at is None:
        block = ("unblock", "Unblock…") if user.blocked_at else ("block", "Block…")
        acts = [
            (words, reverse("admin:audit_subject_act", args=[uid, act]), act != "unblock")
            for act, words in (block, ("sign-out", "Sign out everywhere…"))
        ]
    if request.user.has_perm("audit.add_hold"):
        acts.append(("Place a hold…", f"{reverse('admin:hold_add')}?{urlencode({'subject': uid})}", False))
    if request.user.has_perm("audit.add_erasure") and user.erased_at is None:
        acts.append(("Erase…", reverse("admin:erase", args=[uid]), True))
    return {"person": user, "acts": acts, "report": link("", "admin:person_report", uid)}


def identity(viewer: Viewer, uid: str) -> list[tuple[str, str]]:
    """Who a user is, for a viewer whose look is recorded. Raises PermissionDenied for who may not see it."""
    if not viewer.personal:
        raise PermissionDenied
    user = tenants.users(viewer.tenants).filter(uid=uid).first()
    if user is None or user.erased_at is not None:
        return []
    named = (("E-mail address", "email"), ("Identifier at the issuer (sub)", "sub"))
    return [(label, value) for label, column in named if (value := subjects.read(user, column))]
