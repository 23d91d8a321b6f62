"""What the log knows of kill switches: who stopped something, when and why; and what a stop would hit. Read for a
viewer who may read records; others are told nothing of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.utils import timezone

from audit import details, rollups, search
from audit.models import Outbox, Record
from audit.protection import KeyRing
from audit.record_page import read
from audit.record_words import actor_words
from audit.viewer import Viewer
from governance.stops import SWITCHES, Stop

DAY, YEAR, AHEAD = timedelta(days=1), timedelta(days=366), timedelta(minutes=5)
MOST_CHANGES, AT_ONCE = 1000, 100  # policy records that are looked through, newest first
MOST_CALLS, MOST_TOOLS = 1000, 3
# A changed column of a row that is stopped: what it was changed to.
STOPPED = {"status": "suspended", "enabled": False}


@dataclass(frozen=True, slots=True)
class Told:
    """Who stopped something, when and why, and the record that says so (None: on its way into the log)."""

    at: datetime
    who: str
    reason: str
    record: UUID | None


@dataclass(frozen=True, slots=True)
class Hits:
    """Calls through something in the last 24 hours: how many, how many of them were allowed, whether there were more
    than were counted, and by what (tool or client) most of them went."""

    calls: int
    allowed: int
    more: bool
    by: list[tuple[str, int]]


def told(viewer: Viewer, stops: Sequence[Stop]) -> dict[Stop, Told]:
    """What the log says of each, as far as it goes back. What staff and the policy do are records of no tenant."""
    if not viewer.records or not stops or viewer.tenants is not None:
        return {}
    rows = {(SWITCHES[stop.kind].table, stop.row): stop for stop in stops if stop.kind != "user"}
    users = {stop.row: stop for stop in stops if stop.kind == "user"}
    found = _waiting(rows, users)
    found |= _of_policy(viewer, {place: stop for place, stop in rows.items() if stop not in found})
    return found | _of_users(viewer, {uid: stop for uid, stop in users.items() if stop not in found})


def _stops(change: Mapping[str, Any]) -> bool:
    """Whether a change of a row stopped it."""
    old, new = change.get("old") or {}, change.get("new") or {}
    return any(name in new and new[name] == to and old.get(name) != to for name, to in STOPPED.items())


def _waiting(rows: Mapping[tuple[str, str], Stop], users: Mapping[str, Stop]) -> dict[Stop, Told]:
    """From the changes that are on their way into the log."""
    found = {}
    for entry in Outbox.objects.filter(record_index=None).order_by("-id")[:MOST_CHANGES]:
        members = entry.members or {}
        stop = rows.get((entry.table_name or "", entry.row_key or ""))
        if stop is not None and not _stops({"old": entry.old, "new": entry.new}):
            stop = None
        if entry.kind == "staff" and members.get("action") == "subject.block":
            stop = users.get(str(members.get("subject")))
        if stop is not None and stop not in found:
            private = entry.private or {}
            who = private.get("actor_name") or actor_words(entry.actor)
            found[stop] = Told(entry.at, who, private.get("reason") or "", None)
    return found


def _of_policy(viewer: Viewer, rows: Mapping[tuple[str, str], Stop]) -> dict[Stop, Told]:
    """From the newest records of policy changes, no further than needed."""
    found: dict[Stop, Told] = {}
    now, ring = timezone.now(), KeyRing()
    records = search.visible(viewer, now - YEAR, now + AHEAD).filter(type="policy").order_by("-at")
    for _ in range(0, MOST_CHANGES, AT_ONCE):
        if len(found) == len(rows):
            break
        page = list(records[:AT_ONCE])
        for record in page:
            statement = read(record)
            for change in statement.get("changes") or []:
                stop = rows.get((str(change.get("table")), str(change.get("key"))))
                if stop is not None and stop not in found and _stops(change):
                    found[stop] = _told(record, statement, ring)
        if len(page) < AT_ONCE:
            break
        records = records.filter(at__lt=page[-1].at)
    return found


def _of_users(viewer: Viewer, users: Mapping[str, Stop]) -> dict[Stop, Told]:
    """From the records of what staff did with these users."""
    found: dict[Stop, Told] = {}
    if not users:
        return found
    now, ring = timezone.now(), KeyRing()
    records = search.visible(viewer, now - YEAR, now + AHEAD).filter(type="staff", subject__in=list(users))
    for record in records.order_by("-at")[:MOST_CHANGES]:
        statement = read(record)
        stop = users.get(record.subject or "")
        if stop is not None and stop not in found and statement.get("action") == "subject.block":
            found[stop] = _told(record, statement, ring)
    return found


def _told(record: Record, statement: Mapping[str, Any], ring: KeyRing) -> Told:
    """Who and why are protected, under a key of that member of staff."""
    opened = details.opened(record, statement, ring) if details.of_staff(record, statement) else None
    private = opened.members if opened is not None else {}
    who = private.get("actor_name") or actor_words(statement.get("actor"))
    return Told(record.at, str(who), str(private.get("reason") or ""), record.id)


def hits(viewer: Viewer, kind: str, row: Any) -> Hits | None:
    """What stopping a row would hit, by the calls of the last 24 hours; None where the viewer may not know, or calls
    are not counted by such (issuers)."""
    if not viewer.records or kind == "issuer":
        return None
    until = timezone.now() + AHEAD
    since = until - DAY
    if kind == "user":
        return _hits_of_user(viewer, row.uid, since, until)
    if kind == "tool":
        filters, other = {"backend": row.backend.slug, "tool": row.name}, "client"
    else:
        filters, other = {kind: row.slug}, "tool"
    decisions = dict(rollups.totals(viewer, "decision", since, until, "1h", **filters))
    by = rollups.totals(viewer, other, since, until, "1h", MOST_TOOLS, **filters)
    named = [(name, times) for name, times in by if name]
    return Hits(sum(decisions.values()), decisions.get("allow", 0), False, named)


def _hits_of_user(viewer: Viewer, uid: str, since: datetime, until: datetime) -> Hits:
    """A user is no dimension of what is counted, so the newest calls are counted here."""
    records = search.visible(viewer, since, until).filter(subject=uid, type=rollups.CALLS)
    calls = list(records.order_by("-at").values_list("decision", "tool")[: MOST_CALLS + 1])
    counted = calls[:MOST_CALLS]
    allowed = sum(1 for decision, _ in counted if decision == "allow")
    return Hits(len(counted), allowed, len(calls) > MOST_CALLS, _most(tool for _, tool in counted))


def _most(names: Iterable[str | None]) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for name in names:
        if name:
            counts[name] = counts.get(name, 0) + 1
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_TOOLS]
