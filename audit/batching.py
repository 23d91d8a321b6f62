"""One write batch: its two round trips to the database, and the bytes in between.

(1) lock the head row, then read the subjects' state; (2) insert the batch and its records and move the head, commit.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit import wire
from audit.entries import Entry, Receipt, call_columns
from audit.faults import AlreadyRecorded, Stale, SubjectChanged
from audit.protection import protect
from muniment import batches, disclosures, merkle, statements

EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
MICROSECOND = timedelta(microseconds=1)
UNTOUCHED, GONE = (False, None, False), (False, None, True)
TRUE = wire.BOOLEAN.encode(True)

# No values, so that BEGIN goes with it. Times in microseconds since 1970, the hash in hex: whatever the session says.
LOCK = """BEGIN; SELECT policy, next, drained, encode(batch, 'hex'), (extract(epoch FROM at) * 1000000)::bigint,
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint FROM audit_head FOR UPDATE"""
SUBJECTS = """SELECT uid, blocked_at IS NOT NULL OR deactivated_at IS NOT NULL, signed_out_at, erased_at IS NOT NULL
    FROM audit_subject WHERE uid = ANY($1::text[])"""
OUTCOMES = """SELECT parent, id, CASE type WHEN 'ungoverned' THEN statement END
    FROM audit_record WHERE parent = ANY($1::uuid[]) AND type IN ('outcome', 'ungoverned')"""
COLUMNS = {
    "id": wire.UUID_, "index": wire.BIGINT, "at": wire.TIMESTAMPTZ, "type": wire.TEXT, "decision": wire.TEXT,
    "reason": wire.TEXT, "flagged": wire.BOOLEAN, "backend": wire.TEXT, "client": wire.TEXT,
    "subject": wire.TEXT, "tenant": wire.TEXT, "tool": wire.TEXT, "parent": wire.UUID_, "request_key": wire.BYTEA,
    "trace_key": wire.BYTEA, "session_key": wire.BYTEA, "resource_key": wire.BYTEA, "holder": wire.TEXT,
    "statement": wire.BYTEA, "leaf": wire.BYTEA, "disclosures": wire.BYTEA,
    "mode": wire.TEXT, "scopes": wire.TEXT,
}  # fmt: skip
BATCH = {
    "first": wire.BIGINT, "size": wire.INTEGER, "previous": wire.BYTEA, "root": wire.BYTEA, "digest": wire.BYTEA,
    "signature": wire.BYTEA, "key_id": wire.TEXT, "at": wire.TIMESTAMPTZ,
}  # fmt: skip
# Characters that a column holds (audit/migrations/0002_log.py): a longer value would spoil the whole batch.
LIMITS = {
    "type": 20, "decision": 5, "reason": 40, "backend": 64, "client": 64, "subject": 40, "tenant": 255,
    "tool": 128,
}  # fmt: skip


def _append() -> str:
    """One statement for batch, records and head, so that the second round trip costs one plan."""
    batch = ", ".join(f"${n}::{kind.name}" for n, kind in enumerate(BATCH.values(), 1))
    records = ", ".join(f"${n}::{kind.name}[]" for n, kind in enumerate(COLUMNS.values(), len(BATCH) + 1))
    n = len(BATCH) + len(COLUMNS)
    return f"""
        WITH batch AS (INSERT INTO audit_batch ({", ".join(BATCH)}) VALUES ({batch})),
             records AS (INSERT INTO audit_record ({", ".join(COLUMNS)}) SELECT * FROM unnest({records}))
        UPDATE audit_head SET next = ${n + 1}::bigint, at = ${n + 2}::timestamptz, batch = ${n + 3}::bytea,
            drained = coalesce(${n + 4}::bigint, drained)"""  # noqa: S608 - names are ours


APPEND = _append()
DRAINED = """UPDATE audit_outbox o SET record_index = d.index, private = NULL
    FROM unnest(%b::bigint[], %b::bigint[]) AS d(id, index) WHERE o.id = d.id"""


@dataclass(frozen=True, slots=True)
class Signer:
    """The writer key of this process and its public name."""

    private: Ed25519PrivateKey
    key_id: str


def line_of(statement: bytes | memoryview) -> str:
    """The hash of the spool's line that an ungoverned call's record is of; empty for what is no such statement any
    more, so that whoever changes a record stops nobody else's."""
    try:
        said: Any = statements.load(bytes(statement))
        return str(said["line"])
    except (statements.StatementError, LookupError, TypeError):
        return ""


