"""Reading all that matches, in the order of the log: pages by index, one short statement each, so that no snapshot is
held open (DESIGN.md section 6, Storage). `audit.search` decides who may read, and is where it is called from."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from django.db import connection, transaction

from audit.search_scan import condition

PAGE = 5_000  # indices that one statement looks at
STATEMENT = """SELECT index, decision{columns} FROM audit_record
    WHERE index >= %(first)s AND index < %(upto)s AND at >= %(since)s AND at < %(until)s{conditions}
    ORDER BY index"""
# Each by the index of parents: left to itself, the planner reads all that there is of outcomes for every page.
OUTCOMES = """SELECT d.id, o.statement FROM unnest(%(decisions)s::uuid[]) AS d(id), LATERAL (
        SELECT statement FROM audit_record
        WHERE parent = d.id AND type = 'outcome' AND at >= %(since)s AND index < %(upto)s ORDER BY at LIMIT 1) o"""
BY_INDEX = "SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off; SET LOCAL jit = off"

Row = tuple[Any, ...]


def pages(
    since: datetime, until: datetime, conditions: Mapping[str, Any], first: int, upto: int, columns: Sequence[str]
) -> Iterator[tuple[int, list[Row]]]:  # fmt: skip
    """Matches with an index in [first, upto): for each `PAGE` indices that behind them, and the rows. A row is index,
    decision, and the SQL expressions of `columns`, which are ours."""
    tried = "".join(f" AND {condition(name, value)}" for name, value in conditions.items())
    told = "".join(f", {column}" for column in columns)
    statement = STATEMENT.format(columns=told, conditions=tried)
    while first < upto:
        behind = min(first + PAGE, upto)
        given = {**conditions, "first": first, "upto": behind, "since": since, "until": until}
        yield behind, _read(statement, given)
        first = behind


def _read(statement: str, given: Mapping[str, Any]) -> list[Row]:
    """By a cursor of psycopg's own and in binary: Django's would have each value turned into text and back."""
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        return cursor.execute(statement, given, binary=True).fetchall()


def outcomes(decisions: Sequence[UUID], since: datetime, upto: int) -> list[tuple[UUID, bytes]]:
    """The first outcome of each of these decisions, where it has one with an index below `upto`: decision and
    statement. None is before `since`."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(BY_INDEX)
        return _read(OUTCOMES, {"decisions": list(decisions), "since": since, "upto": upto})
