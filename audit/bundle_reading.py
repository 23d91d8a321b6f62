"""What a bundle is made of, read from the log: pages by index or by key, one short statement each, so that no snapshot
stays open and memory stays the same, however long the range is."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from django.db import connection

from audit import logtree
from audit.live_reading import vouching
from audit.models import Batch, Checkpoint, Record
from audit.protection import KeyDestroyed, KeyRing, reveal
from muniment import disclosures, merkle
from muniment.bundle import BatchLine, CheckpointLine, ContextLine, DisclosureLine
from muniment.checkpoints import Checkpoint as Signed
from muniment.examine import SEAMS
from muniment.examine import Batch as Examined
from muniment.merkle import HASH_BYTES
from muniment.tiles import Builder, Tree

PAGE = 1000
TOLD = ("policy", "key", "retention", "erasure", "notice")
"""Types of records that others are judged by. They are always open; of notices only those of a seam."""

MOST_ANCHORED = 2000
# All of the newest day, then the last of each hour of a week, then the last of each day.
THINNED = (("second", None, timedelta(days=1)), ("hour", timedelta(days=1), timedelta(days=8)),
           ("day", timedelta(days=8), None))  # fmt: skip
ANCHORED = """SELECT DISTINCT ON (date_trunc(%s, at)) size FROM audit_anchoring
    WHERE log = %s AND size < %s AND at >= %s AND at < %s ORDER BY date_trunc(%s, at) DESC, size DESC LIMIT %s"""


class _Policy(msgspec.Struct):
    version: int


class Said(msgspec.Struct):
    """What deciding about a record needs of its statement."""

    type: str = ""
    action: str | None = None
    subject: str | None = None
    client: str | None = None
    policy: _Policy | None = None
    committed: list[str] = msgspec.field(default_factory=list, name="_sd")


_said = msgspec.json.Decoder(Said)


@dataclass(frozen=True, slots=True)
class Row:
    """A record as the database has it."""

    index: int
    at: Any
    statement: bytes
    holder: str | None
    disclosures: bytes | None


def said(statement: bytes) -> Said | None:
    """None for what is no statement any more."""
    try:
        return _said.decode(statement)
    except (ValueError, RecursionError):
        return None


def told(brief: Said) -> bool:
    """Whether other records are judged by this one."""
    return brief.type in TOLD and (brief.type != "notice" or brief.action in SEAMS)


def records(first: int, end: int, protected: bool = False) -> Iterator[list[Row | None]]:
    """The records of [first, end), a page at a time, None where there is none; their protected details only where
    they are asked for."""
    columns = ("index", "at", "statement", "holder", *(["disclosures"] if protected else []))
    for low in range(first, end, PAGE):
        high = min(low + PAGE, end)
        rows = Record.objects.filter(index__gte=low, index__lt=high).order_by("index").values_list(*columns)
        found = {row[0]: _row(row) for row in rows}
        yield [found.get(index) for index in range(low, high)]


def _row(row: Sequence[Any]) -> Row:
    hidden = row[4] if len(row) > 4 else None
    return Row(row[0], row[1], bytes(row[2]), row[3], None if hidden is None else bytes(hidden))


def batch_line(row: Batch | Examined) -> BatchLine:
    """A write batch as a bundle has it."""
    return BatchLine(row.first, row.size, bytes(row.previous), bytes(row.root), bytes(row.signature), row.key_id)


def batches(first: int, last: int) -> Iterator[BatchLine]:
    """The write batches that begin in the range."""
    low = first
    while rows := Batch.objects.filter(first__gte=low, first__lte=last).order_by("first")[:PAGE]:
        for row in rows:
            yield batch_line(row)
        low = row.first + 1


@dataclass(frozen=True, slots=True)
class Span:
    """Indices [first, end) and the tree over them: part of a log, or (`adopted`) what a log took over of the one before
    it. `start`: the index of the tree's first leaf."""

    log: int
    start: int
    first: int
    end: int
    tree: Tree
    adopted: bool = False


def adopted(log: int, first: int, end: int) -> Span:
    """What a log took over, which has no tree in the database."""
    leaves = [
        bytes(HASH_BYTES) if row is None else merkle.leaf_hash(row.statement)
        for page in records(first, end)
        for row in page
    ]
    tiles = Builder().extend(leaves)
    return Span(log, first, first, end, Tree(len(leaves), lambda level, index: tiles[level, index]), adopted=True)


