"""Retention: deciding what is due, telling the log, waiting until that is sealed and anchored, then deleting
(DESIGN.md section 6, Storage). Run by the worker each night, and gone on with each five minutes; by `manage.py
retention` as well. Needs the tables' owner.

A run may be killed at any moment: it goes on from what its steps say. It is never done by two at once."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from itertools import groupby
from typing import Any

from django.conf import settings
from django.db import connections
from django.utils import timezone

from audit import alerts, live_keeping, logtree, rollups
from audit.alone import alone
from audit.models import Anchoring, AnchorState, Outbox, Record, RetentionRun, RetentionStep
from audit.retention import daily_keys, deciding, deleting
from audit.retention.deleting import Busy, Changed, followed, patiently, still
from muniment import statements

logger = logging.getLogger(__name__)

RUNNING = int.from_bytes(b"munretnt")
"""The session-level advisory lock of a run."""
BUDGET = 600.0  # seconds of one go; the next one, within five minutes, goes on
WAIT, LOOK = 20.0, 0.5  # seconds that a go waits for its records, and between two looks


class Running(Exception):
    """Another process is at it."""


class Waiting(Exception):
    """Not an error: why nothing can be deleted yet."""


class Wrong(Exception):
    """A step's record, or what retention goes by, is not what it should be."""


def run(now: datetime | None = None, wait: float = WAIT) -> RetentionRun:
    """Go on with the run that is not done, else begin one; returns it, done or not. `now` is for tests. Raises Running;
    what goes wrong is in the run (`failed`, with words) and in an alert."""
    with _running():
        found = unfinished() or RetentionRun.objects.using("owner").create(
            state="deciding", began_at=now or timezone.now(), rules=followed()
        )
        return _proceed(found, wait)


def go_on(wait: float = WAIT) -> RetentionRun | None:
    """Go on with the run that is not done, if there is one. Raises Running."""
    with _running():
        found = unfinished()
        return _proceed(found, wait) if found else None


def nightly() -> None:
    """A run; nothing, with a line in the log, where another process is at it."""
    try:
        run()
    except Running:
        logger.warning("retention is left out: another process is at it")


def further() -> None:
    """Go on; nothing where another process is at it."""
    with suppress(Running):
        go_on()


def unfinished() -> RetentionRun | None:
    """The newest run, where it is not done; one that failed is tried again."""
    newest = RetentionRun.objects.using("owner").order_by("-began_at", "-pk").first()
    return newest if newest is not None and newest.state != "done" else None


@contextmanager
def _running() -> Iterator[None]:
    with alone(RUNNING, using="owner") as mine:
        if not mine:
            raise Running
        yield


def _proceed(found: RetentionRun, wait: float) -> RetentionRun:
    """As far as it can be taken now."""
    until = time.monotonic() + BUDGET
    try:
        if found.state in ("deciding", "failed"):
            _say(found, "deciding", ended_at=None)
            _decide(found)
        still(found.pk)
        _await(found, wait)
        _told()
        _say(found, "deleting")
        if _delete(found, until):
            _done(found)
        else:
            _say(found, "deleting", "It goes on within five minutes.")
    except Waiting as reason:
        _say(found, "waiting", str(reason))
    except Changed:
        _over(found)
    except Exception as error:
        _failed(found, error)
    return found


# --- states -------------------------------------------------------------------------------------------------


def _say(found: RetentionRun, state: str, words: str = "", **also: Any) -> None:
    values = {"state": state, "words": words, **also}
    RetentionRun.objects.using("owner").filter(pk=found.pk).update(**values)
    found.refresh_from_db(using="owner")


def _done(found: RetentionRun, words: str = "") -> None:
    _say(found, "done", words, ended_at=timezone.now())
    alerts.clear("retention-failed")


def _failed(found: RetentionRun, error: Exception) -> None:
    """Why, in words that hold no data: what the database says of an error may."""
    words = str(error) if isinstance(error, Busy | Wrong) else f"It ended early ({type(error).__name__})."
    logger.error("retention failed: %s", words)
    connections["owner"].close()
    _say(found, "failed", f"{words} It is tried again within five minutes.", ended_at=timezone.now())
    alerts.raise_alert("retention-failed", "", words)


