"""What the worker does of an erasure, as the owner of the tables: in steps, each of which can be killed and done again.

1. Under the guard row: the holds are asked once more; then, in one transaction, the identifiers, their hashes and the
   key go, and the record `erasure/erased` is put into the outbox. From then on the person cannot be named any more.
2. The keyed hashes of the user's records go, in batches, each a transaction of its own under the guard row.
3. Files of exports that hold the user's protected details are flagged; when the last backup has expired it is complete.
"""

import logging
from datetime import datetime
from typing import Any

from django.contrib.auth import get_user_model
from django.db import OperationalError, connections, transaction
from django.db.models import Q
from django.utils import timezone

from audit import guard, holds, subjects
from audit.alone import alone
from audit.erasure import asking, of_exports
from audit.models import DataKey, Erasure, Subject
from audit.staff_log import tell

logger = logging.getLogger(__name__)

OWNER = "owner"
BATCH = 1000  # records that are looked at, and lose their hashes, in one transaction
MOST_COUNTED = 100_000
LOCK = "200ms"  # for every lock: no call waits for an erasure longer than that
KEYS = ("request_key", "trace_key", "session_key", "resource_key")
# Along the index whatever the planner knows of a table: to sort all of a user's records for each batch of them would
# make the whole quadratic.
ALONG = """SELECT set_config(name, 'off', true)
    FROM unnest(ARRAY['enable_sort', 'enable_bitmapscan', 'enable_seqscan']) name"""
# The last of the next so many records of a user, by the index alone; then what of them has a hash.
FIND = """SELECT max(at) FROM (
    SELECT at FROM audit_record WHERE subject = %s AND at > %s ORDER BY at LIMIT %s) next"""
CLEAR = (  # of names that are ours
    f"UPDATE audit_record SET {', '.join(f'{key} = NULL' for key in KEYS)}"  # noqa: S608
    f" WHERE subject = %s AND at > %s AND at <= %s AND ({' OR '.join(f'{key} IS NOT NULL' for key in KEYS)})"
)
BEGINNING = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
WORKING = 0x65726173  # an advisory lock
FAILED = "It ended early ({}); see the worker's log. It is tried again within a minute."
BUSY = "The database was busy or away; it is tried again within a minute."


def work() -> int:
    """Every erasure that waits for something, one after the other; how many were moved on. One that fails says why,
    stays as it is, and is tried again at the next call. Nothing while another worker is at it."""
    moved = 0
    with alone(WORKING, using=OWNER) as mine:
        for row in due() if mine else []:
            try:
                moved += advance(row)
            except OperationalError as error:  # a lock that was not to be had, or the database is away
                logger.warning("erasure %d waits: %s", row.pk, type(error).__name__)
                note(row.pk, BUSY)
            except Exception as error:  # of this one: the others are done all the same
                logger.error("erasure %d failed: %s", row.pk, type(error).__name__)
                note(row.pk, FAILED.format(type(error).__name__))
    return moved


def due() -> list[Erasure]:
    """What is asked for, not done to its end, or complete by now; the oldest first."""
    over = Q(state="erased", hashes_gone_at=None) | Q(state="erased", backups_until__lte=timezone.now())
    return list(Erasure.objects.using(OWNER).filter(Q(state="asked") | over).order_by("asked_at", "pk"))


def note(number: int, words: str) -> None:
    """Say in the row why it waits, where that can be written."""
    try:
        Erasure.objects.using(OWNER).filter(pk=number).update(words=words)
    except OperationalError:
        logger.warning("erasure %d: the database is away", number)


def advance(row: Erasure) -> bool:
    """All that can be done of one erasure now; whether that was anything."""
    moved = False
    if row.state == "asked":
        moved, row = True, forget(row.pk, counts_of(row.subject))
    if row.state == "erased" and row.hashes_gone_at is None:
        of_exports.flag(row.subject, OWNER)
        clear_hashes(row.subject)
        Erasure.objects.using(OWNER).filter(pk=row.pk).update(hashes_gone_at=timezone.now(), words="")
        return True
    if row.state == "erased" and row.backups_until is not None and row.backups_until <= timezone.now():
        Erasure.objects.using(OWNER).filter(pk=row.pk, state="erased").update(state="complete")
        return True
    return moved


