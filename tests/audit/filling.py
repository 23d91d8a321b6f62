"""Records by the thousand, put straight into the table: for tests of what reads many. They have no batch and no
signature."""

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connection

from audit.batching import uuid7
from audit.entries import call_columns
from audit.models import Head, Record
from muniment import merkle

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)  # a Monday
COLUMNS = ("type", "decision", "reason", "backend", "client", "subject", "tenant", "tool")
CALL: dict[str, Any] = {
    "type": "decision", "decision": "allow", "reason": "granted", "flagged": False, "backend": "inner",
    "client": "claude", "tool": "memory.recall", "tenant": None, "subject": "usr_alice",
    "agent": {"mode": "interactive", "chain": [], "scopes": None}, "required": ["memory:read"],
}  # fmt: skip


def _plain(statement: dict[str, Any]) -> bytes:
    return json.dumps(statement).encode()


def fill(
    entries: Iterable[dict[str, Any]],
    every: timedelta = timedelta(seconds=1),
    encode: Callable[[dict[str, Any]], bytes] = _plain,
) -> list[Record]:
    """Append records. An entry is what differs from a plain allowed call; its `at` says when (default: `every` after
    the one before), and members that end in `_key` and `parent` go into their columns alone. `encode` makes the bytes
    of a statement."""
    head = Head.objects.get()
    at, made = max(head.at + every, START), list[Record]()
    for number, entry in enumerate(entries):
        at = entry.get("at") or (at if not made else made[-1].at + every)
        beside = {name: entry[name] for name in entry if name.endswith("_key") or name in ("parent", "disclosures")}
        statement = CALL | {k: v for k, v in entry.items() if k != "at" and k not in beside}
        data = encode(statement)
        mode, scopes = call_columns(statement)
        made.append(Record(
            id=uuid7(at), index=head.next + number, at=at, flagged=statement["flagged"], mode=mode, scopes=scopes,
            statement=data, leaf=merkle.leaf_hash(data), **{name: statement[name] for name in COLUMNS}, **beside,
        ))  # fmt: skip
    if made:
        _copy(made)
        Head.objects.update(next=head.next + len(made), at=made[-1].at)
    return made


def _copy(records: list[Record]) -> None:
    """Into the table; a tenth of what bulk_create takes."""
    fields = Record._meta.concrete_fields
    names = ", ".join(connection.ops.quote_name(field.column) for field in fields)
    with connection.cursor() as cursor, cursor.copy(f"COPY {Record._meta.db_table} ({names}) FROM STDIN") as copy:
        for record in records:
            copy.write_row([getattr(record, field.attname) for field in fields])
