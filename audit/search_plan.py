"""How a search goes about it: which index it follows, and what the rollups already know. However large the log and
whatever the filters, a search follows one index through a bounded number of rows (`audit.search_scan`); so what matters
is the index that leads to matches soonest, and where on it to begin."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from audit import rollups
from audit.models import RollupState
from audit.viewer import Viewer

# Hashes of ids that are nearly unique, and the user: followed before anything else, in this order.
FIRST = ("request_key", "trace_key", "session_key", "resource_key", "subject")
# Without counts: from what is usually rare to what is usually frequent. `granted` is the reason of most calls.
USUAL = ("reason", "tool", "client", "tenant", "backend")
# Types that have no index: nearly all records are of them.
FREQUENT = frozenset({"decision", "outcome"})
DAYS_UP_TO = timedelta(days=60)  # for longer windows whole weeks are precise enough
MOST_VALUES = 40


Part = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Plan:
    """The column whose index is followed, with its values (None: time alone), and the parts of the window that can hold
    a match at all, from the oldest on: each from a time up to another, the latter excluded."""

    column: str | None
    values: tuple[Any, ...]
    parts: tuple[Part, ...]


@dataclass(slots=True)
class Known:
    """What the rollups say of a search: how many rows there would be to follow for each filter that has an index, and
    the part of the window outside of which nothing matches (None: nothing matches within what is counted)."""

    counts: dict[str, int] = field(default_factory=dict)
    first: datetime | None = None
    last: datetime | None = None


def plan(viewer: Viewer, since: datetime, until: datetime, conditions: dict[str, Any]) -> Plan:
    """Choose. `conditions` are exact: column -> value (None: without one), as in `search.Query`."""
    if since >= until:
        return Plan(None, (), ())
    if viewer.tenants is not None:
        return _confined(viewer.tenants, since, until, conditions)
    # Where the index has no value it is not in the order of time, for the planner: such a filter is only tried.
    exact = {name: value for name, value in conditions.items() if value is not None}
    if first := next((column for column in FIRST if column in exact), None):
        return Plan(first, (conditions[first],), ((since, until),))
    asked = {name: "" if value is None else value for name, value in conditions.items() if name in rollups.DIMENSIONS}
    counted = RollupState.objects.values_list("at", flat=True).first() if asked else None
    parts: tuple[Part, ...] = ((since, until),)
    counts: dict[str, int] = {}
    if counted is not None:
        known = _known(since, until, asked, counted)
        parts, counts = _parts(known, since, until, counted), known.counts
    if column := _best(counts, exact):
        return Plan(column, (conditions[column],), parts)
    found = _containing(conditions["scopes"], since, until) if "scopes" in conditions else None
    if found is not None and len(found) <= MOST_VALUES:
        return Plan("scopes", found, parts)
    return Plan(None, (None,), parts)


def _confined(tenants: frozenset[str], since: datetime, until: datetime, conditions: dict[str, Any]) -> Plan:
    """For a viewer who sees these tenants alone: how far a look gets, and where it begins, are shown, so they must not
    come from what others did. Among the rows of an id or user only theirs are counted (`search_scan`); else the index
    of tenants is followed, and of the rollups those alone are asked that tell tenants apart."""
    if "tenant" in conditions:
        tenants &= {conditions["tenant"]}
    if not tenants:
        return Plan(None, (), ())
    parts: tuple[Part, ...] = ((since, until),)
    if first := next((column for column in FIRST if conditions.get(column) is not None), None):
        return Plan(first, (conditions[first],), parts)
    asked = {name: "" if value is None else value for name, value in conditions.items() if name in rollups.DIMENSIONS}
    counted = RollupState.objects.values_list("at", flat=True).first()
    if counted is not None:
        known = _known(since, until, asked | {"tenant": sorted(tenants)}, counted, told_by=frozenset({"tenant"}))
        parts = _parts(known, since, until, counted)
    return Plan("tenant", tuple(sorted(tenants)), parts)


def _parts(known: Known, since: datetime, until: datetime, counted: datetime) -> tuple[Part, ...]:
    """The window without what the rollups exclude. What is not counted yet, all after `counted`, stays."""
    late = (max(since, counted + timedelta(microseconds=1)), until)
    first, last = max(since, known.first or until), min(until, late[0], known.last or since)
    return tuple((start, end) for start, end in ((first, last), late) if start < end)


def _best(counts: dict[str, int], conditions: dict[str, Any]) -> str | None:
    """The column to follow: that of the rarest value, by the counts, else by custom."""
    offered = [name for name in USUAL if name in conditions]
    if conditions.get("flagged") is True:
        offered.append("flagged")
    if conditions.get("type") not in (None, *FREQUENT):
        offered.append("type")
    if not offered:
        return None
    if counts:
        return min(offered, key=lambda name: counts.get(name, 0))
    rare = [name for name in offered if (name, conditions[name]) != ("reason", "granted")]
    return rare[0] if rare else offered[0]


def _known(
    since: datetime, until: datetime, asked: dict[str, Any], counted: datetime, told_by: frozenset[str] = frozenset()
) -> Known:
    """Ask, in one statement, each cut that knows of some of the filters, but the one of everything. A single filter's
    rows are few, and summed up; of a combination only the first and the last span with a match are looked for. A filter
    that is a list has any of its values. `told_by`: only cuts that tell these dimensions apart."""
    precise = until - since <= DAYS_UP_TO and since > counted - rollups.KEPT["1d"]
    span = "1d" if precise else "1w"
    base = {name: value for name, value in asked.items() if name in rollups.EVERYWHERE}
    cuts: dict[frozenset[str], str] = {}
    for cut, told in rollups.CUTS.items():
        if cut != "all" and told_by <= told:
            cuts.setdefault(told & frozenset(asked), cut)  # the smallest that knows of them
    parts, values = [], list[Any]()
    for told, cut in cuts.items():
        single = len(told) < 2
        parts.append((SUMMED if single else FOUND).format(
            cut=cut, span=span, told=",".join(sorted(told)), exact="".join(_exact(name, asked[name]) for name in told),
            base="".join(f" AND {name} = %s" for name in base),
            flagged="flagged = %s" if "flagged" in base else "true", type="type = %s" if "type" in base else "true",
        ))  # fmt: skip
        window = [rollups.floor(since, span), until, *(asked[name] for name in told)]
        own = [base[name] for name in ("flagged", "type") if name in base]
        values += [*own, *base.values(), *base.values(), *window] if single else [*window, *base.values()] * 2
    with connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(parts), values)
        return _sum(cursor.fetchall(), rollups.WIDTHS[span])


def _exact(name: str, value: Any) -> str:
    return f" AND {name} = ANY(%s)" if isinstance(value, list) else f" AND {name} = %s"


# Of a single filter: how many records have its value (of none: how many are flagged, and how many are of the type),
# and the first and the last span with a match of it and of what every cut tells.
SUMMED = """SELECT '{told}', sum(count), sum(count) FILTER (WHERE {flagged}), sum(count) FILTER (WHERE {type}),
    min(at) FILTER (WHERE true{base}), max(at) FILTER (WHERE true{base})
    FROM audit_rollup WHERE cut = '{cut}' AND span = '{span}' AND at >= %s AND at < %s{exact}"""
SPAN = """(SELECT at FROM audit_rollup WHERE cut = '{{cut}}' AND span = '{{span}}' AND at >= %s AND at < %s
    {{exact}}{{base}} ORDER BY at {order} LIMIT 1)"""
FOUND = f"SELECT '{{told}}', NULL, NULL, NULL, {SPAN.format(order='ASC')}, {SPAN.format(order='DESC')}"


def _sum(found: list[tuple[Any, ...]], width: timedelta) -> Known:
    """Put together what each cut said."""
    known = Known()
    for told, count, flagged, of_type, _, _ in found:
        if told == "":
            known.counts |= {"flagged": int(flagged or 0), "type": int(of_type or 0)}
        elif "," not in told:
            known.counts[told] = int(count or 0)
    if all(first is not None for *_, first, _ in found):
        known.first = max(first for *_, first, _ in found)
        known.last = min(last for *_, last in found) + width
    return known


# The index has the beginning of the scopes, since an entry of it is bounded (migration 0011). What is as long as that
# may go on with any scope; whether it does is tried on its rows.
BEGINNING = 2000
MOST_STEPS = 2_000  # a backend declares what its tools need, and could declare it otherwise again and again
CONTAINING = f"""
    WITH RECURSIVE told (scopes, step) AS (
        (SELECT left(scopes, {BEGINNING}), 1 FROM audit_record
         WHERE scopes IS NOT NULL AND at >= %(since)s AND at < %(until)s ORDER BY 1 LIMIT 1)
        UNION ALL
        SELECT (SELECT left(r.scopes, {BEGINNING}) FROM audit_record r
                WHERE left(r.scopes, {BEGINNING}) > told.scopes AND scopes IS NOT NULL
                    AND at >= %(since)s AND at < %(until)s ORDER BY 1 LIMIT 1), step + 1
        FROM told WHERE told.scopes IS NOT NULL AND step < %(steps)s)
    SELECT scopes, step FROM told WHERE %(scope)s = ANY(string_to_array(scopes, ' ')) OR length(scopes) = {BEGINNING}
        OR step = %(steps)s
    LIMIT %(most)s"""  # noqa: S608 - a number of ours


def _containing(scope: str, since: datetime, until: datetime) -> tuple[str, ...] | None:
    """Which combinations of scopes, of those that calls needed, hold this one, as the index has them, or may;
    MOST_VALUES + 1 of them at most. Steps from one to the next on the index, so that it does not matter how many
    records have each. None where there are too many combinations to tell."""
    with connection.cursor() as cursor:
        cursor.execute(CONTAINING, {
            "since": since, "until": until, "scope": scope, "steps": MOST_STEPS, "most": MOST_VALUES + 1,
        })  # fmt: skip
        found = cursor.fetchall()
    return None if any(step == MOST_STEPS for _, step in found) else tuple(scopes for scopes, _ in found)
