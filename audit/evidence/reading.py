"""What an evidence pack is made of, read from the log: pages by time or by index below the sealed size, one short
statement each, through `audit.search` with the rights of whoever the pack is for; and what staff wrote beside it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cryptography.exceptions import InvalidTag
from django.conf import settings
from django.db.models import Count

from audit import details, search
from audit.models import Record
from audit.protection import KeyDestroyed, KeyRing, reveal
from audit.record_page import read
from audit.record_words import Statement
from audit.viewer import Viewer
from muniment import disclosures, merkle
from muniment.disclosures import DisclosureError

PAGE = 500  # records of a type that is rare
WINDOW = 20_000  # indices that are looked through at once for what is not
MICROSECOND = timedelta(microseconds=1)
CALLS = ("decision", "outcome", "evaluation", "introspection")
"""Types of which there are as many as calls: they are counted, and of them the refused calls alone are shown."""

# Of what staff wrote beside a record, what a pack shows: who, and why. Nothing else, whatever a record may hold.
SHOWN = ("actor_name", "about_name", "reason", "reasons", "note", "notes", "answer", "matter", "reference", "words")
PROTECTED = "Name and reason are protected; see the record in the admin."
STATES = {
    "gone": PROTECTED,
    "forgotten": "Name and reason can no longer be read: the key that they were protected with is destroyed.",
    "broken": "Name and reason do not open: what stands beside the record is not what it commits to.",
}


@dataclass(frozen=True, slots=True)
class Span:
    """The records of a pack: whose rights, the period, indices [first, end) of what is sealed of it, and when the pack
    was asked for: what was added to the platform's tables later is not in it, so that it is the same made again.
    `kinds`: the types of records that were met when they were counted."""

    viewer: Viewer
    since: datetime
    until: datetime
    first: int
    end: int
    made_at: datetime
    kinds: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Opened:
    """What staff wrote beside a record, as far as a pack shows it. `texts` are the disclosures themselves (RFC 9901),
    with which anybody can check that the statement commits to them. `fault` says why there is none."""

    said: dict[str, Any] = field(default_factory=dict, repr=False)
    texts: tuple[str, ...] = field(default=(), repr=False)
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A record of a section. `sound`: its bytes give its leaf."""

    record: Record
    statement: Statement
    opened: Opened
    sound: bool


class Reader:
    """Reads records for one pack. Its keys live no longer than one section: another process may destroy one."""

    def __init__(self, span: Span) -> None:
        self.span, self.ring = span, KeyRing()

    def of_type(self, kind: str) -> Iterator[list[Found]]:
        """The records of a type that is not of calls, in pages, in the order of the log."""
        self.ring.clear()
        for page in by_type(self.span, kind):
            yield [self._found(record) for record in page]

    def refused(self) -> Iterator[list[Found]]:
        """The refused calls, in pages, in the order of the log."""
        for low, high in windows(self.span):
            more = True
            while more:
                rows = _between(self.span, low, high).filter(type="decision", decision="deny")
                page = list(rows.defer("disclosures").order_by("index")[:PAGE])
                more = len(page) == PAGE
                if page:
                    yield [self._found(record) for record in page]
                    low = page[-1].index + 1

    def _found(self, record: Record) -> Found:
        sound = merkle.leaf_hash(bytes(record.statement)) == bytes(record.leaf)
        statement = read(record)
        opened = Opened() if sound else Opened(fault=STATES["broken"])
        if sound and details.of_staff(record, statement):
            opened = open_of_staff(record, statement, self.ring)
        return Found(record, statement, opened, sound)


def by_type(span: Span, kind: str) -> Iterator[list[Record]]:
    """Records of one type that is not of calls, in pages. Raises PermissionDenied."""
    low = span.since
    while True:
        rows = search.visible(span.viewer, low, span.until).filter(type=kind, index__lt=span.end)
        page = list(rows.order_by("at")[:PAGE])
        if page:
            yield page
        if len(page) < PAGE:
            return
        low = page[-1].at + MICROSECOND


def windows(span: Span) -> Iterator[tuple[int, int]]:
    """The span's indices, some at a time."""
    for low in range(span.first, span.end, WINDOW):
        yield low, min(low + WINDOW, span.end)


def counts(span: Span, low: int, high: int) -> list[tuple[str, str | None, bool, int]]:
    """How many records of [low, high) there are, by type, decision and whether they are flagged."""
    rows = _between(span, low, high).order_by().values_list("type", "decision", "flagged")
    found = [(*row[:3], row[3]) for row in rows.annotate(number=Count("index"))]
    span.kinds.update(kind for kind, *_ in found)
    return found


def _between(span: Span, low: int, high: int) -> Any:
    return search.visible(span.viewer, span.since, span.until).filter(index__gte=low, index__lt=high)


def open_of_staff(record: Record, statement: Statement, ring: KeyRing) -> Opened:
    """What staff wrote beside a record. Never raises for what a record may hold; says why where it cannot be read."""
    committed = statement.get("_sd") or []
    if not committed:
        return Opened()
    if "KEY_ENCRYPTION_KEY" not in settings.MUNIMENT_KEYS or record.disclosures is None:
        return Opened(fault=STATES["gone"])
    try:
        plain = reveal(ring.get(record.holder or ""), bytes(record.disclosures), bytes(record.leaf))
        found = disclosures.unpack(plain)
    except KeyDestroyed:
        return Opened(fault=STATES["forgotten"])
    except (InvalidTag, DisclosureError):
        return Opened(fault=STATES["broken"])
    if disclosures.digests(found) != sorted(map(str, committed)):
        return Opened(fault=STATES["broken"])
    return _shown(found)


def _shown(found: Sequence[disclosures.Disclosure]) -> Opened:
    kept = [one for one in found if one.name in SHOWN]
    return Opened({one.name: one.value for one in kept}, tuple(one.text for one in kept))
