"""The outbox and its drain: what other processes, staff and psql did becomes records, in version order,
exactly once (DESIGN.md section 6, Policy changes)."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import groupby
from typing import Any

import psycopg
from django.db import connection as django_connection
from django.db import transaction
from psycopg.rows import dict_row

from audit import wire
from audit.entries import Entry, entry
from muniment import statements

WAITING = "SELECT EXISTS (SELECT 1 FROM audit_outbox WHERE record_index IS NULL)"
EVENTS = "SELECT * FROM audit_outbox WHERE record_index IS NULL AND version IS NULL ORDER BY id LIMIT 200"
CHANGES = """SELECT * FROM audit_outbox WHERE record_index IS NULL AND version > %(drained)s
    AND version <= %(drained)s + 20 ORDER BY version, id"""
# Records of these types come from nowhere but a web process that decided.
DECIDED = frozenset({"decision", "evaluation", "introspection", "outcome", "denials", "policy", "ungoverned"})
# A policy record stays well below the statement's bound; a larger change is told in parts.
PART_BYTES = 48_000


@contextmanager
def acting(actor: str, name: str = "", reason: str = "") -> Iterator[None]:
    """A transaction whose changes are recorded as this actor's (`staff:<id>`, `backend:<slug>`), and why.

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
    """Whether anything waits, without a transaction and without taking a lock."""
    return wire.run(connection, "waiting", WAITING, []) == [[wire.BOOLEAN.encode(True)]]


def entries(connection: psycopg.Connection, drained: int) -> tuple[list[Entry], int | None]:
    """What waits, as entries, and the policy version that the log will then have (None: no policy change).

    Called under the head's lock, so that no version can be missing between `drained` and the newest."""
    with connection.cursor(row_factory=dict_row) as cursor:
        # The next log starts with the record that opens it, and with a whole write batch.
        events = sorted(cursor.execute(EVENTS).fetchall(), key=lambda row: not _opens_log(row))
        made = [_event(row) for row in events]
        changes = cursor.execute(CHANGES, {"drained": drained}).fetchall()
    newest = drained
    for version, group in groupby(changes, key=lambda row: row["version"]):
        if version != newest + 1:
            raise RuntimeError(f"policy version {newest + 1} is not in the outbox")
        made += _policy(version, list(group))
        newest = version
    return made, newest if newest != drained else None


def _opens_log(row: dict[str, Any]) -> bool:
    return row["kind"] == "notice" and (row["members"] or {}).get("action") == "log.open"


def _holder(actor: str) -> str:
    """Whose key protects what is private: the member of staff's own, else the system's."""
    return actor if actor.startswith("staff:") else "system"


def _policy(version: int, rows: list[dict[str, Any]]) -> list[Entry]:
    """The records of one policy version: one, or parts when much was changed at once, or by several."""
    parts: list[list[dict[str, Any]]] = []
    size = 0
    for row in rows:
        row["change"] = _change(row)
        length = len(statements.dump(row["change"]))
        if not parts or size + length > PART_BYTES or parts[-1][0]["actor"] != row["actor"]:
            parts.append([])
            size = 0
        parts[-1].append(row)
        size += length
    made = []
    for number, part in enumerate(parts):
        actor = part[0]["actor"]
        statement = {
            "type": "policy",
            "policy": {"version": version, "digest": None},
            "actor": actor,
            "role": part[0]["role"],
        }
        statement |= {"changes": [row["change"] for row in part], "part": number + 1, "parts": len(parts)}
        made.append(entry(statement, _why(part), _holder(actor)))
    made[-1].outbox = [row["id"] for row in rows]
    return made


def _why(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Who by name, and the reason. Where changes have reasons of their own (grants made by psql or from a
    file), `reason` is the first and `reasons` has each beside its row."""
    given = [(f"{row['table_name']}/{row['row_key']}", row["private"] or {}) for row in rows]
    name = next((private["actor_name"] for _, private in given if "actor_name" in private), None)
    reasons = {row: private["reason"] for row, private in given if "reason" in private}
    why = {"actor_name": name, "reason": next(iter(reasons.values()), None)}
    return why | ({"reasons": reasons} if len(set(reasons.values())) > 1 else {})


def _change(row: dict[str, Any]) -> dict[str, Any]:
    """What changed in one row; a row that a statement cannot hold is named by its digests."""
    change = {"table": row["table_name"], "op": row["operation"], "key": row["row_key"]}
    if _fits([row["old"], row["new"]]):
        return change | {"old": row["old"], "new": row["new"]}
    sides = {f"{side}_sha256": sha256(statements.dump(row[side])).hexdigest() for side in ("old", "new")}
    return change | sides


def _fits(value: object) -> bool:
    try:
        statements.check(value)
    except statements.StatementError:
        return False
    return len(statements.dump(value)) <= PART_BYTES


def _event(row: dict[str, Any]) -> Entry:
    statement = {**(row["members"] or {}), "type": row["kind"], "actor": row["actor"], "role": row["role"]}
    holder, numbers = _holder(row["actor"]), [row["id"]]
    if row["kind"] in DECIDED:
        # Only a web writer knows these; to write them here would be to have a forgery signed.
        return by_digest(entry(statement, {}, holder, outbox=numbers))
    try:
        return entry(statement, row["private"] or {}, holder, outbox=numbers)
    except Exception:  # left waiting, it would hold up all that comes after it
        return by_digest(entry(statement, {}, holder, outbox=numbers))


def by_digest(unfit: Entry) -> Entry:
    """What cannot be a statement, as a notice that names it by the digest of its JSON. Always recordable."""
    said = unfit.statement
    digest = sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    notice = {"type": "notice", "action": "outbox.unfit", "actor": said["actor"], "outbox": unfit.outbox}
    return Entry({**notice, "kind": said["type"], "content_sha256": digest}, outbox=unfit.outbox)
