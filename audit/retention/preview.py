"""What retention will delete, and when: each month's records counted by the rule that counts for them, within a time
that a page can wait. Nothing is changed."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.db import OperationalError, connections, transaction

from audit.retention import words as retention_words
from audit.retention.deciding import bounds, question
from audit.retention.rules import Rule
from audit.retention.sql import Question, Window

MOST = 20_000_000  # records of a month that are counted
FEW = 20_000  # of them, where they are too many to be counted in time
EVER = (-(2**63), 2**63 - 1)


@dataclass(frozen=True, slots=True)
class Line:
    """Records of one month under one rule: how many, how many of them are held, and between which days they go.
    `more`: these were counted, and there may be more."""

    month: date
    rule: Rule
    records: int
    held: int
    begin: date
    end: date
    more: bool = False

    def when(self, today: date) -> str:
        """`the next run`, `each day until 1 March 2026`, `from 1 February to 1 March 2026`."""
        last = retention_words.day(self.end)
        if self.end <= today:
            return "with the next run"
        return f"each day until {last}" if self.begin <= today else f"from {retention_words.day(self.begin)} to {last}"

    @property
    def words(self) -> str:
        """`1,203,441 records of January 2026 go; 12,001 stay under a hold`."""
        more, where = "at least " if self.more else "", f"of {retention_words.month(self.month)}"
        going = self.records - self.held
        if not going:
            return f"nothing goes {where}; {more}{_many(self.held, 'record')} {_verb('stay', self.held)} under a hold"
        what = f"{more}{_many(going, 'record')} {where} {_verb('go', going)}"
        return f"{what}; {more}{self.held:,} {_verb('stay', self.held)} under a hold" if self.held else what


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _verb(verb: str, count: int) -> str:
    return f"{verb}{'' if count != 1 else 'es' if verb.endswith('o') else 's'}"


@dataclass(slots=True)
class Preview:
    """What goes, in the order in which it does; and the months that there was no time to count."""

    lines: list[Line] = field(default_factory=list)
    uncounted: list[date] = field(default_factory=list)


def preview(now: datetime, seconds: float = 5.0, most_months: int = 36) -> Preview:
    """Count the oldest months, for about so many seconds."""
    found, asked, until = Preview(), question(now), time.monotonic() + seconds
    if not asked.order:
        return found
    for number, month in enumerate(_months()):
        left = until - time.monotonic()
        if number >= most_months:
            break
        if left <= 0.2 or (lines := _lines(asked, month, now, left)) is None:
            found.uncounted.append(month)
            continue
        found.lines += lines
    found.lines.sort(key=lambda line: (line.end, line.month, line.rule.id))
    return found


def _months() -> Iterator[date]:
    """Every month that has records, the oldest first."""
    at = datetime(1, 1, 1, tzinfo=UTC)
    while True:
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT at FROM audit_record WHERE at >= %s ORDER BY at LIMIT 1", [at])
            row = cursor.fetchone()
        if row is None:
            return
        month = row[0].astimezone(UTC).date().replace(day=1)
        yield month
        at = bounds(month)[1]


def _lines(asked: Question, month: date, now: datetime, seconds: float) -> list[Line] | None:
    """A month's lines; None where even a few of its records cannot be counted in time."""
    low, high = bounds(month)
    window = Window(low, high, *EVER)
    for most, share in ((MOST, 0.5), (FEW, 0.2)):
        with suppress(OperationalError):
            rows = _count(asked, window, most, seconds * share)
            more = sum(count for _, count, _ in rows) >= most
            return [
                Line(month, rule, count, held, *_days(low, high, rule), more=more)
                for place, count, held in rows
                if place is not None and (rule := asked.order[place - 1])
            ]
    return None


def _days(low: datetime, high: datetime, rule: Rule) -> tuple[date, date]:
    """The first and the last day of the month's going; of a rule, whatever now is."""
    age = timedelta(days=rule.days)
    return (low + age).date(), (high + age).date()


def _count(asked: Question, window: Window, most: int, seconds: float) -> list[Any]:
    with transaction.atomic(), connections["default"].cursor() as cursor:
        cursor.execute("SELECT set_config('statement_timeout', %s, true)", [f"{max(100, int(seconds * 1000))}ms"])
        cursor.execute(*asked.counts(window, most))
        return cursor.fetchall()
