"""What a run of retention sets out to delete: ranges of sealed records, month by month, each told to the log first.

Pages by index, each a short statement of its own; the steps of a month and the entries that become their records are
one transaction, so that a run which is killed goes on with the next month."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
from django.db import OperationalError, connections, transaction
from django.utils import timezone

from audit import logtree
from audit.holds_sql import covered_sql
from audit.live_seams import seams
from audit.models import Hold, Log, Outbox, RetentionFloor, RetentionRule, RetentionRun, RetentionStep, RollupState
from audit.retention import floors
from audit.retention.rules import Rule, shortest
from audit.retention.sql import Question, Window

PAGE, SMALLEST = 100_000, 1000  # indices in one statement
MOST_RANGES = 1500  # in one record: 40 kB, where a statement has 64
MOST_STEPS = 400  # of one month in one run; the next one goes on
SECONDS = 5  # a statement that takes longer is asked for fewer records
RECENT = timedelta(days=1)
"""Of the newest day nothing is deleted, whatever a rule says."""


@dataclass(slots=True)
class Decided:
    """What is due in a month: ranges of records that are not held, and how many are."""

    ranges: list[tuple[int, int]] = field(default_factory=list)
    rules: set[int] = field(default_factory=set)
    held: int = 0


def rules() -> list[Rule]:
    """The rules as they are followed: those below a floor that refuses are raised to it."""
    modes = dict(RetentionFloor.objects.values_list("preset", "mode"))
    return floors.raised(map(rule_of, RetentionRule.objects.all()), modes)


def rule_of(row: RetentionRule) -> Rule:
    """A rule as `retention_rules` has it."""
    return Rule(row.pk or 0, row.days, row.type, row.backend, row.client, row.tenant, row.sensitive)


def holds(using: str = "default") -> list[Hold]:
    """The holds in force."""
    return list(Hold.objects.using(using).filter(released_at=None).order_by("pk"))


def question(now: datetime) -> Question:
    """What is asked of records at this time."""
    return Question(rules(), now, covered_sql(holds()))


def newest_day(now: datetime) -> datetime:
    """From when on nothing is deleted: the midnight before the newest record, and at least a day ago."""
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT at FROM audit_head")
        head = cursor.fetchone()[0]
    newest = min(head, now - RECENT).astimezone(UTC)
    return newest.replace(hour=0, minute=0, second=0, microsecond=0)


def sealed() -> list[tuple[int, int]]:
    """The index ranges [first, end) whose leaves the trees have: what may be deleted without a proof being lost. What
    a log lost, and what the next one adopted without a tree of its own, is not among them; nor what no chart has
    counted."""
    logs = list(Log.objects.order_by("number"))
    sizes = {log.number: newest.size if (newest := logtree.newest(log)) else 0 for log in logs}
    breaks = seams(logs, sizes, lambda finding: None)
    counted = RollupState.objects.values_list("next", flat=True).first() or 0
    found = []
    for log in logs:
        size = breaks[log.number].kept if log.number in breaks else sizes[log.number]
        found.append((log.start, min(log.start + size, counted)))
    return [(first, end) for first, end in found if first < end]


def months(now: datetime) -> Iterator[date]:
    """The months that have records old enough for some rule, the oldest first."""
    days = shortest(rules())
    if days is None:
        return
    # An outcome is as old as its call, which may be of the month before.
    end, at = min(newest_day(now), now - timedelta(days=days) + RECENT), datetime(1, 1, 1, tzinfo=UTC)
    while True:
        with connections["default"].cursor() as cursor:
            cursor.execute(
                "SELECT at FROM audit_record WHERE at >= %s AND at < %s ORDER BY at LIMIT 1", [at, max(at, end)]
            )
            row = cursor.fetchone()
        if row is None:
            return
        month = row[0].astimezone(UTC).date().replace(day=1)
        yield month
        at = bounds(month)[1]


def bounds(month: date) -> tuple[datetime, datetime]:
    """Its first moment, and that of the next month, in UTC."""
    low = datetime(month.year, month.month, 1, tzinfo=UTC)
    following = date(month.year + month.month // 12, month.month % 12 + 1, 1)
    return low, datetime(following.year, following.month, 1, tzinfo=UTC)


def due(month: date, now: datetime) -> Decided:
    """What of a month is due at this time. Reads pages of records, each in a statement of its own."""
    asked, found = question(now), Decided()
    low, high = bounds(month)
    window = (low, min(high, newest_day(now)))
    for first, end in pages(window, sealed()):
        size = end - first
        while first < end:
            try:
                rows = _ask(asked, Window(*window, first, min(first + size, end)))
            except OperationalError as error:
                if size <= SMALLEST or not isinstance(error.__cause__, psycopg.errors.QueryCanceled):
                    raise
                size //= 2
                continue
            _take(found, asked, rows)
            first += size
        if len(found.ranges) >= MOST_RANGES * MOST_STEPS:
            break
    del found.ranges[MOST_RANGES * MOST_STEPS :]
    return found


def pages(window: tuple[datetime, datetime], spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Index ranges [first, end) of at most PAGE that hold the records of a window which these spans have."""
    edges = []
    with connections["default"].cursor() as cursor:
        for order in ("", "DESC"):
            cursor.execute(
                f"SELECT index FROM audit_record WHERE at >= %s AND at < %s ORDER BY at {order} LIMIT 1",  # noqa: S608
                list(window),
            )
            edges += [index for (index,) in cursor.fetchall()]
    if not edges:
        return
    for low, high in spans:
        first, end = max(low, edges[0]), min(high, edges[1] + 1)
        for start in range(first, end, PAGE):
            yield start, min(start + PAGE, end)


