"""Streams: every sealed record is brought to the SIEM, in order, at least once (DESIGN.md section 6).

A stream's cursor is the index of the record that it sends next. It moves after the receiver has taken what was sent:
who is killed in between sends again, and never leaves out. What retention has deleted by then is passed over, and
counted. They are configured by the operator in MUNIMENT_STREAMS, which the worker alone has; what of them may be known
is in the table `Stream`.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Coalesce
from django.utils import timezone

from audit import alerts, logtree, ocsf
from audit.alone import alone
from audit.configured import ConfigError
from audit.models import Alert, DeadLetter, Log, Record, Stream
from audit.staff_log import tell
from audit.streams.base import Item, Receiver, Refused, Undelivered
from audit.streams.reading import parse

__all__ = ["ConfigError", "Page", "configured", "deliver", "publish", "sealed_end"]

logger = logging.getLogger(__name__)

LOCK = 0x73747265  # a class of advisory locks
RUN_SECONDS = 4.0
"""How long one run goes on where there is more to send: the next one is due after five seconds."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 600.0  # seconds after a first failure, and after many
ASKED_WAIT = 3600.0  # seconds that a receiver may ask for at most
STUCK = timedelta(minutes=15)
SEEN = timedelta(minutes=1)
"""After which a row says again that its stream is configured."""
MAX_REFUSED = 10
"""Records refused with none taken since, after which the fault is not the records'."""
LETTERS = 50  # of dead letters that are sent again in one run


@dataclass(frozen=True, slots=True)
class Page:
    """Sealed records from a cursor on; `end` is the index behind all that was looked at. Missing ones in between are
    no longer in the database."""

    items: Sequence[Item]
    end: int


def configured() -> list[Receiver]:
    """The streams of MUNIMENT_STREAMS, files that they name read once. Raises ConfigError; the system check
    muniment.E011 says so at the start."""
    return list(_parsed(settings.MUNIMENT_STREAMS))


_parsed = lru_cache(maxsize=4)(parse)  # to read certificates takes long, and each task asks


def publish() -> list[str]:
    """A row for each configured stream, a new one at the end of what is sealed unless it is to start elsewhere; alerts
    for those that have been failing for long. Their names. By the worker, which alone knows. Raises ConfigError."""
    found, now = configured(), timezone.now()
    rows = {row.name: row for row in Stream.objects.all()}
    for one in found:
        row = rows.get(one.name)
        if row is None:
            start = sealed_end() if one.first is None else one.first
            _begun(one, start, now)
        elif (row.kind, row.place) != (one.kind, one.place):
            _moved(one, row, now)
        elif not timedelta(0) <= now - row.seen_at < SEEN:
            Stream.objects.filter(name=one.name).update(seen_at=now)
    names = [one.name for one in found]
    _watch([row for row in rows.values() if row.name in names], now)
    return names


def _begun(one: Receiver, start: int, now: datetime) -> None:
    """A row for a new stream. That records go there is on record before the first of them does."""
    with transaction.atomic():
        row = {"kind": one.kind, "place": one.place, "next": start, "seen_at": now}
        if Stream.objects.get_or_create(name=one.name, defaults=row)[1]:
            tell("system", "", "stream.started", stream=one.name, transport=one.kind, place=one.place, next=start)


def _moved(one: Receiver, row: Stream, now: datetime) -> None:
    """It goes somewhere else from now on, which is on record."""
    with transaction.atomic():
        found = Stream.objects.filter(name=one.name, kind=row.kind, place=row.place)
        if found.update(kind=one.kind, place=one.place, seen_at=now):
            tell("system", "", "stream.moved", stream=one.name, transport=one.kind, place=one.place)


def _watch(rows: Sequence[Stream], now: datetime) -> None:
    """Raise `stream-stuck` for who has been failing for long, and end it for all others."""
    failing = [row for row in rows if row.paused_at is None and row.failing_since is not None]
    stuck = {row.name for row in failing if row.failing_since and now - row.failing_since > STUCK}
    for row in failing:
        if row.name in stuck:
            words = f"Nothing has been taken since {row.failing_since:%Y-%m-%d %H:%M} UTC: {row.error}."
            alerts.raise_alert("stream-stuck", row.name, words)
    for about in Alert.objects.filter(kind="stream-stuck", cleared_at=None).values_list("about", flat=True):
        if about not in stuck:
            alerts.clear("stream-stuck", about)


def deliver(name: str) -> None:
    """Bring one stream what it has not got, for a few seconds at most; nothing where another worker does, where it is
    paused, or is to be left alone for now. To run twice, or to be killed, does no harm. Raises ConfigError."""
    receiver = next((one for one in configured() if one.name == name), None)
    if receiver is None:
        return
    with alone(LOCK, name) as mine:
        if mine:
            _Run(receiver).run()


def sealed_end() -> int:
    """The index behind the newest sealed record; 0 where nothing is sealed."""
    log = logtree.current()
    newest = logtree.newest(log) if log else None
    return log.start + newest.size if log and newest else (log.start if log else 0)


@dataclass(frozen=True, slots=True)
class Sealed:
    """What is sealed: up to which index, and the logs that it is in, the newest first, by where they start."""

    end: int
    logs: Sequence[tuple[int, str]]

    @classmethod
    def now(cls) -> "Sealed":
        """As the database has it."""
        return cls(sealed_end(), list(Log.objects.order_by("-start").values_list("start", "origin")))

    def origin(self, index: int) -> str:
        """The name of the log that a record is in."""
        return next((origin for start, origin in self.logs if start <= index), settings.MUNIMENT_LOG_ORIGIN)

    def items(self, found: QuerySet[Record], most: int) -> list[Item]:
        """Some records, to be sent."""
        return [
            Item(record, index, at, bytes(leaf), bytes(statement), self.origin(index))
            for record, index, at, leaf, statement in found.values_list(*ocsf.ROW)[:most]
        ]

    def page(self, start: int, most: int) -> Page:
        """The sealed records from an index on, at most so many."""
        found = Record.objects.filter(index__gte=start, index__lt=self.end).order_by("index")
        items = self.items(found, most)
        return Page(items, items[-1].index + 1 if len(items) == most else max(start, self.end))


