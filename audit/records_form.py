"""A search of the records, as its URL says it: exact filters, a time window that is always on, and where its page
starts. Nothing of it names a person but a uid; ids of requests, traces, sessions and resources are in it as keyed
hashes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.forms.utils import flatatt
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.http import urlencode
from django.utils.safestring import SafeString, mark_safe

from audit import record_words, search
from audit.reasons import REASONS

EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
WINDOWS = {"1h": "hour", "24h": "24 hours", "7d": "7 days", "30d": "30 days", "1y": "year"}
MODES = ("interactive", "subagent", "background", "api")
AHEAD = timedelta(minutes=5)  # the log's clock is the database's, and may be ahead of ours
MICROSECOND = timedelta(microseconds=1)
MAX_MICROSECONDS = 4 * 10**15  # the year 2096
UID = r"usr_[A-Za-z0-9_-]{1,36}"
HASH = r"\A[0-9a-f]{32}\Z"
NONE = "-"  # in a URL: what the record has no value for, such as a client that could not be established
ABSENT = frozenset({"client", "tenant"})
# What is found through a keyed hash, by the filter's name.
KEYS = {"request_key": "Request", "trace_key": "Trace", "session_key": "Session", "resource_key": "Resource"}
# How filters are named in a URL, in the order in which they are shown: name -> what the search calls it.
FILTERS = {
    "subject": "subject", "client": "client", "tool": "tool", "backend": "backend", "decision": "decision",
    "reason": "reason", "scope": "scopes", "tenant": "tenant", "mode": "mode", "type": "type", "flagged": "flagged",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Directory:
    """What staff call things today, for the filters' choices and the sentences: slug -> name."""

    clients: Mapping[str, str] = field(default_factory=dict)
    backends: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chip:
    """A filter that is set: what it says, and the search without it."""

    label: str
    value: str
    without: str


UNSENDABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def printable(text: str) -> None:
    """No name and no id holds control characters or halves of characters (governance.contract)."""
    if UNSENDABLE.search(text):
        raise ValidationError("That holds characters that cannot be printed.")


class PlainSelect(forms.Select):
    """A select made of strings: Django's makes each of five hundred options by a template of its own."""

    def render(self, name: str, value: Any, attrs: Any = None, renderer: Any = None) -> SafeString:
        """As Django's, without groups."""
        chosen = "" if value is None else str(value)
        options = format_html_join(
            "", '<option value="{}"{}>{}</option>',
            ((key, mark_safe(" selected") if str(key) == chosen else "", words) for key, words in self.choices),
        )  # fmt: skip
        return format_html(
            "<select{}>{}</select>", flatatt(self.build_attrs(self.attrs, {**(attrs or {}), "name": name})), options
        )


