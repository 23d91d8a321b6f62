"""The range of an export: when all of it is in the log, which records it has, and whether they are sealed.

A writer takes its time before it has the head row's lock, and may wait for the lock; so that a time has passed does not
say that no record of before is still to come. Either a later record is there (times rise with the index), or the lock
was had when every writer that began before must have given up waiting for it.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import OperationalError, connection, transaction

from audit import logtree
from audit.models import Head, Log, Record

# The recorder's statements end after 10 s (governance.process.connect).
GRACE = timedelta(seconds=11)
LOCKED = "SET LOCAL lock_timeout = '200ms'; SELECT 1 FROM audit_head FOR SHARE"


@dataclass(frozen=True, slots=True)
class Range:
    """Indices of the first and the last record of a time; `last` is below `first` where there is none."""

    first: int
    last: int


def is_complete(until: datetime) -> bool:
    """Whether no record with a time before `until` can come any more."""
    if Head.objects.values_list("at", flat=True).get() >= until:
        return True
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        if cursor.fetchone()[0] < until + GRACE:
            return False
    return _had_the_lock()


def _had_the_lock() -> bool:
    """Wait for the writer that has the head row now; False where that took too long."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(LOCKED)
    except OperationalError:
        return False
    return True


def range_of(since: datetime, until: datetime) -> Range:
    """The records of [since, until), which must be complete."""
    found = Record.objects.filter(at__gte=since, at__lt=until).values_list("index", flat=True)
    first, last = found.order_by("at").first(), found.order_by("-at").first()
    return Range(0, -1) if first is None or last is None else Range(first, last)


def sealed_size() -> int:
    """The index behind the last record that a checkpoint covers; 0 where there is none."""
    for log in Log.objects.order_by("-number"):
        if newest := logtree.newest(log):
            return log.start + newest.size
    return 0