def _ask(asked: Question, window: Window) -> list[Any]:
    with transaction.atomic(), connections["default"].cursor() as cursor:
        cursor.execute(f"SET LOCAL statement_timeout = '{SECONDS}s'")
        cursor.execute(*asked.ranges(window))
        return cursor.fetchall()


def _take(found: Decided, asked: Question, rows: Sequence[Any]) -> None:
    """Add a page's answer; a range that goes on from the one before is one with it."""
    for first, size, places in rows:
        if first is None:
            found.held += size
            continue
        found.rules |= {asked.order[place - 1].id for place in places}
        if found.ranges and sum(found.ranges[-1]) == first:
            found.ranges[-1] = (found.ranges[-1][0], found.ranges[-1][1] + size)
        else:
            found.ranges.append((first, size))


def tell(run: RetentionRun, month: date, found: Decided) -> int:
    """Make the steps of a month, and the entries that become their records, in one transaction, as the tables' owner;
    how many records they are of."""
    number = 0
    with transaction.atomic(using="owner"):
        for start in range(0, len(found.ranges), MOST_RANGES):
            ranges = [list(one) for one in found.ranges[start : start + MOST_RANGES]]
            size = sum(count for _, count in ranges)
            told = announce(run, month, ranges, sorted(found.rules), found.held if start == 0 else 0)
            RetentionStep.objects.using("owner").create(run=run.pk, month=month, outbox=told, ranges=ranges, due=size)
            number += size
        run.due += number
        run.held += found.held
        run.save(using="owner", update_fields=["due", "held"])
    return number


def announce(run: RetentionRun, month: date, ranges: Sequence[Any], by: Sequence[int], held: int) -> int:
    """The entry that becomes the record of a step; its number."""
    members = {
        "action": "deleted", "ranges": ranges, "rules": list(by), "run": run.pk, "month": f"{month:%Y-%m}",
        "held": held,
    }  # fmt: skip
    return entry(members)


def entry(members: dict[str, Any]) -> int:
    """An entry of the outbox about retention, made by the tables' owner; its number."""
    made = Outbox.objects.using("owner").create(
        kind="retention", members=members, private=None, at=timezone.now(), actor="system", xact=""
    )
    return int(made.pk)
