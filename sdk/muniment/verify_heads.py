"""The signed roots of a bundle: who signed them, and whether the checkpoints of the bundle and of the caller lead to
them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from muniment import checkpoints, merkle, notes
from muniment.bundle import CHECKPOINTS, Bundle, BundleError, CheckpointLine, ContextLine, Head
from muniment.checkpoints import Checkpoint, CheckpointError, CheckpointUntrusted
from muniment.keys import Trust
from muniment.report import Cosigned, Report, Sealed
from muniment.verify_seams import Seams

MOST_LINES = 20_000


@dataclass(frozen=True, slots=True)
class Held:
    """A checkpoint that the caller has kept: what to call it, its note, and what that says."""

    name: str
    note: str
    checkpoint: Checkpoint

    @classmethod
    def parse(cls, name: str, note: str) -> "Held":
        """Raises CheckpointError where it is not a signed checkpoint. By whom it is signed is judged later."""
        try:
            return cls(name, note, Checkpoint.parse(notes.Note.parse(note).text))
        except notes.NoteError as error:
            raise CheckpointError(f"not a signed checkpoint: {error}") from None


class Heads:
    """The tree of each log that proves what the bundle shows of it. Its root is taken as given until `judge`."""

    def __init__(self, bundle: Bundle, report: Report) -> None:
        """Raises BundleError where a log has no such tree."""
        self._bundle, self._report = bundle, report
        self._heads = {head.log: head for head in bundle.manifest.logs}
        self._lines: dict[int, CheckpointLine] = {}
        for line in self._all():
            head = self._heads.get(line.log)
            if head is None:
                raise BundleError("bundle-malformed", f"{CHECKPOINTS} names a log that the manifest does not")
            if line.note is not None and line.size == head.size and not line.path and line.log not in self._lines:
                self._lines[line.log] = line
        if self._lines.keys() != self._heads.keys() or len(self._heads) != len(bundle.manifest.logs):
            raise BundleError("bundle-truncated", f"a log has no checkpoint in {CHECKPOINTS}")
        ordered = [self._heads[log] for log in sorted(self._heads)]
        if any(earlier.start >= later.start for earlier, later in pairwise(ordered)):
            raise BundleError("bundle-malformed", "the logs of the manifest are in no order")
        self.end = ordered[-1].start + ordered[-1].size
        self.retirements: dict[str, int] = {}  # key id -> index of the record that says so, whoever wrote that
        self._seams = Seams(report)
        self._proven: dict[tuple[int, int], bytes] = {}  # log and size -> a root that leads to the log's tree
        self._cosigned: dict[str, Cosigned] = {}

    def of(self, log: int) -> Head:
        """The head of a log. Raises BundleError."""
        if log not in self._heads:
            raise BundleError("bundle-malformed", f"the bundle has nothing of log {log}")
        return self._heads[log]

    def root(self, log: int) -> bytes:
        """The root of its tree."""
        return self._lines[log].root

    def include(self, line: ContextLine, leaf: bytes) -> None:
        """Check the inclusion of a record outside of the range."""
        if line.adopted:
            self._seams.include(line, leaf)
            return
        head = self.of(line.log)
        if not merkle.verify_inclusion(leaf, line.i - head.start, head.size, line.path, self.root(line.log)):
            words = f"record {line.i:,}, given beside the range, does not lead to the signed root"
            self._report.find("proof-broken", words, line.i)

    def adopt(self, first: int, count: int, leaves: Iterator[bytes]) -> None:
        """Records that stand between two logs; what the next log says of them is checked by `judge`."""
        self._seams.adopt(first, count, leaves)

    def judge(self, trust: Trust, notices: Sequence[tuple[int, Mapping[str, Any]]], held: Sequence[Held]) -> None:
        """Check every checkpoint, once all keys are known that the log introduced."""
        self._seams.judge(self._bundle.manifest, {log: line.root for log, line in self._lines.items()}, notices)
        unproven = []
        for line in self._all():
            head, root = self._heads[line.log], self._lines[line.log].root
            if self._leads(line.size, line.root, head.size, root, line.path):
                self._proven[line.log, line.size] = line.root
            else:
                unproven.append(line)
            if line.note is not None:
                self._signed(line, line.note, head, trust)
        for line in unproven:
            self._forked(self._heads[line.log].origin, line.size, line.root, self._proven.get((line.log, line.size)))
        for one in held:
            self._compare(one, trust)
        self._report.facts.cosigned = list(self._cosigned.values())

    def _all(self) -> Iterator[CheckpointLine]:
        for number, line in enumerate(self._bundle.lines(CHECKPOINTS, CheckpointLine)):
            if number >= MOST_LINES:
                raise BundleError("bundle-malformed", f"{CHECKPOINTS} has more than {MOST_LINES:,} lines")
            yield line

    @staticmethod
    def _leads(size: int, root: bytes, upto: int, upto_root: bytes, path: Sequence[bytes]) -> bool:
        if size == 0:
            return root == merkle.EMPTY_ROOT
        return merkle.verify_consistency(size, upto, root, upto_root, path)

    def _signed(self, line: CheckpointLine, note: str, head: Head, trust: Trust) -> None:
        """Check the signature of a checkpoint in the bundle, and count its cosignatures."""
        words = f"the checkpoint of {line.size:,} records"
        keys = self._keys(trust, head.origin, head.start + line.size)
        try:
            read = checkpoints.read(note, keys)
        except CheckpointUntrusted:
            self._report.find("checkpoint-untrusted", f"{words}: no key that was trusted then signed it")
            return
        except CheckpointError as error:
            self._report.find("checkpoint-unsigned", f"{words}: {error}")
            return
        if (read.size, read.root) != (line.size, line.root):
            self._report.find("checkpoint-unsigned", f"{words}: its signature is of another tree")
            return
        signed = notes.Note.parse(note)
        if line.size == head.size and not line.path:
            ids = [key_id for key_id, public in trust.logs.items() if _signed_by(signed, head.origin, public)]
            self._report.facts.logs.append(Sealed(head.origin, head.size, line.root.hex(), ids))
        self._cosignatures(signed, read, words, trust)

    def _keys(self, trust: Trust, origin: str, end: int) -> list[notes.Key]:
        """The keys that may have signed a tree which ends before index `end`: not those retired in it."""
        retired = {key_id for key_id in trust.retired if self.retirements.get(key_id, end) < end}
        return Trust(logs={key_id: key for key_id, key in trust.logs.items() if key_id not in retired}).log_keys(origin)

    def _cosignatures(self, signed: notes.Note, read: Checkpoint, words: str, trust: Trust) -> None:
        for witness in trust.witnesses.values():
            if not notes.signatures_of(signed, witness):
                continue
            at = notes.cosigned_at(signed, witness)
            if at is None:
                self._report.find("checkpoint-unsigned", f"{words}: the cosignature of {witness.name} does not hold")
                continue
            before = self._cosigned.get(f"{witness.vkey} {read.origin}")
            if before is None or before.size < read.size:
                self._cosigned[f"{witness.vkey} {read.origin}"] = Cosigned(witness.name, read.origin, read.size, at)

    def _compare(self, held: Held, trust: Trust) -> None:
        """The caller's own checkpoint against the bundle's trees."""
        found, name = held.checkpoint, held.name
        log = next((log for log, head in self._heads.items() if head.origin == found.origin), None)
        if log is None:
            words = f"{name} is of another log than the bundle ({found.origin})"
            self._report.find("checkpoint-incomparable", words)
            return
        head = self._heads[log]
        try:
            checkpoints.read(held.note, self._keys(trust, head.origin, head.start + found.size))
        except CheckpointUntrusted:
            self._report.find("checkpoint-untrusted", f"{name}: no key that is trusted signed it")
        except CheckpointError as error:
            self._report.find("checkpoint-unsigned", f"{name}: {error}")
        known = self._proven.get((log, found.size))
        if found.size > head.size:
            words = f"{name} is of {found.size:,} records, the bundle's tree of {head.size:,}"
            self._report.find("rollback", f"{words}: ask for a bundle that was made after it")
        elif known == found.root or found.size == 0:
            self._report.facts.compared += 1
        elif known is not None:
            self._forked(found.origin, found.size, found.root, known)
        else:
            words = f"{name} is of {found.size:,} records, for which the bundle has no proof"
            self._report.find("checkpoint-incomparable", f"{words}: ask for a bundle made with --checkpoint")

    def _forked(self, origin: str, size: int, root: bytes, known: bytes | None) -> None:
        if known is not None and known != root:
            words = f"for {size:,} records of {origin}, one checkpoint has root {root.hex()[:16]}..."
            self._report.find("fork", f"{words} and the bundle's tree {known.hex()[:16]}...")
        else:
            words = f"the checkpoint of {size:,} records of {origin} does not lead to the tree of the bundle"
            self._report.find("proof-broken", words)


def _signed_by(note: notes.Note, origin: str, public: bytes) -> bool:
    return notes.verify(note, notes.Key(origin, notes.ED25519, public))
