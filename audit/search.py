"""The only reader of records. Never counts them all, never skips by OFFSET: a time window is always on, paging is by
key, filters are exact matches, and what a search reads is bounded (DESIGN.md section 7; `audit.search_plan` and
`audit.search_scan` say how).

Each read takes the viewer, who must have the right to read records and sees only their tenants' records. `by_id` and
`outcome_of` serve the platform itself and backends, which are checked by their callers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import QuerySet

from audit import search_pages
from audit.models import Record
from audit.search_plan import Plan, plan
from audit.search_scan import Look, Spread, look, spread
from audit.viewer import OF_TENANTS, Viewer, check, hides

PAGE = 50
# What can be asked for exactly (None: the record has no value); `scopes` is one scope among those that a call needed.
FILTERS = ("type", "decision", "reason", "client", "tool", "subject", "backend", "tenant", "flagged", "mode", "scopes")
# The keyed hashes of ids.
LOOKUPS = ("request_key", "trace_key", "session_key", "resource_key")
WINDOWS = {
    "1h": timedelta(hours=1), "24h": timedelta(days=1), "7d": timedelta(days=7), "30d": timedelta(days=30),
    "1y": timedelta(days=366),
}  # fmt: skip
DEFAULT_WINDOW = "7d"
MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Query:
    """A search: a time window, exact filters, and where the page starts. `before` and `after` are the `at` of a
    record (unique, and rising with the index), or another time that a page gave; at most one of them is given. Without
    either the page is the newest, or with `oldest` the oldest."""

    since: datetime
    until: datetime
    filters: dict[str, Any] = field(default_factory=dict)
    lookups: dict[str, bytes] = field(default_factory=dict)
    before: datetime | None = None
    after: datetime | None = None
    oldest: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Records, newest first, and whether there are, or may be, older and newer ones in the window.

    `reached` says that the search ended before the page was full, because it had read as much as one page may; between
    there and the end of the window it does not know."""

    records: list[Record]
    older: bool
    newer: bool
    reached: datetime | None = None

    @property
    def before(self) -> datetime | None:
        """The key of the page with the next older records; None where there is none to start from."""
        if self.older and self.reached is not None and (not self.records or self.reached <= self.records[-1].at):
            return self.reached
        return self.records[-1].at if self.older and self.records else None

    @property
    def after(self) -> datetime | None:
        """The key of the page with the next newer records; None where there is none to start from."""
        if self.newer and self.reached is not None and (not self.records or self.reached >= self.records[0].at):
            return self.reached
        return self.records[0].at if self.newer and self.records else None


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


def outcomes_of(records: Sequence[Record]) -> dict[UUID, Record]:
    """The outcomes that were reported of some decisions that a viewer was shown: decision -> outcome, in one query and
    without what they protect."""
    allowed = [record for record in records if record.decision == "allow"]
    if not allowed:
        return {}
    found = Record.objects.filter(parent__in=[r.id for r in allowed], at__gt=min(r.at for r in allowed))
    told = found.filter(type="outcome").defer("disclosures").order_by("-at")
    return {outcome.parent: outcome for outcome in told if outcome.parent is not None}


def outcome_statements(decisions: Sequence[UUID], upto: int) -> list[tuple[UUID, bytes]]:
    """The statements of the outcomes, with an index below `upto`, of some decisions that a viewer was shown: of many at
    once, as (decision, statement)."""
    return search_pages.outcomes(decisions, time_of(min(decisions)), upto) if decisions else []


def one(viewer: Viewer, record: UUID) -> Record | None:
    """A record that the viewer may see; None where there is none for them. Raises PermissionDenied."""
    check(viewer)
    found = by_id(record)
    return None if found is not None and hides(viewer, found.type, found.tenant) else found


def visible(viewer: Viewer, since: datetime, until: datetime) -> QuerySet[Record]:
    """The records of a time that the viewer may see, for a reader that bounds how many it takes. Raises
    PermissionDenied."""
    check(viewer)
    records = Record.objects.filter(at__gte=since, at__lt=until)
    return records if viewer.tenants is None else records.filter(tenant__in=viewer.tenants, type__in=OF_TENANTS)


def find(viewer: Viewer, query: Query) -> Page:
    """One page of records, without what they protect (`disclosures` is read only when asked for). Raises
    PermissionDenied; ValueError for what is not a filter."""
    newest = query.after is None and not (query.oldest and query.before is None)
    seen = matches(viewer, query, PAGE + 1, newest=newest)
    found = visible(viewer, query.since, query.until).filter(at__in=seen.found[:PAGE])
    records = list(found.defer("disclosures").order_by("-at"))
    more = len(seen.found) > PAGE or seen.reached is not None
    if newest:
        return Page(records, older=more, newer=_inside(query, query.before), reached=seen.reached)
    return Page(records, older=_inside(query, query.after), newer=more, reached=seen.reached)


def _inside(query: Query, start: datetime | None) -> bool:
    """Whether there may be records on the other side of where a page starts."""
    return start is not None and query.since <= start < query.until


def matches(viewer: Viewer, query: Query, most: int, *, newest: bool = True) -> Look:
    """The times of the newest (or oldest) matches, as many as are wanted. Raises as `find`."""
    chosen, conditions = _planned(viewer, query)
    return look(chosen, conditions, most, newest=newest)


def spread_of(viewer: Viewer, query: Query, most: int, width: timedelta, origin: datetime) -> Spread:
    """How the newest matches are spread over time: `audit.search_scan.spread`. Raises as `find`."""
    chosen, conditions = _planned(viewer, query)
    return spread(chosen, conditions, most, width, origin)


def pages(
    viewer: Viewer, query: Query, first: int, upto: int, columns: Sequence[str] = ()
) -> Iterator[tuple[int, list[search_pages.Row]]]:  # fmt: skip
    """All matches with an index in [first, upto), in the order of the log: pages of (the index behind those looked at,
    rows), where a row is index, decision and what `columns`, expressions of SQL, give. For readers that are below the
    sealed size; where a page of `query` starts does not count. Raises as `find`, at once."""
    check(viewer)
    conditions = _conditions(query)
    if viewer.tenants is not None:
        conditions["tenants"] = sorted(viewer.tenants)
    return search_pages.pages(query.since, query.until, conditions, first, upto, columns)


def _conditions(query: Query) -> dict[str, Any]:
    if unknown := (set(query.filters) - set(FILTERS)) | (set(query.lookups) - set(LOOKUPS)):
        raise ValueError(f"not a filter: {', '.join(sorted(unknown))}")
    return {**query.filters, **query.lookups}


def _planned(viewer: Viewer, query: Query) -> tuple[Plan, dict[str, Any]]:
    check(viewer)
    conditions = _conditions(query)
    since = query.since if query.after is None else max(query.since, query.after + MICROSECOND)
    until = query.until if query.before is None else min(query.until, query.before)
    chosen = plan(viewer, since, until, conditions)
    if viewer.tenants is not None:
        conditions["tenants"] = sorted(viewer.tenants)
    return chosen, conditions
