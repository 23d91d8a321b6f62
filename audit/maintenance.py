"""Keeping the log's tables in shape, as their owner."""

import time
from datetime import UTC, date, datetime, timedelta

from django.db import OperationalError, connections, transaction

MONTHS_AHEAD = 3
ATTEMPTS = 20
KEEP_DRAINED = timedelta(days=7)


def months(start: date, count: int) -> list[date]:
    """The first days of `count` months, from the one of `start` on."""
    first = start.year * 12 + start.month - 1
    return [date(month // 12, month % 12 + 1, 1) for month in range(first, first + count)]


def make_partitions(today: date | None = None) -> list[date]:
    """Make this month's partition and those of the next three; returns the months that were made. Rows that the
    default partition caught are moved into theirs."""
    wanted = months(today or datetime.now(UTC).date(), MONTHS_AHEAD + 1)
    return [month for month in wanted if make_partition(month)]


def make_partition(month: date) -> bool:
    """Make one month's partition; False when there is one. Waits at most 200 ms for its lock, and tries again, so
    that no call waits for it."""
    for attempt in range(ATTEMPTS):
        try:
            with transaction.atomic(using="owner"), connections["owner"].cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = '200ms'")
                cursor.execute("SELECT muniment_make_partition(%s)", [month])
                return bool(cursor.fetchone()[0])
        except OperationalError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.1)
    return False


def clear_outbox() -> int:
    """Delete what was drained more than a week ago; the log has it. Returns how many."""
    with connections["owner"].cursor() as cursor:
        cursor.execute(
            "DELETE FROM audit_outbox WHERE record_index IS NOT NULL AND at < %s",
            [datetime.now(UTC) - KEEP_DRAINED],
        )
        return cursor.rowcount
