"""Following one index through a bounded number of rows: the one statement by which a search reads records. It takes the
newest (or oldest) `BUDGET` rows of one condition and tries the other filters on those; when there are more, it says how
far it looked, and the search can go on from there (DESIGN.md section 7: never a count, never an OFFSET)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction

from audit.search_plan import BEGINNING, FIRST, Part, Plan
from audit.viewer import OF_TENANTS

BUDGET = 10_000  # rows that one look reads at most, over all values of its index
# What a filter means, where that is more than equality with the column of its name.
MEANINGS = {
    "scopes": "%(scopes)s = ANY(string_to_array(scopes, ' '))",
    "tenants": f"tenant = ANY(%(tenants)s) AND type IN {OF_TENANTS}",  # who is confined
}
# An index that is partial is followed by its own condition.
FOLLOWED = {
    "flagged": "flagged", "type": "type = %(followed)s AND type NOT IN ('decision', 'outcome')",
    "scopes": f"left(scopes, {BEGINNING}) = %(followed)s AND scopes IS NOT NULL",
}  # fmt: skip
READ = ("type", "decision", "reason", "flagged", "backend", "client", "subject", "tenant", "tool", "mode", "scopes")
KEYS = ("request_key", "trace_key", "session_key", "resource_key")
# The pages of an index that is in use are in memory: told so, the planner follows the narrow index that it is offered
# rather than read all of a time. It needs neither parallel workers nor a compiler for a few thousand rows.
SETTINGS = """SET LOCAL seq_page_cost = 0.02; SET LOCAL random_page_cost = 0.02; SET LOCAL jit = off;
    SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = off"""


@dataclass(frozen=True, slots=True)
class Look:
    """The times of what was found, in the order of the look; and the time up to which it looked, None where it saw all
    there is or found as many as were wanted."""

    found: list[datetime]
    reached: datetime | None


@dataclass(frozen=True, slots=True)
class Spread:
    """How the newest matches are spread over time: for each span with some its start, how many, and how many denied;
    how many in all, the time of the oldest of them, and `reached` as for a look."""

    spans: list[tuple[datetime, int, int]]
    number: int
    oldest: datetime | None
    reached: datetime | None


def look(plan: Plan, conditions: Mapping[str, Any], most: int, *, newest: bool = True) -> Look:
    """The `most` newest (or oldest) records that match."""
    seen = Look([], None)
    parts = plan.parts if plan.values else ()
    for part in reversed(parts) if newest else parts:
        more = _look(plan, part, conditions, most - len(seen.found), newest)
        seen = Look(seen.found + more.found, more.reached)
        if seen.reached is not None or len(seen.found) >= most:
            break
    return seen


def _look(plan: Plan, part: Part, conditions: Mapping[str, Any], most: int, newest: bool) -> Look:
    """One part of the window."""
    statement = FOUND.format(tried=_tried(plan, conditions, newest), order=_order(newest))
    rows = _run(statement, {**conditions, **_followed_values(plan), "since": part[0], "until": part[1], "most": most})
    found = [at for at, _, hit, _ in rows if hit]
    ends = [at for at, _, _, last in rows if last]
    if not ends:
        return Look(found[:most], None)
    # Of several values: what lies beyond where one of them ended is not complete.
    end = max(ends) if newest else min(ends)
    found = [at for at in found if (at >= end if newest else at <= end)][:most]
    return Look(found, end if len(found) < most else None)


def spread(plan: Plan, conditions: Mapping[str, Any], most: int, width: timedelta, origin: datetime) -> Spread:
    """The newest `most` matches, counted in spans of `width`, which start at whole multiples of it from `origin` on."""
    found = Spread([], 0, None, None)
    for part in reversed(plan.parts) if plan.values else ():
        given = {
            **conditions,
            **_followed_values(plan),
            "since": part[0],
            "until": part[1],
            "most": most - found.number,
        }
        rows = _run(SPREAD.format(tried=_tried(plan, conditions, True)), given | {"width": width, "origin": origin})
        spans = [(at, calls, denied) for at, calls, denied, _, _ in rows if at is not None]
        number = found.number + sum(calls for _, calls, _ in spans)
        reached = rows[0][4] if rows and number < most else None
        oldest = min((first for *_, first, _ in rows if first is not None), default=found.oldest)
        found = Spread(found.spans + spans, number, oldest, reached)
        if reached is not None or number >= most:
            break
    return found


FOUND = "SELECT at, denied, hit, last FROM ({tried}) tried WHERE hit OR last ORDER BY at {order} LIMIT %(most)s"
# A row for each span, at least one, so that it can say how far was looked.
SPREAD = f"""
    WITH found AS ({FOUND.replace("{order}", "DESC")}), edge AS (SELECT max(at) AS at FROM found WHERE last),
    spans AS (
        SELECT date_bin(%(width)s, at, %(origin)s) AS span, count(*) AS calls, count(*) FILTER (WHERE denied) AS denied,
            min(at) AS first FROM found WHERE hit AND at >= coalesce((SELECT at FROM edge), '-infinity') GROUP BY 1)
    SELECT span, calls, denied, first, edge.at FROM edge LEFT JOIN spans ON true"""  # noqa: S608 - all of it is here


def _order(newest: bool) -> str:
    return "DESC" if newest else "ASC"


def _followed_values(plan: Plan) -> dict[str, Any]:
    return {f"followed{number}": value for number, value in enumerate(plan.values)}


def _tried(plan: Plan, conditions: Mapping[str, Any], newest: bool) -> str:
    """The rows of the followed index, for each of its values as many as the budget allows: when, whether it was denied,
    whether it matches, and whether it is the last that the budget allows. The LIMIT inside keeps the other filters from
    being moved to where they would let the scan run on without end."""
    order, budget = _order(newest), BUDGET // max(1, len(plan.values))
    # Of the scopes the index has the beginning alone, so they are tried as well.
    tried = [condition(name, value) for name, value in conditions.items() if name != plan.column or name == "scopes"]
    columns = ", ".join(name for name in (*READ, *KEYS) if name in conditions or name == "decision")
    confined = ""
    if "tenants" in conditions:
        columns += "".join(f", {name}" for name in ("tenant", "type") if name not in conditions)
        # Of what is nearly unique those alone are counted that the viewer may see: the budget must tell of no others.
        confined = f"AND {MEANINGS['tenants']}" if plan.column in FIRST else ""
    return " UNION ALL ".join(
        f"""(
        SELECT at, decision = 'deny' AS denied, ({" AND ".join(tried) or "true"}) IS TRUE AS hit,
            row_number() OVER (ORDER BY at {order}) = {budget} AS last
        FROM (SELECT at, {columns} FROM audit_record WHERE at >= %(since)s AND at < %(until)s {_followed(plan, number)}
              {confined} ORDER BY at {order} LIMIT {budget}) followed)"""  # noqa: S608 - names are ours
        for number in range(len(plan.values))
    )


def _followed(plan: Plan, number: int) -> str:
    """The condition on the followed index, for one of its values."""
    if plan.column is None:
        return ""
    return f"AND {FOLLOWED.get(plan.column, f'{plan.column} = %(followed)s')}".replace(
        "%(followed)s", f"%(followed{number})s"
    )


def condition(name: str, value: Any) -> str:
    """A filter as SQL, with the value as the parameter of its name."""
    return MEANINGS.get(name) or f"{name} {'IS NULL' if value is None else f'= %({name})s'}"


def _run(statement: str, given: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(SETTINGS)
        cursor.execute(statement, given)
        return cursor.fetchall()
