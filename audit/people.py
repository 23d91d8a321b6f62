"""Find a person: from what somebody knows of them (e-mail address, the issuer's `sub`, or the uid) to the uid, through
the keyed hashes. Each look-up is in the log, without what was typed, and nobody makes more than sixty a minute."""

import re
from dataclasses import dataclass
from datetime import timedelta

from django.core.exceptions import PermissionDenied
from django.db import connection, transaction
from django.utils import timezone

from audit import subjects
from audit.staff_log import tell
from audit.tenants import seen, users
from audit.viewer import Viewer

UID = re.compile(r"usr_[A-Za-z0-9_-]{1,36}\Z")
LONGEST = 320  # characters: of an e-mail address (RFC 3696), and more than a `sub` has
MOST, SPAN = 60, timedelta(minutes=1)
ACTION = "person.lookup"
SHOWN = 100  # users of one look-up
# The look-ups of a minute are among the newest entries of the outbox; how many of those are looked at. More than
# anybody could put before them, each look at a page of users being fifty.
NEWEST = 30_000
LOCK = 0x6D756E69  # a class of advisory locks


class TooMany(Exception):
    """This member of staff has made as many look-ups in the last minute as anybody may."""


@dataclass(frozen=True, slots=True)
class Found:
    """The uids that a look-up came to, and what it was by: uid, email or sub."""

    by: str
    uids: list[str]


def look_up(viewer: Viewer, term: str) -> Found:
    """The users that are known by `term`, which is compared exactly (an e-mail address whatever its case). One
    transaction: the look-up is recorded with its result, or nothing is returned.

    It takes the right to read records only: whoever looks has the address already, and is shown a uid. A user of
    another tenant is as unknown to who is confined as one who is not there.
    Raises PermissionDenied; TooMany."""
    if not viewer.records:
        raise PermissionDenied
    with transaction.atomic():
        _one_at_a_time(viewer.actor)
        if lately(viewer.actor) >= MOST:
            raise TooMany
        found = _find(viewer, term)
        _tell(viewer, found)
    return found


def _tell(viewer: Viewer, found: Found) -> None:
    """A record for each user that is shown, so that it is found again under each; of the first alone `again` is not
    said, by which look-ups are counted."""
    for number, uid in enumerate(found.uids[:SHOWN] or [None]):
        again = True if number else None
        tell(viewer.actor, viewer.name, ACTION, by=found.by, found=len(found.uids), subject=uid, again=again)


LATELY = """SELECT count(*) FROM (SELECT actor, at, kind, members FROM audit_outbox ORDER BY id DESC LIMIT %s) newest
    WHERE actor = %s AND at > %s AND kind = 'staff' AND members ->> 'action' = %s AND NOT members ? 'again'"""


def lately(actor: str) -> int:
    """How many look-ups of the last minute the outbox has of somebody, who cannot take them away."""
    with connection.cursor() as cursor:
        cursor.execute(LATELY, [NEWEST, actor, timezone.now() - SPAN, ACTION])
        return int(cursor.fetchone()[0])


def _one_at_a_time(actor: str) -> None:
    """So that many look-ups at once are counted like one after the other."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [LOCK, actor])


def _find(viewer: Viewer, term: str) -> Found:
    if UID.match(term):
        return Found("uid", list(users(viewer.tenants).filter(uid=term).values_list("uid", flat=True)))
    if "@" in term and (uids := seen(viewer.tenants, subjects.find_by_email(term))):
        return Found("email", uids)
    uids = seen(viewer.tenants, subjects.find_by_sub(term))  # at some issuers it looks like an address
    return Found("sub" if uids or "@" not in term else "email", uids)
