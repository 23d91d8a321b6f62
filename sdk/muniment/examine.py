"""The one examination of records and their write batches, in the order of the log: used by the sealer before it signs,
by the check of the live database, and by the verifier of bundles.

It is fed whole write batches and reports what does not hold; it keeps no more than a batch at a time, and what it
must remember of the policy, the keys and the deletions that records account for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from muniment import batches, merkle, statements
from muniment.findings import Finding
from muniment.keys import Trust, thumbprint
from muniment.policy import PolicyFault, Replay

UNKNOWN = bytes(merkle.HASH_BYTES)
"""Stands for the leaf of a record of which nothing is left."""

SEAMS = ("log.open", "log.adopted")
DAILY = "backend:"
"""How the holders of the keys begin under which details of callers are that could not be established."""

LONGEST = 100  # characters of a policy's digest that are looked at; it has 64
MOST_WAITING = 100  # decisions that wait for the record of their policy version


@dataclass(frozen=True, slots=True)
class Batch:
    """A signed write batch. Byte strings are raw: 32 bytes, `signature` 64."""

    first: int
    size: int
    previous: bytes
    root: bytes
    digest: bytes
    signature: bytes
    key_id: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One record as it is found. `statement` None: closed, or gone. `sealed` is the leaf hash that the tree has at this
    index; None where there is nothing to compare with."""

    index: int
    statement: bytes | None
    sealed: bytes | None = None


class _Brief(msgspec.Struct):
    """What the sealer needs of a statement; decoding no more than this takes a tenth of the time."""

    type: str
    at: int


