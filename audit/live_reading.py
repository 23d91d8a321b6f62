"""What the verification of the live log reads: pages by index, one short statement each, so that no snapshot is held
open (DESIGN.md section 6, Storage)."""

import json
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection
from django.db.models import Q

from audit.live_records import EPOCH
from audit.models import Batch as BatchRow
from audit.models import Outbox, Record, Tile
from muniment import merkle, statements
from muniment.examine import Batch
from muniment.merkle import HASH_BYTES
from muniment.tiles import WIDTH, Tree

MOST = 10_000  # records in a write batch; the writer makes 512 at most
AT_ONCE = 100  # write batches read in one statement
AHEAD = 500  # records read in one statement, unless one write batch is larger
PENDING = Q(record_index=None, kind="erasure", members__action="erased")
# Each side by itself, so that each is looked up in the index.
HEAD = """SELECT coalesce(policy, 0), coalesce(next, 0), at, batch, coalesce(drained, 0),
        ARRAY(SELECT index FROM audit_record WHERE index >= coalesce(h.next, 0) ORDER BY index LIMIT 20)
        || ARRAY(SELECT index FROM audit_record WHERE index < 0 ORDER BY index LIMIT 20)
        || ARRAY(SELECT bigint '-1' FROM audit_record WHERE index IS NULL LIMIT 1)
    FROM (SELECT) always LEFT JOIN audit_head h ON true"""


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the log at one moment."""

    policy: int
    next: int
    at: datetime
    batch: bytes
    drained: int
    beyond: tuple[int, ...]  # indices of records at or behind `next`, or before 0 (-1 also for none at all)


def head() -> Head:
    """The head, with what stands outside of the log that it tells of, seen at one moment. Where it is gone, that of an
    empty log."""
    with connection.cursor() as cursor:
        cursor.execute(HEAD)
        policy, upto, at, batch, drained, beyond = cursor.fetchone()
    return Head(policy, upto, at or EPOCH, bytes(batch or b""), drained, tuple(beyond))


def policy_tables() -> tuple[int, int, dict[str, list[dict[str, Any]]]]:
    """The policy's version, how far it is recorded, and its tables as the log carries them, at one moment."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT h.policy, h.drained, r.table_name, r.content::text FROM audit_head h"
            " LEFT JOIN LATERAL muniment_policy_rows() r ON true"
        )
        rows = cursor.fetchall()
    tables: dict[str, list[dict[str, Any]]] = {}
    for _, _, table, content in rows:
        if table is not None:
            tables.setdefault(table, []).append(json.loads(content))
    return (*rows[0][:2], tables) if rows else (0, 0, tables)


def batches(first: int, upto: int) -> Iterator[Batch]:
    """The write batches that begin in [first, upto), in order."""
    while first < upto:
        rows = BatchRow.objects.filter(first__gte=first, first__lt=upto).order_by("first")[:AT_ONCE]
        page = [_batch(row) for row in rows]
        yield from page
        if len(page) < AT_ONCE:
            return
        first = page[-1].first + 1


def _batch(r: BatchRow) -> Batch:
    return Batch(r.first, r.size, bytes(r.previous), bytes(r.root), bytes(r.digest), bytes(r.signature), r.key_id)


def vouching(index: int, tree: Tree, start: int) -> tuple[Batch | None, list[bytes]]:
    """The write batch of a record and the path from it to the batch's root; its neighbours' hashes are those of the
    tree, whose first leaf is at index `start`. None where there is none. Raises TileMissing."""
    row = BatchRow.objects.filter(first__lte=index).order_by("-first").first()
    if row is None or index >= row.first + row.size or row.size > MOST or row.first < start:
        return None, []
    leaves = tree.leaves(row.first - start, row.size) if row.first - start + row.size <= tree.size else []
    return _batch(row), merkle.inclusion_path(leaves, index - row.first) if leaves else []


def records(first: int, upto: int) -> list[Record]:
    """The records with an index in [first, upto), in order; one index may be there twice."""
    return list(Record.objects.filter(index__gte=first, index__lt=upto).order_by("index", "at"))


def was_erased(uid: str | None) -> bool:
    """Whether the log holds the erasure of this user, or has it on its way."""
    if uid is None:
        return False
    if Outbox.objects.filter(PENDING, members__holder=uid).exists():
        return True
    told = Record.objects.filter(type="erasure", subject=uid).values_list("statement", flat=True)
    return any(_holder(bytes(statement)) == uid for statement in told)


def _holder(statement: bytes) -> str | None:
    """Whose erasure a statement tells; None for another one."""
    with suppress(statements.StatementError, AttributeError):
        said: Any = statements.load(statement)
        return said.get("holder") if said.get("action") == "erased" else None
    return None


def erased_since(index: int) -> set[str]:
    """Whose erasure is on record at or behind `index`, or on its way there: those who were erased while a verification
    ran that looks no further."""
    found = set(Outbox.objects.filter(PENDING).values_list("members__holder", flat=True))
    later = Record.objects.filter(type="erasure", index__gte=index).values_list("statement", flat=True)
    found |= {_holder(bytes(statement)) for statement in later}
    return {holder for holder in found if isinstance(holder, str)}


class Records:
    """The records below index `upto`, read ahead: a log whose calls come one by one has a write batch for each, and a
    statement for each of those would take most of the time."""

    def __init__(self, upto: int) -> None:
        self._upto = upto
        self._first = self._end = 0
        self._rows: list[Record] = []

    def between(self, first: int, upto: int) -> list[Record]:
        """Those with an index in [first, upto), in order; one index may be there twice."""
        if not self._first <= first <= upto <= self._end:
            self._first, self._end = first, max(upto, min(first + AHEAD, self._upto))
            self._rows = records(self._first, self._end)
        low, high = (bisect_left(self._rows, index, key=lambda row: row.index) for index in (first, upto))
        return self._rows[low:high]


class Leaves:
    """The leaf hashes that the stored tiles of one log have, tile by tile."""

    def __init__(self, log: int, size: int) -> None:
        self.log, self.size = log, size
        self._tile = -1
        self._hashes = b""

    def get(self, leaf: int) -> bytes | None:
        """The sealed hash of a leaf; None for one that is not sealed, or whose tile is gone."""
        if not 0 <= leaf < self.size:
            return None
        if leaf // WIDTH != self._tile:
            self._tile = leaf // WIDTH
            self._hashes = tile(self.log, 0, self._tile)
        at = leaf % WIDTH * HASH_BYTES
        return self._hashes[at : at + HASH_BYTES] if len(self._hashes) >= at + HASH_BYTES else None


def tile(log: int, level: int, index: int) -> bytes:
    """A tile as it is stored; empty where it is gone."""
    row = Tile.objects.filter(log=log, level=level, index=index).values_list("hashes", flat=True).first()
    return b"" if row is None else bytes(row)
