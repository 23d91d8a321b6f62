"""Counts of records over time, for charts: made by counting each record once, in the order of the log, and read instead
of the records, which are far too many to count (DESIGN.md section 7).

Every record is counted in four widths of time and in several cuts. A cut tells apart some dimensions only, so that a
question about one client reads a few rows a day, and not one for every combination of everything. Weeks start on
Monday, and all spans at whole multiples of their width, in UTC."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import Max, Min, Q, QuerySet, Sum

from audit.charts import Bucket
from audit.models import Head, Record, Rollup, RollupState
from audit.reasons import REASONS
from audit.viewer import OF_TENANTS, Viewer, check

DIMENSIONS = ("type", "decision", "reason", "flagged", "backend", "client", "tenant", "tool", "mode")
CALLS = "decision"  # a question without a token (evaluation) is none
ORIGIN = datetime(2001, 1, 1, tzinfo=UTC)  # a Monday
WIDTHS = {"5m": timedelta(minutes=5), "1h": timedelta(hours=1), "1d": timedelta(days=1), "1w": timedelta(days=7)}
# How long, before the newest record, spans of a width are kept; weeks for ever.
KEPT = {"5m": timedelta(days=2), "1h": timedelta(days=35), "1d": timedelta(days=400)}
EVERYWHERE = frozenset({"type", "decision", "flagged"})  # told apart by every cut
# From the fewest rows to the most. A tool's name means a tool only together with its backend.
CUTS = {
    "sum": frozenset[str](), "r": frozenset({"reason"}), "b": frozenset({"backend"}), "m": frozenset({"mode"}),
    "c": frozenset({"client"}), "e": frozenset({"tenant"}), "t": frozenset({"tool", "backend"}),
    "er": frozenset({"tenant", "reason"}), "ec": frozenset({"tenant", "client"}),
    "cr": frozenset({"client", "reason"}), "tr": frozenset({"tool", "backend", "reason"}),
    "et": frozenset({"tenant", "tool", "backend"}), "ct": frozenset({"client", "tool", "backend"}),
    "all": frozenset(DIMENSIONS) - EVERYWHERE,
}  # fmt: skip
# Where all is told apart there may be nearly as many rows as records: over days and weeks only denials are, which are
# few, and what staff want to know most about.
DENIED_ONLY = frozenset({"1d", "1w"})
# The dimensions by which a cut's rows are found on an index (audit.models.Rollup).
INDEXED = {
    "ct": frozenset({"client", "tool"}), "cr": frozenset({"client"}), "t": frozenset({"tool"}),
    "tr": frozenset({"tool"}), **{cut: frozenset({"tenant"}) for cut in ("e", "er", "ec", "et")},
}  # fmt: skip
TOLD = [name for name in DIMENSIONS if name not in EVERYWHERE]
MOST, MOST_BUCKETS = 10_000, 2000


REFUSALS = frozenset(code for code, reason in REASONS.items() if reason.status != 200)


class TooMany(Exception):
    """More rows than the caller wanted to be read, or than are kept."""


def _count_sql() -> str:
    """One statement: takes the next records, and adds them to the rows of every width and cut.

    The key is a hash of what a row tells apart. Rows whose keys collide are added together rather than refused, so
    that nobody can stop the counting by choosing names; and a random salt, which only the database knows, is hashed
    with them, so that nobody can choose names that collide, and hide one behind the other from a search. What is read
    together is written together."""
    dims = ", ".join(DIMENSIONS)
    absent = ", ".join(f"coalesce({name}, '') AS {name}" for name in DIMENSIONS if name not in ("type", "flagged"))
    cuts = ", ".join(f"('{cut}', {', '.join(str(d in told) for d in TOLD)})" for cut, told in CUTS.items())
    told = ", ".join(f"CASE WHEN c.{name} THEN f.{name} ELSE '' END AS {name}" for name in TOLD)
    merged = ", ".join(f"{'bool_or' if name == 'flagged' else 'min'}({name})" for name in DIMENSIONS)
    return f"""
    WITH head AS (SELECT next, at FROM audit_head),
    taken AS MATERIALIZED (
        SELECT index, at, type, flagged, {absent} FROM audit_record
        WHERE index >= %(next)s AND index < (SELECT next FROM head) AND at > %(at)s ORDER BY index LIMIT %(most)s),
    spans (span, width, since) AS MATERIALIZED (
        SELECT s.span, s.width, coalesce(date_bin(s.width, head.at - s.kept, %(origin)s), '-infinity')
        FROM head, unnest(%(spans)s::text[], %(widths)s::interval[], %(kept)s::interval[]) AS s (span, width, kept)),
    fine AS (
        SELECT date_bin((SELECT min(width) FROM spans WHERE since <= taken.at), at, %(origin)s) AS at, {dims},
            count(*) AS n
        FROM taken GROUP BY 1, {dims}),
    cuts (cut, {", ".join(TOLD)}) AS (VALUES {cuts}),
    rows AS (
        SELECT s.span, date_bin(s.width, f.at, %(origin)s) AS at, c.cut, f.type, f.decision, f.flagged, {told}, f.n
        FROM fine f JOIN spans s ON f.at >= s.since CROSS JOIN cuts c
        WHERE c.cut <> 'all' OR f.decision = 'deny' OR s.span <> ALL (%(denied_only)s::text[])),
    keyed AS (
        SELECT span, at, cut, {dims}, sum(n) AS n, ('x' || left(encode(sha256(convert_to(
            jsonb_build_array(%(salt)s::text, cut, {dims})::text, 'UTF8')), 'hex'), 16))::bit(64)::bigint AS key
        FROM rows GROUP BY span, at, cut, {dims}),
    written AS (
        INSERT INTO audit_rollup AS kept (span, at, key, cut, {dims}, count)
        SELECT span, at, key, min(cut), {merged}, sum(n) FROM keyed GROUP BY span, at, key
        ORDER BY span, at, min(cut), min(client) COLLATE "C", min(tool) COLLATE "C"
        ON CONFLICT (span, at, key) DO UPDATE SET count = kept.count + excluded.count)
    SELECT count(*), max(index), max(at), (SELECT next FROM head) FROM taken"""  # noqa: S608 - names are ours


COUNT = _count_sql()
# Ten thousand records are grouped in memory, by hash: sorting so many names takes ten times as long.
SETTINGS = "SET LOCAL work_mem = '256MB'; SET LOCAL enable_sort = off; SET LOCAL jit = off"
PRUNE = """DELETE FROM audit_rollup WHERE id = ANY(ARRAY(
    SELECT r.id FROM audit_rollup r, audit_head h WHERE r.span = %s AND r.at < date_bin(%s, h.at - %s, %s) LIMIT %s))"""


def count(most: int = MOST) -> int:
    """Count up to `most` records that are not counted yet; returns how many there were.

    One transaction: the state row is locked first, so that a second run waits and then goes on where this one ended,
    and a crash leaves everything as it was. All records below the head's next index are there or deleted: index order
    is commit order. What became too old for its width goes, as many rows at most."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("INSERT INTO audit_rollupstate (id, next) VALUES (1, 0) ON CONFLICT DO NOTHING")
        cursor.execute("SELECT next, coalesce(at, '-infinity')::text, salt FROM audit_rollupstate FOR UPDATE")
        first, since, salt = cursor.fetchone()
        cursor.execute(SETTINGS)
        cursor.execute(COUNT, {
            "next": first, "at": since, "most": most, "origin": ORIGIN, "spans": list(WIDTHS),
            "widths": list(WIDTHS.values()), "kept": [KEPT.get(span) for span in WIDTHS],
            "denied_only": list(DENIED_ONLY), "salt": str(salt),
        })  # fmt: skip
        counted, last, at, head = cursor.fetchone()
        # A gap is what retention deleted: it is passed over, not walked through.
        following = last + 1 if counted == most else max(first, head)
        cursor.execute(
            "UPDATE audit_rollupstate SET next = %s, at = coalesce(%s, at) WHERE next <> %s OR %s IS NOT NULL",
            [following, at, following, at],
        )
        for span, kept in KEPT.items():
            old: list[Any] = [span, WIDTHS[span], kept, ORIGIN, most]
            cursor.execute(PRUNE, old)
    return int(counted)


