"""What an evidence pack tells beside records: how many calls there were, how the log was verified, and where it was
anchored. These are the platform's own tables; nothing of them is signed but by the pack."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from django.db.models import Count, Max, Q
from django.db.models.functions import TruncDay

from audit import record_words
from audit.evidence import reading
from audit.evidence.reading import Span
from audit.evidence.sections import Tally
from audit.models import Anchoring, AnchorState, Log, Verification

PAGE = 500
Row = tuple[Any, ...]
TAKEN = "Checkpoints over records of the period that were taken"


@dataclass(frozen=True, slots=True)
class Table:
    """A part of a pack that is no list of records. `columns` empty: figures alone, without a file of its own. `page` is
    the page of the admin that shows it, `filters` what of it. `read(span, tick)` gives rows and tallies."""

    slug: str
    title: str
    about: str
    query: str
    page: str
    read: Callable[[Span, Callable[[], None]], Iterator[tuple[Row | None, Iterable[Tally]]]]
    columns: tuple[str, ...] = ()
    filters: Mapping[str, str] = field(default_factory=dict)
    expected: tuple[tuple[str, str], ...] = ()


def time_text(at: datetime | None) -> str:
    """UTC, ISO 8601, to the microsecond; empty for none."""
    if at is None:
        return ""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


# --- calls -----------------------------------------------------------------------------------------------------


def _calls(span: Span, tick: Callable[[], None]) -> Iterator[tuple[None, Iterable[Tally]]]:
    there = 0
    for low, high in reading.windows(span):
        found = reading.counts(span, low, high)
        there += sum(number for *_, number in found)
        yield None, [tally for row in found for tally in _call_tallies(*row)]
        tick()
    if span.viewer.tenants is None and there < span.end - span.first:
        yield None, [("Records", "deleted by rule since", span.end - span.first - there)]


def _call_tallies(kind: str, decision: str | None, flagged: bool, number: int) -> Iterator[Tally]:
    yield "Records", record_words.TYPES.get(kind, kind), number
    if kind == "decision":
        yield "Calls of AI clients", "allowed" if decision == "allow" else "refused", number
        if flagged and decision == "allow":
            yield "Calls of AI clients", "of the allowed, marked for review", number


# --- verifications ---------------------------------------------------------------------------------------------


def _verifications(span: Span, tick: Callable[[], None]) -> Iterator[tuple[Row, Iterable[Tally]]]:
    """Runs that ended in the period, and those that began in it and had not ended when it did."""
    ended = Q(ended_at__gte=span.since, ended_at__lt=span.until)
    late = Q(began_at__gte=span.since, began_at__lt=span.until) & (Q(ended_at=None) | Q(ended_at__gte=span.until))
    low = 0
    while rows := list(Verification.objects.filter(ended | late, id__gt=low).order_by("id")[:PAGE]):
        for row in rows:
            low = row.pk
            done = row.ended_at is not None and row.ended_at < span.until
            yield _verification(row, done), _verification_tallies(row, done)
        tick()


def _verification(row: Verification, done: bool) -> Row:
    first = row.findings[0] if done and isinstance(row.findings, list) and row.findings else {}
    words = f"{first.get('code')}: {first.get('message')}" if isinstance(first, dict) and first else ""
    seen = (row.records, row.size, row.count) if done else ("", "", "")
    return (row.pk, time_text(row.began_at), time_text(row.ended_at if done else None), row.kind, *seen, words)


def _verification_tallies(row: Verification, done: bool) -> Iterator[Tally]:
    yield "Verifications of the log", f"{row.kind}, ended" if done else "not ended in the period", 1
    if done:
        yield "What they found", "records looked at, over all runs", row.records
        yield "What they found", "findings", row.count


# --- anchoring -------------------------------------------------------------------------------------------------


def _anchorings(span: Span, tick: Callable[[], None]) -> Iterator[tuple[Row, Iterable[Tally]]]:
    """The checkpoints over records of the period that anchors took, for each anchor and day; then, of each anchor, the
    first that has all records of the period."""
    for log in Log.objects.filter(start__lt=span.end).order_by("number"):
        low, high = max(span.first - log.start, 0), span.end - log.start
        taken = Anchoring.objects.filter(log=log.number, size__gt=low, size__lt=high, at__lt=span.made_at)
        days = taken.annotate(day=TruncDay("at", tzinfo=UTC)).values("day", "anchor").order_by("day", "anchor")
        for row in days.annotate(number=Count("id"), most=Max("size"), signed=Count("id", filter=~Q(cosignature=""))):
            told = (f"{row['day']:%Y-%m-%d}", row["anchor"], log.origin, row["number"], row["most"], row["signed"])
            yield told, [(TAKEN, row["anchor"], row["number"])]
        tick()
        for name in sorted(AnchorState.objects.values_list("name", flat=True)):
            of = Anchoring.objects.filter(anchor=name, log=log.number, size__gte=high, at__lt=span.made_at)
            if whole := of.order_by("size").first():
                signed = int(bool(whole.cosignature))
                told = (f"{whole.at.astimezone(UTC):%Y-%m-%d}", name, log.origin, 1, whole.size, signed)
                yield told, [(TAKEN, name, 1), ("Holds a state with all records of the period", name, 1)]


TABLES = (
    Table(
        "calls", "Calls and records",
        "How many records the log has of the period, by kind, and how calls of AI clients were decided.",
        "Every record of the period, counted; the records themselves are taken out as an export or a proof bundle.",
        "admin:records", _calls, filters={"type": "decision"},
        expected=(("Calls of AI clients", "allowed"), ("Calls of AI clients", "refused")),
    ),
    Table(
        "verifications", "Verifications of the log",
        "Each time that the log was verified against its signatures, and what was found.",
        "The runs of the verification that ended in the period, and those that had not ended.",
        "admin:log", _verifications,
        ("run", "began", "ended", "kind", "records", "sealed size", "findings", "first finding"),
        expected=(("Verifications of the log", "full, ended"), ("What they found", "findings")),
    ),
    Table(
        "anchoring", "Anchoring",
        "Which signed states of the log, over records of the period, are held where the database's administrator "
        "cannot reach.",
        "What anchors and witnesses took, by day.", "admin:log", _anchorings,
        ("day", "anchor", "log", "checkpoints", "largest size", "cosigned"),
    ),
)  # fmt: skip
BY_SLUG = {table.slug: table for table in TABLES}
