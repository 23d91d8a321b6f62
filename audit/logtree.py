"""The sealed log as the database has it: logs, checkpoints, tiles, and the proofs that are made from them.

It only reads, and nobody has to believe it: whoever checks a proof has the keys, and what they hold against it.
"""

from collections.abc import Iterable
from contextlib import suppress
from itertools import chain

from django.db import connection

from audit.models import Anchoring, Checkpoint, Log, Record, Tile
from muniment.notes import MAX_SIGNATURES, Note, NoteError
from muniment.proofs import Proof
from muniment.tiles import TileMissing, Tree

# Anchorings among which a cosigned checkpoint is looked for: an hour of one witness and a few other anchors. Behind
# them the newest checkpoint says more than an old cosignature.
RECENT = 240
# In SQL, because to say in Django's words which of a few tiles are meant takes longer than to read them.
# Pairs that are spelled out are looked up in the index, whatever the planner believes of the table.
TILES = "SELECT level, index, hashes FROM audit_tile WHERE log = %s AND (level, index) IN ({})"


class NotSealed(LookupError):
    """No checkpoint covers it: not yet, or never, for a record that was lost to its log (see DESIGN.md, seams)."""


def current() -> Log | None:
    """The newest log; None before the sealer first ran."""
    return Log.objects.order_by("-number").first()


def log_of(index: int) -> Log | None:
    """The log that has the record of this index, or will have it."""
    return Log.objects.filter(start__lte=index).order_by("-number").first()


def newest(log: Log | None = None) -> Checkpoint | None:
    """The newest checkpoint of a log, else of the current one."""
    log = log or current()
    return None if log is None else Checkpoint.objects.filter(log=log.number).order_by("-size").first()


def covering(log: Log, leaf: int) -> Checkpoint | None:
    """The first checkpoint that has this leaf: when it was sealed."""
    return Checkpoint.objects.filter(log=log.number, size__gt=leaf).order_by("size").first()


def telling(log: Log, leaf: int) -> Checkpoint | None:
    """The checkpoint to prove a leaf against: the newest one that a witness cosigned, if there is one among the last
    anchorings, else the newest of all. None when no checkpoint has the leaf."""
    anchored = Anchoring.objects.filter(log=log.number, size__gt=leaf).order_by("-size")
    for size, cosignature in anchored.values_list("size", "cosignature")[:RECENT]:
        if cosignature and (found := Checkpoint.objects.filter(log=log.number, size=size).first()):
            return found
    found = newest(log)
    return found if found and found.size > leaf else None


def with_cosignatures(checkpoint: Checkpoint) -> str:
    """The checkpoint's note with the cosignatures that witnesses gave it, oldest first, each key's first one alone.
    What is no signature line is left out. Raises NoteError when the checkpoint's own note is none."""
    note = Note.parse(checkpoint.note)
    found = {(one.name, one.key_id): one for one in note.signatures}
    given = Anchoring.objects.filter(log=checkpoint.log, size=checkpoint.size).exclude(cosignature="")
    for text in given.order_by("at", "id").values_list("cosignature", flat=True):
        with suppress(NoteError):
            for one in Note.parse(f"{note.text}\n{text.strip()}\n").signatures:
                found.setdefault((one.name, one.key_id), one)
    return Note(note.text, tuple(found.values())[:MAX_SIGNATURES]).encode()


def hashes(log: Log, level: int, index: int) -> bytes:
    """The content of one tile so far. Raises TileMissing."""
    found = Tile.objects.filter(log=log.number, level=level, index=index).values_list("hashes", flat=True).first()
    if found is None:
        raise TileMissing(level, index)
    return bytes(found)


def tree(log: Log, size: int | None = None, leaves: Iterable[int] = ()) -> Tree:
    """The tree of the first `size` leaves of a log, else of those that are sealed. The tiles that proofs about
    `leaves` need are read in one query, others when they are asked for. Raises NotSealed for a log that has no
    checkpoint; the tree raises TileMissing where tiles are gone."""
    if size is None:
        checkpoint = newest(log)
        if checkpoint is None:
            raise NotSealed("the log has no checkpoint yet")
        size = checkpoint.size
    have = _read(log, _wanted(size, leaves))

    def read(level: int, index: int) -> bytes:
        return have.get((level, index)) or hashes(log, level, index)

    return Tree(size, read)


def proof_of(record: Record, checkpoint: Checkpoint | None = None) -> Proof:
    """The proof (C2SP tlog-proof) that a record is in its log, against a checkpoint of that log, else against the one
    that tells most. Raises NotSealed when no checkpoint has the record, TileMissing when tiles are gone."""
    log = log_of(record.index)
    if log is None:
        raise NotSealed("there is no log yet")
    leaf = record.index - log.start
    checkpoint = checkpoint or telling(log, leaf)
    if checkpoint is None or checkpoint.log != log.number or checkpoint.size <= leaf:
        raise NotSealed("no checkpoint has the record")
    path = tree(log, checkpoint.size, [leaf]).inclusion(leaf)
    return Proof(leaf, tuple(path), with_cosignatures(checkpoint), None)


def _wanted(size: int, leaves: Iterable[int]) -> set[tuple[int, int]]:
    """Level and index of the tiles on the way from leaves to the root, and of the tree's right edge."""
    wanted: set[tuple[int, int]] = set()
    level, ends = 0, [*leaves, size - 1]
    while count := size >> 8 * level:  # complete subtrees of 256 ** level leaves: hashes of this level
        wanted |= {(level, min(end >> 8 * level, count - 1) >> 8) for end in ends}
        level += 1
    return wanted


def _read(log: Log, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    if not wanted:
        return {}
    pairs = ", ".join(["(%s, %s)"] * len(wanted))
    with connection.cursor() as cursor:
        cursor.execute(TILES.format(pairs), [log.number, *chain.from_iterable(wanted)])
        return {(level, index): bytes(found) for level, index, found in cursor.fetchall()}