@dataclass(slots=True)
class Begun:
    """The head, locked until `finish` or a rollback, and what `look` found of the entries to be recorded."""

    policy: int
    next: int
    drained: int
    previous: bytes
    at: datetime
    now: datetime
    subjects: dict[str, tuple[bool, datetime | None, bool]] = field(default_factory=dict)
    outcomes: dict[UUID, UUID] = field(default_factory=dict)
    claimed: set[UUID] = field(default_factory=set)
    lines: dict[UUID, str] = field(default_factory=dict)

    def look(self, connection: psycopg.Connection, entries: Sequence[Entry]) -> None:
        """Read the state of the entries' subjects and calls: by statements of their own, after the lock was had, so
        that what was committed before the lock is seen. What was not decided from that state loses what it would keep
        of a user who was erased meanwhile."""
        if uids := list({entry.keeps_of for entry in entries if entry.keeps_of is not None}):
            for uid, blocked, out, gone in wire.run(connection, "subjects", SUBJECTS, [wire.array(wire.TEXT, uids)]):
                assert uid is not None  # a primary key
                self.subjects[bytes(uid).decode()] = (blocked == TRUE, wire.timestamp(out), gone == TRUE)
            for entry in entries:
                if entry.subject_state is None and self.subjects.get(entry.keeps_of or "", UNTOUCHED)[2]:
                    entry.forget()
        parents = [entry.parent for entry in entries if entry.parent is not None]
        if parents := parents + [entry.after[0] for entry in entries if entry.after is not None]:
            for parent, record, said in wire.run(connection, "outcomes", OUTCOMES, [wire.array(wire.UUID_, parents)]):
                self.outcomes[wire.uuid(parent)] = wire.uuid(record)
                if said is not None:
                    self.lines[wire.uuid(parent)] = line_of(said)

    def fault(self, entry: Entry) -> Exception | None:
        """Why this entry must not be recorded as it is, if so: above all, when the policy has moved on since it
        was decided. It cannot move while the head is locked."""
        if entry.version not in (None, self.policy):
            return Stale()
        if entry.subject is not None and entry.subject_state is not None:
            state = self.subjects.get(entry.subject, GONE)
            if state != entry.subject_state:
                return SubjectChanged(state)
        if entry.parent is not None:
            if first := self.outcomes.get(entry.parent):
                return AlreadyRecorded(first)
            # The line before may have been in a batch that was lost, or another one may be at its place by now.
            if entry.after is not None and self.lines.get(entry.after[0]) != entry.after[1]:
                return Stale()
            # A second outcome of one call in this very batch: the first has no id yet, and may still fail.
            if entry.parent in self.claimed:
                return Stale()
            self.claimed.add(entry.parent)
            self.lines[entry.parent] = entry.statement.get("line", "")
        return None


@dataclass(slots=True)
class Batch:
    """A batch as it will be committed; the same bytes settle an unknown outcome."""

    first: int
    at: datetime
    previous: bytes
    root: bytes
    digest: bytes
    signature: bytes
    key_id: str
    rows: list[tuple[Any, ...]]
    paths: list[list[bytes]]
    drained: int | None = None
    outbox: list[tuple[int, int]] = field(default_factory=list)

    def receipts(self) -> list[Receipt]:
        """One for each record, in order."""
        return [
            Receipt(row[0], row[2], row[1], row[19], self.first, len(self.rows), self.previous, self.root,
                    position, path, self.signature, self.key_id)
            for position, (row, path) in enumerate(zip(self.rows, self.paths, strict=True))
        ]  # fmt: skip


def lock(connection: psycopg.Connection) -> Begun:
    """Begin a transaction and lock the head: from here to the commit this process alone writes the log."""
    [row] = wire.script(connection, LOCK)
    policy, first, drained, previous, at, now = (bytes(value or b"").decode() for value in row)
    return Begun(
        int(policy), int(first), int(drained), bytes.fromhex(previous), EPOCH + int(at) * MICROSECOND,
        EPOCH + int(now) * MICROSECOND,
    )  # fmt: skip


