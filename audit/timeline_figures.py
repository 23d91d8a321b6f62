"""The figures of a timeline: how many calls, how they divide, and when they were. Of a client or tool they come from
rollups, of a user (whom rollups never name) from the records that were looked at."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from audit import charts, rollups, timeline
from audit.charts import Bucket, Chart
from audit.templatetags.muniment import moment
from audit.timeline import Seen, Share, Totals
from audit.timeline_reading import LOOKED, Looked, Who
from audit.viewer import Viewer

WINDOWS = {"1h": "hour", "24h": "24 hours", "7d": "7 days", "30d": "30 days", "1y": "year"}
SPANS = {"1h": "5m", "24h": "1h", "7d": "1h", "30d": "1d", "1y": "1w"}
SPAN_WORDS = {"5m": "five minutes", "1h": "hour", "1d": "day", "1w": "week"}
MOST = 200  # tools or clients by decision that are read of the rollups; more are summed up
BEHIND = timedelta(minutes=1)  # how late the counting may be before that is said


Counts = Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Names:
    """What staff call things: client slug -> name; tools are `<backend>/<name>`."""

    clients: Mapping[str, str]

    def of(self, column: str, value: str) -> str:
        """A value of a column in words."""
        if column == "tool":
            return timeline.tool_words(value)
        return self.clients.get(value, value) if column == "client" else value


@dataclass(frozen=True, slots=True)
class Part:
    """A heading, and the shares below it."""

    heading: str
    shares: Sequence[Share]


@dataclass(frozen=True, slots=True)
class Figures:
    """What the sentence, the bars and the chart are made of; `note` says what was counted."""

    totals: Totals
    parts: Sequence[Part]
    chart: Chart | None
    note: str


HEADINGS = {"client": "By client", "tool": "By tool", "mode": "By agent mode"}
TOLD = {"user": ("client", "tool", "mode"), "client": ("tool", "mode"), "tool": ("client", "mode")}


def of_user(top: Looked, window: str, since: datetime, until: datetime, names: Names) -> Figures:
    """From the newest records of the window, at most a thousand."""
    calls = [row for row, _ in top.rows if row.is_call]
    counts = {name: Counter(getattr(call, name) or "" for call in calls).most_common() for name in TOLD["user"]}
    denied = sum(call.decision == "deny" for call in calls)
    decided = len(calls) - denied, sum(call.flagged for call in calls), denied
    used = {
        name: Counter(v for c in calls if c.decision == "allow" and (v := getattr(c, name))).most_common()
        for name in ("client", "tool")
    }
    totals = _totals(decided, used["client"], used["tool"], names, len(top.rows) if top.cut else None)
    note = f"Counted from the newest {LOOKED:,} records; there are more in this time." if top.cut else ""
    chart = _chart(_buckets(calls, window, top.last if top.cut and top.last else since, until), SPANS[window])
    return Figures(totals, _parts("user", decided, counts, len(calls), names), chart, note)


def of_many(
    viewer: Viewer, who: Who, top: Looked, window: str, since: datetime, until: datetime, names: Names
) -> Figures:
    """From rollups, whose spans are whole: those at the ends may reach a little beyond the window. What they do not
    tell apart (agent modes; tools by client for some tenants alone) is counted among the newest records."""
    span, filters = SPANS[window], dict[str, Any](who.filters)
    buckets = rollups.series(viewer, since, until, span, **filters)
    calls, denied = sum(bucket.calls for bucket in buckets), sum(bucket.denied for bucket in buckets)
    flagged = dict(rollups.totals(viewer, "flagged", since, until, span, decision="allow", **filters)).get("true", 0)
    name = "tool" if who.kind == "client" else "client"
    found = _by_other(viewer, name, since, until, span, filters)
    every, used = found or ([], [])
    decided = calls - denied, flagged, denied
    totals = _totals(decided, used if name == "client" else [], used if name == "tool" else [], names, None)
    parts = _parts(who.kind, decided, {name: every, "mode": []}, calls, names)
    parts += _of_newest(top, name, names, 1) if found is None else []
    parts += _of_newest(top, "mode", names, 2)
    return Figures(totals, parts, _chart(buckets, span), _note(viewer, until, span))


def _of_newest(top: Looked, name: str, names: Names, fewest: int) -> list[Part]:
    """How the newest calls divide, where that is by so many values at least."""
    seen = Counter(getattr(row, name) or "" for row, _ in top.rows if row.is_call)
    words = {value: names.of(name, value) for value in seen} if name != "mode" else {}
    shares = timeline.divided(seen.most_common(), seen.total(), name, words)
    return [Part(f"{HEADINGS[name]}, of the newest {seen.total():,}", shares)] if len(seen) >= fewest else []


def _by_other(
    viewer: Viewer, name: str, since: datetime, until: datetime, span: str, filters: Mapping[str, Any]
) -> tuple[Counts, Counts] | None:
    """The tools of a client or the clients of a tool: how often each was called, and was allowed; None where that is
    not counted, as it is not for some tenants alone."""
    told = ["backend", "tool"] if name == "tool" else ["client"]
    try:
        found = rollups.groups(viewer, [*told, "decision"], since, until, span, MOST, **filters)
    except rollups.TooMany:
        return None
    every, used = Counter[str](), Counter[str]()
    for one in found:
        value = "/".join(one.values[column] for column in told)
        every[value] += one.times
        used[value] += one.times if one.values["decision"] == "allow" else 0
    return every.most_common(), [(value, number) for value, number in used.most_common() if number]


def _totals(decided: tuple[int, int, int], clients: Counts, tools: Counts, names: Names, cut: int | None) -> Totals:
    called = [names.of("client", value) for value, _ in clients if value]
    return Totals(decided[0], decided[2], called, [timeline.tool_words(value) for value, _ in tools if value], cut)


def _parts(
    kind: str, decided: tuple[int, int, int], counts: Mapping[str, Counts], whole: int, names: Names
) -> list[Part]:
    parts = [Part("How calls were decided", timeline.decisions(*decided))] if whole else []
    for name in TOLD[kind]:
        words = {value: names.of(name, value) for value, _ in counts[name]}
        if counts[name]:
            parts.append(Part(HEADINGS[name], timeline.divided(counts[name], whole, name, words)))
    return parts


def _note(viewer: Viewer, until: datetime, span: str) -> str:
    counted = rollups.counted_until()
    if counted is None:
        return "Nothing is counted yet: the worker counts every five seconds. The records are below."
    late = until - counted > BEHIND and (behind := rollups.behind()) is not None and behind > BEHIND
    said = f"Counted by whole spans of {'an' if span == '1h' else 'a'} {SPAN_WORDS[span]}"
    if late and viewer.tenants is not None:
        return "Not all is counted yet."  # up to when is told by the newest record, of whatever tenant
    return f"Counted up to {moment(counted)} so far." if late else f"{said}." if span != "5m" else ""


def _buckets(calls: Sequence[Seen], window: str, since: datetime, until: datetime) -> list[Bucket]:
    span = SPANS[window]
    start, width = rollups.floor(since, span), rollups.WIDTHS[span]
    every = Counter(rollups.floor(call.at, span) for call in calls)
    denied = Counter(rollups.floor(call.at, span) for call in calls if call.decision == "deny")
    number = max(0, -((start - until) // width))
    return [Bucket(at, every[at], denied[at]) for at in (start + width * n for n in range(number))]


def _chart(buckets: Sequence[Bucket], span: str) -> Chart | None:
    if not any(bucket.calls for bucket in buckets):
        return None
    calls, denied = sum(bucket.calls for bucket in buckets), sum(bucket.denied for bucket in buckets)
    unit = SPAN_WORDS[span]
    words = f"Calls in each {unit}: {calls:,} in all, {denied:,} of them denied"
    return charts.bars(buckets, words, f"{buckets[0].at:%-d %b %Y, %H:%M}", "now", unit)
