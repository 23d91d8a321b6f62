"""Erasing a user (GDPR Art. 17): asking for it, and what is said before. The worker does it (`audit.erasure.erasing`),
since what serves may delete neither keys nor hashes.

An erasure destroys the user's key, the identifiers and the keyed hashes by which user and records are found. Statements
stay, under a random uid; so every count and every proof stays what it was."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, connections
from django.utils import timezone

from audit import guard, holds, subjects
from audit.holds import HoldError, text
from audit.models import DataKey, Erasure, ExportRun, Hold, Subject
from audit.staff_log import tell
from audit.viewer import viewer_of

MOST = 10_000  # records that the page counts
DONE = ("erased", "complete")
LONGEST = {"reference": 120, "reason": 2000}
ANOTHER = "This user's erasure was asked for already."
IDENTIFIERS = ("sub", "email", "email_key", "identity_key")
COUNT = """SELECT count(*), count(*) FILTER (WHERE protected), count(*) FILTER (WHERE hashed), min(at), max(at) FROM (
    SELECT at, disclosures IS NOT NULL AND holder = subject AS protected,
        coalesce(request_key, trace_key, session_key, resource_key) IS NOT NULL AS hashed
    FROM audit_record WHERE subject = %s ORDER BY at DESC LIMIT %s) newest"""


class ErasureError(Exception):
    """The erasure cannot be asked for; the message is for the person who asked. `field` is what is wrong."""

    def __init__(self, words: str, field: str | None = None) -> None:
        super().__init__(words)
        self.field = field


@dataclass(frozen=True, slots=True)
class Counted:
    """What records of a user there are, as far as they were looked at: `most` says that there are more."""

    records: int
    protected: int
    hashed: int
    first: datetime | None
    last: datetime | None
    most: bool

    def said(self) -> dict[str, int]:
        """For the record and the row."""
        return {"records": self.records, "protected": self.protected, "hashed": self.hashed}


@dataclass(frozen=True, slots=True)
class Survey:
    """What an erasure would forget, and what stands in its way or remains elsewhere."""

    counted: Counted
    has_email: bool
    holds: Sequence[Hold]
    exports: Sequence[ExportRun]
    backup_days: int


def count(uid: str, most: int = MOST, using: str = "default") -> Counted:
    """What records of a user there are, the newest `most` of them, along the index."""
    with connections[using].cursor() as cursor:
        cursor.execute(COUNT, [uid, most + 1])
        records, protected, hashed, first, last = cursor.fetchone()
    return Counted(min(records, most), min(protected, most), min(hashed, most), first, last, records > most)


def survey(user: Subject) -> Survey:
    """What the page says before: bounded, and without opening anything."""
    from audit.erasure.of_exports import holding  # it reads searches, which this page alone does not need

    return Survey(
        count(user.uid), user.email is not None, holds.covering_subject(user.uid), holding(user.uid),
        settings.MUNIMENT_BACKUP_DAYS,
    )  # fmt: skip


def latest(uid: str) -> Erasure | None:
    """The newest word on this user's erasure."""
    return Erasure.objects.filter(subject=uid).order_by("-asked_at").first()


def ask(user: Any, uid: str, reference: str, reason: str) -> Erasure:
    """Have a user erased: the row that the worker acts on, and the record that it was asked for. Under a hold it is
    refused at once, which is recorded as well.

    Raises PermissionDenied; ErasureError for a user who is not there or was erased, and for texts that name somebody;
    django.db.OperationalError where the guard row cannot be had."""
    if not (user.is_active and user.is_staff and user.has_perm("audit.add_erasure")):
        raise PermissionDenied
    with guard.locked(lock_timeout=holds.LOCK):
        row = Subject.objects.filter(uid=uid).first()
        if row is None or row.erased_at is not None:
            raise ErasureError("This user was erased already." if row else "There is no such user.")
        reference, reason = (
            checked(row, name, value) for name, value in (("reference", reference), ("reason", reason))
        )
        held = holds.covering_subject(uid)
        return _asked(user, uid, reference, reason, held)


def _asked(user: Any, uid: str, reference: str, reason: str, held: Sequence[Hold]) -> Erasure:
    """The row and its record; under the guard row."""
    viewer, now = viewer_of(user), timezone.now()
    try:
        made = Erasure.objects.create(
            subject=uid, state="refused" if held else "asked", reference=reference, reason=reason,
            asked_by=viewer.actor, asked_at=now, words=refusal(held), holds=[hold.pk for hold in held],
        )  # fmt: skip
    except IntegrityError:
        raise ErasureError(ANOTHER) from None
    private = {"reference": reference, "reason": reason}
    tell(viewer.actor, viewer.name, "asked", private, kind="erasure", subject=uid, erasure=made.pk)
    if held:
        tell_refused(made)
    return made


def tell_refused(row: Erasure, using: str = "default") -> None:
    """Have it recorded that an erasure was refused, and by which holds."""
    tell(row.asked_by, "", "refused", {"words": row.words}, kind="erasure", using=using, subject=row.subject,
         erasure=row.pk, holds=row.holds or None)  # fmt: skip


def refusal(held: Sequence[Hold]) -> str:
    """Why holds refuse an erasure; empty for none."""
    if not held:
        return ""
    if len(held) == 1:
        return f"Refused: the legal hold of matter {held[0].matter} covers this user's records."
    return f"Refused: the legal holds of matters {holds.matters(held)} cover this user's records."


def checked(user: Subject, field: str, value: str) -> str:
    """A text that is kept with the erasure for ever, and so may not name the user. Raises ErasureError."""
    try:
        found = text(value, field, LONGEST[field])
    except HoldError as error:
        raise ErasureError(str(error), error.field) from None
    named = [subjects.read(user, column) for column in ("sub", "email")]
    for name in [user.uid, *filter(None, named)]:
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", found, re.IGNORECASE):
            raise ErasureError("That holds an identifier of the user, and would outlive the erasure.", field)
    return found


def emptied(user: Subject) -> bool:
    """Whether nothing is left by which the user could be found, but for the records' hashes."""
    gone = user.erased_at is not None and all(getattr(user, name) is None for name in IDENTIFIERS)
    return gone and not DataKey.objects.using(user._state.db).filter(holder=user.uid).exists()


def backups_until(erased_at: datetime) -> datetime:
    """When the last backup expires that may still hold a user who was erased then."""
    return erased_at + timedelta(days=settings.MUNIMENT_BACKUP_DAYS)
