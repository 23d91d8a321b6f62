"""Everything the AI did with one person's data in a period (GDPR Art. 15): gathered from the log, with what each record
protects opened, to be shown as a page or a PDF. Whoever shows it has the look recorded first."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.utils import timezone

from audit import details, logtree, record_words, search, subjects, timeline_reading
from audit.details import Opened
from audit.models import Record, Subject
from audit.protection import KeyRing
from audit.record_page import UNREADABLE, Pill, pill, read
from audit.record_words import Statement, amount
from audit.retention import gone
from audit.tenants import sees
from audit.timeline import CALLS, Seen, refused
from audit.timeline_reading import APART, BEGINNING, Who
from audit.timeline_reading import STAFF as OF_STAFF
from audit.viewer import Viewer

# A legal hold is no look at anybody's data, and may not be for the person to know.
STAFF = OF_STAFF - {"hold"}
MOST = 5000  # records in one report, the newest
CHUNK = 500
NOBODY = "Nobody on the staff opened anything protected of this person in this period, or changed their state."
UNTOLD = "What staff did belongs to no tenant, and whoever made this report sees some tenants alone: it is not told."
FAULTS = {
    "forgotten": "What was kept of it under the person's key is forgotten: the key is destroyed.",
    "gone": "What was kept of it under the person's key is not there any more.",
    "broken": "What is kept of it does not open: it is not what the record commits to.",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Period:
    """Whole days in UTC, both included."""

    since: date
    until: date

    @property
    def times(self) -> tuple[datetime, datetime]:
        """From the first moment to the one after the last."""
        start, end = (datetime.combine(day, time(), UTC) for day in (self.since, self.until + timedelta(days=1)))
        return start, end

    def __str__(self) -> str:
        return f"{self.since.day} {self.since:%B %Y} to {self.until.day} {self.until:%B %Y}"


@dataclass(frozen=True, slots=True)
class Counted:
    """What is there, without anything personal: calls and acts of staff among the newest records of a period. `reach`
    is the day of the oldest where there are more records than one report takes, else None."""

    records: int
    calls: int
    denied: int
    looks: int
    reach: date | None


@dataclass(frozen=True, slots=True)
class Line:
    """One record: when, what in a sentence, how it was decided, why or what came of it, and what it keeps of the
    person, as (name, value). `fault` says why there may be more that cannot be read."""

    at: datetime
    sentence: str
    decided: Pill
    said: Sequence[str]
    kept: Sequence[tuple[str, str]]
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All of it. `who` and `kept` are (name, value); `parts` are headings with (words, how many); `no_looks` is said
    where there are no `looks`."""

    uid: str
    period: Period
    made: datetime
    who: Sequence[tuple[str, str]]
    state: str
    sentence: str
    parts: Sequence[tuple[str, Sequence[tuple[str, int]]]]
    lines: Sequence[Line]
    looks: Sequence[tuple[datetime, str]]
    counted: Counted
    proof: Sequence[str]
    limits: Sequence[str]
    no_looks: str = NOBODY


def count(viewer: Viewer, uid: str, period: Period) -> Counted:
    """How much there is, from at most 5,001 records. Raises PermissionDenied."""
    looked = timeline_reading.look(viewer, Who("user", uid), *period.times, most=MOST + 1)
    return _counted([row for row, _ in looked.rows])


def _counted(rows: Sequence[Seen] | Sequence[Record]) -> Counted:
    """What there is among records, newest first; one more than a report takes says that there are more."""
    within = rows[:MOST]
    calls = [row for row in within if row.type in CALLS]
    return Counted(
        records=len(within),
        calls=len(calls),
        denied=sum(call.decision == "deny" for call in calls),
        looks=sum(row.type in STAFF for row in within),
        reach=within[-1].at.date() if len(rows) > MOST else None,
    )


def gather(viewer: Viewer, uid: str, period: Period, names: Mapping[str, str]) -> Report:
    """The report, from at most 5,000 records, the newest. Raises PermissionDenied, also for who may not see personal
    data, or not this user."""
    if not viewer.personal or not sees(viewer.tenants, uid):
        raise PermissionDenied
    since, until = period.times
    found = search.visible(viewer, since, until).filter(subject=uid).order_by("-at")
    records = list(found[: MOST + 1])
    counted, records = _counted(records), records[:MOST]
    user, ring = Subject.objects.filter(uid=uid).first(), KeyRing()
    outcomes = _outcomes(viewer, records)
    lines, seen = _lines(uid, records, outcomes, ring, names)
    who = identity(user, seen)
    shown = {value for _, value in who}
    return Report(
        uid=uid,
        period=period,
        made=timezone.now(),
        who=who,
        state=state(user),
        sentence=summary(counted, period),
        parts=divided(records, names),
        lines=[_without(line, shown) for line in lines],
        looks=[(r.at, record_words.title(read(r), names)) for r in records if r.type in STAFF],
        no_looks=NOBODY if viewer.tenants is None else UNTOLD,
        counted=counted,
        proof=proof(records),
        limits=limits(viewer, user, counted, gone.words(since, until)),
    )


