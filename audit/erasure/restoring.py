"""After a restore: what a backup brought back of users who were erased goes again, before anything is served.

Which users were erased is told by the log (records `erasure/erased`), or by a file that `manage.py erasures list` made:
it names them by uid alone, and is to be kept where the backups are not."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from itertools import pairwise

from django.db import connections, transaction
from django.db.models import Max, Min
from django.utils import timezone

from audit import guard, subjects
from audit.erasure import asking, erasing
from audit.live_records import EPOCH, MICROSECOND
from audit.maintenance import months
from audit.models import DataKey, Erasure, Outbox, Record, Subject
from audit.people import UID
from audit.staff_log import tell
from muniment import statements

PAGE = 500
NEWEST = 5  # records of a user in each month whose hashes a web process looks at
SECONDS = "5s"
# A month that was put back shows in its newest records; that an erasure is still at work on its hashes does not count.
HASHED = """SELECT u FROM unnest(%s::text[]) u, LATERAL (
        SELECT coalesce(request_key, trace_key, session_key, resource_key) AS hash FROM audit_record
        WHERE subject = u AND at >= %s AND at < %s ORDER BY at DESC LIMIT %s) newest WHERE hash IS NOT NULL LIMIT 1"""


@dataclass(frozen=True, slots=True)
class Erased:
    """One erasure: of whom, when, and at which index the log has it; None where that is on its way, or elsewhere."""

    uid: str
    at: datetime
    index: int | None

    def line(self) -> str:
        """As one line of JSON (RFC 8259)."""
        at = self.at.astimezone(UTC).isoformat().replace("+00:00", "Z")
        return json.dumps({"uid": self.uid, "at": at, "index": self.index})


class LineError(Exception):
    """A line of a list of erasures that is none; the message says which, and nothing of what it holds."""


# --- which there are ------------------------------------------------------------------------------------------


def on_record(using: str = "default") -> Iterator[Erased]:
    """The erasures that the log holds, in its order, a page at a time; then those on their way into it."""
    after = -1
    while rows := list(_page(after, using)):
        for index, at, statement in rows:
            after = index
            if uid := _holder(bytes(statement)):
                yield Erased(uid, at, index)
    pending = Outbox.objects.using(using).filter(record_index=None, kind="erasure", members__action="erased")
    for uid, at in pending.order_by("pk").values_list("members__holder", "at"):
        if isinstance(uid, str) and UID.match(uid):
            yield Erased(uid, at, None)


def _page(after: int, using: str) -> Iterable[tuple[int, datetime, bytes | memoryview]]:
    rows = Record.objects.using(using).filter(type="erasure", index__gt=after).order_by("index")
    return rows.values_list("index", "at", "statement")[:PAGE]


def _holder(statement: bytes) -> str | None:
    """Whose erasure a record tells; None for another record, and for bytes that are none."""
    try:
        said = statements.load(statement)
    except statements.StatementError:
        return None
    if not isinstance(said, dict) or (said.get("type"), said.get("action")) != ("erasure", "erased"):
        return None
    uid = said.get("holder")
    return uid if isinstance(uid, str) and UID.match(uid) else None


def parse(lines: Iterable[str]) -> Iterator[Erased]:
    """The erasures of a list. Raises LineError for a line that is none."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            uid, at, index = said["uid"], datetime.fromisoformat(said["at"]), said.get("index")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise LineError(f"line {number} is not an erasure") from None
        fits = isinstance(uid, str) and UID.match(uid) and at.tzinfo is not None and EPOCH <= at <= timezone.now()
        if not fits or not (index is None or (type(index) is int and index >= 0)):
            raise LineError(f"line {number} is not an erasure")
        yield Erased(uid, at, index)


# --- what is there in spite of it -------------------------------------------------------------------------------


def undone(using: str = "default") -> list[str]:
    """Some of the users who were erased and of whom there is something again: identifiers, key, or hashes among their
    newest records of each month. Empty when all is as the log tells. Bounded; `apply` looks at everything."""
    page: list[str] = []
    for one in on_record(using):
        page.append(one.uid)
        if len(page) == PAGE:
            if found := _back(page, using):
                return found
            page = []
    return _back(page, using) if page else []


