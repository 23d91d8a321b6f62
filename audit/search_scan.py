"""Following one index through a bounded number of rows: the one statement by which a search reads records. It takes the
newest (or oldest) `BUDGET` rows of one condition and tries the other filters on those; when there are more, it says how
far it looked, and the search can go on from there (DESIGN.md section 7: never a count, never an OFFSET)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection, transaction

from audit.search_plan import Part, Plan

BUDGET = 20_000  # rows that one look reads at most, over all values of its index
# What a filter means, where that is more than equality with the column of its name.
MEANINGS = {
    "scopes": "%(scopes)s = ANY(string_to_array(scopes, ' '))",
    "tenants": "tenant = ANY(%(tenants)s)",
}
# An index that is partial is followed by its own condition.
FOLLOWED = {"flagged": "flagged", "type": "type = %(followed)s AND type NOT IN ('decision', 'outcome')"}
READ = ("type", "decision", "reason", "flagged", "backend", "client", "subject", "tenant", "tool", "mode", "scopes")
KEYS = ("request_key", "trace_key", "session_key", "resource_key")
# The pages of an index that is in use are in memory: told so, the planner follows the narrow index that it is offered
# rather than read all of a time. It needs neither parallel workers nor a compiler for a few thousand rows.
SETTINGS = """SET LOCAL seq_page_cost = 0.02; SET LOCAL random_page_cost = 0.02; SET LOCAL jit = off;
    SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = off"""


@dataclass(frozen=True, slots=True)
class Look:
    """What was found, in the order of the look: the time of each and whether it was denied; and the time up to which it
    looked, None where it saw all there is or found as many as were wanted."""

    found: list[tuple[datetime, bool]]
    reached: datetime | None


def look(plan: Plan, conditions: Mapping[str, Any], most: int, *, newest: bool = True) -> Look:
    """The `most` newest (or oldest) records that match."""
    seen = Look([], None)
    for part in reversed(plan.parts) if newest else plan.parts:
        more = _look(plan, part, conditions, most - len(seen.found), newest)
        seen = Look(seen.found + more.found, more.reached)
        if seen.reached is not None or len(seen.found) >= most:
            break
    return seen


def _look(plan: Plan, part: Part, conditions: Mapping[str, Any], most: int, newest: bool) -> Look:
    """One part of the window."""
    if not plan.values:
        return Look([], None)
    budget, order = BUDGET // len(plan.values), "DESC" if newest else "ASC"
    statement = f"""SELECT at, coalesce(decision = 'deny', false), hit, n = {budget}
        FROM ({_tried(plan, conditions, budget, order)}) tried
        WHERE hit OR n = {budget} ORDER BY at {order} LIMIT %(most)s"""  # noqa: S608 - names are ours
    rows = _run(statement, plan, {**conditions, "since": part[0], "until": part[1], "most": most})
    found = sorted(((at, denied) for at, denied, hit, _ in rows if hit), reverse=newest)
    ends = [at for at, _, _, last in rows if last]
    if not ends:
        return Look(found[:most], None)
    # Of several values: what lies beyond where one of them ended is not complete.
    end = max(ends) if newest else min(ends)
    found = [match for match in found if (match[0] >= end if newest else match[0] <= end)][:most]
    return Look(found, end if len(found) < most else None)


def _tried(plan: Plan, conditions: Mapping[str, Any], budget: int, order: str) -> str:
    """Rows of one value of the followed index, numbered, each with whether it matches. The LIMIT inside keeps the other
    filters from being moved to where they would let the scan run on without end."""
    followed = "" if plan.column is None else f"AND {_followed(plan)}"
    tried = [_tried_one(name, value) for name, value in conditions.items() if name != plan.column]
    columns = ", ".join(name for name in (*READ, *KEYS) if name in conditions or name in ("decision", "tenant"))
    return f"""
        SELECT at, decision, ({" AND ".join(tried) or "true"}) IS TRUE AS hit,
            row_number() OVER (ORDER BY at {order}) AS n
        FROM (SELECT at, {columns} FROM audit_record WHERE at >= %(since)s AND at < %(until)s {followed}
              ORDER BY at {order} LIMIT {budget}) followed"""  # noqa: S608 - names are ours


def _followed(plan: Plan) -> str:
    return (
        FOLLOWED.get(str(plan.column)) or f"{plan.column} {'IS NULL' if plan.values == (None,) else '= %(followed)s'}"
    )


def _tried_one(name: str, value: Any) -> str:
    return MEANINGS.get(name) or f"{name} {'IS NULL' if value is None else f'= %({name})s'}"


def _run(statement: str, plan: Plan, given: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(SETTINGS)
        rows = []
        for value in plan.values:
            cursor.execute(statement, {**given, "followed": value})
            rows += cursor.fetchall()
    return rows
