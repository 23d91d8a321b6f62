"""Who works on a run of an export: one worker at a time, by a lock that ends with its connection. What it saves, it
saves as the one that took the run up last, so that a worker whose connection was lost changes nothing any more."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db.models import F
from django.utils import timezone

from audit.alone import alone
from audit.models import ExportRun

LOCK = 0x4D_78  # the first half of our advisory locks: runs of exports


class Cancelled(Exception):
    """Somebody asked to stop it."""


class Lost(Exception):
    """Another worker has the run now."""


class Claim:
    """A run that is ours to work on."""

    def __init__(self, run: ExportRun) -> None:
        self.run = run

    def save(self, **fields: Any) -> None:
        """Save these columns, and a sign of life. Raises Lost."""
        for name, value in fields.items():
            setattr(self.run, name, value)
        ours = ExportRun.objects.filter(pk=self.run.pk, attempts=self.run.attempts)
        if not ours.update(**fields, seen_at=timezone.now()):
            raise Lost

    def check(self) -> None:
        """Whether to go on. Raises Cancelled and Lost."""
        found = ExportRun.objects.filter(pk=self.run.pk).values_list("cancel", "attempts").first()
        if found is None or found[1] != self.run.attempts:
            raise Lost
        if found[0]:
            raise Cancelled


@contextmanager
def claimed(number: int) -> Iterator[Claim | None]:
    """The run, for one worker alone; None where another has it, where it is over, or there is none."""
    with alone(LOCK, number) as mine:
        run = ExportRun.objects.filter(pk=number, state__in=("waiting", "running", "delivering")).first()
        if not mine or run is None:
            yield None
            return
        ExportRun.objects.filter(pk=number).update(attempts=F("attempts") + 1, seen_at=timezone.now())
        run.refresh_from_db()
        yield Claim(run)
