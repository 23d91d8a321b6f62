"""What the log proves of one record, in words: its place, when it was sealed, where it is anchored, and whether all of
that holds now."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import OuterRef, Subquery
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from audit import logtree
from audit.log_health import LATE
from audit.models import Anchoring, AnchorState, Log, Record
from audit.record_check import verify_record
from audit.templatetags.muniment import clock, lapse, number_words
from muniment.findings import CODES, counted

UNSEALED = "Not sealed yet: the sealer looks every second."
UNANCHORED = "Not anchored anywhere yet: until it is, cutting off the end of the log could not be noticed."
AN_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Place:
    """An anchor that holds a checkpoint over the record, and since when."""

    name: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Sealing:
    """Where a record is in the log, as the database says. `leaf` counts in its log, `size` is that of the log's newest
    checkpoint, `at` when the first checkpoint over it was signed; None where there is none."""

    sentences: tuple[SafeString | str, ...]
    leaf: int | None = None
    size: int | None = None
    at: datetime | None = None
    places: tuple[Place, ...] = ()


def sealing(record: Record) -> Sealing:
    """The record's place in the log, in a handful of queries by index."""
    log = logtree.log_of(record.index)
    if log is None:
        return Sealing((_unsealed(record),))
    leaf = record.index - log.start
    first, newest = logtree.covering(log, leaf), logtree.newest(log)
    if first is None or newest is None:
        return Sealing((_adopted(log) or _unsealed(record),))
    places = anchored(log, leaf)
    said = format_html(
        "Record {} of {}. Sealed {}, {}.", f"{record.index:,}", f"{log.start + newest.size:,}", clock(first.at),
        _after((first.at - record.at).total_seconds()),
    )  # fmt: skip
    return Sealing((said, _anchored(places)), leaf, newest.size, first.at, places)


def anchored(log: Log, leaf: int) -> tuple[Place, ...]:
    """The places that hold a checkpoint over a leaf, the first that took one first."""
    taken = Anchoring.objects.filter(anchor=OuterRef("name"), log=log.number, size__gt=leaf).order_by("size")
    rows = AnchorState.objects.annotate(taken=Subquery(taken.values("at")[:1])).exclude(taken=None).order_by("taken")
    return tuple(Place(name, at) for name, at in rows.values_list("name", "taken"))


def _after(seconds: float) -> str:
    # A log whose clock started in the past (the demo's history) sealed what it bears much later.
    what = "it was written" if seconds < AN_HOUR else "the time that it bears"
    return f"{lapse(max(0.0, seconds))} after {what}"


def _anchored(places: tuple[Place, ...]) -> SafeString | str:
    if not places:
        return UNANCHORED
    if len(places) == 1:
        return format_html("Anchored at one place, {}.", clock(places[0].at))
    return format_html("Anchored at {} places: the first {}.", number_words(len(places)), clock(places[0].at))


def _unsealed(record: Record) -> str:
    waited = (timezone.now() - record.at).total_seconds()
    if waited <= LATE:
        return UNSEALED
    return f"Not sealed yet, {_after(waited)}: see the log's page."


def _adopted(log: Log) -> str:
    if not Log.objects.filter(number__gt=log.number).exists():
        return ""
    return f"Log {log.number} was closed before this record was sealed in it; a record of the next log accounts for it."


@dataclass(frozen=True, slots=True)
class Found:
    """One finding in words, and the page of the record that it is about, if that is there."""

    code: str
    meaning: str
    message: str
    index: int | None
    url: str | None


def told(code: str, message: str, index: int | None, url: str | None) -> Found:
    """A finding for people; one of a code that this version does not know has only its message."""
    return Found(code, CODES.get(code, ""), message, index, url)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What verifying a record found, or that everything holds, in words."""

    findings: tuple[Found, ...]
    words: str


def verdict(record: Record, where: Sealing, key_id: str | None) -> Verdict:
    """Verify the record now: its bytes, its leaf, its way to the signed root, its batch. `key_id` is the batch's."""
    url = reverse("admin:record", args=[record.id])
    found = tuple(told(f.code, f.message, f.index, url) for f in verify_record(record))
    if found:
        words = "What is shown here may not be what was sealed. Keep the database as it is; run manage.py verify_log."
        return Verdict(found, words)
    return Verdict((), _holds(where, key_id))


def _holds(where: Sealing, key_id: str | None) -> str:
    """Only what was there to be checked."""
    signed = f"its batch is signed by writer key {key_id[:8]}…" if key_id else "no batch has it"
    if where.size is None:
        return f"So far everything holds: its bytes give its leaf, and {signed}. It is not sealed yet."
    return (
        f"Everything holds: {signed}, its bytes give the sealed leaf, and the leaf leads to the signed root of"
        f" {counted(where.size, 'record')}."
    )
