"""One round of anchoring: which anchors are due, what became of each, and what a person must be told."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from queue import Empty, SimpleQueue
from threading import Thread

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Max
from django.utils import timezone

from audit import logtree
from audit.alerts import clear, raise_alert
from audit.anchors.base import SECONDS, Anchor, AnchorError, Disagreement, Submission, ahead
from audit.models import Anchoring, AnchorState, Checkpoint, Log
from audit.trusting import believed
from muniment import checkpoints
from muniment.checkpoints import CheckpointError
from muniment.keys import TrustError
from muniment.tiles import TileMissing

logger = logging.getLogger(__name__)

ALERT_AFTER = 3  # failures in a row
LONGEST_WAIT = 15 * 60.0  # seconds
ROUND_SECONDS = 3 * SECONDS  # an anchor that takes longer is left to itself, and has failed
NEWEST = "newest checkpoint"  # what an alert about none of the anchors is about


@dataclass(frozen=True, slots=True)
class _Outcome:
    cosignature: str = ""
    error: AnchorError | None = None


def push(anchors: Sequence[Anchor]) -> None:
    """Hand the newest checkpoint to each anchor that is due, all at once, and note what became of it.

    A checkpoint that no published log key signed is not sent; that is an alert.
    """
    _know(anchors)
    newest = Checkpoint.objects.order_by("-log", "-size").first()
    if newest is None:
        return
    try:
        checkpoint = _believed(newest)
    except (CheckpointError, TrustError, Log.DoesNotExist) as error:
        raise_alert("verification-failed", NEWEST, f"The newest checkpoint is not sent to any anchor: {error}.")
        return
    clear("verification-failed", NEWEST)
    now = timezone.now()
    tasks = {
        anchor: Submission(checkpoint, newest.note, taken, _Proofs(newest).from_size)
        for anchor in anchors
        if (taken := _taken_if_due(anchor, newest, now)) is not None
    }
    for anchor, outcome in _each_apart(tasks).items():
        _settle(anchor, newest, outcome, now)


def _know(anchors: Sequence[Anchor]) -> None:
    """A row for each anchor that is configured, and for no other."""
    names = [anchor.name for anchor in anchors]
    gone = AnchorState.objects.exclude(name__in=names)
    for name in gone.values_list("name", flat=True):
        clear("anchor-failing", name)
    gone.delete()
    rows = [AnchorState(name=anchor.name, kind=anchor.kind) for anchor in anchors]
    AnchorState.objects.bulk_create(rows, ignore_conflicts=True)


def _believed(row: Checkpoint) -> checkpoints.Checkpoint:
    """The checkpoint, signed by a key that the log leads to, if the row is as its note says. Raises CheckpointError.

    One under a key that was slipped in would stand in the way of every later one where nothing can be deleted."""
    origin = Log.objects.get(number=row.log).origin
    found = checkpoints.read(row.note, believed().log_keys(origin))
    if (found.size, found.root) != (row.size, bytes(row.root)):
        raise CheckpointError("its row differs from its signed note")
    return found


def _taken_if_due(anchor: Anchor, newest: Checkpoint, now: datetime) -> int | None:
    """The size that the anchor took last of this log (0: none), if it is to be given the newest now."""
    state = AnchorState.objects.get(name=anchor.name)
    # A time to come is none of ours: whoever can write to the database could keep an anchor silent with one.
    if state.tried_at and timedelta(0) <= now - state.tried_at < _wait(state.failures):
        return None
    took = Anchoring.objects.filter(anchor=anchor.name, log=newest.log).aggregate(size=Max("size"), at=Max("at"))
    if took["size"] is None:
        return 0
    # One that took more than there is must be spoken of, however often that is.
    if took["size"] <= newest.size and timedelta(0) <= now - took["at"] < timedelta(seconds=anchor.every):
        return None
    return None if took["size"] == newest.size else int(took["size"])


def _wait(failures: int) -> timedelta:
    """How long to leave an anchor alone after so many failures: one interval, two, four, up to 15 minutes."""
    if not failures:
        return timedelta(0)
    interval: float = settings.MUNIMENT_ANCHOR_INTERVAL
    # Half an interval less, so that the round which comes a little early is the one that is meant.
    return timedelta(seconds=min(interval * 2 ** min(failures - 1, 20), LONGEST_WAIT) - interval / 2)


class _Proofs:
    """Consistency proofs that end at one checkpoint."""

    def __init__(self, newest: Checkpoint) -> None:
        self._newest = newest

    def from_size(self, first: int) -> list[bytes]:
        """RFC 9162, 2.1.4. Raises AnchorError where tiles are gone."""
        try:
            log = Log.objects.get(number=self._newest.log)
            return logtree.tree(log, self._newest.size).consistency(first)
        except (TileMissing, ValueError):
            raise AnchorError("the tiles of the log are not whole: there is no consistency proof") from None


def _each_apart(tasks: dict[Anchor, Submission]) -> dict[Anchor, _Outcome]:
    """Each anchor in a thread of its own, so that one which hangs holds up no other."""
    done: SimpleQueue[tuple[Anchor, _Outcome]] = SimpleQueue()

    def work(anchor: Anchor, submission: Submission) -> None:
        try:
            done.put((anchor, _attempt(anchor, submission)))
        finally:
            connection.close()  # this thread's, if a proof opened one

    for anchor, submission in tasks.items():
        Thread(target=work, args=(anchor, submission), name=f"anchor {anchor.kind}", daemon=True).start()
    outcomes = {anchor: _Outcome(error=AnchorError("it did not answer in time")) for anchor in tasks}
    deadline = time.monotonic() + ROUND_SECONDS
    for _ in tasks:
        try:
            anchor, outcome = done.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            break
        outcomes[anchor] = outcome
    return outcomes


def _attempt(anchor: Anchor, submission: Submission) -> _Outcome:
    try:
        if submission.taken > submission.checkpoint.size:
            raise ahead(submission.taken, submission.checkpoint.size)
        return _Outcome(anchor.send(submission))
    except AnchorError as error:
        return _Outcome(error=error)
    except Exception as error:  # a mistake of ours must not stop the others; what it says may hold a secret
        logger.error("anchor %s: %s", anchor.name, type(error).__name__)
        return _Outcome(error=AnchorError(f"it failed ({type(error).__name__})"))


def _settle(anchor: Anchor, newest: Checkpoint, outcome: _Outcome, now: datetime) -> None:
    """Note a success, or a failure and what a person must be told of it."""
    error = outcome.error
    if error is None:
        _succeeded(anchor, newest, outcome.cosignature, now)
        return
    if isinstance(error, Disagreement):
        # Another worker may have sent a newer one while we were on our way.
        newer = Checkpoint.objects.filter(log=newest.log, size__gt=newest.size, size__gte=error.held or 0)
        if error.held and error.held > newest.size and newer.exists():
            return
        raise_alert("verification-failed", anchor.name, f"The anchor {anchor.name} disagrees: {error}.")
    state = AnchorState.objects.get(name=anchor.name)
    failures = state.failures + 1
    AnchorState.objects.filter(name=anchor.name).update(failures=failures, error=str(error), tried_at=now)
    logger.warning("anchor %s: %s", anchor.name, error)
    if failures >= ALERT_AFTER:
        raise_alert("anchor-failing", anchor.name, f"{failures} times in a row: {error}.")


@transaction.atomic
def _succeeded(anchor: Anchor, newest: Checkpoint, cosignature: str, now: datetime) -> None:
    row = Anchoring(anchor=anchor.name, log=newest.log, size=newest.size, at=now, cosignature=cosignature)
    Anchoring.objects.bulk_create([row], ignore_conflicts=True)
    # From the rows, not from this round: another worker may have gone further meanwhile.
    took = Anchoring.objects.filter(anchor=anchor.name).order_by("-log", "-size")[0]
    AnchorState.objects.filter(name=anchor.name).update(
        log=took.log, size=took.size, reached_at=took.at, tried_at=now, failures=0, error=""
    )
    clear("anchor-failing", anchor.name)
    clear("verification-failed", anchor.name)