def _outcomes(viewer: Viewer, records: Sequence[Record]) -> dict[UUID, Record]:
    """The outcomes of all calls with what they protect, also of those that were reported after the period."""
    found: dict[UUID, Record] = {}
    until = timezone.now() + timedelta(minutes=5)
    allowed = [record for record in records if record.decision == "allow"]
    for start in range(0, len(allowed), CHUNK):
        part = allowed[start : start + CHUNK]
        told = search.visible(viewer, part[-1].at, until).filter(type="outcome", parent__in=[one.id for one in part])
        found |= {one.parent: one for one in told if one.parent}
    return found


def _lines(
    uid: str, records: Sequence[Record], outcomes: Mapping[UUID, Record], ring: KeyRing, names: Mapping[str, str]
) -> tuple[list[Line], Counter[tuple[str, str]]]:
    """What happened, newest first; and the identifiers that the records have, each with how often. An outcome stands
    with its call, where that is in the report. Nothing is told of a record that says itself that it is somebody else's,
    whatever its column says: somebody changed that, and what it keeps is not this person's to see."""
    calls = {record.id for record in records if record.type not in APART}
    lines, seen = [], Counter[tuple[str, str]]()
    for record in records:
        if record.type in OF_STAFF or (record.type == "outcome" and record.parent in calls):
            continue
        statement, outcome = _own(uid, record), outcomes.get(record.id)
        told = _own(uid, outcome) if outcome else {}
        if told.get("parent") != str(record.id):
            outcome = None
        opened = details.opened(record, statement, ring) if statement else Opened("broken")
        also = details.opened(outcome, told, ring) if outcome else Opened("none")
        seen.update((name, str(opened.members[name])) for name in ("email", "sub") if name in opened.members)
        lines.append(_line(record, statement, outcome, opened, also, names))
    return lines, seen


def _own(uid: str, record: Record) -> Statement:
    """The statement of a record of this user; empty where it is of another, or none."""
    statement = read(record)
    return statement if statement.get("subject") == uid else {}


def _line(
    record: Record, statement: Statement, outcome: Record | None, opened: Opened, also: Opened, names: Mapping[str, str]
) -> Line:
    said = [record_words.why(statement, names)]
    if outcome:
        ended = record_words.title(read(outcome), names), record_words.why(read(outcome), names)
        said.append(", ".join(part for part in ended if part))
    fault = next((FAULTS[one.state] for one in (opened, also) if one.state in FAULTS), "")
    kept = [(one.label, one.value) for one in (*opened.shown(), *also.shown())]
    title = record_words.title(statement, names) if statement else UNREADABLE
    decided = pill(statement) if statement else Pill("deny", "Unreadable")
    return Line(record.at, title, decided, [one for one in said if one], kept, fault)


def _without(line: Line, shown: set[str]) -> Line:
    """A line without what stands at the top already, and with no value twice."""
    kept = [(name, value) for name, value in dict.fromkeys(line.kept) if value not in shown]
    return Line(line.at, line.sentence, line.decided, line.said, kept, line.fault)


def identity(user: Subject | None, seen: Counter[tuple[str, str]]) -> list[tuple[str, str]]:
    """Who is meant: what the user is known by now, then what the records of the period say else."""
    found: list[tuple[str, str | None]] = []
    if user is not None:
        found += [("User id (uid)", user.uid), ("Issuer", user.issuer)]
        if user.erased_at is None:
            found += [(details.LABELS[name], subjects.read(user, name)) for name in ("sub", "email")]
    known = {value for _, value in found}
    found += [(f"{details.LABELS[name]}, in records", value) for name, value in sorted(seen) if value not in known]
    return [(name, value) for name, value in found if value]


