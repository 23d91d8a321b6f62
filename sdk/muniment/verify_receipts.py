"""Verifying the receipts that a backend kept: each by itself, against one another, and against a bundle of the log.

A receipt is what the platform cannot take back: a record that it lost, changed or never wrote after it had answered for
it is found, even where whoever holds all of its keys wrote the log anew.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import chain
from pathlib import Path
from struct import Struct as Packing
from typing import IO, Any
from uuid import UUID

import msgspec
from msgspec import Struct, field

from muniment import batches
from muniment.bundle import (
    BATCHES,
    CONTEXT,
    RECORDS,
    BatchLine,
    Bundle,
    BundleError,
    ContextLine,
    RecordLine,
    text_of,
    time_of,
)
from muniment.findings import counted
from muniment.keys import Trust
from muniment.receipts import SKEW, Kept, Line, Receipt, ReceiptError, WriterKey, check, kept_lines, signer_of
from muniment.report import Facts as BundleFacts
from muniment.report import Report
from muniment.verify import verify_file

_FIELDS = Packing(">QQII16s?32s32s")
_decoder = msgspec.json.Decoder(dict[str, Any])


class Facts(Struct):
    """What was looked at. `torn`: lines that were cut off. Times are when the first and the last were kept. Where there
    is a bundle: how many of the receipts it shows (`shown`), as open records (`opened`), how many of these records are
    gone from the log (`deleted`; the bundle must account for it), and how many receipts are of records outside of it
    (`outside`)."""

    receipts: int = 0
    torn: int = 0
    since: str = ""
    until: str = ""
    writers: list[str] = field(default_factory=list)
    shown: int = 0
    opened: int = 0
    deleted: int = 0
    outside: int = 0
    bundle: BundleFacts | None = None


@dataclass(frozen=True, slots=True)
class _Promise:
    """What a receipt that holds says, packed into about 150 bytes: of a year there are millions."""

    index: int
    at: int
    file: int
    line: int
    record: bytes
    allowed: bool
    leaf: bytes
    batch: bytes
    tool: str

    @staticmethod
    def pack(kept: Kept, receipt: Receipt, file: int, line: int) -> bytes:
        """Bytes that sort by index."""
        digest = batches.digest(receipt.message)
        allowed = kept.decision == "allow"
        fields = (receipt.index, max(kept.at, 0), file, line, kept.record.bytes, allowed, receipt.leaf, digest)
        return _FIELDS.pack(*fields) + (kept.tool or "").encode()

    @classmethod
    def unpack(cls, packed: bytes) -> "_Promise":
        """The reverse."""
        index, at, file, line, record, allowed, leaf, batch = _FIELDS.unpack_from(packed)
        return cls(index, at, file, line, record, allowed, leaf, batch, packed[_FIELDS.size :].decode())


def verify_receipts(
    folder: Path, trust: Trust, keys: Sequence[WriterKey], bundle: IO[bytes] | None = None
) -> tuple[Report, Facts]:
    """Verify all receipts in a folder against the auditor's keys (`keys`: the writers in `trust`, with their validity),
    and against a bundle that is verified with them. Raises OSError where the folder cannot be read; never for what is
    in a file or in the bundle."""
    return _Verification(folder, trust, keys, bundle).run()


class _Verification:
    """One verification."""

    def __init__(self, folder: Path, trust: Trust, keys: Sequence[WriterKey], bundle: IO[bytes] | None) -> None:
        self.folder, self.trust, self.keys, self.file = folder, trust, list(keys), bundle
        self.report, self.facts = Report(), Facts()
        self.retired: dict[str, int] = {}  # key id -> the index of the record that retired it
        self.files: list[str] = []
        self.promises: list[bytes] = []

    def run(self) -> tuple[Report, Facts]:
        """Everything."""
        if self.file is not None:
            self._bundle(self.file)
        try:
            for line in kept_lines(self.folder):
                self._line(line)
        except ReceiptError as error:
            self.report.find(error.code, str(error))
        self.promises.sort()
        self._against_each_other()
        if self.file is not None:
            try:
                with Bundle(self.file) as bundle:
                    self._against(bundle)
            except BundleError as error:
                if self.report.ok:  # else it was said when the bundle was verified
                    self.report.find(error.code, str(error))
        return self.report, self.facts

    # --- the bundle ---------------------------------------------------------------------------------------

    def _bundle(self, file: IO[bytes]) -> None:
        """Verify the bundle, and learn from it which writers the log introduced and retired."""
        found = verify_file(file, self.trust)
        self.facts.bundle = found.facts
        self.report.findings, self.report.count = found.findings, found.count
        if not found.ok:
            return  # what does not hold teaches no key
        trust = self.trust.copy()
        with Bundle(file) as bundle:
            for index, said in _key_records(bundle):
                key_id = str(said.get("key_id"))
                if trust.learn(said) and said.get("use") == "writer":
                    if said.get("action") == "key.retired":
                        self.retired[key_id] = index
                    else:
                        self.keys.append(WriterKey(key_id, trust.writers[key_id]))

    # --- each by itself -----------------------------------------------------------------------------------

    def _line(self, line: Line) -> None:
        if line.torn:
            self.facts.torn += 1
            return
        self.facts.receipts += 1
        try:
            kept = Kept.parse(line.data)
            receipt = check(kept.receipt, self.keys, kept.at)
        except ReceiptError as error:
            self.report.find(error.code, f"{line.place}: {error}")
            return
        self._note(kept, receipt, line)
        if not self.files or self.files[-1] != line.file:
            self.files.append(line.file)
        self.promises.append(_Promise.pack(kept, receipt, len(self.files) - 1, line.number))

    def _note(self, kept: Kept, receipt: Receipt, line: Line) -> None:
        at = text_of(kept.at)
        self.facts.since, self.facts.until = min(self.facts.since or at, at), max(self.facts.until, at)
        signer = signer_of(receipt, self.keys)
        if signer not in self.facts.writers and len(self.facts.writers) < 100:
            self.facts.writers.append(signer)
        if receipt.index > self.retired.get(signer, receipt.index):
            words = f"{line.place}: its batch is signed by a key that was retired before it"
            self.report.find("batch-key-retired", words, receipt.index)

    def _place(self, promise: _Promise) -> str:
        return Line(self.files[promise.file], promise.line, b"").place

    def _contradicted(self, promise: _Promise, words: str) -> None:
        message = f"{self._place(promise)}: record {UUID(bytes=promise.record)} at index {promise.index:,} {words}"
        self.report.find("receipt-contradicted", message, promise.index)

    # --- against one another ------------------------------------------------------------------------------

    def _against_each_other(self) -> None:
        """One index has one record, and one record is the answer to one call."""
        before: _Promise | None = None
        for promise in map(_Promise.unpack, self.promises):
            if before is not None and before.index == promise.index:
                if before.record != promise.record and before.leaf == promise.leaf:
                    self._contradicted(promise, f"has the receipt of another call, {self._place(before)}")
                elif (before.leaf, before.batch) != (promise.leaf, promise.batch):
                    words = f"is not what {self._place(before)} has there: the writer signed two histories"
                    self._contradicted(promise, words)
            before = promise

    # --- against the bundle -------------------------------------------------------------------------------

    def _against(self, bundle: Bundle) -> None:
        first, last = bundle.manifest.first, bundle.manifest.last
        waiting = map(_Promise.unpack, self.promises)
        promise = self._outside(bundle, waiting, first)
        for record, batch in _shown(bundle):
            while promise is not None and promise.index <= min(record.i, last):
                if promise.index < record.i:
                    self._contradicted(promise, "is missing in the bundle, whose range it is in")
                else:
                    self._compare(promise, record, batch)
                promise = next(waiting, None)
        while promise is not None and promise.index <= last:
            self._contradicted(promise, "is missing in the bundle, whose range it is in")
            promise = next(waiting, None)
        if promise is not None:
            self._outside(bundle, chain([promise], waiting), None)

    def _outside(self, bundle: Bundle, waiting: Iterator[_Promise], end: int | None) -> _Promise | None:
        """Count the promises up to an index, of which the bundle shows nothing; the first that is not below it."""
        since, until = _covered(bundle)
        for promise in waiting:
            if end is not None and promise.index >= end:
                return promise
            self.facts.outside += 1
            if since + SKEW < promise.at < until - SKEW:
                at = text_of(promise.at)
                self._contradicted(promise, f"was answered at {at}, of which the bundle shows no such index")
        return None

    def _compare(self, promise: _Promise, record: RecordLine, batch: bytes) -> None:
        if record.leaf != promise.leaf:
            self._contradicted(promise, "is not what the log has there: it was lost, or changed after it was answered")
            return
        if batch != promise.batch:
            words = "was answered from another write batch than the log has: the writer signed two histories"
            self._contradicted(promise, words)
            return
        self.facts.shown += 1
        self.facts.deleted += record.gone
        said = _said(record)
        if said is None:
            return
        self.facts.opened += 1
        decision = "allow" if promise.allowed else "deny"
        for name, kept in (("id", str(UUID(bytes=promise.record))), ("decision", decision), ("tool", promise.tool)):
            if kept and said.get(name) != kept:
                self._contradicted(promise, f"has another {name} in the log than in the answer")


def _covered(bundle: Bundle) -> tuple[int, int]:
    """The time (microseconds) of which the bundle shows all records, by its own word: no later than it was made."""
    manifest = bundle.manifest
    try:
        since, until = time_of(manifest.asked.since), time_of(manifest.asked.until)
    except ValueError:
        raise BundleError("bundle-malformed", "the manifest does not say which time it is for") from None
    try:
        return since, min(until, time_of(manifest.created_at))
    except ValueError:  # one that does not say it must answer for all that it was asked for
        return since, until


def _shown(bundle: Bundle) -> Iterator[tuple[RecordLine, bytes]]:
    """The records of the range, each with the digest of the write batch that covers it; empty where none does."""
    lines = bundle.lines(BATCHES, BatchLine)
    batch, digest = next(lines, None), b""
    entered = False
    for record in bundle.lines(RECORDS, RecordLine):
        while batch is not None and record.i >= batch.first + batch.size:
            batch, entered = next(lines, None), False
        if batch is not None and batch.first <= record.i and not entered:
            digest, entered = _digest(batch), True
        yield record, digest if entered else b""


def _digest(batch: BatchLine) -> bytes:
    try:
        return batches.digest(batches.message(batch.first, batch.size, batch.previous, batch.root))
    except ValueError:
        return b""


def _said(record: RecordLine) -> dict[str, Any] | None:
    """What an open record says; None for one that is closed."""
    if record.data is None:
        return None
    try:
        return _decoder.decode(record.data)
    except (ValueError, RecursionError):
        return {}


def _key_records(bundle: Bundle) -> Iterator[tuple[int, Mapping[str, object]]]:
    """The `key` statements of a bundle that was verified, in the order of the log."""
    around = ((line.i, line.statement.encode()) for line in bundle.lines(CONTEXT, ContextLine))
    within = ((line.i, line.data) for line in bundle.lines(RECORDS, RecordLine) if line.data is not None)
    for index, data in merge(around, within, key=lambda pair: pair[0]):
        if data and b'"type":"key"' in data:
            said = _decoder.decode(data)
            if said.get("type") == "key":
                yield index, said


def told(report: Report, facts: Facts) -> dict[str, Any]:
    """Both for machines."""
    found = [{"code": one.code, "index": one.index, "message": one.message} for one in report.findings]
    return {"ok": report.ok, "count": report.count, "findings": found, "report": msgspec.to_builtins(facts)}


def words(report: Report, facts: Facts) -> Iterator[str]:
    """Both for people."""
    yield from (one.line for one in report.findings)
    if report.count > len(report.findings):
        yield f"and {report.count - len(report.findings):,} more findings"
    if report.ok:
        yield f"{counted(facts.receipts, 'receipt')}, kept from {facts.since} to {facts.until}: every one holds."
        yield f"Signed by: {', '.join(facts.writers)}."
    if facts.torn:
        yield f"{counted(facts.torn, 'line')} cut off, as when a machine stops: what was kept there is not known."
    if facts.bundle is None:
        if report.ok:
            yield "Whether the log still has their records shows a bundle of that time (--bundle)."
        return
    yield (
        f"The bundle shows {counted(facts.shown, 'record')} as answered, {facts.opened:,} of them open and "
        f"{facts.deleted:,} deleted since; {counted(facts.outside, 'receipt')} are of records outside of its range."
    )
