"""The figures of the home page: calls and denials over time, by client and by reason, and which clients and tools are
new. All of them come from rollups, never from the records, and each leads to the search that it counts."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.urls import reverse
from django.utils.http import urlencode

from audit import charts, rollups
from audit.charts import Bucket, Chart
from audit.reasons import REASONS
from audit.viewer import Viewer
from tools.models import Tool

MOST = 6  # clients and reasons that are named; the rest is summed up
USUAL = timedelta(days=30)
NEW = timedelta(days=7)
MOST_NEW, MOST_SEEN = 8, 500
LATELY, LONG_AGO = timedelta(weeks=2), timedelta(weeks=1500)
CALLS: dict[str, Any] = {
    "type": "decision"
}  # what is asked without a token is no call, and the search tells them apart
UNGOVERNED: dict[str, Any] = {"type": "ungoverned"}
NONE = "-"  # in the search's URL: a client that could not be established
BEHIND = timedelta(minutes=1)
"""How much of the log's time may be uncounted before the page says so: the worker counts every 5 s."""


@dataclass(frozen=True, slots=True)
class Window:
    """A time that home can show: what it is called, the width of a bar and its name, how many bars, and the width of
    the rollups that everything else is summed from (its start is the start of one)."""

    words: str
    bar: str
    unit: str
    bars: int
    span: str


WINDOWS = {
    "48h": Window("48 hours", "1h", "hour", 48, "1h"),
    "7d": Window("7 days", "1h", "hour", 7 * 24, "1d"),
    "30d": Window("30 days", "1d", "day", 30, "1d"),
}
DEFAULT = "48h"


