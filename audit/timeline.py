"""A timeline in words: what of a row of records is unusual, how they divide, and the sentence above them. Pure: from
what was looked at to marks and shares, no database."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median

from muniment.findings import counted

KINDS = ("user", "client", "tool")
CALLS = frozenset({"decision"})  # a question without a token (evaluation) is a line, and no call
# What is new is told of everything but the timeline's own kind.
NEW = {"user": ("client", "tool", "mode"), "client": ("tool", "mode"), "tool": ("client", "mode")}
MINUTE = timedelta(minutes=1)
BURST, BURST_ALONE = 10, 30  # calls in a minute, at least; where there is no usual to compare with
TIMES, COMPARED = 5, 3  # how often the usual, and of how many other minutes that is known
RUN = 5  # refusals in a row
SILENCE = timedelta(days=30)
SHARES = 6  # of a kind that are told apart


@dataclass(frozen=True, slots=True)
class Seen:
    """What a timeline knows of a record. `tool` is `<backend>/<name>`; None where the call had none."""

    at: datetime
    type: str = "decision"
    decision: str | None = "allow"
    flagged: bool = False
    client: str | None = None
    tool: str | None = None
    mode: str | None = None

    @property
    def is_call(self) -> bool:
        """Whether somebody, verified, asked for something."""
        return self.type in CALLS


@dataclass(frozen=True, slots=True)
class Earlier:
    """What is known of the time before: the values that were there, the newest call, how many records that was learned
    from, and whether those were all that there are."""

    values: Mapping[str, frozenset[str]] = field(default_factory=dict)
    newest: datetime | None = None
    count: int = 0
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Mark:
    """Something unusual: new, burst, run or silence, in words."""

    kind: str
    words: str


Marks = dict[datetime, list[Mark]]


def learned(rows: Iterable[Seen], whole: bool, count: int) -> Earlier:
    """What older records, newest first, tell of the time before."""
    calls = [row for row in rows if row.is_call]
    values = {name: frozenset(v for c in calls if (v := getattr(c, name)) is not None) for name in NEW["user"]}
    return Earlier(values, calls[0].at if calls else None, count, whole)


def marks(kind: str, rows: Sequence[Seen], earlier: Earlier, names: Mapping[str, str]) -> Marks:
    """What is unusual among records (in any order), by their time. `names` are the clients', by slug."""
    calls = sorted((row for row in rows if row.is_call), key=lambda row: row.at)
    found: Marks = {}
    for at, mark in (*news(kind, calls, earlier, names), *silences(calls, earlier), *runs(calls), *bursts(calls)):
        found.setdefault(at, []).append(mark)
    return found


def news(kind: str, calls: Sequence[Seen], earlier: Earlier, names: Mapping[str, str]) -> list[tuple[datetime, Mark]]:
    """The first call through a client, of a tool, in a mode. Of the very first call nothing else is told."""
    known = {name: set(earlier.values.get(name, ())) for name in NEW[kind]}
    bound = "" if earlier.whole else f" among the {earlier.count + len(calls):,} newest that were looked at"
    found = []
    for number, call in enumerate(calls):
        very_first = number == 0 and earlier.newest is None and earlier.whole
        if very_first:
            found.append((call.at, Mark("new", f"the first call {OF[kind]}")))
        for name in NEW[kind]:
            value = getattr(call, name)
            if value is not None and value not in known[name]:
                known[name].add(value)
                if not very_first:
                    found.append((call.at, Mark("new", f"the first {_through(name, value, names)}{bound}")))
    return found


OF = {"user": "of this user", "client": "through this client", "tool": "of this tool"}


def _through(name: str, value: str, names: Mapping[str, str]) -> str:
    match name:
        case "client":
            return f"call through {names.get(value, value)}"
        case "tool":
            return f"call of {tool_words(value)}"
    return f"call in {value} mode"


def tool_words(tool: str) -> str:
    """`inner/memory.recall` -> `memory.recall`."""
    return tool.partition("/")[2] or tool


def silences(calls: Sequence[Seen], earlier: Earlier) -> list[tuple[datetime, Mark]]:
    """The first call after a month without any."""
    times = [call.at for call in calls]
    before = [earlier.newest, *times] if earlier.newest else times
    return [
        (later, Mark("silence", f"the first call after {counted((later - sooner).days, 'day')} without any"))
        for sooner, later in pairwise(before)
        if later - sooner >= SILENCE
    ]


def runs(calls: Sequence[Seen]) -> list[tuple[datetime, Mark]]:
    """Five or more refusals in a row; told at the newest of them."""
    found, length = [], 0
    for number, call in enumerate(calls):
        length = length + 1 if call.decision == "deny" else 0
        ends = number + 1 == len(calls) or calls[number + 1].decision != "deny"
        if length >= RUN and ends:
            found.append((call.at, Mark("run", f"{length:,} refusals in a row")))
    return found