class Examiner:
    """Examines a log, or a part of it, from a batch's beginning. `next`, `previous` and `at` say where it stands; set
    them first where it does not start at index 0 (`previous` None: the batch before is not known)."""

    def __init__(
        self, trust: Trust, report: Callable[[Finding], None], *, first_use: bool = False, deep: bool = True
    ) -> None:
        """`trust` is extended by the `key` records that are met. `first_use`: with no trusted writer, the key of the
        batch at index 0 is trusted (its public key must then be given to `meet`). `deep` False: only leaves, times,
        the chain and keys; no policy."""
        self.trust, self._report, self.first_use, self.deep = trust, report, first_use, deep
        self.next = 0
        self.previous: bytes | None = batches.GENESIS
        self.at: int | None = None
        self.retained: list[tuple[int, int]] = []
        self.erased: set[str] = set()
        self.notices: list[tuple[int, dict[str, Any]]] = []
        self.policy = Replay()
        self._published: dict[str, bytes] = {}
        self._decided = 0  # the newest policy version that a decision was made from
        self._pending: dict[int, list[tuple[int, str]]] = {}
        self._since: dict[int, int] = {}  # when a decision first named a version that was not on record
        self._brief = msgspec.json.Decoder(_Brief)

    def meet(self, published: Mapping[str, bytes]) -> None:
        """Writer keys by id, as they are published: not trusted by that, but needed to trust the first one on first
        use."""
        self._published |= {
            key_id: public for key_id, public in published.items() if len(public) == 32 and thumbprint(public) == key_id
        }

    # --- batches ------------------------------------------------------------------------------------------

    def batch(self, batch: Batch, entries: Sequence[Entry]) -> list[bytes]:
        """Examine a batch with its records, one entry for each index. Returns the leaf hashes for the tree: what was
        sealed where that is known, else what the statement gives, else UNKNOWN. ValueError for other entries."""
        if [entry.index for entry in entries] != list(range(batch.first, batch.first + batch.size)):
            raise ValueError("the entries are not the batch's")
        self._chain(batch)
        found = [_leaf(entry) for entry in entries]
        as_signed = merkle.root(found) == batch.root
        leaves = [self._record(entry, leaf, as_signed) for entry, leaf in zip(entries, found, strict=True)]
        if not as_signed and UNKNOWN not in found and merkle.root(leaves) != batch.root:
            self._find("batch-root-differs", f"{_span(batch)}: not the records that their writer signed", batch.first)
        self.next, self.previous = batch.first + batch.size, batch.digest
        return leaves

    def unsigned(self, entries: Sequence[Entry]) -> list[bytes]:
        """Examine records that no batch covers: a finding for each. Returns their leaf hashes."""
        for entry in entries:
            if entry.statement is not None:
                words = "has no write batch: no writer signed it"
                self._find("record-unsigned", f"record {entry.index:,} {words}", entry.index)
        if entries:
            self.next = entries[-1].index + 1
        return [self._record(entry, _leaf(entry), False) for entry in entries]

    def _chain(self, batch: Batch) -> None:
        span, first = _span(batch), batch.first
        if first != self.next:
            self._find("batch-missing", f"{span}: the write batch at index {self.next:,} is missing", first)
        elif self.previous is not None and batch.previous != self.previous:
            self._find("batch-chain-broken", f"{span}: it does not follow from the write batch before it", first)
        self._signed(batch)

    def _signed(self, batch: Batch) -> bool:
        """Whether a trusted writer signed it; a finding where not."""
        span, first = _span(batch), batch.first
        try:
            message = batches.message(batch.first, batch.size, batch.previous, batch.root)
        except ValueError:
            self._find("batch-unsigned", f"{span}: it is not a write batch", first)
            return False
        if batches.digest(message) != batch.digest:
            self._find("batch-chain-broken", f"{span}: its digest is not its own", first)
        public = self._writer(batch)
        if public is None:
            self._find("batch-key-untrusted", f"{span}: signed by a key that no trusted key introduced", first)
        elif not batches.verify(public, message, batch.signature):
            self._find("batch-unsigned", f"{span}: the signature does not hold", first)
        elif batch.key_id in self.trust.retired:
            self._find("batch-key-retired", f"{span}: signed by a key that was retired before it", first)
        else:
            return True
        return False

    def _writer(self, batch: Batch) -> bytes | None:
        if self.first_use and batch.first == 0 and not self.trust.writers and batch.key_id in self._published:
            self.trust.writers[batch.key_id] = self._published[batch.key_id]
        return self.trust.writers.get(batch.key_id)

    # --- records ------------------------------------------------------------------------------------------

    def context(
        self, index: int, statement: bytes, batch: Batch | None = None, path: Sequence[bytes] | None = None
    ) -> None:
        """Take note of a record outside of the range, whose place in the tree was shown otherwise. With `path`, which
        leads from it to the root of `batch`, only if a trusted writer signed that."""
        if path is None or self._vouched(index, statement, batch, path):
            self._statement(Entry(index, statement))

    def _vouched(self, index: int, statement: bytes, batch: Batch | None, path: Sequence[bytes]) -> bool:
        if batch is None or not batch.first <= index < batch.first + batch.size:
            words = f"record {index:,} has no write batch: no writer signed it"
            self._find("record-unsigned", words, index)
            return False
        leaf, position = merkle.leaf_hash(statement), index - batch.first
        if not merkle.verify_inclusion(leaf, position, batch.size, path, batch.root):
            self._find("batch-root-differs", f"{_span(batch)}: not the records that their writer signed", index)
            return False
        return self._signed(batch)

    def _record(self, entry: Entry, leaf: bytes, as_signed: bool) -> bytes:
        """The leaf that counts for the tree. Where record and tree disagree, the writer's signature says which of the
        two was changed; what a changed record says is not relied on."""
        if entry.sealed is None or leaf == entry.sealed:
            self._statement(entry)
            return leaf
        if as_signed:
            words = f"the hash that the tree has for record {entry.index:,} is not the one that its writer signed"
            self._find("tile-differs", words, entry.index)
            self._statement(entry)
            return leaf
        words = "was changed after it was written: its bytes do not give the leaf that was sealed"
        self._find("record-changed", f"record {entry.index:,} {words}", entry.index)
        return entry.sealed

    def _statement(self, entry: Entry) -> None:
        if entry.statement is None:
            return
        said: dict[str, Any] = {}
        try:
            if self.deep:
                said = statements.decode(entry.statement)
                brief = msgspec.convert({"type": said.get("type"), "at": said.get("at")}, _Brief)
            else:
                brief = self._brief.decode(entry.statement)
                said = statements.decode(entry.statement) if brief.type in ("key", "notice", "retention") else said
        except (statements.StatementError, msgspec.DecodeError):  # ValidationError is one
            self._find("record-malformed", f"record {entry.index:,} is not a statement", entry.index)
            return
        if self.at is not None and brief.at <= self.at:
            self._find(
                "record-backdated", f"record {entry.index:,} is not later than the record before it", entry.index
            )
        self.at = max(brief.at, self.at or 0)
        if said:
            self._heed(entry, brief.type, said)

    def _heed(self, entry: Entry, kind: str, said: dict[str, Any]) -> None:
        """What a record of this type means for those that follow. Types that are not known are left alone."""
        if kind in ("decision", "evaluation", "introspection"):
            self._decision(entry, said)
        elif kind == "policy":
            self._apply(entry, said)
        elif kind == "key":
            self.trust.learn(said)
        elif kind == "retention" and said.get("action") == "deleted":
            self.retained += _ranges(said.get("ranges"))
        elif kind == "retention" and said.get("action") == "keys.destroyed":
            self.erased |= _daily(said.get("holders"))
        elif kind == "erasure" and said.get("action") == "erased" and isinstance(said.get("holder"), str):
            self.erased.add(said["holder"])
        elif kind == "notice" and said.get("action") in SEAMS:
            self.notices.append((entry.index, said))

    # --- policy -------------------------------------------------------------------------------------------

    def _apply(self, entry: Entry, said: dict[str, Any]) -> None:
        self._settle()  # decisions from the version that this record ends
        try:
            self.policy.apply(said)
        except PolicyFault as fault:
            self._find("policy-malformed", f"record {entry.index:,}, a change of policy: {fault}", entry.index)
        self._settle()

    def _decision(self, entry: Entry, said: dict[str, Any]) -> None:
        policy = said.get("policy")
        if not (isinstance(policy, dict) and isinstance(policy.get("version"), int)):
            self._find("policy-unexplained", f"record {entry.index:,} does not say from which policy", entry.index)
            return
        version, digest = policy["version"], str(policy.get("digest"))[:LONGEST]
        if version < self._decided or version < self.policy.version:
            self._find("policy-version-falls", f"record {entry.index:,} was decided from an older policy", entry.index)
            return
        self._decided = version
        if version == self.policy.version:
            self._explain(version, entry.index, digest)
            return
        waiting = self._pending.setdefault(version, [])
        self._since.setdefault(version, self.at or 0)
        # One of each is enough to judge them all, and of many that differ all but one are wrong.
        if len(waiting) < MOST_WAITING and digest not in [other for _, other in waiting]:
            waiting.append((entry.index, digest))

    def _settle(self) -> None:
        for index, digest in self._pending.pop(self.policy.version, []):
            self._explain(self.policy.version, index, digest)

    def _explain(self, version: int, index: int, digest: str) -> None:
        given = self.policy.digest()
        if given is not None and digest != given:
            words = f"record {index:,} was decided from a policy that is not version {version} as the log tells it"
            self._find("policy-unexplained", words, index)

    def finish(self, pending_from: int | None = None, patience: int | None = None) -> None:
        """Judge what can be judged only at the end: versions that decisions name and no record explains. Those from
        `pending_from` on may still wait to be recorded, and are not missing yet, unless they were named more than
        `patience` (microseconds of the log's clock) before the newest record."""
        for version, waiting in sorted(self._pending.items()):
            late = patience is not None and (self.at or 0) - self._since[version] > patience
            if pending_from is None or version < pending_from or late:
                words = f"record {waiting[0][0]:,} was decided from policy version {version}, which has no record"
                self._find("policy-version-missing", words, waiting[0][0])

    def _find(self, code: str, message: str, index: int) -> None:
        self._report(Finding(code, message, index))


def _leaf(entry: Entry) -> bytes:
    """The leaf hash of what is there."""
    return entry.sealed or UNKNOWN if entry.statement is None else merkle.leaf_hash(entry.statement)


def _span(batch: Batch) -> str:
    last = batch.first + batch.size - 1
    return f"record {batch.first:,}" if batch.size == 1 else f"records {batch.first:,} to {last:,}"


def _ranges(value: object) -> list[tuple[int, int]]:
    """Index ranges as a retention record tells them: pairs of first and size."""
    if not isinstance(value, list):
        return []
    return [
        (pair[0], pair[1])
        for pair in value
        if isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and n >= 0 for n in pair)
    ]


def _daily(value: object) -> set[str]:
    """Holders of daily keys of backends, as a retention record tells them; the key of a user goes by erasure alone."""
    if not isinstance(value, list):
        return set()
    return {one for one in value if isinstance(one, str) and one.startswith(DAILY)}
