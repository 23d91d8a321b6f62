"""The history of one grant, read from the log: made, moved to another end, revoked; who, when and why."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.utils import timezone

from audit import details, search
from audit.models import Outbox, Record
from audit.protection import KeyRing
from audit.record_page import read
from audit.record_words import actor_words
from audit.viewer import Viewer
from clients.grant_words import date_of
from clients.models import Grant

MOST = 2_000  # policy records that are looked through, newest first
NEAR = timedelta(hours=1)  # of when it was made, where its first record is looked for
AHEAD = timedelta(minutes=5)  # the log's clock is the database's, and may be ahead of ours
TABLE = "clients_grant"


@dataclass(frozen=True, slots=True)
class Step:
    """One change of a grant. `who` and `why` are protected details of what staff did, which every reader of records may
    see; `why` is empty where there is none. `record` is None while it is on its way into the log."""

    at: datetime
    what: str
    who: str
    why: str
    record: UUID | None


@dataclass(frozen=True, slots=True)
class History:
    """Newest first. `whole` is False where its beginning is further back than was looked."""

    steps: list[Step]
    whole: bool


def of(viewer: Viewer, grant: Grant) -> History:
    """What the log has of a grant. Raises PermissionDenied for a viewer who may not read records."""
    until = timezone.now() + AHEAD
    records = search.visible(viewer, grant.created_at - NEAR, until).filter(type="policy")
    ring = KeyRing()
    steps = [*_pending(grant), *_steps(grant, records.order_by("-at")[:MOST], ring)]
    if not any(step.what == MADE for step in steps):
        first = search.visible(viewer, grant.created_at - NEAR, grant.created_at + NEAR).filter(type="policy")
        known = {step.record for step in steps}
        steps += [step for step in _steps(grant, first.order_by("at")[:MOST], ring) if step.record not in known]
    steps.sort(key=lambda step: step.at, reverse=True)
    return History(steps, any(step.what == MADE for step in steps))


MADE = "Made"


def _steps(grant: Grant, records: Iterable[Record], ring: KeyRing) -> Iterator[Step]:
    for record in records:
        statement = read(record)
        for change in _changes(statement, grant):
            who, why = _who_and_why(record, statement, grant, ring)
            yield Step(record.at, _what(change), who, why, record.id)


def _changes(statement: Mapping[str, Any], grant: Grant) -> list[Mapping[str, Any]]:
    changes = statement.get("changes")
    found = [change for change in changes if isinstance(change, dict)] if isinstance(changes, list) else []
    return [change for change in found if change.get("table") == TABLE and change.get("key") == str(grant.pk)]


def _pending(grant: Grant) -> Iterator[Step]:
    """What is not in the log yet, for a moment."""
    waiting = Outbox.objects.filter(record_index=None, table_name=TABLE, row_key=str(grant.pk))
    for row in waiting.order_by("-id")[:20]:
        change = {"op": row.operation, "old": row.old, "new": row.new}
        yield Step(row.at, _what(change), actor_words(row.actor), "", None)


def _what(change: Mapping[str, Any]) -> str:
    old, new = change.get("old") or {}, change.get("new") or {}
    if change.get("op") == "insert":
        return MADE
    if change.get("op") == "delete":
        return "Removed"
    if new.get("revoked_at") and not old.get("revoked_at"):
        return "Revoked"
    if old.get("expires_at") != new.get("expires_at"):
        return f"Its end was moved from {_end(old)} to {_end(new)}"
    return "Changed"


def _end(side: Mapping[str, Any]) -> str:
    at = side.get("expires_at")
    try:
        return "never" if at is None else date_of(datetime.fromisoformat(str(at)))
    except ValueError:
        return str(at)


def _who_and_why(record: Record, statement: Mapping[str, Any], grant: Grant, ring: KeyRing) -> tuple[str, str]:
    who = actor_words(statement.get("actor"))
    if not details.of_staff(record, statement):
        return who, ""
    told = details.opened(record, statement, ring).members
    reasons = told.get("reasons")
    own = reasons.get(f"{TABLE}/{grant.pk}") if isinstance(reasons, dict) else None
    return str(told.get("actor_name") or who), str(own or told.get("reason") or "")
