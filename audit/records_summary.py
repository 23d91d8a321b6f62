"""How many records a search matches, and when they were: from the rollups where they can tell, else from the newest
matches; which of the two it was, the words say."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from audit import charts, rollups, search
from audit.charts import Bar, Bucket, Chart
from audit.record_words import amount
from audit.search import Page, Query
from audit.search_scan import Spread
from audit.viewer import Viewer

CAP = 1_000  # counted no further than is shown
NEWEST = 10_000  # matches that a chart is made of, where there are no rollups for it
MOST_BARS, FEWEST_SPANS, MOST_ROWS = 62, 6, 60_000
LATE = 2 * rollups.MOST  # records that are not counted yet; rollups that lack more do not speak for the window
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
# How wide a bar may be, what that is called, and the spans of the rollups that it is made of, if of any.
BARS = [
    (timedelta(seconds=1), "one second", None), (timedelta(seconds=5), "5 seconds", None),
    (timedelta(seconds=15), "15 seconds", None), (MINUTE, "one minute", None), (5 * MINUTE, "5 minutes", "5m"),
    (15 * MINUTE, "15 minutes", "5m"), (30 * MINUTE, "30 minutes", "5m"), (HOUR, "one hour", "1h"),
    (3 * HOUR, "3 hours", "1h"), (6 * HOUR, "6 hours", "1h"), (12 * HOUR, "12 hours", "1h"), (DAY, "one day", "1d"),
    (7 * DAY, "one week", "1w"), (28 * DAY, "4 weeks", "1w"), (56 * DAY, "8 weeks", "1w"),
    (280 * DAY, "40 weeks", "1w"), (1400 * DAY, "200 weeks", "1w"),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bars:
    """How a window is drawn: the width of a bar, its name, and the spans that it is made of."""

    width: timedelta
    unit: str
    span: str | None


@dataclass(frozen=True, slots=True)
class Summary:
    """`count` in words (`1,000+ calls`), the chart, and where its figures are from. `links` has, for each bar, the
    search of its time."""

    count: str
    chart: Chart | None
    note: str
    links: list[str]

    @property
    def bars(self) -> list[tuple[Bar, str]]:
        """Each bar with its link."""
        return list(zip(self.chart.bars, self.links, strict=True)) if self.chart else []


Url = Callable[[datetime, datetime], str]


def summary(viewer: Viewer, query: Query, page: Page, now: datetime, url: Url) -> Summary:
    """Of a whole search, whatever page of it is shown. `page` is the page that the query finds, `url` makes the address
    of the same search in another time. Raises as `search.find`."""
    whole = replace(query, before=None, after=None, oldest=False, until=min(query.until, max(now, query.since)))
    noun = "call" if query.filters.get("type") == "decision" else "record"
    seen = page if _says_all(query, page) else None
    found = _counted(viewer, whole)
    if found is None:
        return _looked(viewer, whole, noun, seen, url)
    bars, buckets, sure = found
    total = sum(bucket.calls for bucket in buckets)
    count = _capped(sure, noun) if sure >= CAP else _exactly(viewer, whole, noun, total, seen)
    until = None if viewer.tenants is not None else rollups.counted_until()  # of whatever tenant the newest record is
    note = f"From the counts that are kept of all records{'' if until is None else f', up to {until:%H:%M:%S} UTC'}."
    return Summary(count, _chart(bars, buckets, total, noun), note, _links(bars, buckets, url))


def _says_all(query: Query, page: Page) -> bool:
    """Whether a page has all that another look from the newest on would find: it is the first, and not full."""
    first = query.before is None and query.after is None
    all_of_it = not page.older and not page.newer
    return first and (all_of_it or (page.reached is not None and not query.oldest))


def choose(since: datetime, until: datetime, *, counted: bool) -> Bars:
    """The narrowest bars that are not too many; `counted`: only such as the rollups have."""
    offered = [Bars(*bar) for bar in BARS if bar[2] or not counted]
    return next((bars for bars in offered if (until - since) / bars.width < MOST_BARS), offered[-1])


def _counted(viewer: Viewer, query: Query) -> tuple[Bars, list[Bucket], int] | None:
    """The bars of the window from the rollups, and how many records there are for sure, in the spans that lie wholly
    within it; None where the rollups cannot tell."""
    filters = {name: "" if value is None else value for name, value in query.filters.items()}
    if query.lookups or not filters.keys() <= set(rollups.DIMENSIONS):
        return None
    until, bars = rollups.counted_until(), choose(query.since, query.until, counted=True)
    if until is None or bars.span is None or rollups.uncounted() > LATE:
        return None
    width = rollups.WIDTHS[bars.span]
    kept = rollups.KEPT.get(bars.span)
    gone = kept is not None and query.since < rollups.floor(until - kept, bars.span)
    if gone or (query.until - query.since) / width < FEWEST_SPANS:
        return None
    try:
        spans = rollups.series(
            viewer, query.since, query.until, bars.span, most_rows=MOST_ROWS, **({"type": None} | filters)
        )
    except rollups.TooMany:
        return None
    sure = sum(b.calls for b in spans if b.at >= query.since and b.at + width <= query.until)
    return bars, _merged(bars, [(b.at, b.calls, b.denied) for b in spans], query), sure


def _looked(viewer: Viewer, query: Query, noun: str, seen: Page | None, url: Url) -> Summary:
    """The same from the newest matches themselves."""
    bars = choose(query.since, query.until, counted=False)
    if seen is None:
        spread = search.spread_of(viewer, query, NEWEST, bars.width, rollups.ORIGIN)
    else:
        found = [(record.at, 1, int(record.decision == "deny")) for record in seen.records]
        spread = Spread(found, len(found), seen.records[-1].at if seen.records else None, seen.reached)
    if spread.oldest is None:
        return Summary(f"No {noun}" if spread.reached is None else f"No {noun} yet", None, "", [])
    buckets, number = _merged(bars, spread.spans, query), spread.number
    sure = number >= CAP or spread.reached is None
    count = _capped(number, noun) if sure else f"At least {amount(number, noun)}"
    note = "Counted from the records themselves."
    if number == NEWEST:
        note = f"The chart is of the newest {NEWEST:,}, back to {_moment(spread.oldest)}."
    elif spread.reached is not None:
        note = f"The chart is of what was found back to {_moment(spread.reached)}."
    return Summary(count, _chart(bars, buckets, number, noun), note, _links(bars, buckets, url))


def _exactly(viewer: Viewer, query: Query, noun: str, total: int, seen: Page | None) -> str:
    """A number below the cap, from the records; where they are too many to look through, from the rollups."""
    if seen is None:
        look = search.matches(viewer, query, CAP)
        number, reached = len(look.found), look.reached
    else:
        number, reached = len(seen.records), seen.reached
    if reached is None or number >= CAP:
        return _capped(number, noun)
    return f"About {amount(total, noun)}" if total > number else f"At least {amount(number, noun)}"


def _capped(number: int, noun: str) -> str:
    if number >= CAP:
        return f"{CAP:,}+ {noun}s"
    return f"No {noun}" if number == 0 else amount(number, noun)


def _merged(bars: Bars, found: list[tuple[datetime, int, int]], query: Query) -> list[Bucket]:
    """Every bar of the window, the empty ones too."""
    calls, denied = Counter[int](), Counter[int]()
    for at, number, refused in found:
        place = (at - rollups.ORIGIN) // bars.width
        calls[place] += number
        denied[place] += refused
    first, last = (query.since - rollups.ORIGIN) // bars.width, -((rollups.ORIGIN - query.until) // bars.width)
    return [Bucket(rollups.ORIGIN + n * bars.width, calls[n], denied[n]) for n in range(first, max(last, first + 1))]


def _chart(bars: Bars, buckets: list[Bucket], total: int, noun: str) -> Chart:
    denied = sum(bucket.denied for bucket in buckets)
    first, last = _moment(buckets[0].at), _moment(buckets[-1].at + bars.width)
    words = f"{amount(total, noun)} from {first} to {last}, {denied:,} of them denied. Each bar is {bars.unit}."
    return charts.bars(buckets, words, first, last, bars.unit)


def _links(bars: Bars, buckets: list[Bucket], url: Callable[[datetime, datetime], str]) -> list[str]:
    return [url(bucket.at, bucket.at + bars.width) for bucket in buckets]


def _moment(at: Any) -> str:
    """`25 Nov, 10:04 UTC`, with seconds where there are some."""
    clock = f"{at:%H:%M:%S}" if at.second else f"{at:%H:%M}"
    return f"{at.day} {at:%b}, {clock} UTC"
