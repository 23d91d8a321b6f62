"""The only reader of records. Never counts, never skips by OFFSET: a time window is always on, paging is by key,
filters are exact matches on an index that fits (DESIGN.md section 7).

Each read takes the viewer, who must have the right to read records and sees only their tenants' records. `by_id` and
`outcome_of` serve the platform itself and backends, which are checked by their callers."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet

from audit.models import Record
from audit.viewer import Viewer

PAGE = 50
# Column -> the value's kind; each has an index (column, at DESC), or narrows a window that is scanned by time.
FILTERS = ("type", "decision", "reason", "client", "tool", "subject", "backend", "tenant", "flagged", "mode", "scopes")
WINDOWS = {
    "1h": timedelta(hours=1), "24h": timedelta(days=1), "7d": timedelta(days=7), "30d": timedelta(days=30),
    "1y": timedelta(days=366),
}  # fmt: skip
DEFAULT_WINDOW = "7d"


@dataclass(frozen=True, slots=True)
class Query:
    """A search: a time window, exact filters, and where the page starts. `before` and `after` are the `at` of a
    record (unique, and rising with the index); at most one of them is given."""

    since: datetime
    until: datetime
    filters: dict[str, Any] = field(default_factory=dict)
    lookups: dict[str, bytes] = field(default_factory=dict)
    before: datetime | None = None
    after: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Records, newest first, and whether there are older and newer ones in the window."""

    records: list[Record]
    older: bool
    newer: bool


def time_of(record: UUID) -> datetime:
    """The millisecond that a UUIDv7 was made in (RFC 9562 section 5.7)."""
    return datetime.fromtimestamp((record.int >> 80) / 1000, UTC)


def by_id(record: UUID) -> Record | None:
    """One record. Its id holds its time, so that one partition's index finds it."""
    try:
        at = time_of(record)
        low, high = at - timedelta(milliseconds=1), at + timedelta(milliseconds=2)
    except (OverflowError, ValueError):  # after the year 9999, or within 2 ms of its end
        return None
    return Record.objects.filter(at__gte=low, at__lt=high, id=record).first()


def outcome_of(record: Record) -> Record | None:
    """The outcome of a decision, if one was reported."""
    return Record.objects.filter(parent=record.id, type="outcome", at__gt=record.at).first()


def one(viewer: Viewer, record: UUID) -> Record | None:
    """A record that the viewer may see; None where there is none for them. Raises PermissionDenied."""
    check(viewer)
    found = by_id(record)
    hidden = found is not None and viewer.tenants is not None and found.tenant not in viewer.tenants
    return None if hidden else found


def visible(viewer: Viewer, since: datetime, until: datetime) -> QuerySet[Record]:
    """The records of a time that the viewer may see, for a reader that bounds how many it takes. Raises
    PermissionDenied."""
    check(viewer)
    records = Record.objects.filter(at__gte=since, at__lt=until)
    return records if viewer.tenants is None else records.filter(tenant__in=viewer.tenants)


def find(viewer: Viewer, query: Query) -> Page:
    """One page of records. Raises PermissionDenied."""
    if unknown := set(query.filters) - set(FILTERS):
        raise ValueError(f"not a filter: {', '.join(sorted(unknown))}")
    records = visible(viewer, query.since, query.until).filter(**query.filters, **query.lookups)
    if query.after is not None:
        page = list(records.filter(at__gt=query.after).order_by("at")[: PAGE + 1])
        return Page(page[:PAGE][::-1], older=True, newer=len(page) > PAGE)
    if query.before is not None:
        records = records.filter(at__lt=query.before)
    page = list(records.order_by("-at")[: PAGE + 1])
    return Page(page[:PAGE], older=len(page) > PAGE, newer=query.before is not None)


def check(viewer: Viewer) -> None:
    """Whether the viewer may read records at all, asked where they are read. Raises PermissionDenied."""
    if not viewer.records:
        raise PermissionDenied
