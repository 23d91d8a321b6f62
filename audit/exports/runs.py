"""Runs of exports: asked for or due, taken as far as they go, retried, failed, cancelled, done. Each step can be killed
and taken again; each change of state is one transaction with its record.

What an outage or a full disk stops is tried again by itself, a few times; what cannot get better fails at once. Five
failed runs in a row disable the export, and its owner is told.
"""

import logging
import traceback
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.db import DatabaseError, transaction
from django.db.models import F
from django.utils import timezone

from audit import destinations
from audit.destinations import DeliveryFailed
from audit.exports import due, files, making, reading, store
from audit.exports import manifest as export_manifest
from audit.exports.claims import Cancelled, Claim, Lost, claimed
from audit.exports.making import Refused
from audit.exports.store import StoreFailed
from audit.models import Export, ExportRun
from audit.staff_log import tell

logger = logging.getLogger(__name__)

SOON = 2.0  # seconds
SOON_FOR = timedelta(minutes=2)  # then the sweeper looks after it
DELAYS = (60, 300, 1500, 7200)
"""Seconds until a run is tried again after its first, second... failure in a row; then it has failed."""
MOST_INTERRUPTED = 10
MOST_FAILURES = 5
NOT_OVER = "Waits until no record of its time can come any more."
NOT_SEALED = "Waits for the sealer: its last record is not sealed yet."
ERASED = "A user who may be in it was erased meanwhile: it is made anew, without them."


class Waits(Exception):
    """It cannot be made yet; why."""


def work(number: int) -> float | None:
    """Take a run as far as it goes now; never raises for what may become of it. Seconds after which it is worth looking
    again, None where the sweeper is soon enough or nothing is left to do."""
    with claimed(number) as claim:
        if claim is None or (claim.run.retry_at is not None and claim.run.retry_at > timezone.now()):
            return None  # an older message, before its time
        try:
            _forward(claim)
        except Lost:
            logger.warning("export run %s went on elsewhere", number)
        except Exception as error:
            return _ended(claim, error)
    return None


def _ended(claim: Claim, error: Exception) -> float | None:
    """What becomes of a run that did not come to its end."""
    with suppress(Lost, DatabaseError):  # without a database it stays as it is, for the sweeper
        match error:
            case Cancelled():
                _cancelled(claim)
            case Waits():
                claim.save(state="waiting", words=str(error))
                return SOON if timezone.now() - claim.run.created_at < SOON_FOR else None
            case Refused() | export_manifest.NoKey():
                _failed(claim, str(error), "refused")
            case StoreFailed():
                _again(claim, str(error), "store")
            case OSError():
                _again(claim, store.words(error), "store")
            case DeliveryFailed():
                _again(claim, f"Not delivered to {claim.run.destination}: {error}.", "delivery")
            case _:
                logger.error("export run %s: %s in %s", claim.run.pk, type(error).__name__, _where(error))
                _again(claim, f"It failed ({type(error).__name__}); the worker's log says more.", "fault")
    return None


def _where(error: Exception) -> str:
    """The lines that a fault came from; what it says itself may be somebody's data."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)


def _forward(claim: Claim) -> None:
    run = claim.run
    claim.check()
    export = Export.objects.filter(pk=run.export).first()
    if export is None:
        raise Refused("The export was deleted.")
    export = due.as_defined(export, run)
    making.check(run, export)
    if run.state == "delivering" and (run.erased_since or not store.path(run.file).exists()):
        claim.save(state="waiting", next=None)  # it was kept for a time only, or is not to leave: made once more
    if run.state != "delivering":
        _interrupted(claim)
        sealed = _ready(claim)
        if run.erased_since:  # their keys were gone before this was said: what is read from now on names none of them
            claim.save(next=None, erased_since=[])
        claim.save(state="running", words="", retry_at=None, began_at=run.began_at or timezone.now())
        making.make(claim, export, sealed)
        claim.check()
        _made(claim, export)
    if run.state == "delivering":
        _names_nobody_erased(run)
        names = (run.file, run.file + store.MANIFEST)
        destinations.deliver(run.destination, [store.path(name) for name in names])
        _done(claim)


def _interrupted(claim: Claim) -> None:
    """A run whose worker ended in the midst of it goes on, but not for ever without coming on."""
    if claim.run.state == "running":
        if claim.run.tries >= MOST_INTERRUPTED:
            raise Refused(f"Its worker was ended {MOST_INTERRUPTED} times in the midst of it.")
        claim.save(tries=claim.run.tries + 1)


def _ready(claim: Claim) -> int:
    """The sealed size, once all records of the run's time are in the log and sealed. Raises Waits."""
    run = claim.run
    if run.first is None or run.last is None:
        if not reading.is_complete(run.until):
            raise Waits(NOT_OVER)
        found = reading.range_of(run.since, run.until)
        claim.save(first=found.first, last=found.last)
    sealed = reading.sealed_size()
    if run.last is not None and run.last >= sealed:
        raise Waits(NOT_SEALED)
    return sealed