def counts_of(uid: str) -> dict[str, int]:
    """What records of the user there are, of at most the newest 100,000; nothing where that took too long."""
    try:
        with transaction.atomic(using=OWNER), connections[OWNER].cursor() as cursor:
            cursor.execute("SELECT set_config('statement_timeout', '4s', true)")
            return asking.count(uid, MOST_COUNTED, OWNER).said()
    except OperationalError:
        return {}


def forget(number: int, counts: dict[str, int]) -> Erasure:
    """Step 1, or the refusal that takes its place. Raises OperationalError where a lock cannot be had."""
    with guard.locked(OWNER, lock_timeout=LOCK):
        row = Erasure.objects.using(OWNER).select_for_update().get(pk=number)
        if row.state != "asked":
            return row
        held = holds.covering_subject(row.subject, OWNER)
        if held or not _may(row.asked_by):
            row.state, row.holds = "refused", [hold.pk for hold in held]
            row.words = asking.refusal(held) or "Refused: who asked for it may not erase users any more."
            row.save(update_fields=["state", "holds", "words"])
            asking.tell_refused(row, OWNER)
            return row
        row.state, row.erased_at, row.words, row.counts = "erased", timezone.now(), "", counts
        row.backups_until = asking.backups_until(row.erased_at)
        row.save(update_fields=["state", "erased_at", "words", "counts", "backups_until"])
        destroy(row.subject, row.erased_at)
        private = {"reference": row.reference, "reason": row.reason}
        tell(row.asked_by, "", "erased", private, kind="erasure", using=OWNER, subject=row.subject,
             holder=row.subject, erasure=row.pk, **counts)  # fmt: skip
    subjects.forget(row.subject)
    return row


def destroy(uid: str, at: datetime) -> None:
    """The identifiers, their hashes and the key of a user, in the caller's transaction under the guard row.

    The user's row is locked before the head is, so that nobody waits for the head because of a lock on a user; and the
    head is held to the end, so that each write batch either sees that the user is gone, or is there when the hashes of
    records are taken away."""
    user = Subject.objects.using(OWNER).select_for_update().filter(uid=uid).first()
    with connections[OWNER].cursor() as cursor:
        cursor.execute("SELECT 1 FROM audit_head FOR UPDATE")
    if user is not None:
        for column in asking.IDENTIFIERS:
            setattr(user, column, None)
        user.erased_at = user.erased_at or at
        user.save(using=OWNER, update_fields=[*asking.IDENTIFIERS, "erased_at"])
    DataKey.objects.using(OWNER).filter(holder=uid).delete()


def _may(actor: str) -> bool:
    """Whether who asked may still erase: asked again where it is done."""
    kind, _, number = actor.partition(":")
    if kind == "system":  # an erasure that is applied again after a restore
        return True
    if not number.isdecimal():
        return False
    user: Any = get_user_model().objects.using(OWNER).filter(pk=number).first()
    return user is not None and user.is_active and user.is_staff and user.has_perm("audit.add_erasure")


def clear_hashes(uid: str) -> int:
    """Step 2: how many records lost their hashes. Going on after it was killed looks at the user's records once more, a
    thousand at a time."""
    cleared, after = 0, BEGINNING
    while True:
        with guard.locked(OWNER, lock_timeout=LOCK), connections[OWNER].cursor() as cursor:
            cursor.execute(ALONG)
            cursor.execute(FIND, [uid, after, BATCH])
            (last,) = cursor.fetchone()
            if last is None:
                return cleared
            cursor.execute("SELECT set_config('muniment.maintenance', 'on', true)")
            cursor.execute(CLEAR, [uid, after, last])
            cleared, after = cleared + cursor.rowcount, last
