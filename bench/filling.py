"""Ten million records by COPY into the months' partitions, with a real chain of signed write batches, a real tree and a
checkpoint over it: what the page of a record checks is there to be checked. Indexes are made when all is in."""

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from psycopg import sql

from audit import keys, wire
from audit.batching import COLUMNS
from audit.maintenance import make_partition, make_partitions
from audit.models import Checkpoint, Head, Log, Tile
from bench import history, population
from governance import process
from governance.demo_history import wait_for_policy_records
from governance.snapshot import snapshots
from muniment import batches, checkpoints, merkle, tiles

AT_ONCE = 65_536  # leaves added to the tree at once
BATCH = 256  # records in a write batch: what a busy log has, at most 512
INDEXES = """SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'audit_record'
    AND indexname <> 'audit_record_pkey' ORDER BY indexname"""
HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
FIELDS = len(COLUMNS).to_bytes(2, "big")
NULL = b"\xff\xff\xff\xff"
ENCODERS = [kind.encode for kind in COLUMNS.values()]
Note = Callable[[str], None]


def fill(owner_url: str, records: int, people: int, note: Note) -> None:
    """Fill an empty, migrated database; a few minutes for a million records. `note` is told how far it is."""
    end = history.now()
    month = end - timedelta(days=367)
    while month <= end:
        make_partition(month.date().replace(day=1))
        month += timedelta(days=27)
    make_partitions()
    crowd = population.make(people, owner_url)
    _policy_first(end - timedelta(days=366, hours=1))
    note(f"policy and {people:,} users are there")
    first = Head.objects.get().next
    with psycopg.connect(owner_url) as connection:
        indexes = connection.execute(INDEXES).fetchall()
        for name, _ in indexes:
            connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))
        connection.commit()
        policy = snapshots.at_head()
        named = {"version": policy.version, "digest": policy.digest}
        made = history.History(crowd, end, records - first, first, named)
        tree = Tree(end)
        Filler(connection, made, note, tree).run()
        tree.seal()
        _index(connection, [definition for _, definition in indexes], note)


def _policy_first(start: datetime) -> None:
    """The policy's own records come first, by the real recorder, whose clock stands at the beginning."""
    process.start_recorder(lambda: start)
    try:
        wait_for_policy_records()
    finally:
        process.stop_recorder()


class Filler:
    """Writes the history, an hour a transaction, into the table and the tree."""

    def __init__(self, connection: psycopg.Connection, made: history.History, note: Note, tree: "Tree") -> None:
        self.connection, self.made, self.note, self.tree = connection, made, note, tree
        private = Ed25519PrivateKey.from_private_bytes(settings.MUNIMENT_KEYS["WRITER_KEY"])
        self.private, self.key_id = private, keys.publish(private, "writer")
        self.previous = bytes(Head.objects.get().batch)

    def run(self) -> None:
        """All of it, in the order of the log."""
        found = self.connection.execute("SELECT leaf FROM audit_record ORDER BY at").fetchall()
        self.tree.add([bytes(leaf) for (leaf,) in found])
        start = time.monotonic()
        for hour, rows in enumerate(self.made.rows()):
            if rows:
                self._write(rows)
            if hour % 400 == 0:
                count = self.tree.size
                self.note(f"{count:,} records, {count / (time.monotonic() - start + 0.001):,.0f}/s")

    def _write(self, rows: list[history.Row]) -> None:
        with self.connection.cursor() as cursor:
            _copy(cursor, rows)
            _copy_batches(cursor, self._batches(rows))
        self.connection.execute(
            "UPDATE audit_head SET next = %s, at = %s, batch = %s", [rows[-1][1] + 1, rows[-1][2], self.previous]
        )
        self.connection.commit()
        self.tree.add([row[19] for row in rows])

    def _batches(self, rows: list[history.Row]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            root = merkle.root([row[19] for row in part])
            message = batches.message(part[0][1], len(part), self.previous, root)
            previous, self.previous = self.previous, batches.digest(message)
            signature = batches.sign(self.private, message)
            yield part[0][1], len(part), previous, root, self.previous, signature, self.key_id, part[0][2]


def _copy(cursor: psycopg.Cursor, rows: list[history.Row]) -> None:
    """COPY in its binary format (PostgreSQL manual, COPY, Binary Format): half the bytes, and no escapes."""
    names = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
    with cursor.copy(sql.SQL("COPY audit_record ({}) FROM STDIN (FORMAT binary)").format(names)) as copy:
        parts = [HEADER]
        pack = wire.INT32.pack
        for row in rows:
            parts.append(FIELDS)
            for encode, value in zip(ENCODERS, row, strict=True):
                if value is None:
                    parts.append(NULL)
                else:
                    data = encode(value)
                    parts += (pack(len(data)), data)
            if len(parts) > 20_000:
                copy.write(b"".join(parts))
                parts = []
        copy.write(b"".join([*parts, b"\xff\xff"]))


def _copy_batches(cursor: psycopg.Cursor, rows: Iterable[tuple[Any, ...]]) -> None:
    columns = "first, size, previous, root, digest, signature, key_id, at"
    with cursor.copy(f"COPY audit_batch ({columns}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def _index(connection: psycopg.Connection, definitions: list[str], note: Note) -> None:
    connection.execute("SET maintenance_work_mem = '512MB'")
    connection.execute("SET max_parallel_maintenance_workers = 0")
    for told in definitions:
        start, definition = time.monotonic(), told.replace(" ON ONLY ", " ON ")  # on every partition as well
        connection.execute(definition)
        connection.commit()
        note(f"{definition.split()[2 if 'UNIQUE' not in definition else 3]} in {time.monotonic() - start:.0f} s")
    connection.autocommit = True
    connection.execute("VACUUM ANALYZE")
    note("vacuumed and analysed")


class Tree:
    """The tiles, and one checkpoint over all that was filled, as the sealer makes them."""

    def __init__(self, at: datetime) -> None:
        self.log = Log.objects.create(number=1, origin=settings.MUNIMENT_LOG_ORIGIN, start=0, opened_at=at)
        self.at, self.builder = at, tiles.Builder()
        self._waiting: list[bytes] = []

    @property
    def size(self) -> int:
        """How many leaves were added."""
        return self.builder.size + len(self._waiting)

    def add(self, leaves: list[bytes]) -> None:
        """Add leaves; the tiles are written when some have come together."""
        self._waiting += leaves
        if len(self._waiting) >= AT_ONCE:
            self._grow()

    def _grow(self) -> None:
        grown = self.builder.extend(self._waiting)
        self._waiting = []
        rows = [Tile(log=1, level=level, index=index, hashes=found) for (level, index), found in grown.items()]
        Tile.objects.bulk_create(
            rows, update_conflicts=True, unique_fields=["log", "level", "index"], update_fields=["hashes"]
        )

    def seal(self) -> None:
        """One checkpoint over everything."""
        self._grow()
        private, root = Ed25519PrivateKey.generate(), self.builder.root()
        note = checkpoints.sign(checkpoints.Checkpoint(self.log.origin, self.size, root), private)
        key_id = keys.publish(private, "log")
        Checkpoint.objects.create(log=1, size=self.size, root=root, note=note, key_id=key_id, at=self.at)