def _back(uids: Sequence[str], using: str) -> list[str]:
    """Those of a page of erased users of whom there is something."""
    found = set(DataKey.objects.using(using).filter(holder__in=uids).values_list("holder", flat=True))
    for user in Subject.objects.using(using).filter(uid__in=uids):
        if user.erased_at is None or any(getattr(user, name) is not None for name in asking.IDENTIFIERS):
            found.add(user.uid)
    at_work = Erasure.objects.using(using).filter(subject__in=uids, state="erased", hashes_gone_at=None)
    settled = sorted(set(uids) - set(at_work.values_list("subject", flat=True)))
    return sorted(found) or _hashed(settled, using)


def _hashed(uids: Sequence[str], using: str) -> list[str]:
    ends = Record.objects.using(using).aggregate(first=Min("at"), last=Max("at"))
    if not uids or ends["first"] is None:
        return []
    first, last = ends["first"].date(), ends["last"].date()
    starts = months(first, (last.year - first.year) * 12 + last.month - first.month + 2)
    with connections[using].cursor() as cursor:
        for low, high in pairwise(datetime.combine(day, time(), UTC) for day in starts):
            cursor.execute(HASHED, [list(uids), low, high, NEWEST])
            if row := cursor.fetchone():
                return [str(row[0])]
    return []


# --- erasing again ----------------------------------------------------------------------------------------------


def apply(erasures: Iterable[Erased], recorded: bool) -> tuple[int, int]:
    """Erase each of them again, as the owner of the tables: how many there were, and of how many there was something.
    `recorded`: this log holds the erasures; else each that is carried out is recorded in it.

    No hold is asked: these users were erased when none covered them. It can be killed, and done again."""
    seen, mended = set[str](), 0
    for one in erasures:
        if one.uid not in seen:
            seen.add(one.uid)
            mended += _again(one, recorded)
    return len(seen), mended


def _again(one: Erased, recorded: bool) -> bool:
    using = erasing.OWNER
    user = Subject.objects.using(using).filter(uid=one.uid).first()
    keyed = DataKey.objects.using(using).filter(holder=one.uid).exists()
    there = keyed or (user is not None and not asking.emptied(user))
    if there:
        with guard.locked(using, lock_timeout="5s"):
            erasing.destroy(one.uid, one.at)
            number = _row(one)
            if not recorded:
                tell("system", "", "erased", kind="erasure", using=using, subject=one.uid, holder=one.uid,
                     erasure=number, first=int((one.at - EPOCH) / MICROSECOND))  # fmt: skip
        subjects.forget(one.uid)
    cleared = erasing.clear_hashes(one.uid) if user is not None else 0
    if there or cleared:
        Erasure.objects.using(using).filter(subject=one.uid, state__in=asking.DONE).update(
            hashes_gone_at=timezone.now()
        )
    return there or cleared > 0


def _row(one: Erased) -> int:
    """The row of an erasure that was restored to what it was before, or is not there at all; in the caller's
    transaction."""
    rows = Erasure.objects.using(erasing.OWNER)
    row = rows.select_for_update().filter(subject=one.uid).exclude(state="refused").first()
    if row is None:
        row = Erasure(
            subject=one.uid, reference="applied again", reason="Erased before the database was restored.",
            asked_by="system", asked_at=timezone.now(),
        )  # fmt: skip
    row.state, row.erased_at, row.words, row.hashes_gone_at = "erased", one.at, "", None
    row.backups_until = asking.backups_until(timezone.now())
    row.save(using=erasing.OWNER)
    return int(row.pk)


def checked(using: str = "default") -> str:
    """Why nothing may be served, in one line; empty when everything is as it must be. Raises django.db.Error."""
    with transaction.atomic(using=using), connections[using].cursor() as cursor:
        cursor.execute("SELECT set_config('statement_timeout', %s, true)", [SECONDS])
        found = undone(using)
    if not found:
        return ""
    which = "A user" if len(found) == 1 else f"{len(found):,} users or more"
    return (
        f"{which} of whom the log tells that they were erased can be found again: the database was restored. Nothing is"
        " served until manage.py erasures apply was run."
    )


def mend() -> int:
    """Look, and erase again where that is needed; of how many users there was something. For the worker, whose exports
    are not behind the gate of the web processes."""
    if not undone(erasing.OWNER):
        return 0
    return apply(list(on_record(erasing.OWNER)), recorded=True)[1]
