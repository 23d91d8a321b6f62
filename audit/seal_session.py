"""The sealer's one session with the database: what it reads of the log there, and what it writes, under a lock that
ends with the session, so that only one sealer writes."""

import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg

from audit import wire
from audit.seal_state import Halt, Passing, State
from muniment.examine import Batch

ACTIVE = int.from_bytes(b"munseal1")
"""The session-level advisory lock of the active sealer."""

LOOK = """SELECT h.next, h.batch, (SELECT max(index) FROM audit_record), newest.upto, newest.digest,
        (SELECT digest FROM audit_batch WHERE first = %s),
        EXISTS (SELECT 1 FROM audit_alert WHERE kind = 'batch-missing' AND cleared_at IS NULL),
        (SELECT max(number) FROM audit_log)
    FROM audit_head h LEFT JOIN (
        SELECT first::numeric + size AS upto, digest FROM audit_batch ORDER BY first DESC LIMIT 1) newest ON true"""
NEWEST = "SELECT size, root, note FROM audit_checkpoint WHERE log = %s ORDER BY size DESC LIMIT 1"
BETWEEN = """SELECT size, root, note FROM audit_checkpoint WHERE log = %s AND size > %s AND size <= %s
    ORDER BY size"""
NOTE = "SELECT note FROM audit_checkpoint WHERE log = %s AND size = %s"
BATCHES = """SELECT first, size, previous, root, digest, signature, key_id FROM audit_batch
    WHERE first >= %s ORDER BY first LIMIT %s"""
RECORDS = """SELECT index, statement, leaf FROM audit_record
    WHERE index >= $1::bigint AND index < $2::bigint ORDER BY index LIMIT $3::bigint"""
TILES = """INSERT INTO audit_tile (log, level, index, hashes)
    SELECT %s, t.* FROM unnest(%b::smallint[], %b::bigint[], %b::bytea[]) t
    ON CONFLICT (log, level, index) DO UPDATE SET hashes = excluded.hashes
    WHERE audit_tile.hashes <> excluded.hashes"""
CHECKPOINT = """INSERT INTO audit_checkpoint (log, size, root, note, key_id, at)
    VALUES (%s, %s, %s, %s, %s, clock_timestamp()) ON CONFLICT (log, size) DO NOTHING"""
LOG = """INSERT INTO audit_log (number, origin, start, opened_at) VALUES (%s, %s, %s, clock_timestamp())
    ON CONFLICT DO NOTHING"""
STATUS = """INSERT INTO audit_sealerstatus (id, state, words, host, seen_at)
    VALUES (1, %s, %s, %s, clock_timestamp()) ON CONFLICT (id) DO UPDATE
    SET state = excluded.state, words = excluded.words, host = excluded.host, seen_at = excluded.seen_at"""

