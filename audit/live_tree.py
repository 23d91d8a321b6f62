"""The tree of one log, recomputed from the records, against the stored tiles and against every checkpoint of it: those
that the database has, those that anchors hold, and those that the auditor brings."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from audit import logtree
from audit.live_reading import tile
from audit.models import Checkpoint, Log
from muniment import checkpoints, merkle
from muniment.checkpoints import CheckpointError, CheckpointUntrusted
from muniment.findings import Finding
from muniment.keys import Trust
from muniment.merkle import Frontier
from muniment.tiles import WIDTH, Builder

PAGE = 500
NEWEST = 20  # checkpoints of each anchor from before a beginning in the middle
TILE_BYTES = WIDTH * 32


@dataclass(frozen=True, slots=True)
class Claim:
    """A checkpoint that somebody holds: `where` is empty for the database's own."""

    size: int
    root: bytes
    note: str
    where: str = ""


@dataclass(slots=True)
class Held:
    """Claims from outside of the database, by log; what cannot be read as a checkpoint is told at once."""

    by_origin: dict[str, list[Claim]] = field(default_factory=dict)

    def add(self, where: str, note: str) -> None:
        """Raises CheckpointError for what is none."""
        text = note.partition("\n\n")[0] + "\n"
        found = checkpoints.Checkpoint.parse(text)
        self.by_origin.setdefault(found.origin, []).append(Claim(found.size, found.root, note, where))


class Tree:
    """One log's tree, leaf by leaf. `size` is where its newest checkpoint ends; feed it exactly so many leaves."""

    def __init__(
        self, log: Log, size: int, trust: Trust, held: Sequence[Claim], report: Callable[[Finding], None],
        frontier: Frontier | None = None,
    ) -> None:  # fmt: skip
        """`frontier` begins in the middle of the log: then tiles are not compared, the roots are all the same."""
        self.log, self.size, self.trust, self._report = log, size, trust, report
        self._builder = None if frontier else Builder()
        self._frontier = frontier or Frontier()
        begun = self._frontier.size
        self._earlier = [claim for claim in held if 0 < claim.size <= min(begun, size)]
        self._outside = sorted((c for c in held if c.size > begun or c.size > size), key=lambda claim: claim.size)
        self._stored = self._read(begun)
        self._next: Claim | None = next(self._stored, None)

    @property
    def at(self) -> int:
        """Leaves so far."""
        return self._frontier.size

    def root(self) -> bytes:
        """Of the leaves so far."""
        return self._frontier.root()

    def extend(self, leaves: Sequence[bytes]) -> None:
        """The next leaves. Each checkpoint that ends among them is compared where it ends."""
        while leaves:
            stops = [claim.size for claim in (self._next, *self._outside[:1]) if claim and claim.size > self.at]
            part = leaves[: min(stops) - self.at] if stops else leaves
            leaves = leaves[len(part) :]
            self._frontier.extend(part)
            if self._builder is not None:
                self._tiles(self._builder.extend(part))
            self._compare()

    def earlier(self) -> None:
        """Compare what others hold of the time before a beginning in the middle: the newest of each, by its proof."""
        tree, root, compared = logtree.tree(self.log, self.at), self.root(), Counter[str]()
        for claim in sorted(self._earlier, key=lambda claim: -claim.size):
            compared[claim.where] += 1
            if compared[claim.where] > NEWEST or not self._signed(claim):
                continue
            try:
                path = tree.consistency(claim.size)
            except LookupError:
                path = []
            if not merkle.verify_consistency(claim.size, self.at, claim.root, root, path):
                words = f"{claim.where} holds another root of the first {claim.size:,} records than the tree leads to"
                self._find("anchor-differs", words, self._last(claim))

    def finish(self) -> None:
        """At the end: what is left was signed over more than the log has."""
        if self._builder is not None:
            for (level, index), hashes in self._edges():
                self._tile(level, index, hashes)
        for claim in self._outside:
            if claim.size > self.at and self._signed(claim):
                whose = f"the checkpoint of {claim.where}"
                words = f"{whose} is of {claim.size:,} records; the log has {self.at:,}"
                self._find("rollback", words, self.log.start + self.at)

    # --- checkpoints --------------------------------------------------------------------------------------

    def _read(self, size: int) -> Iterator[Claim]:
        while rows := list(
            Checkpoint.objects.filter(log=self.log.number, size__gt=size, size__lte=self.size).order_by("size")[:PAGE]
        ):
            for row in rows:
                yield Claim(row.size, bytes(row.root), row.note)
            size = rows[-1].size

    def _compare(self) -> None:
        stored = None
        while self._next is not None and self._next.size <= self.at:
            passed, self._next = self._next, next(self._stored, None)
            stored = passed if self._stored_one(passed) else None
        while self._outside and self._outside[0].size <= self.at:
            self._outside_one(self._outside.pop(0), stored)

    def _stored_one(self, claim: Claim) -> bool:
        """Compare it; whether it is signed, and so can be one of two."""
        if not self._signed(claim):
            return False
        if claim.root != self.root():
            words = f"the records do not give the root that was signed over {claim.size:,} records"
            self._find("root-differs", words, self._last(claim))
        return True

    def _outside_one(self, claim: Claim, stored: Claim | None) -> None:
        if not self._signed(claim):
            return
        if stored is not None and stored.size == claim.size and stored.root != claim.root:
            words = f"two roots were signed over {claim.size:,} records: one here, one with {claim.where}"
            self._find("fork", words, self._last(claim))
        elif claim.root != self.root():
            words = f"{claim.where} holds another root of the first {claim.size:,} records than they give"
            self._find("anchor-differs", words, self._last(claim))

    def _signed(self, claim: Claim) -> bool:
        """Whether a trusted key signed it; a finding where not."""
        where = f" of {claim.where}" if claim.where else ""
        about = f"the checkpoint{where} of {claim.size:,} records"
        try:
            read = checkpoints.read(claim.note, self.trust.log_keys(self.log.origin))
        except CheckpointUntrusted:
            self._find("checkpoint-untrusted", f"{about} is signed by no trusted log key", self._last(claim))
            return False
        except CheckpointError:
            self._find("checkpoint-unsigned", f"{about} is not validly signed", self._last(claim))
            return False
        if (read.size, read.root) != (claim.size, claim.root):
            self._find("checkpoint-unsigned", f"{about} is stored as another than was signed", self._last(claim))
            return False
        return True

    def _last(self, claim: Claim) -> int:
        return self.log.start + max(claim.size - 1, 0)

    # --- tiles --------------------------------------------------------------------------------------------

    def _tiles(self, changed: dict[tuple[int, int], bytes]) -> None:
        for (level, index), hashes in changed.items():
            if len(hashes) == TILE_BYTES:
                self._tile(level, index, hashes)

    def _edges(self) -> Iterator[tuple[tuple[int, int], bytes]]:
        assert self._builder is not None
        for level, hashes in self._builder.edge.items():
            yield (level, self._builder.size >> 8 * level >> 8), hashes

    def _tile(self, level: int, index: int, hashes: bytes) -> None:
        stored = tile(self.log.number, level, index)
        if stored[: len(hashes)] == hashes:
            return
        first = index << 8 * (level + 1)
        if level == 0 and len(stored) >= len(hashes):
            return  # its hashes are looked at one by one, with their records
        words = f"tile {level}/{index} of the tree is {'not what the records give' if stored else 'gone'}"
        self._find("tile-differs", words, self.log.start + first)

    def _find(self, code: str, message: str, index: int) -> None:
        self._report(Finding(code, message, index))
