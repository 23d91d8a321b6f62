"""Verifying a bundle offline: everything that it shows, from statements to signed roots, in bounded memory.

Only the caller's keys and checkpoints are believed. What a bundle is and how it is read: `bundle`.
"""

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import IO, Any

import msgspec
from msgspec import Struct, field

from muniment import batches, disclosures, merkle
from muniment.bundle import (
    BATCHES,
    CONTEXT,
    DISCLOSURES,
    KEYS,
    RECORDS,
    BatchLine,
    Bundle,
    BundleError,
    ContextLine,
    DisclosureLine,
    RecordLine,
    asked_for,
    text_of,
    time_of,
)  # fmt: skip
from muniment.examine import Batch, Entry, Examiner
from muniment.keys import Trust, TrustError
from muniment.report import Report
from muniment.verify_heads import Heads, Held

MOST_IN_BATCH = 100_000
MOST_BYTES = 256 << 20  # of the statements of one write batch
MOST_RANGES = 1_000_000  # of records that are gone: 16 MB; one run of retention tells of 600,000 of a month
MOST_HOLDERS = 100_000  # whose protected details can no longer be read
_SHOWN = 64
PATIENCE = 60 * 1_000_000
"""A change of policy is on record within a second. A minute (in microseconds) later its record is missing, and not on
its way: else a bundle that reaches to the log's end could leave out all of them."""


class _Said(Struct):
    """What the verifier itself wants to know of a statement; the examiner judges it."""

    at: int
    type: str = ""
    action: str | None = None
    decision: str | None = None
    subject: str | None = None
    client: str | None = None
    key_id: str | None = None
    committed: list[str] = field(default_factory=list, name="_sd")


_said = msgspec.json.Decoder(_Said)


def verify_file(
    file: IO[bytes], trust: Trust | None = None, held: Sequence[Held] = (), since: int | None = None,
    until: int | None = None,
) -> Report:  # fmt: skip
    """As `verify`, for a file that may be no bundle."""
    try:
        with Bundle(file) as bundle:
            return verify(bundle, trust, held, since, until)
    except BundleError as error:
        report = Report()
        report.find(error.code, str(error))
        return report


def verify(
    bundle: Bundle, trust: Trust | None = None, held: Sequence[Held] = (), since: int | None = None,
    until: int | None = None,
) -> Report:  # fmt: skip
    """Verify a bundle against the keys in `trust` (None: none are known, which is a finding) and the checkpoints that
    the caller holds. `since` and `until` (microseconds since 1970): the records of this time must be shown whole; else
    those that the bundle was made for. Never raises for what is in a bundle."""
    report = Report()
    try:
        _Verification(bundle, trust, held, report, since, until).run()
    except BundleError as error:
        report.find(error.code, str(error))
    return report