def context(first: int, last: int, spans: Sequence[Span]) -> Iterator[ContextLine]:
    """The records outside of the range by which those in it are judged, each with its inclusion path."""
    low = 0
    while rows := list(_told_from(low)):
        for index, statement in rows:
            low = index + 1
            brief = said(bytes(statement))
            span = next((span for span in spans if span.first <= index < span.end), None)
            if not first <= index <= last and brief is not None and told(brief) and span is not None:
                path = span.tree.inclusion(index - span.start)
                batch, within = vouching(index, span.tree, span.start)
                line = batch_line(batch) if batch else None
                yield ContextLine(index, span.log, bytes(statement).decode(), path, span.adopted, line, within)


def _told_from(low: int) -> Iterable[Any]:
    told_of = Record.objects.filter(type__in=TOLD, index__gte=low).order_by("index")
    return told_of.values_list("index", "statement")[:PAGE]


def policy_version(end: int) -> int:
    """The newest policy version that a record before this index tells."""
    row = Record.objects.filter(type="policy", index__lt=end).order_by("-index").values_list("statement").first()
    brief = said(bytes(row[0])) if row else None
    return brief.policy.version if brief and brief.policy else 0


def details(rows: Sequence[Row], keep: Any) -> Iterator[DisclosureLine]:
    """The protected details of those of these records that `keep(row, said)` holds for, in clear, with the keys that
    there are now: of one who was erased while a bundle was made nothing more is told."""
    kept = [row for row in rows if (brief := said(row.statement)) and brief.committed and keep(row, brief)]
    ring = KeyRing.of(row.holder for row in kept if row.holder)
    for row in kept:
        yield _detail(row, ring)


def _detail(row: Row, ring: KeyRing) -> DisclosureLine:
    try:
        cipher = ring.get(row.holder or "")
    except KeyDestroyed:
        return DisclosureLine(row.index, gone=True)
    try:
        plain = reveal(cipher, row.disclosures or b"", merkle.leaf_hash(row.statement))
        return DisclosureLine(row.index, [one.text for one in disclosures.unpack(plain)])
    except (InvalidTag, ValueError):  # stripped, or another record's: the verifier says so
        return DisclosureLine(row.index)


def checkpoints(proving: Checkpoint, tree: Tree, sizes: Sequence[int]) -> Iterator[CheckpointLine]:
    """The proving checkpoint of a log, then earlier ones that anchors took, each with the path to it; then the roots
    that the tree had at `sizes`, for which somebody holds a checkpoint."""
    yield CheckpointLine(
        proving.log, proving.size, bytes(proving.root), logtree.with_cosignatures(proving)
    )  # fmt: skip
    for size in _anchored(proving):
        row = Checkpoint.objects.filter(log=proving.log, size=size).first()
        if row is None:
            continue
        path, root = tree.consistency(size), tree.frontier(size).root()
        yield CheckpointLine(row.log, size, Signed.parse(row.note.partition("\n\n")[0] + "\n").root,
                             logtree.with_cosignatures(row), path)  # fmt: skip
        if bytes(row.root) != root:  # the verifier will say that it is a fork
            yield CheckpointLine(row.log, size, root, None, path)
    for size in sizes:
        if 0 < size <= tree.size:
            yield CheckpointLine(proving.log, size, tree.frontier(size).root(), None, tree.consistency(size))


def _anchored(proving: Checkpoint) -> list[int]:
    """Sizes of the earlier checkpoints that anchors took, the newest first, thinned out."""
    sizes: dict[int, None] = {}
    with connection.cursor() as cursor:
        for unit, newer, older in THINNED:
            high = proving.at + timedelta(days=1) if newer is None else proving.at - newer
            low = proving.at.replace(year=1970) if older is None else proving.at - older
            most = MOST_ANCHORED - len(sizes)
            cursor.execute(ANCHORED, [unit, proving.log, proving.size, low, high, unit, most])
            sizes |= dict.fromkeys(size for (size,) in cursor.fetchall())
    return list(sizes)