class OpenChoice(forms.ChoiceField):
    """A choice that also takes what is not offered: records outlive what they name."""

    widget = PlainSelect

    def __init__(self, label: str, choices: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(required=False, label=label, choices=[("", "any"), *choices])

    def validate(self, value: Any) -> None:
        if len(str(value)) > 255:
            raise ValidationError("That is longer than any name.")
        printable(str(value))


class Moment(forms.CharField):
    """A time in UTC: ISO 8601, with or without seconds; one with an offset is taken to UTC."""

    def __init__(self, label: str) -> None:
        widget = forms.DateTimeInput(attrs={"type": "datetime-local", "step": "1"})
        super().__init__(required=False, label=label, max_length=40, widget=widget)

    def to_python(self, value: Any) -> Any:
        text = str(value or "").strip()
        if not text:
            return None
        try:
            at = datetime.fromisoformat(text.replace(" ", "T") if text.count(" ") == 1 and "T" not in text else text)
            at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
        except (ValueError, OverflowError):
            raise ValidationError("A time is written like 2026-11-25T10:00, in UTC.") from None
        if not 1970 <= at.year <= 2095:
            raise ValidationError("There is no record of that time.")
        return at

    def run_validators(self, value: Any) -> None:
        """None: what was read is a time."""

    def prepare_value(self, value: Any) -> Any:
        """As the browser's own control takes it."""
        try:
            at = self.to_python(value)
        except ValidationError:
            return value
        return at.replace(tzinfo=None).isoformat(timespec="seconds") if at else ""


class FilterForm(forms.Form):
    """A search, as its URL says it. It is bound to the URL's parameters; `clean` finds the window."""

    window = forms.ChoiceField(label="Time", required=False, choices=[(k, f"last {v}") for k, v in WINDOWS.items()])
    since, until = Moment("From, in UTC"), Moment("To, in UTC")
    subject = forms.RegexField(
        rf"\A{UID}\Z", label="User", required=False, max_length=40, strip=True,
        error_messages={"invalid": "A user is searched by uid (usr_…); an e-mail address must not be in a URL."},
        widget=forms.TextInput(
            attrs={"pattern": UID, "placeholder": "usr_…", "title": "A uid: usr_…", "autocomplete": "off"}
        ),
    )  # fmt: skip
    client = OpenChoice("Client")
    tool = OpenChoice("Tool")
    backend = OpenChoice("Backend")
    decision = OpenChoice("Decision", [("allow", "allowed"), ("deny", "denied")])
    reason = OpenChoice("Reason", [(r.code, r.title) for r in REASONS.values()])
    scope = OpenChoice("Scope")
    tenant = forms.CharField(
        label="Tenant", required=False, max_length=255, strip=True, validators=[printable],
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )  # fmt: skip
    mode = OpenChoice("Agent mode", [(m, m) for m in MODES])
    type = OpenChoice("Kind", record_words.TYPES.items())
    flagged = forms.ChoiceField(
        label="Review", required=False, choices=[("", "any"), ("1", "flagged"), ("0", "not flagged")]
    )
    request_key = forms.RegexField(HASH, required=False, widget=forms.HiddenInput)
    trace_key = forms.RegexField(HASH, required=False, widget=forms.HiddenInput)
    session_key = forms.RegexField(HASH, required=False, widget=forms.HiddenInput)
    resource_key = forms.RegexField(HASH, required=False, widget=forms.HiddenInput)
    sort = forms.ChoiceField(label="Sort", required=False, choices=[("", "newest first"), ("oldest", "oldest first")])
    before = forms.IntegerField(required=False, min_value=0, max_value=MAX_MICROSECONDS, widget=forms.HiddenInput)
    after = forms.IntegerField(required=False, min_value=0, max_value=MAX_MICROSECONDS, widget=forms.HiddenInput)

    def __init__(self, data: Mapping[str, str], directory: Directory) -> None:
        given = {name: str(data.get(name) or "") for name in self.base_fields}
        super().__init__({name: text for name, text in given.items() if text.strip()}, label_suffix="")
        self.directory = directory
        self._offer("client", {**directory.clients, NONE: "not established"})
        self._offer("backend", directory.backends)
        self._offer("tool", {name: name for name in directory.tools})
        self._offer("scope", {name: name for name in directory.scopes})
        for name in ("reason", "type", "decision", "mode"):
            self._offer(name, {})

    def _offer(self, name: str, names: Mapping[str, str]) -> None:
        """The choices of a filter, with the chosen value among them even if it is no longer known."""
        chosen, known = self.data.get(name, ""), self.fields[name]
        assert isinstance(known, forms.ChoiceField)
        pairs = [*known.choices, *names.items()]  # type: ignore[misc]
        known.choices = pairs if chosen in dict(pairs) else [*pairs, (chosen[:255], chosen[:255])]

    def clean(self) -> dict[str, Any]:
        """The window is in order."""
        data: dict[str, Any] = super().clean() or {}
        since, until = data.get("since"), data.get("until")
        if since and until and since >= until:
            self.add_error("until", "The end must come after the beginning.")
        if until and not since and "since" not in self.errors:
            self.add_error("since", "A time to search needs its beginning, too.")
        return data

    @property
    def window_name(self) -> str:
        """The preset that is chosen; empty for a range of one's own."""
        if self.data.get("since") or self.data.get("until"):
            return ""
        return self.data["window"] if self.data.get("window") in WINDOWS else search.DEFAULT_WINDOW

    def bounds(self) -> tuple[datetime, datetime]:
        """From when, and until when. Call it on a valid form only."""
        data, now = self.cleaned_data, timezone.now()
        if data["since"]:
            return data["since"], data["until"] or max(now, data["since"]) + AHEAD
        return now - search.WINDOWS[self.window_name], now + AHEAD

    def query(self) -> search.Query:
        """What to find. Call it on a valid form only."""
        data = self.cleaned_data
        since, until = self.bounds()
        filters: dict[str, Any] = {}
        for name, column in FILTERS.items():
            if value := data.get(name):
                filters[column] = None if value == NONE and name in ABSENT else value
        if "flagged" in filters:
            filters["flagged"] = filters["flagged"] == "1"
        return search.Query(
            since=since, until=until, filters=filters,
            lookups={name: bytes.fromhex(data[name]) for name in KEYS if data.get(name)},
            before=_time(data.get("before")),
            after=_time(data.get("after")) if data.get("before") is None else None,
            oldest=data.get("sort") == "oldest",
        )  # fmt: skip

    def narrowed(self) -> bool:
        """Whether more than the time is set."""
        return any(self.data.get(name) for name in (*FILTERS, *KEYS))

    def kept(self, **changes: Any) -> dict[str, str]:
        """The parameters of this search with changes and without its place; None takes a member away."""
        given = {name: value for name, value in self.data.items() if name not in ("before", "after")}
        if self.window_name:
            given["window"] = self.window_name
        else:
            given.pop("window", None)
        return {name: str(value) for name, value in (given | changes).items() if value is not None}

    def url(self, **changes: Any) -> str:
        """The URL of this search with changes; None takes a member away."""
        return f"{reverse('admin:records')}?{urlencode(self.kept(**changes))}"

    def here(self) -> str:
        """The URL of this very page of the search."""
        return self.url(before=self.data.get("before"), after=self.data.get("after"))

    def chips(self) -> list[Chip]:
        """The filters that are set."""
        found = []
        for name in FILTERS:
            if value := self.data.get(name):
                field = self.fields[name]
                words = dict(field.choices).get(value, value) if isinstance(field, forms.ChoiceField) else value  # type: ignore[arg-type]
                words = {"subject": record_words.short_uid(value)}.get(name, "none" if value == NONE else str(words))
                found.append(Chip(str(field.label), str(words), self.url(**{name: None})))
        found += [
            Chip(label, "one, by its keyed hash", self.url(**{name: None}))
            for name, label in KEYS.items() if self.data.get(name)
        ]  # fmt: skip
        return found

    def time_words(self) -> str:
        """The window, for its chip."""
        if self.window_name:
            return f"last {WINDOWS[self.window_name]}"
        if not self.is_valid():
            return "not understood"
        since, until = self.cleaned_data["since"], self.cleaned_data["until"]
        end = "now" if until is None else _short(until, since)
        return f"{_short(since, None)} to {end}"


def _short(at: datetime, beside: datetime | None) -> str:
    """`25 Nov 2026, 10:00`; the time alone on the day that was just named."""
    clock = f"{at:%H:%M:%S}" if at.second else f"{at:%H:%M}"
    return clock if beside is not None and beside.date() == at.date() else f"{at.day} {at:%b %Y}, {clock}"


def _time(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else EPOCH + timedelta(microseconds=microseconds)


def key_of(at: datetime) -> int:
    """Where a page starts, as a URL says it: microseconds since 1970."""
    return (at - EPOCH) // MICROSECOND