def state(user: Subject | None) -> str:
    """Whether the user may call, in a sentence."""
    if user is None:
        return "No user with this id is known."
    if user.erased_at:
        return f"This user was erased on {_day(user.erased_at)}: who it was cannot be read any more."
    known = f"Known since {_day(user.first_seen)}."
    ended = [
        f"{words} {_day(at)}."
        for words, at in (
            ("Blocked since", user.blocked_at),
            ("Deactivated by the identity provider since", user.deactivated_at),
            ("Signed out everywhere on", user.signed_out_at),
        )
        if at is not None
    ]
    return " ".join([known, *ended])


def _day(at: datetime) -> str:
    return f"{at.astimezone(UTC).day} {at.astimezone(UTC):%B %Y}"


def summary(counted: Counted, period: Period) -> str:
    """How much there was, in a sentence."""
    if not counted.calls:
        return f"From {period} no call for this person is in the log."
    allowed = counted.calls - counted.denied
    times = {0: "never", 1: "once", 2: "twice"}.get(allowed, f"{allowed:,} times")
    return f"From {period} AI clients were allowed to use this person's data {times}; {refused(counted.denied)}."


def divided(records: Sequence[Record], names: Mapping[str, str]) -> list[tuple[str, list[tuple[str, int]]]]:
    """The calls by client, by tool and by decision, most frequent first."""
    calls = [(record, pill(read(record)).words) for record in records if record.type in CALLS]
    clients = Counter(names.get(r.client or "") or r.client or "a client that is not registered" for r, _ in calls)
    tools = Counter(f"{record.tool} of {record.backend}" for record, _ in calls)
    decisions = Counter(words for _, words in calls)
    parts = [("By client", clients), ("By tool", tools), ("By decision", decisions)]
    return [(heading, counts.most_common()) for heading, counts in parts if counts]


def proof(records: Sequence[Record]) -> list[str]:
    """What shows that these are the log's records: the newest checkpoint over them."""
    if not records:
        return []
    said = [f"It is made from records {records[-1].index:,} to {records[0].index:,} of the log, as far as they are of"
            f" this person: {amount(len(records), 'record')}."]  # fmt: skip
    log = logtree.log_of(records[0].index)
    newest = logtree.newest(log) if log else None
    if log is None or newest is None:
        return [*said, "The log has no signed checkpoint yet."]
    late = sum(record.index - log.start >= newest.size for record in records)
    said.append(
        f"The log {log.origin} is signed as a whole: its checkpoint of {amount(newest.size, 'record')}, signed on"
        f" {_day(newest.at)} at {newest.at.astimezone(UTC):%H:%M:%S} UTC, has the root hash {bytes(newest.root).hex()}."
    )
    if late:
        said.append(f"{amount(late, 'record')} of this report came after that checkpoint; the next one covers them.")
    return [*said, "For each record a proof can be had that is checked without this system."]


def limits(viewer: Viewer, user: Subject | None, counted: Counted, deleted: str) -> list[str]:
    """What such a report cannot say. `deleted`: what retention did in the period, as a sentence."""
    said = [
        "It tells what AI clients were allowed to do and what the services reported of it, not the content that was"
        " read or written: that is with the services themselves.",
        "Calls that did not show a genuine token of this person are not attributed to anybody, and are not here. What"
        " a service asked about this person without a token, and ungoverned calls, which it let through while Muniment"
        " was away, are here on its word alone, and count as no calls.",
        "Members of staff are named by number; the log has their names.",
    ]
    if viewer.tenants is not None:
        listed = ", ".join(sorted(viewer.tenants))
        said.insert(0, f"It tells of calls for these tenants alone: {listed}. What was done for others is not in it.")
    if user is not None:
        said.append(f"The same person, known by another issuer than {user.issuer}, is another user with a report of"
                    " their own.")  # fmt: skip
    first = search.matches(viewer, search.Query(BEGINNING, timezone.now()), 1, newest=False).found
    if first:
        said.append(f"What was before {_day(first[0])} is not in the log, or was deleted when its time was over.")
    if deleted:
        said.insert(0, deleted)
    if counted.reach:
        said.insert(0, f"There are more records than the {MOST:,} that one report takes: it reaches back to"
                       f" {counted.reach.day} {counted.reach:%B %Y}. Make another for the time before.")  # fmt: skip
    return said


def told(report: Report, form: str) -> dict[str, Any]:
    """What the log keeps of a report that was made: which user and period, how many records, page or pdf."""
    since, until = report.period.since.isoformat(), report.period.until.isoformat()
    return {"subject": report.uid, "since": since, "until": until, "count": report.counted.records, "form": form}
