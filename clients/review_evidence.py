"""What the log has to do with a review: the records of its start and end, and how much each grant was relied on."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec

from audit import search
from audit.models import Record
from audit.viewer import Viewer
from clients.models import Review

SLACK = timedelta(minutes=5)  # the log's clock is the database's, and what waits to be recorded comes a little later
LATE = timedelta(days=1)
MOST_READ = 500
MOST_CALLS, LOOK_BACK = 10_000, timedelta(days=30)


class _Statement(msgspec.Struct):
    """Of a statement only what is asked here."""

    review: int | None = None
    action: str | None = None
    grants: list[int] = []


@dataclass(frozen=True, slots=True)
class Told:
    """The records of a review's start and of its end, in their order: several where there are many grants."""

    start: list[Record] = field(default_factory=list)
    finish: list[Record] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Usage:
    """How many of the calls that were looked at relied on each grant. `looked` is how many those are; `all` says
    whether they are all of the last 30 days, else they are the newest."""

    calls: dict[int, int]
    looked: int
    all: bool


def _read(statement: bytes | memoryview) -> _Statement:
    """A record that somebody changed may hold anything: then it says nothing."""
    try:
        return msgspec.json.decode(bytes(statement), type=_Statement)
    except (msgspec.MsgspecError, UnicodeError):
        return _Statement()


def records_of(viewer: Viewer, review: Review) -> Told:
    """The records of its start and, once it is finished, of its end. What is not drained into the log yet is not among
    them. Raises PermissionDenied for a viewer who may not read records."""
    told = Told()
    times = [(review.started_at, "review.start", told.start), (review.finished_at, "review.finish", told.finish)]
    for at, action, found in times:
        if at is not None:
            seen = search.visible(viewer, at - SLACK, at + LATE).filter(type="review").order_by("at")
            for record in seen.defer("disclosures")[:MOST_READ]:
                said = _read(record.statement)
                if (said.review, said.action) == (review.pk, action):
                    found.append(record)
    return told


def usage(viewer: Viewer, review: Review, now: datetime) -> Usage:
    """How much each grant was relied on, in the newest 10,000 calls of the last 30 days: of the client, or for a scope
    of all. Raises PermissionDenied for a viewer who may not read records."""
    calls = search.visible(viewer, now - LOOK_BACK, now + SLACK).filter(type="decision")
    if review.client is not None:
        calls = calls.filter(client=review.client.slug)
    counts: Counter[int] = Counter()
    looked = 0
    for statement in calls.order_by("-at").values_list("statement", flat=True)[:MOST_CALLS]:
        looked += 1
        counts.update(set(_read(statement).grants))
    return Usage(dict(counts), looked, looked < MOST_CALLS)
