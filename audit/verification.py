"""The check of the live log: everything recomputed from the records, in pages, in constant memory (DESIGN.md section 6,
Checking). What it may believe comes from whoever runs it, from the log's own beginning otherwise."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from django.conf import settings

from audit import live_keeping, logtree, trusting
from audit import live_reading as reading
from audit.anchors import AnchorError, held
from audit.live_people import People
from audit.live_records import EPOCH, MICROSECOND, differing
from audit.live_seams import seams
from audit.live_seams import words as seam_words
from audit.live_tree import Held, Tree
from audit.models import Checkpoint, Log, PublishedKey, Record
from audit.seal_reading import log_origin
from audit.spans import Spans
from muniment import checkpoints, merkle, statements
from muniment.checkpoints import CheckpointError
from muniment.examine import Batch, Entry, Examiner
from muniment.findings import Finding
from muniment.keys import Trust
from muniment.policy import digest_of

MOST_FINDINGS = 1000
CHUNK = 1000  # records of a stretch that no batch covers
# Records that those after them cannot be judged without.
CONTEXT = ("policy", "key", "retention", "hold", "erasure", "notice")
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Report:
    """What was looked at and what was found. `findings` are at most MOST_FINDINGS, `count` is of all; `notes` say what
    could not be looked at, or what was believed without being told to."""

    records: int = 0
    size: int = 0
    count: int = 0
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """One more."""
        self.count += 1
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(finding)


def verify(
    since: datetime | None = None,
    trust: Trust | None = None,
    checkpoints: Iterable[tuple[str, str]] = (),
    progress: Progress | None = None,
) -> Report:
    """Verify the log from its beginning, or from the newest checkpoint at or before `since`. `checkpoints` are further
    ones to hold against it: (where it comes from, the note). Raises CheckpointError for one that is none."""
    return _Run(trust, progress).go(since, checkpoints)


class _Run:
    """One verification. The order matters: what others hold is read before the log's end is, so that a log that grows
    meanwhile is never shorter than what somebody holds of it."""

    def __init__(self, trust: Trust | None, progress: Progress | None) -> None:
        self.report = Report()
        self.trust = trust.copy() if trust else Trust()
        self.progress = progress
        self.examiner = Examiner(self.trust, self.report.add, first_use=trust is None)
        self.people = People(self.report.add)
        self.gaps: list[tuple[int, int]] = []
        self.changed: dict[int, tuple[bytes, bytes | None]] = {}  # index -> leaf of what is there, leaf that was sealed
        if trust is None:
            self.report.notes.append("No trusted keys were given: those that the log begins with were believed.")
        if not self.people.opened:
            self.report.notes.append("Protected details were not opened: this process has no key for them.")

    def go(self, since: datetime | None, given: Iterable[tuple[str, str]]) -> Report:
        outside = self._outside(given)
        self.logs = list(Log.objects.order_by("number"))
        self._forgotten(outside)
        self.sizes = {log.number: newest.size if (newest := logtree.newest(log)) else 0 for log in self.logs}
        self.head = reading.head()
        self.rows = reading.Records(self.head.next)
        self.seams = seams(self.logs, self.sizes, self.report.add)
        self.report.notes += [seam_words(seam) for seam in self.seams.values()]
        self.report.size = self._sealed_end()
        begin = self._begin(since, outside)
        self._walk(begin)
        self._finish(begin)
        return self.report

    def _outside(self, given: Iterable[tuple[str, str]]) -> Held:
        outside = Held()
        for where, note in given:
            outside.add(where, note)
        for origin in self._origins():
            try:
                for where, note in held(origin):
                    try:
                        outside.add(where, note)
                    except CheckpointError:
                        self.report.add(Finding("checkpoint-unsigned", f"{where} holds what is no checkpoint"))
            except AnchorError as error:
                if (words := f"An anchor could not be read back: {error}.") not in self.report.notes:
                    self.report.notes.append(words)
        return outside

    @staticmethod
    def _origins() -> list[str]:
        """The names of the logs to ask anchors for: as they are configured, whatever the database says there is, and
        of one more than it says."""
        known = dict(Log.objects.values_list("number", "origin"))
        named = [log_origin(settings.MUNIMENT_LOG_ORIGIN, number) for number in range(1, max(known, default=1) + 2)]
        return list(dict.fromkeys([*known.values(), *named]))

    def _forgotten(self, outside: Held) -> None:
        """What somebody holds of a log that the database does not know."""
        ours = settings.MUNIMENT_LOG_ORIGIN
        for origin in outside.by_origin.keys() - {log.origin for log in self.logs}:
            claim = max(outside.by_origin[origin], key=lambda claim: claim.size)
            if origin == ours or origin.startswith(f"{ours}/"):
                words = f"{claim.where} holds a checkpoint of {claim.size:,} records of {origin}; there is no such log"
                self.report.add(Finding("rollback", words))
            else:
                words = f"the checkpoint of {claim.where} is of another log ({origin!a})"
                self.report.add(Finding("checkpoint-incomparable", words))

    def _sealed_end(self) -> int:
        if not self.logs:
            return 0
        log = self.logs[-1]
        end = log.start + self.sizes[log.number]
        if end > self.head.next:
            words = f"{end:,} records were sealed; the log has {self.head.next:,}: its end was cut off"
            self.report.add(Finding("cut-off", words, self.head.next))
        return end

    # --- where to begin -----------------------------------------------------------------------------------

    def _begin(self, since: datetime | None, outside: Held) -> int:
        """The index to begin at. The trees are made ready; what those before it tell is taken note of."""
        start, frontier = (0, 0), None
        if self.examiner.first_use:
            self.trust.logs |= trusting.first_log()
        if since is not None:
            found = Checkpoint.objects.filter(at__lte=since, log=self.logs[-1].number if self.logs else 0)
            if (row := found.order_by("-size").first()) and (frontier := self._frontier(row, since)):
                start = (self.logs[-1].start + row.size, row.log)
        published = PublishedKey.objects.filter(use="writer").values_list("key_id", "public")
        self.examiner.meet({key_id: bytes(public) for key_id, public in published})
        self.trees: dict[int, Tree] = {}
        for log in self.logs:
            if log.number < start[1]:
                continue
            claims = outside.by_origin.get(log.origin, [])
            edge = frontier if log.number == start[1] else None
            self.trees[log.number] = Tree(log, self.sizes[log.number], self.trust, claims, self.report.add, edge)
        if start[0]:
            self._context(start[0])
            self.trees[start[1]].earlier()
        self.examiner.next, self.examiner.previous = start[0], None if start[0] else self.examiner.previous
        return start[0]

    def _frontier(self, row: Checkpoint, since: datetime) -> merkle.Frontier | None:
        """The tree's edge at a checkpoint that is signed; None where it cannot be had, and all is verified."""
        log = self.logs[-1]
        trust = self.trust.copy()
        trusting.follow(trust, log.start + row.size)
        try:
            signed = checkpoints.read(row.note, trust.log_keys(log.origin))
            frontier = logtree.tree(log, row.size).frontier(row.size)
        except CheckpointError:
            words = f"the checkpoint of {row.size:,} records is signed by no trusted log key; all was looked at instead"
            self.report.add(Finding("checkpoint-untrusted", words, log.start + row.size - 1))
            return None
        except LookupError:
            frontier = None
        if frontier is None or (signed.size, signed.root) != (row.size, frontier.root()):
            words = f"the tiles do not give the root that was signed over {row.size:,} records"
            self.report.add(Finding("tile-differs", words, log.start + row.size - 1))
            return None
        if not self._was_before(log, row.size, signed.root, since):
            self.report.notes.append("Where to begin cannot be shown, so all was looked at.")
            return None
        return frontier

    @staticmethod
    def _was_before(log: Log, size: int, root: bytes, since: datetime) -> bool:
        """Whether the last of so many records says that it is not from after `since`. A checkpoint does not say when
        it was signed, and the time that is stored beside it could be anybody's."""
        last = Record.objects.filter(index=log.start + size - 1).first()
        if last is None:
            return False
        data = bytes(last.statement)
        try:
            at, path = statements.decode(data).get("at"), logtree.tree(log, size, [size - 1]).inclusion(size - 1)
        except (statements.StatementError, LookupError):
            return False
        whole = merkle.verify_inclusion(merkle.leaf_hash(data), size - 1, size, path, root)
        return whole and type(at) is int and at <= (since - EPOCH) // MICROSECOND

    def _context(self, upto: int) -> None:
        """The keys, the policy and the deletions of the time before, each shown to be in the tree."""
        if self.examiner.first_use:
            self.trust.writers |= trusting.first_writer()
        log = self.logs[-1]
        tree = logtree.tree(log)
        for record in Record.objects.filter(index__lt=upto, type__in=CONTEXT).order_by("index").iterator():
            data = bytes(record.statement)
            place = record.index - log.start
            try:
                sealed = tree.leaf(place) if place >= 0 else None
            except LookupError:
                words = f"the hash that the tree has for record {record.index:,} is gone"
                self.report.add(Finding("tile-differs", words, record.index))
                continue
            if sealed is not None and sealed != merkle.leaf_hash(data):
                words = f"record {record.index:,} was changed after it was sealed"
                self.report.add(Finding("record-changed", words, record.index))
            elif sealed is None:
                self.examiner.context(record.index, data)
            else:
                self.examiner.context(record.index, data, *reading.vouching(record.index, tree, log.start))

    # --- the walk -----------------------------------------------------------------------------------------

    def _walk(self, begin: int) -> None:
        self.leaves = {log.number: reading.Leaves(log.number, self.sizes[log.number]) for log in self.logs}
        for batch in reading.batches(begin, self.head.next):
            if batch.first < self.examiner.next:
                words = f"a write batch at {batch.first:,} stands within another"
                self.report.add(Finding("batch-chain-broken", words, batch.first))
                continue
            if not 0 < batch.size <= reading.MOST:
                words = f"the write batch at {batch.first:,} cannot be one: it has {batch.size:,} records"
                self.report.add(Finding("batch-unsigned", words, batch.first))
                continue
            self._uncovered(batch.first)
            self._batch(batch)
            if self.progress:
                self.progress(self.examiner.next - begin, self.head.next - begin)
        self._uncovered(self.head.next)

    def _batch(self, batch: Batch) -> None:
        rows, entries = self._entries(batch.first, batch.first + batch.size)
        self._examined(rows, entries, self.examiner.batch(batch, entries))

    def _uncovered(self, upto: int) -> None:
        """What stands before the next write batch, or where there is none: records that nobody signed, or nothing."""
        first = self.examiner.next
        while first < upto:
            if self._sealed(first) is None:  # nothing to go by: on to the next record, however far it is
                row = Record.objects.filter(index__gte=first, index__lt=upto).order_by("index").first()
                there = row.index if row else upto
                if there > first:
                    self._missing(first, there - first)
                    self.examiner.next = first = there
                    continue
            end = min(first + CHUNK, upto)
            rows, entries = self._entries(first, end)
            self._examined(rows, entries, self.examiner.unsigned(entries))
            first = end

    def _entries(self, first: int, upto: int) -> tuple[list[Record | None], list[Entry]]:
        """One entry for each index; of several records with one index, the one that was sealed."""
        found: dict[int, Record] = {}
        for record in self.rows.between(first, upto):
            other = found.get(record.index)
            if other is not None:
                words = f"there are two records {record.index:,}: one of them was not written by the log"
                self.report.add(Finding("record-inserted", words, record.index))
            if other is None or _leaf(record) == self._sealed(record.index):
                found[record.index] = record
        rows = [found.get(index) for index in range(first, upto)]
        entries = [
            Entry(index, bytes(row.statement) if row else None, self._sealed(index))
            for index, row in enumerate(rows, first)
        ]
        for entry in entries:
            if entry.statement is None:
                self._missing(entry.index, 1)
        return rows, entries

    def _missing(self, first: int, size: int) -> None:
        """A gap; one that goes on from the gap before it is the same one: a month that was dropped is one finding."""
        if self.gaps and sum(self.gaps[-1]) == first:
            first, size = self.gaps[-1][0], self.gaps.pop()[1] + size
        self.gaps.append((first, size))

    def _examined(self, rows: Sequence[Record | None], entries: Sequence[Entry], leaves: Sequence[bytes]) -> None:
        for row, entry, leaf in zip(rows, entries, leaves, strict=True):
            if row is None or entry.statement is None:
                continue
            self.report.records += 1
            if merkle.leaf_hash(entry.statement) == leaf:
                self._row(row, entry.statement)
            elif len(self.changed) < MOST_FINDINGS:
                self.changed[entry.index] = (merkle.leaf_hash(entry.statement), entry.sealed)
        self._grow(entries[0].index, leaves)

    def _row(self, record: Record, statement: bytes) -> None:
        try:
            said = statements.load(statement)
        except statements.StatementError:
            return  # the examiner said so
        if not isinstance(said, dict):
            return
        if columns := differing(record, said):
            words = f"record {record.index:,}: the column {', '.join(columns)} says something else than the record"
            self.report.add(Finding("column-differs", words, record.index))
        self.people.record(record, said)

    def _grow(self, first: int, leaves: Sequence[bytes]) -> None:
        """Hand the leaves to the trees that they belong to."""
        for number, tree in self.trees.items():
            low, high = self._span(number)
            part = leaves[max(low - first, 0) : max(high - first, 0)]
            if part and first + max(low - first, 0) == tree.log.start + tree.at:
                tree.extend(part)
            if (seam := self.seams.get(number)) and low < high:
                seam.adopt(first, leaves)

    def _span(self, number: int) -> tuple[int, int]:
        """The indices whose records a log's tree has: of a closed one, those that were left."""
        log = next(log for log in self.logs if log.number == number)
        seam = self.seams.get(number)
        return log.start, log.start + (seam.kept if seam else self.sizes[number])

    def _sealed(self, index: int) -> bytes | None:
        for log in reversed(self.logs):
            if log.start <= index:
                low, high = self._span(log.number)
                return self.leaves[log.number].get(index - low) if index < high else None
        return None

    # --- the end ------------------------------------------------------------------------------------------

    def _finish(self, begin: int) -> None:
        self.examiner.finish(pending_from=self.head.drained + 1)
        for number, tree in self.trees.items():
            if seam := self.seams.get(number):
                seam.finish(tree, self.leaves[number], self.examiner.notices)
            tree.finish()
        self.retained = Spans(self.examiner.retained)
        self._gone()
        self._moved()
        self._head(begin)
        self._tables()
        self.people.finish(self.examiner.erased | reading.erased_since(self.head.next), self.retained.__contains__)
        self._excused()

    def _gone(self) -> None:
        """Records that are missing, unless a retention record names them."""
        for first, size in self.gaps:
            for at, count in self.retained.without(first, size):
                which = f"record {at:,} is" if count == 1 else f"records {at:,} to {at + count - 1:,} are"
                words = f"{which} missing, and no retention record accounts for {'it' if count == 1 else 'them'}"
                self.report.add(Finding("record-missing", words, at))

    def _excused(self) -> None:
        """What records say was deleted by rule: staff compare it with what they did."""
        if self.examiner.retained:
            deleted = sum(size for _, size in self.examiner.retained)
            ranges = len(self.examiner.retained)
            words = f"Retention records account for {deleted:,} deleted records, in {ranges:,} ranges."
            self.report.notes.append(words)
        if self.examiner.erased:
            self.report.notes.append(
                f"Erasure and retention records account for {len(self.examiner.erased):,} destroyed keys."
            )

    def _moved(self) -> None:
        """Changed records whose bytes are another one's: they were moved."""
        sealed = {leaf: index for index, (_, leaf) in self.changed.items() if leaf}
        moved = {i: sealed[leaf] for i, (leaf, _) in self.changed.items() if leaf in sealed}
        for position, finding in enumerate(self.report.findings):
            if finding.code == "record-changed" and finding.index in moved:
                words = f"at {finding.index:,} stands what was sealed as record {moved[finding.index]:,}"
                self.report.findings[position] = Finding("record-moved", words, finding.index)

    def _head(self, begin: int) -> None:
        head, examiner = self.head, self.examiner
        for index in head.beyond:
            where = "beyond the end" if index >= head.next else "before the beginning"
            words = f"record {index:,} stands {where} of the log: it was not written by it"
            self.report.add(Finding("record-inserted", words, index))
        if head.next != begin and examiner.previous not in (None, head.batch):
            words = f"the head, at {head.next:,}, names another write batch than the newest one"
            self.report.add(Finding("batch-chain-broken", words, head.next))
        if examiner.at is not None and (head.at - EPOCH) // MICROSECOND < examiner.at:
            words = f"the head's clock, at {head.next:,}, is behind the newest record: it was set back"
            self.report.add(Finding("record-backdated", words, head.next))

    def _tables(self) -> None:
        """The policy's tables as they are now, where all that is recorded of them was seen; and those by which it is
        decided what is kept."""
        version, drained, tables = reading.policy_tables()
        replay = self.examiner.policy
        digest = replay.digest()
        if version == drained == replay.version and digest is not None and digest != digest_of(tables):
            words = f"the policy's tables are not what version {version} is as the log tells it: changed past the log"
            self.report.add(Finding("policy-unexplained", words))
        for finding in live_keeping.findings():
            self.report.add(finding)


def _leaf(record: Record) -> bytes:
    return merkle.leaf_hash(bytes(record.statement))