def _over(found: RetentionRun) -> None:
    """The rules are others by now: nothing more is deleted by the old ones, and the run is over."""
    RetentionStep.objects.using("owner").filter(run=found.pk, done_at=None).update(done_at=timezone.now())
    _done(found, "The rules were changed meanwhile: what was not deleted yet is decided anew by the next run.")


def _told() -> None:
    """By holds, rules and floors that are not what the log tells of them nothing is deleted. Raises Wrong."""
    if found := live_keeping.findings():
        raise Wrong(f"{found[0].message}: nothing was deleted.")


# --- deciding -----------------------------------------------------------------------------------------------


def _decide(found: RetentionRun) -> None:
    """Steps for every month that has none yet in this run, and for daily keys."""
    rollups.catch_up()
    steps = RetentionStep.objects.using("owner").filter(run=found.pk)
    have = set(steps.filter(holders=[]).values_list("month", flat=True))
    for month in deciding.months(found.began_at):
        if month not in have:
            deciding.tell(found, month, deciding.due(month, found.began_at))
    if not steps.exclude(holders=[]).exists() and (holders := daily_keys.due(found.began_at)):
        daily_keys.tell(found, holders)


# --- waiting ------------------------------------------------------------------------------------------------


def _await(found: RetentionRun, wait: float) -> None:
    """Until every step's record is sealed and, where anchors are configured, anchored. Raises Waiting when it takes
    longer than `wait` seconds."""
    until = time.monotonic() + wait
    for step in _open(found):
        while (words := _missing(step)) is not None:
            if time.monotonic() > until:
                raise Waiting(words)
            if (found.state, found.words) != ("waiting", words):
                _say(found, "waiting", words)
            time.sleep(LOOK)


def _open(found: RetentionRun) -> list[RetentionStep]:
    return list(RetentionStep.objects.using("owner").filter(run=found.pk, done_at=None).order_by("month", "pk"))


def _missing(step: RetentionStep) -> str | None:
    """What a step still waits for, in words; None where it may be done. Raises Wrong."""
    if step.record is None:
        entry = Outbox.objects.filter(pk=step.outbox).first()
        if entry is None:  # drained more than a week ago, and cleared: it is told once more
            _tell_again(step)
            return "Its records wait to be written: a web process does it."
        if entry.record_index is None:
            return "Its records wait to be written: a web process does it."
        step.record = entry.record_index
        step.save(using="owner", update_fields=["record"])
    log = logtree.log_of(step.record)
    leaf = step.record - log.start if log else 0
    newest = logtree.newest(log) if log else None
    if log is None or newest is None or newest.size <= leaf:
        return "Its records wait to be sealed: the sealer does it."
    _recognize(step)
    anchored = Anchoring.objects.filter(log=log.number, size__gt=leaf).exists()
    if not anchored and (settings.MUNIMENT_ANCHORS or AnchorState.objects.exists()):
        return "Its records are sealed and wait to be anchored."
    return None


def _tell_again(step: RetentionStep) -> None:
    """A step whose entry is gone from the outbox, without its place in the log being known."""
    found = RetentionRun.objects.using("owner").get(pk=step.run)
    if step.holders:
        step.outbox = daily_keys.announce(found, step.holders)
    else:
        step.outbox = deciding.announce(found, step.month, step.ranges, [], 0)
    step.save(using="owner", update_fields=["outbox"])


def _recognize(step: RetentionStep) -> None:
    """The record must say what the step does: nothing is deleted that the log does not account for. Raises Wrong."""
    index = step.record or 0
    record = Record.objects.filter(index=index).first()
    try:
        said: Any = statements.load(bytes(record.statement)) if record else {}
    except statements.StatementError:
        said = {}
    expected = ("keys.destroyed", step.holders) if step.holders else ("deleted", step.ranges)
    given = (said.get("action"), said.get("holders" if step.holders else "ranges")) if isinstance(said, dict) else ()
    if said.get("type") != "retention" or given != expected:
        raise Wrong(f"record {index:,} does not say what is to be deleted: nothing of it was.")


# --- deleting -----------------------------------------------------------------------------------------------


def _delete(found: RetentionRun, until: float) -> bool:
    """Do the steps, month by month; whether all are done."""
    steps = _open(found)
    for month, group in groupby((step for step in steps if not step.holders), key=lambda step: step.month):
        if time.monotonic() > until or not deleting.delete(month, list(group), until):
            return False
    for step in steps:
        if step.holders:
            patiently(partial(daily_keys.destroy, step, timezone.now()))
    return True
