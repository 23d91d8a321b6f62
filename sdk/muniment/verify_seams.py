"""Where a log was closed after a real loss and the next one opened: what the next log says of both, held against what
the bundle shows (DESIGN.md section 6, Sealing)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct, ValidationError, convert

from muniment import merkle
from muniment.bundle import BundleError, ContextLine, Count, Head, Manifest, Number, Word
from muniment.report import Report

MOST = 100_000


class _Previous(Struct):
    log: Number
    origin: Word
    size: Count
    root: Word


class _Kept(Struct):
    size: Count
    root: Word
    consistency: list[str] = []


class _Opened(Struct):
    """The first record of a log that follows another."""

    log: Number
    origin: Word
    previous: _Previous
    kept: _Kept


class _Adopted(Struct):
    first: Count
    size: Count
    root: Word


class Seams:
    """What is known of the seams between the logs of a bundle."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._between: dict[tuple[int, int], bytes] = {}
        self._beside: list[tuple[int, bytes, list[bytes]]] = []

    def include(self, line: ContextLine, leaf: bytes) -> None:
        """Remember a record that is said to be among those that a log took over."""
        if len(self._beside) >= MOST:
            raise BundleError("bundle-malformed", "too many records are given beside the range")
        self._beside.append((line.i, leaf, line.path))

    def adopt(self, first: int, count: int, leaves: Iterator[bytes]) -> None:
        """Remember the root over records that stand between two logs."""
        edge = merkle.Frontier()
        for leaf in leaves:
            edge.append(leaf)
        self._between[first, count] = edge.root()

    def judge(
        self, manifest: Manifest, roots: Mapping[int, bytes], notices: Sequence[tuple[int, Mapping[str, Any]]]
    ) -> None:
        """Check each log that follows another, and the records between. `roots`: of each log's tree."""
        adopted = [
            found for _, said in notices if said.get("action") == "log.adopted" if (found := _read(said, _Adopted))
        ]
        self._logs(manifest, roots, notices)
        for (first, count), root in self._between.items():
            if not any((one.first, one.size, one.root) == (first, count, root.hex()) for one in adopted):
                end = first + count - 1
                self._find(f"records {first:,} to {end:,} are in no log, and no record took them over as they are")
        for index, leaf, path in self._beside:
            if not any(merkle.verify_inclusion(leaf, index - a.first, a.size, path, _hash(a.root)) for a in adopted):
                self._find(f"record {index:,} is in no log, and no record took it over as it is")

    def _logs(
        self, manifest: Manifest, roots: Mapping[int, bytes], notices: Sequence[tuple[int, Mapping[str, Any]]]
    ) -> None:
        opened = {index: _read(said, _Opened) for index, said in notices if said.get("action") == "log.open"}
        heads = {head.log: head for head in manifest.logs}
        lasts = {segment.log: segment.last for segment in manifest.segments}
        for number, head in heads.items():
            if number == 1:
                continue
            said, before = opened.get(head.start), heads.get(number - 1)
            if said is None or (said.log, said.origin) != (number, head.origin):
                self._find(f"log {number} does not begin with a record that opens it")
            elif before is None or not self._continues(said, before, roots[number - 1], lasts.get(number - 1, -1)):
                self._find(f"what log {number} says of log {number - 1} is not what the bundle shows of it")

    @staticmethod
    def _continues(said: _Opened, head: Head, found: bytes, last: int) -> bool:
        """Whether the log before ended as it says, and what was kept of that is its beginning, up to which records are
        shown at most."""
        kept, before = said.kept, said.previous
        root, path = _hash(kept.root), [_hash(text) for text in kept.consistency]
        return (
            (before.log, before.origin, before.size, before.root) == (head.log, head.origin, head.size, found.hex())
            and last < head.start + kept.size
            and (not kept.size or merkle.verify_consistency(kept.size, head.size, root, found, path))
        )

    def _find(self, words: str) -> None:
        self._report.find("seam-broken", words)


def _read(said: Mapping[str, Any], kind: Any) -> Any:
    try:
        return convert(said, kind)
    except ValidationError:
        return None


def _hash(text: str) -> bytes:
    """A hash in hex; nothing for what is none, which leads nowhere."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
