"""Which runs there are: one for each slot of a schedule, and those that somebody asks for. What is due is found from
the export's row, so that neither a lost message, nor a restarted broker, nor beat itself loses a slot."""

import logging
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl

from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.text import slugify

from audit.exports import manifest, queue, schedules
from audit.exports.formats import EXTENSIONS
from audit.exports.schedules import ScheduleError
from audit.models import Export, ExportRun
from audit.models.handing import OPEN
from audit.records_form import Directory, FilterForm
from audit.staff_log import tell

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 400  # slots that are caught up in one go; the sweeper takes the next
STALE = timedelta(seconds=30)  # a run whose worker gave no sign for so long is taken up by another
MOST_SWEPT = 500
DEFINED = ("query", "columns", "format", "frameworks")


def due(number: int, now: datetime | None = None) -> list[int]:
    """Make the runs of all slots of an export that have come since the last one, and hand them to the worker. To run
    twice does no harm."""
    now, made = now or timezone.now(), list[int]()
    with transaction.atomic():
        export = Export.objects.select_for_update().filter(pk=number, enabled=True).exclude(schedule="").first()
        if export is None:
            return []
        try:
            schedule = schedules.parse(export.schedule)
        except ScheduleError:  # written by somebody else than `audit.exports.definitions`
            logger.warning("the schedule of export %s is none", number)
            return []
        for slot in islice(schedules.slots(schedule, export.due_from or export.created_at, now), MOST_AT_ONCE):
            since = schedules.before(schedule, slot)
            run, new = ExportRun.objects.get_or_create(
                export=number, slot=slot, defaults=_new(export, slot, since, slot) | {"created_at": now}
            )
            if new:
                tell_run(run)
                made.append(run.pk)
            export.due_from = slot
        export.save(update_fields=["due_from"])
        queue.send(made)
    return made


def sweep(now: datetime | None = None) -> int:
    """Each minute: what is due of all exports, and every open run that nobody works on; how many were handed over."""
    now = now or timezone.now()
    waiting = Q(state="waiting") | Q(seen_at=None) | Q(seen_at__lt=now - STALE)
    for number in Export.objects.filter(enabled=True).exclude(schedule="").values_list("pk", flat=True):
        due(number, now)
    left = ExportRun.objects.filter(waiting, Q(retry_at=None) | Q(retry_at__lte=now), state__in=OPEN)
    numbers = list(left.order_by("created_at").values_list("pk", flat=True)[:MOST_SWEPT])
    queue.send(numbers)
    return len(numbers)


def asked(export: Export, actor: str, name: str) -> ExportRun:
    """A run of an export that somebody asks for now, over the time of its own search up to now. Asked for twice in one
    second it is one run. Raises ValueError, in words, where its search is no search any more or of the future."""
    form = FilterForm(dict(parse_qsl(export.query)), Directory())
    if not form.is_valid():
        raise ValueError("The search of this export cannot be made any more: change it.")
    now = timezone.now().astimezone(UTC)
    since, until = form.bounds()
    until = min(until, now)
    if since >= until:
        raise ValueError("The search is of a time that is yet to come.")
    # Never that of a slot of a schedule, which are whole minutes.
    slot = now.replace(microsecond=0, second=now.second or 1)
    defaults = _new(export, slot, since, until) | {"asked_by": actor, "created_at": now}
    with transaction.atomic():
        run, new = ExportRun.objects.get_or_create(export=export.pk, slot=slot, defaults=defaults)
        if new:
            tell_run(run, name)
        queue.send([run.pk])
    return run


def tell_run(run: ExportRun, name: str = "", **more: Any) -> None:
    """That a run was begun, or begun again: on record before any of its data is read."""
    tell(
        run.asked_by, name, "export.run", export=run.export, run=run.pk, slot=manifest.text_of(run.slot),
        since=manifest.text_of(run.since), until=manifest.text_of(run.until), owner=run.owner,
        personal=run.personal, **more,
    )  # fmt: skip


def _new(export: Export, slot: datetime, since: datetime, until: datetime) -> dict[str, Any]:
    return {
        "owner": export.owner, "since": since, "until": until, "personal": export.personal,
        "destination": export.destination, "file": file_name(export, slot),
        # A run that goes on after its export was changed does not become a mixture of both.
        "definition": {name: getattr(export, name) for name in DEFINED},
    }  # fmt: skip


def as_defined(export: Export, run: ExportRun) -> Export:
    """The export as it was when the run was begun, to be read and never saved."""
    for name in DEFINED:
        if name in run.definition:
            setattr(export, name, run.definition[name])
    return export


def file_name(export: Export, slot: datetime) -> str:
    """`denials-7-20261125T0200Z.csv`: the same for the same slot."""
    name = slugify(export.name)[:60].strip("-_") or "export"
    at = slot.astimezone(UTC)
    seconds = f"{at:%S}" if at.second else ""
    return f"{name}-{export.pk}-{at:%Y%m%dT%H%M}{seconds}Z.{EXTENSIONS[export.format]}"
