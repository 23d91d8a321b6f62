"""What a timeline reads: bounded queries along one index (user, client or tool, newest first), never a count. A reader
of a timeline looks at 1,000 records of its window, and at 2,000 older ones to tell what is new."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from django.db.models import QuerySet

from audit import search
from audit.models import Record
from audit.timeline import Earlier, Seen, learned
from audit.viewer import Viewer

LOOKED, OLDER, NEARBY = 1000, 2000, 100
PAGE = 50
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
# Not lines of their own: an outcome stands with its call, and what staff did stands apart.
APART = frozenset({"outcome", "staff", "request", "review", "hold", "erasure"})
STAFF = APART - {"outcome"}
COLUMNS = ("id", "at", "type", "decision", "flagged", "client", "backend", "tool", "mode")
OLD_COLUMNS = ("at", "type", "client", "backend", "tool", "mode")


@dataclass(frozen=True, slots=True)
class Who:
    """Whose timeline: `kind` is user, client or tool; `name` a uid, a slug, or `<backend>/<tool>`."""

    kind: str
    name: str

    @property
    def filters(self) -> dict[str, str]:
        """The same as filters of the search."""
        if self.kind == "tool":
            backend, _, tool = self.name.partition("/")
            return {"backend": backend, "tool": tool}
        return {"user": {"subject": self.name}, "client": {"client": self.name}}[self.kind]


@dataclass(frozen=True, slots=True)
class Looked:
    """Records that were looked at, newest first, with their ids; `cut` says that there are more, `last` is the time of
    the oldest that was looked at."""

    rows: Sequence[tuple[Seen, UUID]]
    cut: bool
    last: datetime | None

    @property
    def lines(self) -> list[tuple[Seen, UUID]]:
        """Those that are lines of a timeline."""
        return [row for row in self.rows if row[0].type not in APART]


def look(
    viewer: Viewer, who: Who, since: datetime, until: datetime, most: int = LOOKED, oldest_first: bool = False
) -> Looked:
    """The newest (or oldest) records of a time, at most `most`. Raises PermissionDenied.

    A tool is looked for by its name alone, which is what the index has; another backend's of the same name are taken
    out here, so that they cannot make the query long."""
    if viewer.tenants is not None and who.kind != "user":
        return _look_as_search(viewer, who, since, until, most, oldest_first)
    records = _newest(viewer, who, since, until)
    found = list((records.order_by("at") if oldest_first else records).values_list(*COLUMNS)[:most])
    backend = who.filters.get("backend")
    rows = [(_seen(*rest), number) for number, *rest in found if backend in (None, rest[5])]
    last = found[-1][1] if found else None
    return Looked(rows[::-1] if oldest_first else rows, len(found) == most, last)


def _look_as_search(
    viewer: Viewer, who: Who, since: datetime, until: datetime, most: int, oldest_first: bool
) -> Looked:
    """The same for who sees some tenants alone: by the index of those, since along that of a client or tool there may
    be any number of others' records between two of theirs."""
    query = search.Query(since, until, dict(who.filters))
    seen = search.matches(viewer, query, most, newest=not oldest_first)
    records = search.visible(viewer, since, until).filter(at__in=seen.found).order_by("-at")
    rows = [(_seen(*rest), number) for number, *rest in records.values_list(*COLUMNS)]
    last = seen.reached or (seen.found[-1] if seen.found else None)
    return Looked(rows, seen.reached is not None or len(seen.found) == most, last)


def _newest(viewer: Viewer, who: Who, since: datetime, until: datetime) -> QuerySet[Record]:
    """Along the index, newest first."""
    indexed = {name: value for name, value in who.filters.items() if name != "backend"}
    return search.visible(viewer, since, until).filter(**indexed).order_by("-at")


def _seen(
    at: datetime, kind: str, decision: str | None, flagged: bool, client: str | None, backend: str | None,
    tool: str | None, mode: str | None,
) -> Seen:  # fmt: skip
    name = f"{backend}/{tool}" if tool and backend else tool
    return Seen(at, kind, decision, flagged, client, name, mode)


@dataclass(frozen=True, slots=True)
class Page:
    """The lines of a page, and all that was looked at around them; whether there are older and newer lines, and from
    where the older ones go on."""

    lines: list[tuple[Seen, UUID]]
    context: list[tuple[Seen, UUID]]
    newer: bool
    further: datetime | None


def page(
    viewer: Viewer, who: Who, since: datetime, until: datetime, top: Looked, before: datetime | None,
    after: datetime | None,
) -> Page:  # fmt: skip
    """A page of the window: its newest (`top`, already looked at), the one older than `before`, or the one newer than
    `after`. On the way, newer neighbours are looked at, so that a run or burst is told where it ends."""
    if after is not None:
        up = look(viewer, who, after + timedelta(microseconds=1), until, oldest_first=True)
        lines = up.lines[-PAGE:]
        before = lines[0][0].at + timedelta(microseconds=1) if lines else after
    if before is None:
        below, above = top, Looked([], False, None)
    else:
        below = look(viewer, who, since, min(before, until))
        above = look(viewer, who, max(before, since), until, NEARBY, oldest_first=True)
    lines = below.lines[:PAGE]
    more = len(below.lines) > PAGE
    further = lines[-1][0].at if more else (below.last if below.cut else None)
    return Page(lines, [*above.rows, *below.rows], bool(above.lines), further)


def earlier(viewer: Viewer, who: Who, context: Looked | Page) -> Earlier:
    """What is known of the time before what was looked at."""
    rows = context.rows if isinstance(context, Looked) else context.context
    if not rows:
        return Earlier()
    if viewer.tenants is not None and who.kind != "user":
        found = _look_as_search(viewer, who, BEGINNING, rows[-1][0].at, OLDER, False)
        return learned([row for row, _ in found.rows], not found.cut, len(found.rows))
    older = _newest(viewer, who, BEGINNING, rows[-1][0].at).values_list(*OLD_COLUMNS)[:OLDER]
    backend = who.filters.get("backend")
    seen = [_seen(at, kind, None, False, *rest) for at, kind, *rest in older if backend in (None, rest[1])]
    return learned(seen, len(older) < OLDER, len(seen))


def records(viewer: Viewer, lines: Sequence[tuple[Seen, UUID]]) -> list[Record]:
    """The records in full, newest first, by their times, which are unique."""
    if not lines:
        return []
    times = [row.at for row, _ in lines]
    found = search.visible(viewer, min(times), max(times) + timedelta(microseconds=1))
    return list(found.filter(at__in=times).order_by("-at"))
