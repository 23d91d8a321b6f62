"""`POST /v1/verify?wait=sealed`: the proof with the answer, for a caller that has the time.

Waiting holds a thread of the web process, so that few may wait at once; it never changes what was decided.
"""

import logging
import time
from threading import BoundedSemaphore
from uuid import UUID

from django.conf import settings
from django.db import Error

from audit import logtree, search
from audit.models import Record
from muniment.notes import NoteError
from muniment.tiles import TileMissing

logger = logging.getLogger(__name__)

LONGEST, POLL = 5.0, 0.1  # seconds

seats = BoundedSemaphore(max(0, settings.MUNIMENT_SEALED_WAITERS))


def tlog_proof(record: UUID) -> str | None:
    """The proof of a record (C2SP tlog-proof) as soon as a checkpoint covers it; None where that takes longer than
    5 s, where too many calls wait already, and where the log cannot be read: the answer stands in any case."""
    try:
        found = search.by_id(record)
        return None if found is None else _proof(found) or _waited(found)
    except (Error, TileMissing, NoteError) as error:
        logger.error("a proof was waited for and could not be made (%s)", type(error).__name__)
        return None


def _proof(record: Record) -> str | None:
    try:
        return logtree.proof_of(record).encode()
    except logtree.NotSealed:
        return None


def _waited(record: Record) -> str | None:
    if not seats.acquire(blocking=False):
        return None
    try:
        deadline = time.monotonic() + LONGEST
        while time.monotonic() < deadline:
            time.sleep(POLL)
            if proof := _proof(record):
                return proof
        return None
    finally:
        seats.release()
