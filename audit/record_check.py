"""Verify one record as the database has it now: its bytes, its write batch, and its way to the signed root.

It takes milliseconds, so that a page can do it whenever it shows a record. The keys are those that the log itself leads
to (`audit.trusting`): whoever must not believe this database verifies a bundle elsewhere.
"""

from audit import logtree
from audit.live_people import People
from audit.live_reading import MOST, was_erased
from audit.live_records import differing
from audit.models import Batch, Record
from audit.trusting import believed
from muniment import batches, merkle, proofs, statements
from muniment.findings import Finding
from muniment.keys import Trust, TrustError
from muniment.notes import NoteError
from muniment.proofs import ProofError
from muniment.tiles import TileMissing


def verify_record(record: Record, trust: Trust | None = None) -> list[Finding]:
    """Everything that does not hold of the record; nothing, when all does. What is not sealed yet is checked as far as
    its batch. `trust` None: the keys that the log leads to."""
    leaf = merkle.leaf_hash(bytes(record.statement))
    if leaf != bytes(record.leaf):
        words = f"record {record.index}: the stored bytes do not give the stored leaf"
        return [Finding("record-changed", words, record.index)]
    try:
        trust = trust or believed()
        return _tree(record, leaf, trust) or _batch(record, trust) or _beside(record)
    except TrustError as error:
        return [Finding("keys-untrusted", str(error), record.index)]
    except TileMissing as missing:
        words = f"tile {missing.level}/{missing.index} of the tree is gone, or too short"
        return [Finding("tile-differs", words, record.index)]


def _beside(record: Record) -> list[Finding]:
    """What stands beside the statement: the columns, and the protected details, where this process can open them."""
    found: list[Finding] = []
    try:
        said = statements.decode(bytes(record.statement))
    except statements.StatementError:
        return [Finding("record-malformed", f"record {record.index:,} is not a statement", record.index)]
    if columns := differing(record, said):
        words = f"record {record.index:,}: the column {', '.join(columns)} says something else than the record"
        found.append(Finding("column-differs", words, record.index))
    if said.get("_sd") and record.disclosures is None:
        words = f"record {record.index:,} has lost its protected details"
        found.append(Finding("disclosure-missing", words, record.index))
    people = People(found.append)
    people.record(record, said)
    people.unhashed(was_erased)
    return found


def _leaves(batch: Batch) -> list[bytes]:
    """The leaves of a batch: as they were sealed, so that a neighbour which was changed or deleted since does not count
    against the others; before that, as they are stored."""
    log, upto = logtree.log_of(batch.first), batch.first + batch.size
    newest = logtree.newest(log) if log else None
    if log is not None and newest is not None and upto <= log.start + newest.size:
        first = batch.first - log.start
        return logtree.tree(log, newest.size, [first, upto - log.start - 1]).leaves(first, batch.size)
    rows = Record.objects.filter(index__gte=batch.first, index__lt=upto).order_by("index")
    return [bytes(leaf) for leaf in rows.values_list("leaf", flat=True)]


def _batch(record: Record, trust: Trust) -> list[Finding]:
    index = record.index
    batch = Batch.objects.filter(first__lte=index).order_by("-first").first()
    if batch is None or index >= batch.first + batch.size:
        return [Finding("record-unsigned", f"record {index} is in no write batch", index)]
    where = f"the batch of records {batch.first} to {batch.first + batch.size - 1}"
    try:
        message = batches.message(batch.first, batch.size, bytes(batch.previous), bytes(batch.root))
    except ValueError:
        message = b""
    if not message or batch.size > MOST:
        return [Finding("batch-unsigned", f"{where}: it cannot be a write batch", index)]
    if merkle.root(_leaves(batch)) != bytes(batch.root):
        return [Finding("batch-root-differs", f"{where}: its root is not its records'", index)]
    public = trust.writers.get(batch.key_id)
    if public is None:
        return [Finding("batch-key-untrusted", f"{where}: no trusted key introduced its key {batch.key_id!a}", index)]
    if not batches.verify(public, message, bytes(batch.signature)):
        return [Finding("batch-unsigned", f"{where}: its signature does not hold", index)]
    return []


def _tree(record: Record, leaf: bytes, trust: Trust) -> list[Finding]:
    index, log = record.index, logtree.log_of(record.index)
    newest = logtree.newest(log) if log else None
    if log is None or newest is None or newest.size <= index - log.start:
        return []  # not sealed yet, or adopted by the next log
    place = index - log.start
    try:
        if logtree.tree(log, newest.size, [place]).leaf(place) != leaf:
            return [Finding("record-changed", f"record {index}: its leaf is not the one that was sealed", index)]
        proofs.verify(logtree.proof_of(record), leaf, trust.log_keys(log.origin))
    except (ProofError, NoteError) as error:
        return [Finding("proof-broken", f"record {index}: {error}", index)]
    return []
