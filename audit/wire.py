"""Speaking to PostgreSQL at the lowest cost: prepared statements, binary values, libpq's blocking calls.

For the recorder alone, whose few statements run under the lock that every writer of every process waits for.
psycopg's own `execute` is made for any statement and any type, and costs five times as much (measured: 410 against
57 microseconds for the recorder's first round trip). psycopg.pq is psycopg's documented wrapper of libpq; its calls
let other threads run while they wait.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # of PostgreSQL's timestamps, which count microseconds
MICROSECOND = timedelta(microseconds=1)
INT64, INT32 = struct.Struct("!q"), struct.Struct("!i")
ARRAY = struct.Struct("!iiIii")
NULL = INT32.pack(-1)

Encoder = Callable[[Any], bytes]


def _timestamp(value: datetime) -> bytes:
    return INT64.pack((value - EPOCH) // MICROSECOND)


@dataclass(frozen=True, slots=True)
class Kind:
    """A PostgreSQL type: its name, its OID (pg_type.dat), and how a value is written in binary."""

    name: str
    oid: int
    encode: Encoder


BIGINT = Kind("bigint", 20, INT64.pack)
BOOLEAN = Kind("boolean", 16, lambda value: b"\x01" if value else b"\x00")
BYTEA = Kind("bytea", 17, bytes)
INTEGER = Kind("integer", 23, INT32.pack)
TEXT = Kind("text", 25, str.encode)
TIMESTAMPTZ = Kind("timestamptz", 1184, _timestamp)
UUID_ = Kind("uuid", 2950, lambda value: value.bytes)


def array(kind: Kind, values: Sequence[Any]) -> bytes:
    """A one-dimensional array, NULL where a value is None."""
    parts = [ARRAY.pack(1, 1, kind.oid, len(values), 1)] if values else [struct.pack("!iiI", 0, 0, kind.oid)]
    for value in values:
        if value is None:
            parts.append(NULL)
        else:
            data = kind.encode(value)
            parts += (INT32.pack(len(data)), data)
    return b"".join(parts)


def timestamp(data: bytes | None) -> datetime | None:
    """A timestamptz as it came, in UTC."""
    return None if data is None else EPOCH + INT64.unpack(data)[0] * MICROSECOND


def uuid(data: bytes | None) -> UUID:
    """A uuid as it came."""
    assert data is not None
    return UUID(bytes=data)


_prepared: WeakKeyDictionary[psycopg.Connection, set[str]] = WeakKeyDictionary()


def script(connection: psycopg.Connection, sql: str) -> list[Sequence[bytes | None]]:
    """Run statements without values in one round trip (the simple query protocol); the last one's rows, as text. A
    BEGIN among them is ended by psycopg's commit or rollback."""
    return _rows(_checked(connection, connection.pgconn.exec_(sql.encode())))


def run(
    connection: psycopg.Connection, name: str, sql: str, values: Sequence[bytes | None]
) -> list[Sequence[bytes | None]]:
    """Run a statement with binary values ($1, $2, ...), prepared at its first use on this connection; its rows, in
    binary. Raises psycopg's errors: OperationalError when the connection is lost."""
    if connection not in _prepared:
        # psycopg must not prepare by itself: with a rollback it would deallocate ours together with its own.
        connection.prepare_threshold = None
        _prepared[connection] = set()
    prepared = _prepared[connection]
    if name not in prepared:
        _checked(connection, connection.pgconn.prepare(name.encode(), sql.encode()))
        prepared.add(name)
    formats = [pq.Format.BINARY] * len(values)
    # NULL is None, which the stub of psycopg forgets.
    result = connection.pgconn.exec_prepared(name.encode(), values, formats, pq.Format.BINARY)  # type: ignore[arg-type]
    return _rows(_checked(connection, result))


def _rows(result: pq.abc.PGresult) -> list[Sequence[bytes | None]]:
    return [[result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)]


def _checked(connection: psycopg.Connection, result: pq.abc.PGresult) -> pq.abc.PGresult:
    if result.status in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
        return result
    if connection.pgconn.status == pq.ConnStatus.BAD:
        raise psycopg.OperationalError("the connection is lost")
    raise error_from_result(result)
