"""The outbox and its drain: what other processes, staff and psql did becomes records, in version order, exactly
once (DESIGN.md section 6, Policy changes)."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import groupby
from typing import Any

import psycopg
from django.db import connection as django_connection
from django.db import transaction
from psycopg.rows import dict_row

from audit.entries import Entry, entry
from muniment import statements

WAITING = "SELECT EXISTS (SELECT 1 FROM audit_outbox WHERE record_index IS NULL)"
EVENTS = "SELECT * FROM audit_outbox WHERE record_index IS NULL AND version IS NULL ORDER BY id LIMIT 200"
CHANGES = """SELECT * FROM audit_outbox WHERE record_index IS NULL AND version > %(drained)s
    AND version <= %(drained)s + 20 ORDER BY version, id"""
# A policy record stays well below the statement's bound; a larger change is told in parts.
PART_BYTES = 48_000


@contextmanager
def acting(actor: str, name: str = "", reason: str = "") -> Iterator[None]:
    """A transaction whose changes are recorded as this actor's (`staff:<id>`, `backend:<slug>`), for this reason.

    The words reach the triggers as transaction-local settings; in the log they are protected."""
    with transaction.atomic(), django_connection.cursor() as cursor:
        attribute(cursor, actor, name, reason)
        yield


def attribute(cursor: Any, actor: str, name: str = "", reason: str = "") -> None:
    """Say, for the rest of the transaction, who acts and why."""
    cursor.execute(
        "SELECT set_config('muniment.actor', %s, true), set_config('muniment.actor_name', %s, true),"
        " set_config('muniment.reason', %s, true)",
        [actor, name, reason],
    )


def waiting(connection: psycopg.Connection) -> bool:
    """Whether anything waits, without taking a lock."""
    row = connection.execute(WAITING, prepare=True).fetchone()
    connection.rollback()
    return bool(row and row[0])


def entries(connection: psycopg.Connection, drained: int) -> tuple[list[Entry], int | None]:
    """What waits, as entries, and the policy version that the log will then have (None: no policy change).

    Called under the head's lock, so that no version can be missing between `drained` and the newest."""
    with connection.cursor(row_factory=dict_row) as cursor:
        made = [_event(row) for row in cursor.execute(EVENTS).fetchall()]
        changes = cursor.execute(CHANGES, {"drained": drained}).fetchall()
    newest = drained
    for version, group in groupby(changes, key=lambda row: row["version"]):
        if version != newest + 1:
            raise RuntimeError(f"policy version {newest + 1} is not in the outbox")
        made += _policy(version, list(group))
        newest = version
    return made, newest if newest != drained else None


def _holder(actor: str) -> str:
    """Whose key protects what is private: the member of staff's own, else the system's."""
    return actor if actor.startswith("staff:") else "system"


def _policy(version: int, rows: list[dict[str, Any]]) -> list[Entry]:
    """The records of one policy version: one, or parts when much was changed at once."""
    parts: list[list[dict[str, Any]]] = [[]]
    size = 0
    for row in rows:
        change = _change(row)
        length = len(statements.dump(change))
        if size + length > PART_BYTES and parts[-1]:
            parts.append([])
            size = 0
        parts[-1].append(change)
        size += length
    actor = rows[0]["actor"]
    made = []
    for number, changes in enumerate(parts):
        statement = {"type": "policy", "policy": {"version": version, "digest": None}, "actor": actor}
        statement |= {"changes": changes, "part": number + 1, "parts": len(parts)}
        made.append(entry(statement, rows[0]["private"] or {}, _holder(actor)))
    made[-1].outbox = [row["id"] for row in rows]
    return made


def _change(row: dict[str, Any]) -> dict[str, Any]:
    """What changed in one row; a row too large for a statement is named by its digests."""
    change = {"table": row["table_name"], "op": row["operation"], "key": row["row_key"]}
    if len(statements.dump([row["old"], row["new"]])) <= PART_BYTES:
        return change | {"old": row["old"], "new": row["new"]}
    sides = {f"{side}_sha256": sha256(statements.dump(row[side])).hexdigest() for side in ("old", "new")}
    return change | sides


def _event(row: dict[str, Any]) -> Entry:
    statement = {"type": row["kind"], "actor": row["actor"], **(row["members"] or {})}
    return entry(statement, row["private"] or {}, _holder(row["actor"]), outbox=[row["id"]])