def _names_nobody_erased(run: ExportRun) -> None:
    """Raises Waits where an erasure has marked the run since it was taken up: the file may hold who was erased."""
    if ExportRun.objects.filter(pk=run.pk).exclude(erased_since=[]).exists():
        raise Waits(ERASED)


def _made(claim: Claim, export: Export) -> None:
    """The file is whole: its manifest, its name, and the record, which says where it is to go before it goes."""
    run, now = claim.run, timezone.now()
    _names_nobody_erased(run)
    manifest, length, digest = export_manifest.make(run, export, store.part(run.pk), now)
    if run.manifest and digest == run.sha256:
        manifest = run.manifest  # what may have been delivered already is the same again
    files.publish(run, manifest)
    with transaction.atomic():
        claim.save(
            state="delivering" if run.destination else "done", bytes=length, sha256=digest, manifest=manifest, tries=0,
            words="", ended_at=None if run.destination else now, removed_at=None,
        )  # fmt: skip
        _tell(run, "export.done", records=run.records, sha256=digest, destination=run.destination or None)
        if not run.destination:
            Export.objects.filter(pk=run.export).update(failures=0)


def _done(claim: Claim) -> None:
    now = timezone.now()
    with transaction.atomic():
        claim.save(state="done", delivered_at=now, ended_at=now, words="", tries=0, retry_at=None)
        _tell(claim.run, "export.delivered", destination=claim.run.destination, sha256=claim.run.sha256)
        Export.objects.filter(pk=claim.run.export).update(failures=0)


def _cancelled(claim: Claim) -> None:
    run = claim.run
    files.discard(run)
    if run.sha256:
        with suppress(StoreFailed):
            store.remove(run)
    with transaction.atomic():
        claim.save(state="cancelled", words="", ended_at=timezone.now(), retry_at=None)
        by = ExportRun.objects.filter(pk=run.pk).values_list("cancelled_by", flat=True).get()
        tell(by or "system", "", "export.cancelled", **_about(run))


def _again(claim: Claim, words: str, cause: str) -> None:
    """Try it again later, unless that was done often enough."""
    tries = claim.run.tries + 1
    if tries > len(DELAYS):
        _failed(claim, words, cause)
        return
    at = timezone.now() + timedelta(seconds=DELAYS[tries - 1])
    state = "delivering" if cause == "delivery" else "waiting"
    claim.save(state=state, tries=tries, retry_at=at, words=f"{words} It is tried again at {at:%H:%M} UTC.")


def _failed(claim: Claim, words: str, cause: str) -> None:
    run = claim.run
    if cause != "delivery":  # else the file is there for download
        files.discard(run)
    with transaction.atomic():
        claim.save(state="failed", words=words, ended_at=timezone.now(), retry_at=None)
        _tell(run, "export.failed", private={"reason": words}, cause=cause)
        Export.objects.filter(pk=run.export).update(failures=F("failures") + 1)
        tired = Export.objects.filter(pk=run.export, failures__gte=MOST_FAILURES, enabled=True).exclude(schedule="")
        why = f"{MOST_FAILURES} runs in a row have failed, the last one: {words}"
        if tired.update(enabled=False, words=why):
            tell("system", "", "export.disabled", {"reason": why}, export=run.export, owner=run.owner)


def _about(run: ExportRun) -> dict[str, Any]:
    slot = export_manifest.text_of(run.slot)
    return {"export": run.export, "run": run.pk, "slot": slot, "owner": run.owner, "personal": run.personal}


def _tell(run: ExportRun, action: str, *, private: dict[str, Any] | None = None, **more: Any) -> None:
    """What became of a run: by whoever asked for it, or by the schedule."""
    tell(run.asked_by, "", action, private, **_about(run), **more)
