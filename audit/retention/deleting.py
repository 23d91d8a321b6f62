"""Deleting what steps of retention name, once their records are sealed.

Where most of a month goes, a new table is filled with what stays and takes the old one's place; where little goes, rows
are deleted by index, a few thousand at a time. Each is one transaction under the guard row, in which the holds and the
rules are asked once more, and waits at most 200 ms for a lock, so that no call waits for it. Done again it does
nothing."""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import date
from typing import Any, TypeVar

import psycopg
from django.db import OperationalError, connections
from django.db.models import F
from django.utils import timezone

from audit import guard
from audit.holds_sql import covered_sql
from audit.models import Record, RetentionRun, RetentionStep
from audit.retention.deciding import bounds, holds, newest_day, rules

BATCH = 5000  # records in one transaction
PIECES = 1000  # ranges in one transaction
KEPT_MOST = 20_000  # records that are copied: filling a table takes its time, too
TIMES = 4  # so many times as many go as stay
SECONDS = 4  # for one statement
LOCK = "200ms"
ATTEMPTS, PAUSE = 25, 0.4
LOWEST, HIGHEST = -(2**63), 2**63 - 1
COLUMNS = ", ".join(str(field.column) for field in Record._meta.concrete_fields)
WITHIN = "unnest(%s::bigint[], %s::bigint[]) AS k (lo, hi)"
ATTACHED = "SELECT 1 FROM pg_inherits WHERE inhparent = 'audit_record'::regclass AND inhrelid = to_regclass(%s)"
Ranges = Sequence[Sequence[int]]
T = TypeVar("T")


class Busy(Exception):
    """A lock could not be had, although it was asked for again and again."""


class Changed(Exception):
    """The rules are not those any more by which the run decided."""


class TooMuch(Exception):
    """More would have to be copied than is good while others wait for the guard row."""


def delete(month: date, steps: Sequence[RetentionStep], until: float) -> bool:
    """Delete what the steps of a month name; whether all of it is done. Stops between two transactions when
    `time.monotonic()` is past `until`. Raises Busy; then, as after a kill, it is done again from where it stopped.
    Raises Changed, and deletes nothing more."""
    name = _table(month)
    if name is not None and _replaced(name, month, steps):
        return True
    for step in steps:
        for piece in pieces(step.ranges):
            if time.monotonic() > until:
                return False
            patiently(lambda step=step, piece=piece: _batch(month, step, piece))  # type: ignore[misc]
        RetentionStep.objects.using("owner").filter(pk=step.pk).update(done_at=timezone.now())
    if name is not None:
        patiently(lambda: _drop_empty(name, month))
    return True


def pieces(ranges: Ranges) -> Iterator[list[tuple[int, int]]]:
    """The ranges, first and last index, in parts of at most BATCH records and PIECES ranges."""
    part, room = list[tuple[int, int]](), BATCH
    for first, size in ranges:
        while size > 0:
            taken = min(size, room)
            part.append((first, first + taken - 1))
            first, size, room = first + taken, size - taken, room - taken
            if room == 0 or len(part) == PIECES:
                yield part
                part, room = [], BATCH
    if part:
        yield part


def followed() -> list[dict[str, Any]]:
    """The rules as they are followed now, as a run keeps them."""
    return [asdict(rule) for rule in rules()]


def still(run: int) -> None:
    """Raises Changed unless a run's rules are those that are followed now; asked in each transaction that deletes."""
    if RetentionRun.objects.using("owner").values_list("rules", flat=True).get(pk=run) != followed():
        raise Changed


def others(ranges: Ranges) -> list[tuple[int, int]]:
    """All that is in none of these ranges, which are in order, as first and last index."""
    found, at = [], LOWEST
    for first, size in ranges:
        if first > at:
            found.append((at, first - 1))
        at = max(at, first + size)
    return [*found, (at, HIGHEST)]


def patiently(do: Callable[[], T]) -> T:
    """Do it, and again when a lock could not be had; with a pause between, in which those who waited get on. Raises
    Busy when it could not be had at all."""
    for attempt in range(ATTEMPTS):
        try:
            return do()
        except OperationalError as error:
            if not isinstance(error.__cause__, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected):
                raise
            if attempt < ATTEMPTS - 1:
                time.sleep(PAUSE)
    raise Busy("a lock on the records' tables could not be had: something holds one open for long")


# --- in batches ---------------------------------------------------------------------------------------------


def _batch(month: date, step: RetentionStep, piece: Sequence[tuple[int, int]]) -> None:
    """Delete a few records: all that no hold covers by now."""
    with guard.locked(using="owner", lock_timeout=LOCK), connections["owner"].cursor() as cursor:
        still(step.run)
        covered, params = covered_sql(holds("owner"))
        cursor.execute(f"SET LOCAL statement_timeout = '{SECONDS}s'; SET LOCAL muniment.maintenance = 'on'")
        cursor.execute(
            f"DELETE FROM audit_record r USING {WITHIN} WHERE r.at >= %s AND r.at < %s"  # noqa: S608 - names are ours
            f" AND r.index BETWEEN k.lo AND k.hi AND ({covered}) IS NOT TRUE",
            [*_sides(piece), *bounds(month), *params],
        )
        _count(step, cursor.rowcount)


def _count(step: RetentionStep, number: int, **also: Any) -> None:
    """Add to what a step and its run have deleted, in the transaction that deletes."""
    RetentionStep.objects.using("owner").filter(pk=step.pk).update(deleted=F("deleted") + number, **also)
    RetentionRun.objects.using("owner").filter(pk=step.run).update(deleted=F("deleted") + number)


