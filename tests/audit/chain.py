"""An auditor's look at the whole log, from its tables alone: is it whole, and what does it say of the policy?

Written apart from the code that writes: only the pure proof code of the SDK is shared.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import psycopg

from muniment import batches, merkle, statements
from muniment.policy import digest_of

Tables = dict[str, dict[int, dict[str, Any]]]
EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
COPIED = ("type", "decision", "reason", "backend", "client", "subject", "tenant", "tool")


@dataclass
class Logged:
    """One row of the log."""

    index: int
    id: UUID
    at: datetime
    leaf: bytes
    statement: bytes
    columns: dict[str, Any]

    @property
    def said(self) -> dict[str, Any]:
        """The statement."""
        return statements.decode(self.statement)

    @property
    def version(self) -> int:
        """The policy version that a decision was recorded at."""
        return int(self.said["policy"]["version"])


def records(url: str) -> list[Logged]:
    """Every record, by index."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            f"SELECT index, id, at, leaf, statement, flagged, parent, {', '.join(COPIED)}"
            " FROM audit_record ORDER BY index"
        ).fetchall()
    names = ("flagged", "parent", *COPIED)
    return [Logged(*row[:3], bytes(row[3]), bytes(row[4]), dict(zip(names, row[5:], strict=True))) for row in rows]


def decisions(log: list[Logged]) -> list[Logged]:
    """Those that decide."""
    return [record for record in log if record.columns["type"] == "decision"]


def findings(url: str) -> list[str]:
    """What is wrong with the log; nothing, one hopes. Checked from its first batch to the head row."""
    log = records(url)
    with psycopg.connect(url) as connection:
        head = connection.execute("SELECT next, at, batch, drained, policy FROM audit_head").fetchone()
        rows = connection.execute(
            "SELECT first, size, previous, root, digest, signature, key_id FROM audit_batch ORDER BY first"
        ).fetchall()
        keys = dict(connection.execute("SELECT key_id, public FROM audit_publishedkey WHERE use = 'writer'"))
    assert head is not None
    found = [*_row_findings(log), *_chain_findings(log, rows, keys)]
    if [record.index for record in log] != list(range(head[0])):
        found.append(f"the indices are not 0 to {head[0] - 1}: {len(log)} records")
    if log and log[-1].at != head[1]:
        found.append("the head's time is not the newest record's")
    if bytes(head[2]) != (bytes(rows[-1][4]) if rows else batches.GENESIS):
        found.append("the head does not name the newest batch")
    if len({record.id for record in log}) != len(log):
        found.append("two records have the same id")
    return found


def _row_findings(log: list[Logged]) -> Iterator[str]:
    for record in log:
        said = record.said
        copied = {name: said.get(name) for name in COPIED} | {"flagged": bool(said.get("flagged"))}
        copied["parent"] = UUID(said["parent"]) if said.get("parent") else None
        if merkle.leaf_hash(record.statement) != record.leaf:
            yield f"record {record.index}: the leaf is not its statement's"
        if said["id"] != str(record.id) or EPOCH + timedelta(microseconds=said["at"]) != record.at:
            yield f"record {record.index}: id or time is not its statement's"
        if copied != record.columns:
            yield f"record {record.index}: a column differs from its statement"
    for earlier, later in pairwise(log):
        if not earlier.at < later.at:
            yield f"record {later.index}: its time is not after the one before"


def _chain_findings(log: list[Logged], rows: list[Any], keys: dict[str, bytes]) -> Iterator[str]:
    leaves = {record.index: record.leaf for record in log}
    previous, upto = batches.GENESIS, 0
    for first, size, named, root, digest, signature, key_id in rows:
        message = batches.message(first, size, bytes(named), bytes(root))
        if first != upto:
            yield f"batch {first}: expected one at {upto}"
        if bytes(named) != previous:
            yield f"batch {first}: it names another batch before it"
        if merkle.root([leaves.get(index, bytes(32)) for index in range(first, first + size)]) != bytes(root):
            yield f"batch {first}: its root is not its records'"
        if batches.digest(message) != bytes(digest):
            yield f"batch {first}: its digest is not its own"
        if key_id not in keys or not batches.verify(bytes(keys[key_id]), message, bytes(signature)):
            yield f"batch {first}: no published writer key signed it"
        previous, upto = bytes(digest), first + size
    if upto != len(log):
        yield f"the batches cover {upto} of {len(log)} records"


def replay(log: list[Logged]) -> dict[int, Tables]:
    """The policy at each version, from the policy records alone. AssertionError where they do not add up."""
    by_version: dict[int, list[dict[str, Any]]] = {}
    for record in log:
        if record.columns["type"] == "policy":
            by_version.setdefault(record.version, []).append(record.said)
    assert sorted(by_version) == list(range(1, len(by_version) + 1)), "a policy version has no record"
    assert list(by_version) == sorted(by_version), "policy versions are not recorded in their order"
    tables: Tables = {}
    history: dict[int, Tables] = {0: {}}
    for version, parts in by_version.items():
        assert [part["part"] for part in parts] == list(range(1, parts[0]["parts"] + 1))
        for change in (change for part in parts for change in part["changes"]):
            _apply(tables, change)
        history[version] = {name: dict(rows) for name, rows in tables.items()}
    return history


def _apply(tables: Tables, change: dict[str, Any]) -> None:
    rows = tables.setdefault(change["table"], {})
    key = int(change["key"])
    assert rows.get(key) == change["old"], f"{change['table']} {key}: its old value is not what the log knew"
    if change["new"] is None:
        del rows[key]
    else:
        rows[key] = change["new"]


def digest(tables: Tables) -> str:
    """The name of a replayed policy."""
    return digest_of({name: list(rows.values()) for name, rows in tables.items()})