class _Verification:
    """One verification."""

    def __init__(
        self, bundle: Bundle, trust: Trust | None, held: Sequence[Held], report: Report, since: int | None,
        until: int | None,
    ) -> None:  # fmt: skip
        self.bundle, self.manifest, self.report, self.held = bundle, bundle.manifest, report, held
        self.facts = report.facts
        self.asked = self.manifest.asked
        try:
            self.asked_since, self.asked_until = time_of(self.asked.since), time_of(self.asked.until)
        except ValueError:
            raise BundleError("bundle-malformed", "the manifest does not say which time it is for") from None
        self.since = self.asked_since if since is None else since
        self.until = self.asked_until if until is None else until
        self.examiner = Examiner(self._trust(trust), report.add)
        self.heads = Heads(bundle, report)
        self.earliest: int | None = None  # times of open records, microseconds
        self.latest: int | None = None
        self.gone, self.gone_sizes = array("q"), array("q")  # first index and size of each gap, in order
        self.holders: set[str] = set()
        self.excused: list[tuple[int, int]] | None = None  # what retention deleted: first index, and that behind
        self._details = bundle.lines(DISCLOSURES, DisclosureLine)
        self._detail = next(self._details, None)

    def run(self) -> None:
        """Everything, in the order of the log."""
        for error in self.bundle.faults():
            self.report.find(error.code, str(error))
        manifest, context = self.manifest, self._context()
        self._describe()
        waiting = self._feed(context, manifest.first)
        self.examiner.next = manifest.first
        self.examiner.previous = batches.GENESIS if manifest.first == 0 else None
        self._segments()
        if waiting is not None and waiting.i <= manifest.last:
            raise BundleError("bundle-malformed", f"{CONTEXT} holds a record of the range")
        self._take_note(waiting)
        self._feed(context, None)
        pending = self.examiner.policy.version + 1 if self.facts.until_end else None
        self.examiner.finish(pending, PATIENCE)
        self.heads.judge(self.examiner.trust, self.examiner.notices, self.held)
        self._bounds()
        self._gone_for_a_reason()

    def _trust(self, given: Trust | None) -> Trust:
        """The caller's keys; where there are none for a use that is needed, the bundle's own, with a finding."""
        if given is not None and given.writers and given.logs:
            self.facts.trusted = True
            return given.copy()
        trust = Trust() if given is None else given.copy()
        try:
            own = Trust.parse(self.bundle.document(KEYS).decode())
        except (TrustError, UnicodeDecodeError):
            own = Trust()
        missing = [name for name, keys in (("writer", trust.writers), ("log", trust.logs)) if not keys]
        trust.writers, trust.logs = trust.writers or own.writers, trust.logs or own.logs
        self.facts.fingerprints = [
            *(f"writer {key_id}" for key_id in own.writers), *(f"log {key_id}" for key_id in own.logs)
        ]  # fmt: skip
        self.report.find(
            "keys-untrusted",
            f"no {' and no '.join(missing)} key of yours was given, so that nothing is proved: whoever made the bundle "
            "could have made the keys in it. Get the keys from the platform (curl URL/v1/keys > keys.json), not from "
            "this bundle, and give them with --trust keys.json",
        )
        return trust

    def _describe(self) -> None:
        facts, manifest = self.facts, self.manifest
        facts.first, facts.last = manifest.first, manifest.last
        facts.since, facts.until = text_of(self.since), text_of(self.until)
        facts.subject, facts.client = self.asked.subject, self.asked.client
        facts.until_end = manifest.last == self.heads.end - 1

    # --- context ------------------------------------------------------------------------------------------

    def _context(self) -> Iterator[ContextLine]:
        before = -1
        for line in self.bundle.lines(CONTEXT, ContextLine):
            if line.i <= before:
                raise BundleError("bundle-malformed", f"{CONTEXT} is not in the order of the log")
            before = line.i
            yield line

    def _feed(self, context: Iterator[ContextLine], upto: int | None) -> ContextLine | None:
        """Take note of records outside of the range, up to an index; the first that is not below it."""
        for line in context:
            if upto is not None and line.i >= upto:
                return line
            self._take_note(line)
        return None

    def _take_note(self, line: ContextLine | None) -> None:
        if line is None:
            return
        data = line.statement.encode()
        self.heads.include(line, merkle.leaf_hash(data))
        self._heed_key(line.i, self._read(data))
        self.examiner.context(line.i, data, _examined(line.batch) if line.batch else None, line.within)

    # --- the range ----------------------------------------------------------------------------------------

    def _segments(self) -> None:
        """Every record of the range: examined in its write batch, and led to the signed root of its log."""
        leaves, at = self._leaves(), self.manifest.first
        for segment in self.manifest.segments:
            head = self.heads.of(segment.log)
            if not (at <= segment.first <= segment.last <= self.manifest.last and segment.first >= head.start):
                raise BundleError("bundle-malformed", "the manifest's parts of the range do not fit together")
            if between := segment.first - at:
                self.heads.adopt(at, between, islice(leaves, between))
            count = segment.last - segment.first + 1
            stream = islice(leaves, count)
            first, root = segment.first - head.start, self.heads.root(segment.log)
            if not merkle.verify_range(first, stream, count, head.size, segment.path, root):
                words = f"records {segment.first:,} to {segment.last:,} do not lead to the signed root"
                self.report.find("root-differs", words)
            deque(stream, maxlen=0)  # examined to the end, whatever the tree says
            at = segment.last + 1
        if rest := max(self.manifest.last + 1 - at, 0):
            self.heads.adopt(at, rest, islice(leaves, rest))
        deque(leaves, maxlen=0)

    def _leaves(self) -> Iterator[bytes]:
        """The leaf hashes of the range, as the examiner judges them."""
        records, at, end = self._records(), self.manifest.first, self.manifest.last + 1
        for batch in self.bundle.lines(BATCHES, BatchLine):
            if batch.first < at or not 1 <= batch.size <= MOST_IN_BATCH or batch.first + batch.size > end:
                raise BundleError(
                    "bundle-malformed", f"the write batch at index {batch.first:,} does not fit the range"
                )
            if batch.first > at:
                yield from self._unsigned(records, at, batch.first)
            yield from self.examiner.batch(_examined(batch), _take(records, batch.size))
            if batch.key_id not in self.facts.writers and len(self.facts.writers) < 100:
                self.facts.writers.append(batch.key_id)
            at = batch.first + batch.size
        if at < end:
            yield from self._unsigned(records, at, end)
        for _ in records:
            raise BundleError("bundle-malformed", f"{RECORDS} has more records than the range")

    def _unsigned(self, records: Iterator[Entry], first: int, end: int) -> Iterator[bytes]:
        self.report.find("batch-missing", f"no write batch covers records {first:,} to {end - 1:,}", first)
        while first < end:
            entries = _take(records, min(1024, end - first))
            yield from self.examiner.unsigned(entries)
            first += len(entries)

    def _records(self) -> Iterator[Entry]:
        """Each index of the range once, in order; a BundleError where that is not so."""
        expected = self.manifest.first
        for line in self.bundle.lines(RECORDS, RecordLine):
            if line.i != expected:
                code = "bundle-truncated" if line.i > expected else "bundle-malformed"
                raise BundleError(code, f"{RECORDS} has record {line.i:,} where record {expected:,} belongs")
            expected += 1
            self.facts.records += 1
            yield self._entry(line)
        if expected <= self.manifest.last:
            words = f"{RECORDS} ends before record {expected:,}; the range reaches to {self.manifest.last:,}"
            raise BundleError("bundle-truncated", words)
        if self._detail is not None:
            words = f"protected details of record {self._detail.i:,}, which is not open here"
            self.report.find("disclosure-foreign", words, self._detail.i)

    def _entry(self, line: RecordLine) -> Entry:
        data = line.data
        if data is None:
            self.facts.closed += 1
            if line.gone:
                self._note_gone(line.i)
            self._disclosed(line.i, None)
            return Entry(line.i, None, line.leaf)
        self.facts.opened += 1
        said = self._read(data)
        if said is not None:
            self.earliest = said.at if self.earliest is None else min(self.earliest, said.at)
            self.latest = said.at if self.latest is None else max(self.latest, said.at)
            self._heed_key(line.i, said)
        self._count(said)
        self._disclosed(line.i, said)
        return Entry(line.i, data, line.leaf)

    def _read(self, data: bytes) -> _Said | None:
        try:
            return _said.decode(data)
        except (ValueError, RecursionError):
            return None

    def _count(self, said: _Said | None) -> None:
        if said is None or not self.since <= said.at < self.until or not self._asked(said):
            return
        self.facts.matching += 1
        if said.type == "decision":  # what was asked without a token (evaluation) was no call
            self.facts.allowed += said.decision == "allow"
            self.facts.denied += said.decision == "deny"

    def _asked(self, said: _Said) -> bool:
        return asked_for({"subject": said.subject, "client": said.client}, self.asked)

    def _heed_key(self, index: int, said: _Said | None) -> None:
        if said is not None and said.type == "key" and said.action == "key.retired" and said.key_id:
            self.heads.retirements[said.key_id[:_SHOWN]] = index

    # --- protected details --------------------------------------------------------------------------------

    def _disclosed(self, index: int, said: _Said | None) -> None:
        """The details beside a record, which must be those that its statement commits to: all, or `gone`."""
        line = self._detail
        if line is not None and line.i < index:
            raise BundleError("bundle-malformed", f"{DISCLOSURES} is not in the order of the log")
        if line is None or line.i != index:
            due = said and self.asked.disclose and self.asked_since <= said.at < self.asked_until and self._asked(said)
            if said and due and said.committed:
                self.report.find("disclosure-missing", f"record {index:,} has none of its protected details", index)
            return
        self._detail = next(self._details, None)
        if said is None:
            self.report.find("disclosure-foreign", f"protected details of record {index:,}, which is closed", index)
        elif line.gone:
            self.facts.unreadable += 1
            self._note_holder(index, said.subject)
        else:
            self._match(line, said)

    def _match(self, line: DisclosureLine, said: _Said) -> None:
        found: set[str] = set()
        names: set[str] = set()
        for text in line.disclosures:
            try:
                one = disclosures.parse(text)
            except (disclosures.DisclosureError, ValueError, RecursionError):
                one = None
            if one is None or one.digest not in said.committed or one.digest in found or one.name in names:
                words = f"a protected detail beside record {line.i:,} is not one that its statement commits to"
                self.report.find("disclosure-foreign", words, line.i)
                continue
            found.add(one.digest)
            names.add(one.name)
        if len(found) < len(set(said.committed)):
            words = f"record {line.i:,} has {len(found)} of its {len(set(said.committed))} protected details"
            self.report.find("disclosure-missing", words, line.i)
        self.facts.disclosed += 1

    def _note_holder(self, index: int, subject: str | None) -> None:
        if subject is None:
            return  # callers that could not be established: their keys have a retention of their own
        if len(subject) > _SHOWN or len(self.holders) >= MOST_HOLDERS:
            self.report.find("key-destroyed", f"record {index:,} has protected details that cannot be read", index)
        else:
            self.holders.add(subject)

    # --- the end ------------------------------------------------------------------------------------------

    def _note_gone(self, index: int) -> None:
        self.facts.deleted += 1
        if self.gone and self.gone[-1] + self.gone_sizes[-1] == index:
            self.gone_sizes[-1] += 1
        elif len(self.gone) >= MOST_RANGES:
            raise BundleError("bundle-malformed", "more records are gone than can be accounted for")
        else:
            self.gone.append(index)
            self.gone_sizes.append(1)

    def _gone_for_a_reason(self) -> None:
        for first, size in zip(self.gone, self.gone_sizes, strict=True):
            if not self._retained(first, size):
                words = f"records {first:,} to {first + size - 1:,} are gone, and no retention record accounts for it"
                self.report.find("record-missing", words, first)
        for holder in sorted(self.holders - self.examiner.erased):
            words = f"the details of {holder!a} cannot be read, and no erasure record accounts for it"
            self.report.find("key-destroyed", words)

    def _retained(self, first: int, size: int) -> bool:
        """Whether retention records, together, account for all of these indices. To be asked at the end."""
        if self.excused is None:
            self.excused = _joined(self.examiner.retained)
        at = bisect_right(self.excused, first, key=lambda one: one[0]) - 1
        return at >= 0 and first + size <= self.excused[at][1]

    def _bounds(self) -> None:
        """Whether all records of the time that was asked for are in the range."""
        first, facts, find = self.manifest.first, self.facts, self.report.find
        if self.since < self.asked_since or self.until > self.asked_until:
            made = f"{text_of(self.asked_since)} to {text_of(self.asked_until)}"
            find("range-narrowed", f"the bundle was made for the time from {made} only")
        if first > 0 and (self.earliest is None or self.earliest >= self.since) and not self._retained(0, first):
            find("range-narrowed", f"records before index {first:,} may be from {facts.since} or later")
        if not facts.until_end and (self.latest is None or self.latest < self.until):
            find("range-narrowed", f"records after index {self.manifest.last:,} may be from before {facts.until}")


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of first and size, in order, those that touch as one: first, and the index behind."""
    found: list[tuple[int, int]] = []
    for first, size in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], first + size))
        else:
            found.append((first, first + size))
    return found


def _examined(line: BatchLine) -> Batch:
    try:
        digest = batches.digest(batches.message(line.first, line.size, line.previous, line.root))
    except ValueError:
        raise BundleError("bundle-malformed", f"the write batch at index {line.first:,} cannot be one") from None
    return Batch(line.first, line.size, line.previous, line.root, digest, line.signature, line.key_id)


def _take(records: Iterator[Entry], count: int) -> list[Entry]:
    """The next records. Raises BundleError where there are too few, or too many bytes."""
    entries: list[Entry] = []
    weight = 0
    for entry in islice(records, count):
        weight += len(entry.statement or b"")
        if weight > MOST_BYTES:
            raise BundleError("bundle-malformed", "a write batch is larger than any can be")
        entries.append(entry)
    return entries


def told(report: Report) -> dict[str, Any]:
    """The report for machines."""
    found = [{"code": one.code, "index": one.index, "message": one.message} for one in report.findings]
    return {"ok": report.ok, "count": report.count, "findings": found, "report": msgspec.to_builtins(report.facts)}
