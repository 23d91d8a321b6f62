"""Runs of the log's verification that are kept: what was looked at, what was found, and the alert where something was.

Two at once would only slow each other down, so a lock lets one run at a time."""

import logging
import random
from collections.abc import Callable
from contextlib import suppress

from django.db import Error
from django.utils import timezone

from audit import alerts, logtree, verification
from audit.alone import alone
from audit.models import Record, Verification
from audit.record_check import verify_record
from audit.spans import Spans
from audit.trusting import believed, given
from audit.verification import Report
from muniment.checkpoints import CheckpointError
from muniment.examine import Examiner
from muniment.findings import Finding
from muniment.keys import Trust

logger = logging.getLogger(__name__)

RUNNING = int.from_bytes(b"munverif")
"""The session-level advisory lock of a verification."""

KEPT = 100  # findings in the row of a run
SAMPLE = 1000


class Busy(Exception):
    """Another verification is running."""


def run(kind: str, look: Callable[[], Report]) -> Report:
    """Run one verification of a kind (`full`, `since`, `sample`), keep what it found, raise or end the alert. Raises
    Busy, and whatever `look` raises."""
    with alone(RUNNING) as mine:
        if not mine:
            raise Busy
        row = Verification.objects.create(kind=kind, began_at=timezone.now())
        try:
            report = look()
        except CheckpointError:  # what was given is none
            raise
        except Exception as error:  # a log that cannot be verified is not one that holds
            words = f"The verification ended early ({type(error).__name__}): the log could not be looked at whole."
            with suppress(Error):
                alerts.raise_alert("verification-failed", "", words)
            raise
        row.ended_at, row.records, row.size = timezone.now(), report.records, report.size
        row.findings = [{"code": f.code, "index": f.index, "message": f.message} for f in report.findings[:KEPT]]
        row.count = report.count
        row.save(update_fields=["ended_at", "records", "size", "findings", "count"])
    if report.count:
        first = report.findings[0]
        more = f" And {report.count - 1:,} more." if report.count > 1 else ""
        alerts.raise_alert("verification-failed", "", f"{first.code}: {first.message}.{more}")
        logger.error("the verification of the log found %d things, the first: %s", report.count, first.line)
    elif kind == "full":  # a look at part of the log ends nothing
        alerts.clear("verification-failed")
    return report


def run_full() -> None:
    """The nightly run; nothing, with a line in the log, when one is running."""
    try:
        run("full", lambda: verification.verify(trust=given()))
    except Busy:
        logger.warning("the verification of the log is left out: another one is running")


def run_sample() -> None:
    """The hourly run on a sample; nothing, with a line in the log, when one is running."""
    try:
        run("sample", lambda: sample(SAMPLE))
    except Busy:
        logger.warning("the verification of a sample is left out: another one is running")


def sample(count: int) -> Report:
    """Look at so many sealed records, taken at random: each with its columns, its write batch and its way to the signed
    root. Keys are those that the log leads to."""
    report = Report(notes=["A sample, checked against the keys that the log leads to."])
    log = logtree.current()
    newest = logtree.newest(log) if log else None
    if log is None or newest is None:
        return report
    report.size = log.start + newest.size
    trust = believed()
    retained = Spans(_retained(trust))
    for index in sorted(random.sample(range(log.start, report.size), min(count, newest.size))):
        found = list(Record.objects.filter(index=index)[:2])
        if not found and index not in retained:
            words = f"record {index:,} is missing, and no retention record accounts for it"
            report.add(Finding("record-missing", words, index))
        if len(found) > 1:
            report.add(Finding("record-inserted", f"there are two records {index:,}", index))
        for record in found[:1]:
            report.records += 1
            for finding in verify_record(record, trust):
                report.add(finding)
    return report


def _retained(trust: Trust) -> list[tuple[int, int]]:
    """What retention records say was deleted."""
    examiner = Examiner(Trust(), lambda finding: None)
    for record in Record.objects.filter(type="retention").order_by("index").iterator():
        if not verify_record(record, trust):
            examiner.context(record.index, bytes(record.statement))
    return examiner.retained