def _sides(ranges: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [low for low, _ in ranges], [high for _, high in ranges]


# --- a whole table ------------------------------------------------------------------------------------------


def _table(month: date) -> str | None:
    """The month's own partition, where it has one and all of it is behind the log's newest day."""
    name = f"audit_record_{month:%Y%m}"
    if bounds(month)[1] > newest_day(timezone.now()):
        return None
    with connections["owner"].cursor() as cursor:
        cursor.execute(ATTACHED, [name])
        return name if cursor.fetchone() else None


def _replaced(name: str, month: date, steps: Sequence[RetentionStep]) -> bool:
    """Whether the table was replaced by one of what stays, since nearly all of it goes; then the steps are done."""
    ranges = sorted(one for step in steps for one in step.ranges)
    due = sum(size for _, size in ranges)
    staying = _staying(name, ranges, min(KEPT_MOST, due // TIMES))
    if staying is None:
        return False
    try:
        patiently(lambda: _replace(name, month, steps, ranges))
    except TooMuch:
        return False
    except OperationalError as error:
        if isinstance(error.__cause__, psycopg.errors.QueryCanceled):  # it takes too long to do at once
            return False
        raise
    return True


def _staying(name: str, ranges: Ranges, most: int) -> int | None:
    """How many records of a table are in none of the ranges; None for more than `most`, and for too many ranges."""
    if len(ranges) > 2 * KEPT_MOST:
        return None
    with connections["owner"].cursor() as cursor:
        cursor.execute(
            f"SELECT count(*) FROM (SELECT 1 FROM {WITHIN} JOIN {name} r ON r.index BETWEEN k.lo AND k.hi"  # noqa: S608
            " LIMIT %s) AS found",
            [*_sides(others(ranges)), most + 1],
        )
        [number] = cursor.fetchone()
    return None if number > most else int(number)


def _replace(name: str, month: date, steps: Sequence[RetentionStep], ranges: Ranges) -> None:
    """Fill a new table with what stays, then take the old one out and put the new one in: one transaction, of which
    only the last part, that moves no rows, has locks that calls wait for. Raises TooMuch."""
    low, high = bounds(month)
    with guard.locked(using="owner", lock_timeout=LOCK), connections["owner"].cursor() as cursor:
        still(steps[0].run)
        cursor.execute(f"SET LOCAL statement_timeout = '{SECONDS}s'")
        kept = f"{name}_kept"
        # The check spares the attachment a look at every row.
        cursor.execute(
            f"CREATE TABLE {kept} (LIKE audit_record INCLUDING ALL, CONSTRAINT month CHECK (at >= %s AND at < %s))",
            [low, high],
        )
        stay = _fill(cursor, kept, f"{WITHIN} JOIN {name} r ON r.index BETWEEN k.lo AND k.hi", _sides(others(ranges)))
        covered, params = covered_sql(holds("owner"))
        within = "{" + ",".join(f"[{first},{first + size})" for first, size in ranges) + "}"
        # A hold's records are found by its own index, and then looked for in the ranges.
        source = f"{name} r WHERE {covered} AND r.index <@ %s::int8multirange"
        saved = _fill(cursor, kept, source, [*params, within]) if covered != "false" else []
        _swap(cursor, name, kept, bounds(month) if stay or saved else None)
        now = timezone.now()
        for step in steps:
            _count(step, step.due - step.deleted - _among(saved, step.ranges), done_at=now)


def _fill(cursor: Any, kept: str, source: str, params: Sequence[Any]) -> list[int]:
    """Copy records; their indices, in order. Raises TooMuch."""
    cursor.execute(
        f"INSERT INTO {kept} ({COLUMNS}) SELECT {COLUMNS} FROM {source} LIMIT %s RETURNING index",  # noqa: S608
        [*params, 2 * KEPT_MOST],
    )
    found = sorted(index for (index,) in cursor.fetchall())
    if len(found) >= 2 * KEPT_MOST:
        raise TooMuch
    return found


def _swap(cursor: Any, name: str, kept: str, window: tuple[Any, Any] | None) -> None:
    """The new table in the old one's place, guarded as every partition is; without a window nothing stays, and the
    month has none any more."""
    if window is not None:
        cursor.execute(
            f"CREATE TRIGGER muniment_no_truncate BEFORE TRUNCATE ON {kept}"
            " FOR EACH STATEMENT EXECUTE FUNCTION muniment_refuse_change()"
        )
    cursor.execute(f"ALTER TABLE audit_record DETACH PARTITION {name}")
    if window is not None:
        cursor.execute(f"ALTER TABLE audit_record ATTACH PARTITION {kept} FOR VALUES FROM (%s) TO (%s)", list(window))
        cursor.execute(f"ALTER TABLE {kept} DROP CONSTRAINT month")
    cursor.execute(f"DROP TABLE {name}")
    cursor.execute(f"ALTER TABLE {kept} RENAME TO {name}" if window is not None else f"DROP TABLE {kept}")


def _among(indices: Sequence[int], ranges: Ranges) -> int:
    """How many of these indices, which are in order, are within the ranges."""
    return sum(bisect_right(indices, first + size - 1) - bisect_right(indices, first - 1) for first, size in ranges)


def _drop_empty(name: str, month: date) -> None:
    """Take a month's table away when nothing is in it."""
    with guard.locked(using="owner", lock_timeout=LOCK), connections["owner"].cursor() as cursor:
        cursor.execute(f"SELECT EXISTS (SELECT 1 FROM {name})")  # noqa: S608
        if not cursor.fetchone()[0]:
            cursor.execute(f"ALTER TABLE audit_record DETACH PARTITION {name}")
            cursor.execute(f"DROP TABLE {name}")