def catch_up(seconds: float = 4.0) -> int:
    """Count what is not counted yet, a transaction at a time, for at most about so long; returns how many."""
    until, counted = time.monotonic() + seconds, 0
    while more := count():
        counted += more
        if more < MOST or time.monotonic() > until:
            break
    return counted


def counted_until() -> datetime | None:
    """The time of the newest record that is counted; None before the first."""
    return RollupState.objects.values_list("at", flat=True).first()


def uncounted() -> int:
    """How many records are not counted yet, as far as they are still there."""
    return max(0, Head.objects.get().next - (RollupState.objects.values_list("next", flat=True).first() or 0))


def behind() -> timedelta | None:
    """How much of the log's time is not counted yet: from the first record that is not to the newest. None where
    nothing is counted although there are records."""
    head, state = Head.objects.get(), RollupState.objects.first()
    if head.next <= (state.next if state else 0):
        return timedelta(0)
    if state is None or state.at is None:
        return None
    late = Record.objects.filter(at__gt=state.at, index__gte=state.next).order_by("at").values_list("at", flat=True)
    first = late.first()
    return timedelta(0) if first is None else max(timedelta(0), head.at - first)


def floor(at: datetime, span: str) -> datetime:
    """The start of the span that a time is in."""
    return at - (at - ORIGIN) % WIDTHS[span]