INT64 = struct.Struct("!q")
Tiles = Mapping[tuple[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Look:
    """What the database says of the log's end, in one statement."""

    next: int
    head: bytes  # digest that the head names
    last: int | None  # highest index of a record
    upto: int | None  # where the newest write batch ends
    digest: bytes | None  # of the newest write batch
    before: bytes | None  # digest of the write batch that the state ends with
    batch_missing: bool
    log: int | None  # number of the newest log


class Session:
    """One connection, opened at need. Methods raise psycopg.Error; after an OperationalError it is closed and the
    next `hold` opens another."""

    def __init__(self, connect: Callable[[], psycopg.Connection]) -> None:
        self.connect = connect
        self.connection: psycopg.Connection | None = None
        self.held = False

    def hold(self) -> bool:
        """Whether this is the active sealer; takes the lock when it is free."""
        if self.connection is None or self.connection.closed:
            self.close()
            self.connection = self.connect()
            self.connection.autocommit = True
            self.connection.execute("SELECT set_config('application_name', 'muniment sealer', false)")
        if not self.held:
            self.held = bool(self._one("SELECT pg_try_advisory_lock(%s)", [ACTIVE])[0])
        return self.held

    def give_up(self) -> None:
        """Let another sealer take over at once: the server ends a session a moment after its connection."""
        if self.held and self.connection is not None:
            with suppress(psycopg.Error):
                self.connection.execute("SELECT pg_advisory_unlock(%s)", [ACTIVE])
        self.close()

    def close(self) -> None:
        """End the session, and with it the lock."""
        connection, self.connection, self.held = self.connection, None, False
        if connection is not None:
            connection.close()

    # --- reading ------------------------------------------------------------------------------------------

    def look(self, state: State) -> Look:
        """The log's end, and the write batch that the state ends with. Raises Halt where the log has no head."""
        row = self._live.execute(LOOK, [state.batch]).fetchone()
        if row is None:
            raise Halt("cut-off", "the log's head is gone")
        next_, head, last, upto, digest, before, missing, log = row
        end = None if upto is None else int(upto)
        return Look(next_, bytes(head), last, end, _bytes(digest), _bytes(before), missing, log)

    def newest(self, log: int) -> Passing | None:
        """The newest checkpoint of a log."""
        row = self._live.execute(NEWEST, [log]).fetchone()
        return None if row is None else Passing(row[0], bytes(row[1]), row[2])

    def between(self, log: int, size: int, upto: int) -> list[Passing]:
        """The checkpoints of sizes in (size, upto], by size."""
        rows = self._live.execute(BETWEEN, [log, size, upto]).fetchall()
        return [Passing(row[0], bytes(row[1]), row[2]) for row in rows]

    def has_checkpoints(self) -> bool:
        """Whether any log was ever sealed here."""
        return bool(self._one("SELECT EXISTS (SELECT 1 FROM audit_checkpoint)", [])[0])

    def batches(self, first: int, count: int) -> list[Batch]:
        """At most `count` write batches that start at index `first` or later."""
        rows = self._live.execute(BATCHES, [first, count], binary=True).fetchall()
        return [Batch(r[0], r[1], bytes(r[2]), bytes(r[3]), bytes(r[4]), bytes(r[5]), r[6]) for r in rows]

    def records(self, first: int, upto: int) -> list[tuple[int, bytes, bytes]]:
        """Index, statement and leaf column of the records in [first, upto); one more than there should be at most."""
        values = [INT64.pack(number) for number in (first, upto, upto - first + 1)]
        rows = wire.run(self._live, "records", RECORDS, values)
        unpack = INT64.unpack
        return [(unpack(index)[0], bytes(statement), bytes(leaf)) for index, statement, leaf in rows]  # type: ignore

    def tile(self, log: int, index: int) -> bytes:
        """A tile of leaves as it is stored; empty where it is gone."""
        sql = "SELECT hashes FROM audit_tile WHERE log = %s AND level = 0 AND index = %s"
        row = self._live.execute(sql, [log, index]).fetchone()
        return b"" if row is None else bytes(row[0])

    def published(self, use: str) -> dict[str, bytes]:
        """The published keys of one use; being published makes none trusted."""
        sql = "SELECT key_id, public FROM audit_publishedkey WHERE use = %s"
        return {key_id: bytes(public) for key_id, public in self._live.execute(sql, [use]).fetchall()}

    # --- writing ------------------------------------------------------------------------------------------

    def tiles(self, log: int, tiles: Tiles) -> None:
        """Store tiles, whole as far as they go. InsufficientPrivilege where a stored one is not a beginning of ours."""
        if tiles:
            levels, indices = [level for level, _ in tiles], [index for _, index in tiles]
            self._live.execute(TILES, [log, levels, indices, list(tiles.values())])

    def publish(self, state: State, root: bytes, tiles: Tiles, key_id: str, host: str) -> bool:
        """Store tiles and the state's checkpoint (its `root`), all or nothing. False where another note of this size
        is stored already. InsufficientPrivilege as `tiles`."""
        connection = self._live
        with connection.transaction():
            connection.execute(LOG, [state.log, state.origin, state.start])
            self.tiles(state.log, tiles)
            connection.execute(CHECKPOINT, [state.log, state.sealed, root, state.note, key_id])
            connection.execute(STATUS, ["active", "", host])
        return bool(self._one(NOTE, [state.log, state.sealed])[0] == state.note)

    def republish(self, state: State, key_id: str) -> bool:
        """Store the last checkpoint of a log that is closed, where it is gone. False where another is there."""
        self._live.execute(LOG, [state.log, state.origin, state.start])
        self._live.execute(CHECKPOINT, [state.log, state.sealed, state.root, state.note, key_id])
        return bool(self._one(NOTE, [state.log, state.sealed])[0] == state.note)

    def status(self, state: str, words: str, host: str) -> None:
        """Say how the active sealer does."""
        self._live.execute(STATUS, [state, words, host])

    @property
    def _live(self) -> psycopg.Connection:
        if self.connection is None:
            raise psycopg.OperationalError("no session")
        return self.connection

    def _one(self, sql: Any, values: list[Any]) -> tuple[Any, ...]:
        row = self._live.execute(sql, values).fetchone()
        assert row is not None  # each of these has exactly one
        return tuple(row)


def _bytes(value: object) -> bytes | None:
    return None if value is None else bytes(value)  # type: ignore[call-overload]