class _Run:
    """One run of one stream, under its lock."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver, self.name = receiver, receiver.name
        self.rows = Stream.objects.filter(name=receiver.name)
        self.until = time.monotonic() + RUN_SECONDS
        self.limit, self.sealed = receiver.most, Sealed.now()

    def run(self) -> None:
        """Dead letters that staff want sent again, then what is new, until there is no more or the time is over."""
        try:
            if (row := self._due()) is not None:
                self._letters()
            while row is not None and time.monotonic() < self.until and self._step(row):
                row = self._due()
        except Undelivered as error:
            self._failed(error)

    def _due(self) -> Stream | None:
        """The stream's row, if it is to be worked on now."""
        row, now = self.rows.first(), timezone.now()
        if row is None or row.paused_at is not None:
            return None
        # A time that is too far off is none of ours: whoever can write to the database could silence it with one.
        if row.retry_at and now < row.retry_at <= now + timedelta(seconds=ASKED_WAIT):
            return None
        return row

    def _step(self, row: Stream) -> bool:
        """Send some of what comes next; whether anything was moved. Raises Undelivered."""
        if row.next >= self.sealed.end:
            self.sealed = Sealed.now()
        page = self.sealed.page(row.next, self.receiver.most)
        if page.end <= row.next:
            return False
        wanted = [item for item in page.items if self.receiver.wants(item)]
        if not wanted:
            return self._moved(row, page, page.end, 0)
        try:
            count = self._send(wanted[: self.limit])
        except Refused as error:
            if error.tried > 1:  # one of them is what is refused: find it by halves
                self.limit = max(1, error.tried // 2)
                return True
            return self._buried(row, page, wanted[0], error)
        self.limit = min(self.receiver.most, self.limit * 2)
        return self._moved(row, page, page.end if count == len(wanted) else wanted[count - 1].index + 1, count)

    def _send(self, items: Sequence[Item]) -> int:
        try:
            return self.receiver.send(items)
        except Undelivered:
            raise
        except Exception as error:  # a mistake of ours; what it says may hold a secret
            logger.error("stream %s: %s", self.name, type(error).__name__)
            raise Undelivered(f"it failed ({type(error).__name__})") from None

    def _moved(self, row: Stream, page: Page, to: int, sent: int, tried: bool = True) -> bool:
        """The cursor goes on to `to`, unless somebody else has moved it; whether it did."""
        there = sum(1 for item in page.items if item.index < to)
        changes: dict[str, Any] = {"next": to, "skipped": F("skipped") + (to - row.next - there)}
        now = timezone.now()
        if sent:
            changes |= {"sent": F("sent") + sent, "sent_at": now}
        if tried:
            changes |= {"tried_at": now, "retry_at": None, "failing_since": None, "failures": 0, "error": ""}
        return bool(self.rows.filter(next=row.next).update(**changes))

    def _buried(self, row: Stream, page: Page, item: Item, error: Refused) -> bool:
        """One record that is refused becomes a dead letter, so that the others can go on; unless all are refused."""
        refused = DeadLetter.objects.filter(stream=self.name, settled_at=None)
        if row.sent_at:
            refused = refused.filter(at__gt=row.sent_at)
        if len(refused[:MAX_REFUSED]) == MAX_REFUSED:
            raise Undelivered(f"{error}; it refused {MAX_REFUSED} records in a row, so no more are passed over")
        logger.warning("stream %s: record %s is refused", self.name, item.id)
        with transaction.atomic():
            DeadLetter.objects.update_or_create(
                stream=self.name,
                index=item.index,
                defaults={"record": item.id, "words": str(error), "at": timezone.now(), "settled_at": None},
            )
            return self._moved(row, page, item.index + 1, 0)

    def _letters(self) -> None:
        """Send again what staff asked for, each alone. Raises Undelivered."""
        asked = DeadLetter.objects.filter(stream=self.name, settled_at=None, asked_at__isnull=False)
        for letter in asked.order_by("index")[:LETTERS]:
            if time.monotonic() > self.until:
                return
            found = Record.objects.filter(index=letter.index, id=letter.record)
            changes: dict[str, Any] = {"retries": F("retries") + 1, "asked_at": None}
            if not (items := self.sealed.items(found, 1)):
                changes |= {"settled_at": timezone.now(), "words": "the record is no longer in the database"}
            else:
                try:
                    self._send(items)
                    changes |= {"settled_at": timezone.now(), "words": "taken when it was sent again"}
                    self.rows.update(sent=F("sent") + 1)
                except Refused as error:
                    changes |= {"words": str(error)}
            DeadLetter.objects.filter(pk=letter.pk).update(**changes)

    def _failed(self, error: Undelivered) -> None:
        """Note it, and leave the receiver alone for a while: one second, two, four, up to ten minutes."""
        logger.warning("stream %s: %s", self.name, error)
        now, row = timezone.now(), self.rows.first()
        if row is None:
            return
        wait = min(FIRST_WAIT * 2 ** min(row.failures, 20), LONGEST_WAIT)
        wait = min(max(wait, error.retry_after or 0.0), ASKED_WAIT)
        self.rows.update(
            tried_at=now, failures=F("failures") + 1, error=str(error), retry_at=now + timedelta(seconds=wait),
            failing_since=Coalesce("failing_since", now),
        )  # fmt: skip
