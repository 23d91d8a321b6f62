"""What the sealer looks at before it signs: the log's end, and each new record with its write batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from audit.seal_session import Look, Session
from audit.seal_state import Halt, Passing, State, StateBroken
from muniment import checkpoints
from muniment.checkpoints import CheckpointError
from muniment.examine import Batch, Entry, Examiner
from muniment.findings import Finding
from muniment.keys import Trust
from muniment.merkle import HASH_BYTES
from muniment.tiles import WIDTH, Builder

CHUNK = 1024  # records in memory at once, unless one write batch is larger
MOST = 1_000_000  # records of a write batch


@dataclass(slots=True)
class Page:
    """What one page of records gave."""

    leaves: list[bytes] = field(default_factory=list)
    tiles: dict[tuple[int, int], bytes] = field(default_factory=dict)  # those that changed, whole
    batch: int = 0  # first index of its last write batch
    digest: bytes = b""
    gaps: list[tuple[int, int]] = field(default_factory=list)
    passed: list[tuple[Passing, bytes]] = field(default_factory=list)  # checkpoints, and the root at their size


def log_origin(origin: str, log: int) -> str:
    """The name of a log: that of the first one is what is configured."""
    return origin if log == 1 else f"{origin}/{log}"


def signer(state: State) -> str:
    """The id of the key that signed the state's checkpoint. StateBroken where it is none that the state knows."""
    for key_id, public in state.logs.items():
        try:
            checkpoints.read(state.note, Trust(logs={key_id: public}).log_keys(state.origin))
        except CheckpointError:
            continue
        return key_id
    raise StateBroken("the checkpoint in state.json is signed by no key that it knows")


def halt(finding: Finding) -> None:
    """What the examiner finds stops the sealer. Raises Halt."""
    if finding.code == "tile-differs":  # what it was given as the tree's hash is the record's own column
        words = f"the leaf column of record {finding.index:,} is not the hash of its statement"
        raise Halt("column-differs", words, finding.index)
    raise Halt(finding.code, finding.message, finding.index)


def check(state: State, look: Look) -> None:
    """The log's end against the state. Raises Halt."""
    if look.log is not None and look.log > state.log:
        raise Halt("log-closed", f"log {look.log} was opened; this state is of log {state.log}")
    if look.next < state.next:
        words = f"the database has {look.next:,} records; {state.next:,} were sealed"
        raise Halt("rollback", words)
    if state.batch is not None and look.before != state.digest:
        words = f"the write batch at record {state.batch:,} is not the one that was sealed: another history"
        raise Halt("other-history", words, state.batch)
    if look.batch_missing:
        raise Halt("batch-missing", "a web process answered calls whose records are gone (see its alert)")
    if look.last is not None and look.last >= look.next:
        words = f"record {look.last:,} stands beyond the log's head, which is at {look.next:,}"
        raise Halt("record-inserted", words, look.last)
    upto, digest = look.upto or 0, look.digest or bytes(HASH_BYTES)
    if upto < look.next:
        raise Halt("batch-missing", f"no write batch covers the records from {upto:,} on", upto)
    if (upto, digest) != (look.next, look.head):
        raise Halt("cut-off", f"the log's head, at {look.next:,}, does not name the newest write batch, up to {upto:,}")


def unaccounted(state: State) -> tuple[int, int] | None:
    """The first gap that no retention record accounts for: index and count."""
    for first, count in state.gaps:
        if not any(low <= first and first + count <= low + size for low, size in _merged(state.retained)):
            return first, count
    return None


def _merged(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ranges (first, size) that touch, as one."""
    low = high = -1
    for first, size in sorted(ranges):
        if first > high:
            if high > low:
                yield low, high - low
            low, high = first, first + size
        high = max(high, first + size)
    if high > low:
        yield low, high - low


def examine(
    session: Session, state: State, builder: Builder, examiner: Examiner, soft: int, sizes: Mapping[int, Passing],
    upto: int,
) -> Page:  # fmt: skip
    """Examine whole write batches from where the state stands to index `soft` or a little further, never beyond
    `upto`; `builder` and `examiner` go along. `sizes`: what was signed at those sizes. Raises Halt."""
    page, waiting = Page(), 0
    for group in _groups(session.batches(state.next, soft - state.next), state.next, soft, upto):
        entries = _entries(session, state, group, page)
        for batch in group:
            at = batch.first - group[0].first
            page.leaves += examiner.batch(batch, entries[at : at + batch.size])
            page.batch, page.digest = batch.first, batch.digest
            if passing := sizes.get(batch.first + batch.size - state.start):
                page.tiles |= builder.extend(page.leaves[waiting:])
                waiting = len(page.leaves)
                page.passed.append((passing, builder.root()))
    page.tiles |= builder.extend(page.leaves[waiting:])
    passed = {passing.size for passing, _ in page.passed}
    if skipped := [size for size in sizes if state.size < size <= builder.size and size not in passed]:
        raise Halt("root-differs", f"the checkpoint of {min(skipped):,} records ends within a write batch")
    return page


def _groups(batches: Sequence[Batch], at: int, soft: int, upto: int) -> Iterator[list[Batch]]:
    """Write batches that follow one another, about CHUNK records at a time. Raises Halt where one is missing."""
    group: list[Batch] = []
    for batch in batches:
        if at >= soft:
            break
        if batch.first != at:
            raise Halt("batch-missing", f"the write batch at record {at:,} is gone", at)
        at += batch.size
        if not 0 < batch.size <= MOST:
            raise Halt("batch-unsigned", f"the write batch at record {batch.first:,} cannot be one", batch.first)
        if at > upto:
            raise Halt(
                "root-differs", f"the write batch at record {batch.first:,} reaches beyond {upto:,}", batch.first
            )
        group.append(batch)
        if at - group[0].first >= CHUNK:
            yield group
            group = []
    if group:
        yield group
    if at < soft:
        raise Halt("batch-missing", f"the write batch at record {at:,} is gone", at)


def _entries(session: Session, state: State, group: Sequence[Batch], page: Page) -> list[Entry]:
    """One entry for each index of the group. Raises Halt where a record is gone or there twice; one that was sealed
    and whose deletion a later record may account for has its leaf from the tree."""
    first, end = group[0].first, group[-1].first + group[-1].size
    rows = session.records(first, end)
    entries = [Entry(index, statement, leaf) for index, statement, leaf in rows]
    if [entry.index for entry in entries] == list(range(first, end)):
        return entries
    found: dict[int, Entry] = {}
    for entry in entries:
        if entry.index in found:
            raise Halt("record-inserted", f"there are two records {entry.index:,}", entry.index)
        found[entry.index] = entry
    return [found.get(index) or _gone(session, state, index, page) for index in range(first, end)]


def _gone(session: Session, state: State, index: int, page: Page) -> Entry:
    leaf = index - state.start
    if leaf >= max((passing.size for passing in state.must), default=0):
        raise Halt("record-missing", f"record {index:,} is gone", index)
    at = leaf % WIDTH * HASH_BYTES
    sealed = session.tile(state.log, leaf // WIDTH)[at : at + HASH_BYTES]
    if len(sealed) < HASH_BYTES:
        raise Halt("record-missing", f"record {index:,} is gone, and its hash from the tree, too", index)
    if page.gaps and sum(page.gaps[-1]) == index:
        page.gaps[-1] = (page.gaps[-1][0], page.gaps[-1][1] + 1)
    else:
        page.gaps.append((index, 1))
    return Entry(index, None, sealed)
