"""Evidence > Records: the list with its exact filters and its paging by key, and the proof of a record as a file (its
page is record_view). Read only: every path here answers GET, but for the search by request id, whose POST keeps that id
out of every URL."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from io import BytesIO
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.views.decorators.http import require_POST, require_safe

from audit import bundling, logtree, record_page, record_words, search
from audit.entries import lookup
from audit.log_page import download
from audit.models import Record
from audit.reasons import REASONS
from audit.viewer import viewer_of

EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
WINDOWS = {"1h": "hour", "24h": "24 hours", "7d": "7 days", "30d": "30 days", "1y": "year"}
AHEAD = timedelta(minutes=5)  # the log's clock is the database's, and may be ahead of ours
MAX_MICROSECONDS = 4 * 10**15  # the year 2096
UID = r"usr_[A-Za-z0-9_-]{1,36}"


@dataclass(frozen=True, slots=True)
class Directory:
    """What staff call things today, for the filters' choices and the sentences: slug -> name."""

    clients: Mapping[str, str] = field(default_factory=dict)
    backends: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] = ()


class OpenChoice(forms.ChoiceField):
    """A choice that also takes what is not offered: records outlive what they name."""

    def __init__(self, **more: Any) -> None:
        super().__init__(required=False, **more)

    def validate(self, value: Any) -> None:
        if len(str(value)) > 128:
            raise forms.ValidationError("That is longer than any name.")


class FilterForm(forms.Form):
    """A search, as its URL says it. A time window is always on."""

    window = forms.ChoiceField(label="Time", choices=[(k, f"last {v}") for k, v in WINDOWS.items()])
    decision = OpenChoice(label="Decision", choices=[("", "any"), ("allow", "allowed"), ("deny", "denied")])
    reason = OpenChoice(label="Reason", choices=[("", "any"), *((r.code, r.title) for r in REASONS.values())])
    client = OpenChoice(label="Client")
    tool = OpenChoice(label="Tool")
    backend = OpenChoice(label="Backend")
    type = OpenChoice(label="Kind", choices=[("", "any"), *record_words.TYPES.items()])
    flagged = OpenChoice(label="Review", choices=[("", "any"), ("1", "flagged"), ("0", "not flagged")])
    subject = forms.RegexField(
        UID, label="User", required=False, max_length=40, strip=True,
        error_messages={"invalid": "A user is searched by uid (usr_…); an e-mail address must not be in a URL."},
        widget=forms.TextInput(
            attrs={"pattern": UID, "placeholder": "usr_…", "title": "A uid: usr_…", "autocomplete": "off"}
        ),
    )  # fmt: skip
    request_key = forms.RegexField(r"\A[0-9a-f]{32}\Z", required=False, widget=forms.HiddenInput)
    before = forms.IntegerField(required=False, min_value=0, max_value=MAX_MICROSECONDS, widget=forms.HiddenInput)
    after = forms.IntegerField(required=False, min_value=0, max_value=MAX_MICROSECONDS, widget=forms.HiddenInput)

    def __init__(self, data: Mapping[str, str], directory: Directory) -> None:
        super().__init__({"window": search.DEFAULT_WINDOW} | {k: v for k, v in data.items() if v != ""})
        self._offer("client", dict(directory.clients))
        self._offer("backend", dict(directory.backends))
        self._offer("tool", dict.fromkeys(directory.tools))
        for name in ("reason", "type", "decision", "flagged"):
            self._offer(name, None)

    def _offer(self, name: str, names: dict[str, Any] | None) -> None:
        """The choices of a filter, with the chosen value among them even if it is no longer known."""
        chosen = self.data.get(name, "")
        known = self.fields[name]
        assert isinstance(known, forms.ChoiceField)
        pairs = list(known.choices) if names is None else [("", "any"), *((k, v or k) for k, v in names.items())]  # type: ignore[arg-type]
        known.choices = pairs if chosen in dict(pairs) else [*pairs, (chosen[:128], chosen[:128])]

    def query(self) -> search.Query:
        """What to find. Call it on a valid form only."""
        data, now = self.cleaned_data, timezone.now()
        filters = {name: data[name] for name in search.FILTERS if data.get(name) not in (None, "")}
        if "flagged" in filters:
            filters["flagged"] = filters["flagged"] == "1"
        key = data.get("request_key")
        return search.Query(
            since=now - search.WINDOWS[data["window"]],
            until=now + AHEAD,
            filters=filters,
            lookups={"request_key": bytes.fromhex(key)} if key else {},
            before=_time(data.get("before")),
            after=_time(data.get("after")) if data.get("before") is None else None,
        )

    def narrowed(self) -> bool:
        """Whether more than the time window is set."""
        return any(self.data.get(name) for name in (*search.FILTERS, "request_key"))

    def url(self, **changes: Any) -> str:
        """The URL of this search with changes; None takes a member away."""
        kept = {k: v for k, v in self.data.items() if k in self.fields and k not in ("before", "after")}
        kept = {k: v for k, v in (kept | changes).items() if v is not None}
        return f"{reverse('admin:records')}?{urlencode(kept)}"


