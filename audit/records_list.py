"""What the page of the audit search shows: the search, how much there is, the lines, and the pages around this one."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.urls import reverse
from django.utils import timezone

from audit import record_rows, records_summary, saved_searches, search
from audit.records_find import IdForm, ResourceForm
from audit.records_form import MAX_MICROSECONDS, WINDOWS, FilterForm, key_of
from audit.retention import gone
from audit.saved_searches import SaveForm
from audit.search import Page, Query
from audit.viewer import Viewer

TIME = ("window", "since", "until")


@dataclass(frozen=True, slots=True)
class Paging:
    """Links to the pages around this one, empty where there is none; in the order of the list. `reached` says how far
    was looked, where the page is not full because one look reads no more; then `further` goes on from there, and is
    not among the others."""

    first: str
    previous: str
    next: str
    last: str
    reached: datetime | None
    downwards: bool
    further: str


def context(
    viewer: Viewer, form: FilterForm, *, page: Page | None = None, who: Mapping[str, str] | None = None,
    named: bool = False, ids: IdForm | None = None, resource: ResourceForm | None = None,
    saving: SaveForm | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Everything that the template needs. Forms that are given are shown with their errors; `who` says who the users
    are, and `named` that this was asked for. Raises PermissionDenied."""
    shown: dict[str, Any] = {
        "title": "Audit search", "form": form, "chips": form.chips(), "time_words": form.time_words(),
        "windows": [
            (name, words, form.url(window=name, since=None, until=None)) for name, words in WINDOWS.items()
        ],
        "fields": [form[name] for name in form.fields if not form[name].is_hidden and name not in (*TIME, "sort")],
        "kept": _hidden(form, [*TIME, "sort", *(f.name for f in form.hidden_fields())]),
        "kept_beside_time": _hidden(form, [name for name in form.fields if name not in TIME]),
        "plain_url": reverse("admin:records"), "calls_url": form.url(type="decision"),
        "query": urlencode(form.kept()), "here": form.here().partition("?")[2],
        "next": form.url(subject=None), "ids": ids or IdForm(), "resource": resource or ResourceForm(),
        "saving": saving or SaveForm(), "saved": saved_searches.seen_by(viewer), "named": named,
        "may_name": viewer.personal, "may_export": viewer.export, "open": any(f and f.errors for f in (ids, resource)),
    }  # fmt: skip
    return shown | _found(viewer, form, page, who or {}) if form.is_valid() else shown


def _found(viewer: Viewer, form: FilterForm, page: Page | None, who: Mapping[str, str]) -> dict[str, Any]:
    query = form.query()
    page = page or search.find(viewer, query)
    records = page.records[::-1] if query.oldest else page.records
    return {
        "rows": record_rows.lines(records, form.directory.clients, who),
        "summary": records_summary.summary(viewer, query, page, timezone.now(), partial(_span, form)),
        "paging": paging(form, query, page), "oldest": query.oldest, "today": timezone.now().date(),
        "other_sort": form.url(sort=None if query.oldest else "oldest"),
        "has_users": any(record.subject for record in records), "gone": gone.words(query.since, query.until),
    }  # fmt: skip


def paging(form: FilterForm, query: Query, page: Page) -> Paging:
    """The links of a page. Each is by a time, so that it stays the same page whatever is recorded meanwhile."""
    older = form.url(before=key_of(page.before)) if page.before else ""
    newer = form.url(after=key_of(page.after)) if page.after else ""
    downwards = query.after is None and not (query.oldest and query.before is None)
    moved = query.before is not None or query.after is not None
    # The other end is the page before the end of time, or after its beginning.
    ahead, back = (newer, older) if query.oldest else (older, newer)
    last = form.url(before=MAX_MICROSECONDS) if query.oldest else form.url(after=0)
    further = "" if page.reached is None else older if downwards else newer
    return Paging(
        form.url() if moved else "", "" if further == back else back, "" if further == ahead else ahead,
        last if ahead else "", page.reached, downwards, further,
    )  # fmt: skip


def _span(form: FilterForm, since: datetime, until: datetime) -> str:
    """The same search in another time."""
    return form.url(window=None, since=_moment(since), until=_moment(until))


def _moment(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def _hidden(form: forms.Form, names: list[str]) -> list[tuple[str, str]]:
    """What a form that changes something else carries along."""
    kept = form.kept() if isinstance(form, FilterForm) else {}
    return [(name, kept[name]) for name in names if name in kept]