def bursts(calls: Sequence[Seen]) -> list[tuple[datetime, Mark]]:
    """Many more calls within a minute than there usually are in a minute with any; told at the newest of them."""
    times = [call.at for call in calls]
    minutes = Counter(at.replace(second=0, microsecond=0) for at in times)
    usual = median(minutes.values()) if minutes else 0
    least = max(BURST, TIMES * usual) if len(minutes) > COMPARED else max(BURST_ALONE, TIMES)
    found: list[tuple[datetime, Mark]] = []
    first, most, ends = 0, 0, None
    for last, at in enumerate(times):
        while at - times[first] >= MINUTE:
            first += 1
        if (count := last - first + 1) >= least:
            most, ends = max(most, count), at
        elif ends is not None and times[first] > ends:
            found.append(_burst(ends, most, usual, len(minutes)))
            most, ends = 0, None
    if ends is not None:
        found.append(_burst(ends, most, usual, len(minutes)))
    return found


def _burst(at: datetime, most: int, usual: float, minutes: int) -> tuple[datetime, Mark]:
    compared = f", usually {usual:.0f}" if minutes > COMPARED else ""
    return at, Mark("burst", f"a burst: {most:,} calls within a minute{compared}")


@dataclass(frozen=True, slots=True)
class Share:
    """One part of the whole: how many, of how many, and what finds them (a filter of the search and its value). `kind`
    colours it: allow, deny, flag or plain."""

    words: str
    count: int
    whole: int
    kind: str = "plain"
    query: tuple[tuple[str, str], ...] = ()

    @property
    def percent(self) -> float:
        """Of the whole; what is there at all is seen."""
        return max(0.5, round(100 * self.count / self.whole, 1)) if self.count and self.whole else 0.0


def decisions(allowed: int, flagged: int, denied: int) -> list[Share]:
    """How calls were decided; `allowed` includes what was flagged."""
    whole = allowed + denied
    parts = [
        Share("Allowed", allowed - flagged, whole, "allow", (("decision", "allow"), ("flagged", "0"))),
        Share("Allowed, flagged", flagged, whole, "flag", (("flagged", "1"),)),
        Share("Denied", denied, whole, "deny", (("decision", "deny"),)),
    ]
    return [part for part in parts if part.count or part.kind != "flag"]


def divided(counts: Sequence[tuple[str, int]], whole: int, column: str, names: Mapping[str, str]) -> list[Share]:
    """The most frequent values and the rest; the empty one was not established."""
    shown = counts if len(counts) <= SHARES else counts[: SHARES - 1]
    found = [
        Share(names.get(value, value) or "not established", count, whole, "plain", _query(column, value))
        for value, count in shown
    ]
    rest = whole - sum(share.count for share in found)
    return [*found, Share("others", rest, whole)] if rest > 0 else found


def _query(column: str, value: str) -> tuple[tuple[str, str], ...]:
    if column == "tool" and "/" in value:
        backend, _, name = value.partition("/")
        return ("backend", backend), ("tool", name)
    return ((column, value),) if value else ()


@dataclass(frozen=True, slots=True)
class Totals:
    """What the sentence is made of: calls allowed and denied, the clients' and tools' names, most frequent first, and
    whether there were more records than were counted."""

    allowed: int
    denied: int
    clients: Sequence[str]
    tools: Sequence[str]
    cut: int | None = None


def sentence(kind: str, name: str, totals: Totals, window: str) -> str:
    """The timeline in one sentence; `window` reads `30 days`."""
    when = (
        f"in the last {window}" if totals.cut is None else f"in the newest {totals.cut:,} records of the last {window}"
    )
    if not totals.allowed + totals.denied:
        return f"Nothing happened {OF_NOTHING[kind]} {when}."
    subject, done = {
        "user": (f"The data of {name}", "touched"), "client": (name, "let in"), "tool": (name, "used"),
    }[kind]  # fmt: skip
    if not totals.allowed:
        return f"{subject} was never {done} {when}; {refused(totals.denied)}."
    times = {1: "once", 2: "twice"}.get(totals.allowed, f"{totals.allowed:,} times")
    others, way = (totals.tools, "to use") if kind == "client" else (totals.clients, "through")
    by = f", {way} {listed(others)}" if others else ""
    return f"{subject} was {done} {times} {when}{by}; {refused(totals.denied)}."


def refused(number: int) -> str:
    """`no call was refused`, `3 calls were refused`."""
    counted_calls = counted(number, "call") if number else "no call"
    return f"{counted_calls} {'were' if number > 1 else 'was'} refused"


OF_NOTHING = {"user": "with the data of this user", "client": "through this client", "tool": "with this tool"}


def listed(names: Sequence[str], most: int = 3) -> str:
    """`Claude, ChatGPT and 2 more`."""
    shown = list(names[:most]) if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else ""
