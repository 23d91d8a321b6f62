"""Where a log was closed and the next one opened: whether what the opening record says of both is so."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from audit.live_reading import Leaves
from audit.live_tree import Tree
from audit.models import Log, Record
from muniment import merkle, statements
from muniment.findings import Finding

PAGE = 4096
Report = Callable[[Finding], None]


class Seam:
    """The end of one log and the beginning of the next. `kept`: how many leaves of the old one are still records."""

    def __init__(self, old: Log, new: Log, size: int, opening: dict[str, Any], report: Report, signed: bool) -> None:
        """`size`: of the old log's tree; `signed`: whether the new one has a checkpoint, be it good or bad."""
        self._signed = signed
        self.old, self.new, self.size, self.opening, self._report = old, new, size, opening, report
        kept = opening.get("kept")
        left = kept.get("size") if isinstance(kept, dict) else None
        self.kept = left if type(left) is int and 0 <= left <= size else 0
        self._adopted = merkle.Frontier()

    def adopt(self, first: int, leaves: Sequence[bytes]) -> None:
        """Leaves from index `first` on; those between the two logs are adopted by the new one."""
        low = self.old.start + self.kept + self._adopted.size
        self._adopted.extend(leaves[max(low - first, 0) : max(self.new.start - first, 0)])

    def finish(self, tree: Tree, leaves: Leaves, notices: Sequence[tuple[int, dict[str, Any]]]) -> None:
        """Compare, and lead the old log's tree to its end over what was lost, by the tiles alone."""
        if (self.new.start, self.opening) not in notices:
            self._find("the record that opens it is not one")
            return
        root = tree.root()
        self._lead(tree, leaves)
        faults = [*self._kept_faults(root, tree.root()), *self._adopted_faults(notices)]
        if not self._signed:  # whoever can write to the database can have such a record made, but not that
            faults.append("no checkpoint covers the record that opens it")
        for fault in faults:
            self._find(fault)

    def _lead(self, tree: Tree, leaves: Leaves) -> None:
        while tree.at < self.size:
            part = [leaves.get(leaf) for leaf in range(tree.at, min(tree.at + PAGE, self.size))]
            known = [leaf for leaf in part if leaf is not None]
            if len(known) < len(part):
                self._find("hashes of what was lost are gone from the tree")
                return
            tree.extend(known)

    def _kept_faults(self, root: bytes, end: bytes) -> list[str]:
        try:
            kept, previous = self.opening["kept"], self.opening["previous"]
            path = [bytes.fromhex(one) for one in kept["consistency"]]
            signed, said = bytes.fromhex(previous["root"]), bytes.fromhex(kept["root"])
            lost, size = self.opening["lost"], previous["size"]
        except (KeyError, TypeError, ValueError):
            return ["the record that opens it does not say what was kept"]
        faults = []
        if (size, signed) != (self.size, end):
            faults.append("the checkpoint that it names is not the closed log's last one")
        if said != root:
            faults.append("the records that were kept are not those that it names")
        if 0 < self.kept < self.size and not merkle.verify_consistency(self.kept, self.size, said, signed, path):
            faults.append("what was kept is not the beginning of the closed log")
        expected = [[self.old.start + self.kept, self.size - self.kept]] if self.kept < self.size else []
        if lost != expected:
            faults.append("what it says was lost is not what is missing")
        return faults

    def _adopted_faults(self, notices: Sequence[tuple[int, dict[str, Any]]]) -> list[str]:
        first = self.old.start + self.kept
        count = max(self.new.start - first, 0)
        for _, said in notices:
            if said.get("action") == "log.adopted" and said.get("log") == self.new.number:
                same = (said.get("first"), said.get("size"), said.get("root")) == (
                    first, count, self._adopted.root().hex(),
                )  # fmt: skip
                return [] if same else ["the records that were adopted are not those that the record of it names"]
        return ["no record says which records were adopted"]

    def _find(self, fault: str) -> None:
        words = f"log {self.old.number} was closed and log {self.new.number} opened, but {fault}"
        self._report(Finding("seam-broken", words, self.new.start))


def seams(logs: Sequence[Log], sizes: dict[int, int], report: Report) -> dict[int, Seam]:
    """The seam behind each log but the newest, by the older log's number."""
    found = {}
    for old, new in pairwise(logs):
        record = Record.objects.filter(index=new.start).first()
        said: Any = {}
        if record is not None:
            try:
                said = statements.load(bytes(record.statement))
            except statements.StatementError:
                said = {}
        opening = said if isinstance(said, dict) and said.get("action") == "log.open" else {}
        found[old.number] = Seam(old, new, sizes[old.number], opening, report, sizes[new.number] > 0)
    return found


def words(seam: Seam) -> str:
    """What a reader of the report should know of a seam, whatever was found."""
    lost = seam.size - seam.kept
    return (
        f"Log {seam.old.number} was closed and log {seam.new.number} opened at record {seam.new.start:,}; "
        f"{lost:,} record{'' if lost == 1 else 's'} of it {'was' if lost == 1 else 'were'} lost."
    )
