"""Exports in words: formats, schedules, states and sizes as the pages say them. Pure: no request, no database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta

from django.utils.text import capfirst

from audit.exports import schedules
from audit.exports.due import STALE
from audit.exports.schedules import ScheduleError
from audit.models import Export, ExportRun
from audit.models.handing import OPEN
from audit.record_page import Pill
from audit.record_words import amount

FORMATS = {
    "jsonl": ("JSON Lines", "One record a line, for programs. With its statement, each line can be checked by itself."),
    "csv": ("CSV", "For a spreadsheet. A cell that would run as a formula is made plain text."),
    "parquet": ("Parquet", "Compressed columns, for a data warehouse or a notebook."),
    "ocsf": ("OCSF", "API Activity events (class 6003) as JSON Lines, for a SIEM. Their fields are fixed."),
    "bundle": ("Proof bundle", "Records with their proofs, to be verified offline. Its contents are fixed."),
    "evidence": ("Evidence pack", "Reports and figures for an audit, as a signed ZIP."),
}
"""Name, and what it is for."""
STATES = {
    "waiting": Pill("plain", "Waiting"), "running": Pill("flag", "Running"), "delivering": Pill("flag", "Delivering"),
    "done": Pill("allow", "Done"), "failed": Pill("deny", "Failed"), "cancelled": Pill("plain", "Cancelled"),
}  # fmt: skip
PRESETS = {"hourly": "the hour", "daily": "the day", "weekly": "the week", "monthly": "the month"}
UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
COUNTED = {"allow": "allowed", "deny": "denied"}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: records looked through of those in its range (None: not known yet), and a percentage."""

    done: int
    of: int | None

    @property
    def percent(self) -> int:
        """0 to 100, rounded down, so that 100 is all of it."""
        return 0 if not self.of else min(100, self.done * 100 // self.of)


def schedule_words(schedule: str) -> str:
    """`Every day at 02:00 UTC`, `Once, when asked`."""
    if not schedule:
        return "When somebody runs it"
    try:
        return capfirst(schedules.words(schedule))
    except ScheduleError:
        return f"By {schedule}, which is no schedule"


def covers(schedule: str) -> str:
    """What each run of a schedule is of: `the day before it`."""
    return f"{PRESETS[schedule]} before it" if schedule in PRESETS else "the time since the one before it"


def next_times(schedule: str, after: datetime, count: int = 3) -> list[datetime]:
    """The next times of a schedule; fewer, or none, for one that does not come."""
    found: list[datetime] = []
    try:
        parsed = schedules.parse(schedule)
        while len(found) < count:
            found.append(schedules.following(parsed, found[-1] if found else after))
    except (ScheduleError, StopIteration, OverflowError):
        pass
    return found


def times_words(times: Sequence[datetime]) -> str:
    """`27 Nov 2026, 00:00; 28 Nov 2026, 00:00 UTC`."""
    return "; ".join(f"{_date(at)}, {_clock(at)}" for at in times) + (" UTC" if times else "")


def state(run: ExportRun, now: datetime) -> Pill:
    """A run's state; one that runs and whose worker is silent waits for another."""
    if run.state == "running" and run.seen_at is not None and now - run.seen_at > STALE:
        return Pill("plain", "Interrupted")
    if run.cancel and run.state in OPEN:
        return Pill("plain", "Cancelling")
    return STATES.get(run.state, Pill("plain", run.state))


def progress(run: ExportRun) -> Progress:
    """How far it is, by the indices of its range: what is looked through and does not match is progress too."""
    if run.first is None or run.last is None:
        return Progress(0, None)
    total = max(0, run.last - run.first + 1)
    reached = run.first if run.next is None else run.next
    return Progress(total if run.state == "done" else max(0, min(total, reached - run.first)), total)


def size(number: int | None) -> str:
    """`4.2 MB`, in powers of ten; a dash for none."""
    if number is None:
        return "—"
    for unit, factor in UNITS:
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number:,} byte{'' if number == 1 else 's'}"


def span(since: datetime, until: datetime) -> str:
    """`25 Nov 2026`, `1 Nov 2026 to 30 Nov 2026` (whole days, the last one included), `25 Nov 2026, 10:00 to 11:00`,
    `24 Nov 2026, 08:14 to 25 Nov 2026, 08:14`, in UTC."""
    if (since.time(), until.time()) == (time(), time()) and since < until:
        last = until - timedelta(1)
        return _date(since) if last == since else f"{_date(since)} to {_date(last)}"
    end = _clock(until) if since.date() == until.date() else f"{_date(until)}, {_clock(until)}"
    return f"{_date(since)}, {_clock(since)} to {end}"


def _date(at: datetime) -> str:
    return f"{at.day} {at:%b %Y}"


def _clock(at: datetime) -> str:
    return f"{at:%H:%M:%S}" if at.second else f"{at:%H:%M}"


def took(run: ExportRun) -> float | None:
    """Seconds from its beginning to its end; None while it has none."""
    return None if run.began_at is None or run.ended_at is None else (run.ended_at - run.began_at).total_seconds()


def format_name(format: str) -> str:
    """What a format is called."""
    return FORMATS.get(format, (format, ""))[0]


def counts_words(counts: Mapping[str, int]) -> str:
    """`310 allowed, 2 denied, 4 without a decision`; nothing where no record has one."""
    known = [f"{counts[name]:,} {words}" for name, words in COUNTED.items() if counts.get(name)]
    others = sum(number for name, number in counts.items() if name not in COUNTED)
    if others and known:
        known.append(f"{others:,} without a decision")
    return ", ".join(known)


def sentence(run: ExportRun) -> str:
    """How a run is, for the head of its page."""
    done, records = progress(run), amount(run.records, "record")
    match run.state:
        case "running" if done.of:
            return f"{done.done:,} of {done.of:,} looked through ({done.percent} %); {records} in the file so far."
        case "running":
            return "It is being made."
        case "delivering":
            return f"The file is made, of {records}; it is being delivered to {run.destination}."
        case "done":
            return f"{capfirst(records)}, {size(run.bytes)}."
        case "failed":
            return "It is made, but could not be delivered." if run.sha256 else "It could not be made."
        case "cancelled":
            return "It was cancelled."
    return "It waits to be made."


def paused_words(export: Export) -> str:
    """What the pill of an export that is not enabled says."""
    return "Disabled" if export.words else "Paused"


def disabled_words(export: Export) -> str:
    """Why its schedule does not run; nothing while it does."""
    return "" if export.enabled else (export.words or "Somebody paused it.")