class FindForm(forms.Form):
    """A request id, as the backend sent it."""

    request_id = forms.CharField(
        label="Request id", max_length=256, widget=forms.TextInput(attrs={"autocomplete": "off"})
    )


def _time(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else EPOCH + timedelta(microseconds=microseconds)


def key_of(record: Record) -> int:
    """Where a page starts: the record's time in microseconds, which is unique in the log."""
    return (record.at - EPOCH) // timedelta(microseconds=1)


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
            path("records/<uuid:record>/proof/", wrap(require_safe(self.proof)), name="record_proof"),
            path("records/<uuid:record>/bundle/", wrap(require_safe(self.bundle)), name="record_bundle"),
        ]

    def _context(self, request: HttpRequest, **more: Any) -> dict[str, Any]:
        # Checked where records are read, not only where the link is shown.
        if not request.user.has_perm("audit.view_record"):
            raise PermissionDenied
        return {**self.site.each_context(request), **more}

    def records(self, request: HttpRequest) -> HttpResponse:
        """The list."""
        context = self._context(request, title="Records")
        directory = self.directory()
        form = FilterForm(request.GET.dict(), directory)
        page = (
            search.find(viewer_of(request.user), form.query())
            if form.is_valid()
            else search.Page([], older=False, newer=False)
        )
        rows = [record_page.row(record, directory.clients) for record in page.records]
        context |= {
            "filters": form, "find": FindForm(), "rows": rows, "user_url": form.url(subject=None),
            "windows": [(name, words, form.url(window=name)) for name, words in WINDOWS.items()],
            "chosen_window": form.data["window"], "plain_url": reverse("admin:records"),
            "older": form.url(before=key_of(page.records[-1])) if page.older and page.records else None,
            "newer": form.url(after=key_of(page.records[0])) if page.newer and page.records else None,
            "newest": form.url() if form.data.get("before") or form.data.get("after") else None,
        }  # fmt: skip
        return TemplateResponse(request, "admin/records.html", context, status=200 if form.is_valid() else 400)

    def find(self, request: HttpRequest) -> HttpResponse:
        """POST: from a request id to its records, through its keyed hash."""
        self._context(request)
        form = FindForm(request.POST)
        if not form.is_valid():
            return redirect("admin:records")
        key = lookup("request_id", form.cleaned_data["request_id"]).hex()
        return HttpResponseRedirect(f"{reverse('admin:records')}?{urlencode({'window': '1y', 'request_key': key})}")

    def _found(self, request: HttpRequest, record: UUID) -> Record:
        found = search.one(viewer_of(request.user), record)
        if found is None:
            raise Http404("No such record.")
        return found

    def proof(self, request: HttpRequest, record: UUID) -> HttpResponse:
        """The record's inclusion proof as a file (C2SP tlog-proof)."""
        self._context(request)
        found = self._found(request, record)
        try:
            text = logtree.proof_of(found).encode()
        except (LookupError, ValueError) as error:
            return self._unproven(request, found, error)
        return download(text, f"muniment-record-{found.index}.tlog-proof", "text/plain; charset=utf-8")

    def bundle(self, request: HttpRequest, record: UUID) -> HttpResponse:
        """The record's proof bundle: a ZIP that `muniment verify` checks offline, without any personal data."""
        self._context(request)
        found = self._found(request, record)
        made = BytesIO()
        try:
            bundling.write_record(made, found)
        except bundling.Refused as refused:
            messages.warning(request, f"There is no bundle: {refused}.")
            return HttpResponseRedirect(reverse("admin:record", args=[found.id]))
        return download(made.getvalue(), f"muniment-record-{found.index}.zip", "application/zip")

    def _unproven(self, request: HttpRequest, record: Record, error: Exception) -> HttpResponse:
        """Back to the record, with why there is no proof of it."""
        words = "It is not sealed yet, so there is no proof of it yet. The sealer looks every second."
        if not isinstance(error, logtree.NotSealed):
            words = "The proof cannot be made: the stored tree is damaged. Verify the log with manage.py verify_log."
        messages.warning(request, words)
        return HttpResponseRedirect(reverse("admin:record", args=[record.id]))