@dataclass(frozen=True, slots=True)
class Row:
    """A number and what it is of; `url` is the search that it counts, where there is one."""

    label: str
    calls: int
    denied: int
    url: str | None
    denied_url: str | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """What is drawn and said of one window. Shares are in percent; `usual` is that of the 30 days before, None where
    there were no calls. `late` is the time up to which is counted, where that is not nearly now. `ungoverned` is how
    many calls backends let through meanwhile without us, as they said afterwards; they are not among `calls`."""

    window: Window
    since: datetime
    calls: int
    denied: int
    share: float
    usual: float | None
    chart: Chart
    clients: list[Row]
    reasons: list[Row]
    url: str
    denied_url: str
    late: datetime | None
    ungoverned: int
    ungoverned_url: str


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A client or tool whose first call was a few days ago."""

    kind: str
    name: str
    label: str
    first: datetime
    calls: int

    @property
    def url(self) -> str:
        """Its timeline."""
        return reverse("admin:timeline", args=[self.kind, self.name])


def search_url(since: datetime, until: datetime | None = None, **filters: str) -> str:
    """The audit search of the calls of a time, with exact filters."""
    times = {"since": since.isoformat()} | ({"until": until.isoformat()} if until else {})
    return f"{reverse('admin:records')}?{urlencode(CALLS | times | filters)}"


def start(window: Window, now: datetime) -> datetime:
    """When a window begins, so that it holds whole spans and ends with the one of now."""
    if window.span == "1h":
        return rollups.floor(now, "1h") - timedelta(hours=window.bars - 1)
    days = window.bars if window.bar == "1d" else window.bars // 24
    return rollups.floor(now, "1d") - timedelta(days=days - 1)


def figures(viewer: Viewer, name: str, now: datetime, clients: Mapping[str, str]) -> Figures:
    """The figures of a window of WINDOWS; `clients` maps slugs to names. Raises PermissionDenied."""
    window = WINDOWS[name]
    since = start(window, now)
    buckets = rollups.series(viewer, since, now, window.bar, **CALLS)
    calls, denied = _sum(buckets)
    before = rollups.floor(since, "1d")
    behind = rollups.behind() if viewer.tenants is None else None  # told by the newest record, of whatever tenant
    return Figures(
        window, since, calls, denied, _share(calls, denied) or 0.0,
        _share(*_sum(rollups.series(viewer, before - USUAL, before, "1d", **CALLS))), _chart(window, buckets, now),
        _by_client(viewer, since, now, window, clients), _by_reason(viewer, since, now, window),
        url=search_url(since), denied_url=search_url(since, decision="deny"),
        late=rollups.counted_until() if behind is not None and behind > BEHIND else None,
        ungoverned=sum(times for _, times in rollups.totals(viewer, "type", since, now, window.span, **UNGOVERNED)),
        ungoverned_url=search_url(since, **UNGOVERNED),
    )  # fmt: skip


def _sum(buckets: Iterable[Bucket]) -> tuple[int, int]:
    pairs = [(bucket.calls, bucket.denied) for bucket in buckets]
    return sum(calls for calls, _ in pairs), sum(denied for _, denied in pairs)


def _share(calls: int, denied: int) -> float | None:
    return 100 * denied / calls if calls else None


def _chart(window: Window, buckets: list[Bucket], now: datetime) -> Chart:
    calls, denied = _sum(buckets)
    most = max(buckets, key=lambda bucket: bucket.calls)
    words = f"{calls:,} calls in {window.words}, by {window.unit}, {denied:,} of them denied."
    if most.calls:
        words += f" The most in one {window.unit} were {most.calls:,}, from {most.at:%a %d %b %H:%M} UTC."
    first = f"{buckets[0].at:%a %H:%M}" if window.bars == 48 else f"{buckets[0].at.day} {buckets[0].at:%b}"
    return charts.bars(buckets, words, first, "now", window.unit)


def _by_client(viewer: Viewer, since: datetime, now: datetime, window: Window, names: Mapping[str, str]) -> list[Row]:
    """The clients that made most calls, and the others summed up."""
    found = rollups.totals(viewer, "client", since, now, window.span, most=1000, **CALLS)
    refused = dict(rollups.totals(viewer, "client", since, now, window.span, most=1000, decision="deny", **CALLS))
    rows = []
    for slug, calls in found[:MOST]:
        url = search_url(since, client=slug or NONE)
        denied_url = search_url(since, client=slug or NONE, decision="deny")
        label = names.get(slug, slug) if slug else "No registered client"
        rows.append(Row(label, calls, refused.get(slug, 0), url, denied_url))
    if others := found[MOST:]:
        words = f"{len(others)} other client{'' if len(others) == 1 else 's'}"
        denied = sum(refused.get(slug, 0) for slug, _ in others)
        rows.append(Row(words, sum(calls for _, calls in others), denied, None))
    return rows


def _by_reason(viewer: Viewer, since: datetime, now: datetime, window: Window) -> list[Row]:
    """Why calls were refused, most frequent first, and the other reasons summed up."""
    found = rollups.totals(viewer, "reason", since, now, window.span, most=100, decision="deny", **CALLS)
    rows = []
    for code, calls in found[:MOST]:
        label = REASONS[code].title if code in REASONS else code
        rows.append(Row(label, calls, calls, search_url(since, reason=code)))
    if others := found[MOST:]:
        words = f"{len(others)} other reason{'' if len(others) == 1 else 's'}"
        calls = sum(number for _, number in others)
        rows.append(Row(words, calls, calls, search_url(since, decision="deny")))
    return rows


def newcomers(viewer: Viewer, now: datetime, clients: Mapping[str, str]) -> list[Newcomer]:
    """Clients and tools that were called in the last days and never before, newest first. What nobody registered is
    not among them: it is in the inbox. Raises PermissionDenied."""
    since = rollups.floor(now - NEW, "1d")
    found = []
    for kind, dimensions in (("client", ["client"]), ("tool", ["tool", "backend"])):
        groups = rollups.groups(viewer, dimensions, since, now, "1d", most=MOST_SEEN, **CALLS)
        seen = {tuple(group.values[name] for name in dimensions): group for group in groups if group.values[kind]}
        new = _registered(kind, seen.keys() - _known(viewer, dimensions, since, seen.keys()), clients)
        found += [_newcomer(kind, values, seen[values], clients) for values in new]
    return sorted(found, key=lambda one: (one.first, one.calls), reverse=True)[:MOST_NEW]


def _registered(kind: str, values: Set[tuple[str, ...]], clients: Mapping[str, str]) -> Set[tuple[str, ...]]:
    """Those that policy knows."""
    if kind == "client":
        return {one for one in values if one[0] in clients}
    known = Tool.objects.filter(name__in={name for name, _ in values}) if values else Tool.objects.none()
    return values & set(known.values_list("name", "backend__slug"))


def _newcomer(kind: str, values: tuple[str, ...], group: rollups.Group, clients: Mapping[str, str]) -> Newcomer:
    if kind == "client":
        return Newcomer(kind, values[0], clients.get(values[0], values[0]), group.first, group.times)
    return Newcomer(kind, f"{values[1]}/{values[0]}", values[0], group.first, group.times)


def _known(
    viewer: Viewer, dimensions: list[str], until: datetime, wanted: Set[tuple[str, ...]]
) -> Set[tuple[str, ...]]:
    """Which of these were called before. Nearly all of them were lately; only the others are looked for in all the
    weeks before, which are kept for ever."""
    week = rollups.floor(until, "1w")
    lately = week - LATELY

    def called(since: datetime, end: datetime, span: str, **names: Any) -> set[tuple[str, ...]]:
        groups = rollups.groups(viewer, dimensions, since, end, span, most=MOST_SEEN * 10, **names, **CALLS)
        return {tuple(group.values[name] for name in dimensions) for group in groups}

    known = called(lately, week, "1w") | called(week, until, "1d")
    if rest := wanted - known:
        known |= called(lately - LONG_AGO, lately, "1w", **{dimensions[0]: {values[0] for values in rest}})
    return known
