"""The daily keys of callers that could not be established: each backend has one a day, and a retention of its own
(`MUNIMENT_UNESTABLISHED_DAYS`). What was protected under a key that is destroyed nobody can read any more; the records
stay, and say that it was there."""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta

from django.conf import settings
from django.db import connections, transaction

from audit import guard
from audit.holds_sql import covers_backend_day
from audit.models import DataKey, Hold, RetentionRun, RetentionStep
from audit.retention.deciding import entry, holds

DAILY = re.compile(r"backend:([^:]+):(\d{4}-\d{2}-\d{2})")
PAGE = 1000
MOST_HOLDERS = 400  # in one record: each has up to 83 characters, and a statement 64 kB


def due(now: datetime) -> list[str]:
    """The holders whose keys are due and under no hold, in order."""
    cutoff, held = (now - timedelta(days=settings.MUNIMENT_UNESTABLISHED_DAYS)).astimezone(UTC).date(), holds()
    return [holder for holder, day in _daily() if day < cutoff and not _covered(held, holder)]


def _daily() -> Iterator[tuple[str, date]]:
    after = "backend:"
    while page := list(
        DataKey.objects.filter(holder__gt=after, holder__lt="backend;").order_by("holder")
        .values_list("holder", flat=True)[:PAGE]
    ):  # fmt: skip
        for holder in page:
            if (day := _day(holder)) is not None:
                yield holder, day
        after = page[-1]


def _day(holder: str) -> date | None:
    found = DAILY.fullmatch(holder)
    try:
        return date.fromisoformat(found[2]) if found else None
    except ValueError:
        return None


def _covered(held: Iterable[Hold], holder: str) -> bool:
    """Whether a hold may cover what is under this key. The day in its name is that of the web process that made it,
    so its neighbours count as well."""
    day, found = _day(holder), DAILY.fullmatch(holder)
    if day is None or found is None:
        return True
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(days=1)
    return covers_backend_day(held, found[1], begin, begin + timedelta(days=3))


def tell(run: RetentionRun, holders: list[str]) -> None:
    """Make the steps and the entries that become their records, in one transaction."""
    month = run.began_at.astimezone(UTC).date().replace(day=1)
    with transaction.atomic(using="owner"):
        for start in range(0, len(holders), MOST_HOLDERS):
            some = holders[start : start + MOST_HOLDERS]
            RetentionStep.objects.using("owner").create(
                run=run.pk, month=month, outbox=announce(run, some), holders=some, due=0
            )


def announce(run: RetentionRun, holders: list[str]) -> int:
    """The entry that becomes the record of a step; its number."""
    days = settings.MUNIMENT_UNESTABLISHED_DAYS
    return entry({
        "action": "keys.destroyed", "holders": holders, "count": len(holders), "days": days, "run": run.pk,
    })  # fmt: skip


def destroy(step: RetentionStep, now: datetime) -> None:
    """Destroy the keys of a step that no hold covers by now, under the guard row."""
    with guard.locked(using="owner", lock_timeout="200ms"), connections["owner"].cursor() as cursor:
        held = holds("owner")
        cursor.execute(
            "DELETE FROM audit_datakey WHERE holder = ANY (%s)", [[h for h in step.holders if not _covered(held, h)]]
        )
        RetentionStep.objects.using("owner").filter(pk=step.pk).update(done_at=now)