def uuid7(at: datetime) -> UUID:
    """A UUIDv7 (RFC 9562 section 5.7) of the record's own time, by which its partition is found."""
    random = int.from_bytes(os.urandom(10))
    value = (_microseconds(at) // 1000) << 80 | random
    return UUID(int=value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)


def _microseconds(at: datetime) -> int:
    return (at - EPOCH) // MICROSECOND


def build(
    begun: Begun, entries: Sequence[Entry], signer: Signer, at: datetime, drained: int | None = None
) -> tuple[Batch | None, list[Exception | None]]:
    """The batch's bytes, signed. An entry that cannot be a statement is left out, with its error in its
    place, so that it does not spoil the others."""
    rows: list[tuple[Any, ...]] = []
    faults: list[Exception | None] = []
    origins: list[tuple[int, int]] = []
    for entry in entries:
        try:
            rows.append(_row(entry, begun.next + len(rows), at + len(rows) * MICROSECOND))
        except Exception as error:  # whatever it holds, it fails alone
            faults.append(error)
            continue
        faults.append(None)
        origins += [(number, rows[-1][1]) for number in entry.outbox]
    if not rows:
        return None, faults
    root, paths = merkle.paths([row[19] for row in rows])
    message = batches.message(begun.next, len(rows), begun.previous, root)
    batch = Batch(
        begun.next, at, begun.previous, root, batches.digest(message), batches.sign(signer.private, message),
        signer.key_id, rows, paths, drained, origins,
    )  # fmt: skip
    return batch, faults


def _row(entry: Entry, index: int, at: datetime) -> tuple[Any, ...]:
    record = uuid7(at)
    statement = entry.statement
    statement["v"] = statements.VERSION
    statement["id"] = str(record)
    statement["at"] = _microseconds(at)
    statement["_sd"] = disclosures.digests(entry.private)
    data = statements.encode(statement)
    for column, most in LIMITS.items():
        if (value := statement.get(column)) is not None and (type(value) is not str or len(value) > most):
            raise statements.StatementError(f"statement.{column} does not fit its column")
    leaf = merkle.leaf_hash(data)
    protected = protect(entry.cipher, disclosures.pack(entry.private), leaf) if entry.cipher else None
    get, found = statement.get, entry.lookups.get
    return (
        record, index, at, get("type"), get("decision"), get("reason"), bool(get("flagged")), get("backend"),
        get("client"), get("subject"), get("tenant"), get("tool"), entry.parent, found("request_key"),
        found("trace_key"), found("session_key"), found("resource_key"), entry.holder, data, leaf, protected,
        *call_columns(statement),
    )  # fmt: skip


def finish(connection: psycopg.Connection, batch: Batch) -> None:
    """The second round trip: batch, records, head, commit. When it raises OperationalError, the outcome is
    unknown: see `landed`."""
    size = len(batch.rows)
    about = (batch.first, size, batch.previous, batch.root, batch.digest, batch.signature, batch.key_id, batch.at)
    values: list[bytes | None] = [kind.encode(value) for kind, value in zip(BATCH.values(), about, strict=True)]
    columns = zip(*batch.rows, strict=True)
    values += [wire.array(kind, column) for kind, column in zip(COLUMNS.values(), columns, strict=True)]
    values += [wire.BIGINT.encode(batch.first + size), wire.TIMESTAMPTZ.encode(batch.rows[-1][2]), batch.digest]
    values.append(None if batch.drained is None else wire.BIGINT.encode(batch.drained))
    wire.run(connection, "append", APPEND, values)
    if batch.outbox:
        connection.execute(DRAINED, [list(column) for column in zip(*batch.outbox, strict=True)])
    connection.commit()


def landed(connection: psycopg.Connection, batch: Batch) -> bool:
    """Whether a batch whose commit got lost is in the log.

    The lost transaction, if its server process still lives, holds the head row until it ends: so first the
    lock, then, in a new statement, the look.
    """
    connection.execute("SELECT 1 FROM audit_head FOR UPDATE")
    row = connection.execute("SELECT root FROM audit_batch WHERE first = %s", [batch.first]).fetchone()
    connection.rollback()
    return row is not None and bytes(row[0]) == batch.root