def series(
    viewer: Viewer, since: datetime, until: datetime, span: str, *, most_rows: int | None = None, **filters: Any
) -> list[Bucket]:
    """Records in each span from the one that holds `since` on, up to `until`, the empty ones too. Spans are whole, so
    the first and the last may reach beyond the times given.

    `filters` are of DIMENSIONS, each one value or a collection of them; an absent value is "". Without `type` calls are
    counted (decisions); `type=None` counts every record. Raises PermissionDenied; ValueError for
    what is not a dimension or more than 2,000 spans; TooMany for more than `most_rows` rows, and for a combination of
    dimensions that no cut has, over days and weeks and not of denials alone (DENIED_ONLY)."""
    start, width = floor(since, span), WIDTHS[span]
    number = -((start - until) // width)
    if number > MOST_BUCKETS:
        raise ValueError(f"{number} spans are too many")
    rows = _rows(viewer, set(), start, until, span, filters, most_rows)
    sums = rows.values("at").annotate(
        calls=Sum("count"), denied=Sum("count", filter=Q(decision="deny"), default=0)
    ).values_list("at", "calls", "denied")  # fmt: skip
    found = {at: (calls, denied) for at, calls, denied in sums}
    return [Bucket(at, *found.get(at, (0, 0))) for at in (start + width * n for n in range(max(0, number)))]


def totals(
    viewer: Viewer, dimension: str, since: datetime, until: datetime, span: str, most: int = 10,
    *, most_rows: int | None = None, **filters: Any,
) -> list[tuple[str, int]]:  # fmt: skip
    """The values of a dimension in these spans and how often each was there, most frequent first; "" is absent,
    `flagged` is "true" or "false". Spans, filters and errors are as for `series`."""
    rows = _rows(viewer, {dimension}, floor(since, span), until, span, filters, most_rows)
    sums = rows.values(dimension).annotate(times=Sum("count")).order_by("-times", dimension)
    found = sums.values_list(dimension, "times")[:most]
    return [(str(value).lower() if isinstance(value, bool) else value, times) for value, times in found]


@dataclass(frozen=True, slots=True)
class Group:
    """A combination of values: how often it was there, and the start of the first and of the last span with it."""

    values: dict[str, str]
    times: int
    first: datetime
    last: datetime


def groups(
    viewer: Viewer, dimensions: Sequence[str], since: datetime, until: datetime, span: str, most: int = 10,
    *, most_rows: int | None = None, **filters: Any,
) -> list[Group]:  # fmt: skip
    """The combinations of several dimensions (none of them `flagged`) in these spans, most frequent first. Spans,
    filters and errors are as for `series`."""
    rows = _rows(viewer, set(dimensions), floor(since, span), until, span, filters, most_rows)
    sums = rows.values(*dimensions).annotate(times=Sum("count"), first=Min("at"), last=Max("at"))
    found = sums.order_by("-times", *dimensions)[:most]
    return [Group({n: row[n] for n in dimensions}, row["times"], row["first"], row["last"]) for row in found]


def _rows(
    viewer: Viewer, told: set[str], since: datetime, until: datetime, span: str, filters: dict[str, Any],
    most_rows: int | None,
) -> QuerySet[Rollup]:  # fmt: skip
    """The rows of the smallest cut that tells apart what is asked for."""
    check(viewer)
    wanted = {name: value for name, value in ({"type": CALLS} | filters).items() if value is not None}
    if unknown := (set(wanted) | told) - set(DIMENSIONS):
        raise ValueError(f"not a dimension: {', '.join(sorted(unknown))}")
    if isinstance(reason := wanted.get("reason"), str) and reason in REFUSALS:
        wanted.setdefault("decision", "deny")  # whose rows have an index of their own
    needed = (set(wanted) | told) - EVERYWHERE
    if viewer.tenants is not None:
        needed.add("tenant")
    cut = next(name for name, has in CUTS.items() if needed <= has)
    if cut == "all" and span in DENIED_ONLY and wanted.get("decision") != "deny":
        raise TooMany
    rows = Rollup.objects.filter(cut=cut, span=span, at__gte=since, at__lt=until).order_by()
    if viewer.tenants is not None:
        rows = rows.filter(tenant__in=viewer.tenants, type__in=OF_TENANTS)
    # First what the rows have an index for: by those the rows that have to be read are counted.
    indexed = INDEXED.get(cut, frozenset()) | {"decision"}
    rows = _where(rows, {name: value for name, value in wanted.items() if name in indexed})
    if most_rows is not None and rows[most_rows : most_rows + 1].values_list("id").exists():
        raise TooMany
    return _where(rows, {name: value for name, value in wanted.items() if name not in indexed})


def _where(rows: QuerySet[Rollup], wanted: dict[str, Any]) -> QuerySet[Rollup]:
    for name, value in wanted.items():
        many = isinstance(value, Collection) and not isinstance(value, str)
        rows = rows.filter(**{f"{name}__in" if many else name: value})
    return rows
