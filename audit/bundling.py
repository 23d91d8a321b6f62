"""Writing bundles: a range of the log with all that proves it, for an auditor (DESIGN.md section 6, Checking).

Open are the records that were asked for, the neighbours that show by their times that the range is whole, and those
that others are judged by (policy, keys, deletions). All others stay closed: only their hashes are shown.
"""

from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import IO, Any

import msgspec
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from audit import bundle_reading, logtree
from audit.bundle_reading import Row, Said, Span
from audit.bundle_words import readme
from audit.models import Batch, Checkpoint, Log, Outbox, PublishedKey, Record
from muniment import bundle, merkle
from muniment.bundle import Asked, DisclosureLine, Head, Manifest, RecordLine, Segment
from muniment.merkle import HASH_BYTES
from muniment.notes import NoteError
from muniment.tiles import TileMissing, Tree
from muniment.verify_heads import Held


class Refused(Exception):
    """Why there is no bundle, in one line. `status`: 1 where it cannot be made (now), 2 where it was asked wrongly."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a bundle is asked for: the records from `since` to before `until`, opened where they are of this user
    (`subject`, a uid) and this client (`client`, a slug). `held`: checkpoints that the auditor keeps, to be compared.
    `disclose`: with protected details, for this `reason`, told as done by `actor`."""

    since: datetime
    until: datetime
    subject: str | None = None
    client: str | None = None
    held: tuple[Held, ...] = ()
    disclose: bool = False
    reason: str = ""
    actor: str = "system"

    def __post_init__(self) -> None:
        if self.since >= self.until:
            raise Refused("the range must begin before it ends", 2)
        if self.disclose and not self.reason.strip():
            raise Refused("to disclose protected details, say why", 2)

    @property
    def asked(self) -> Asked:
        """The same, as the manifest says it."""
        since, until = (_text(at) for at in (self.since, self.until))
        return Asked(since, until, self.subject, self.client, self.disclose)

    def covers(self, row: Row, said: Said) -> bool:
        """Whether this record was asked for."""
        members = {"subject": said.subject, "client": said.client}
        return self.since <= row.at < self.until and bundle.asked_for(members, self.asked)


def write(file: IO[bytes], wanted: Wanted) -> Manifest:
    """Write a bundle. Raises Refused where part of the range is not sealed yet, or nothing is, where the sealed tree
    cannot be read, or details cannot be disclosed by this process."""
    if wanted.disclose and "KEY_ENCRYPTION_KEY" not in settings.MUNIMENT_KEYS:
        raise Refused("to disclose protected details, this process needs the key-encryption key", 2)
    try:
        return _Writing(file, wanted).run()
    except TileMissing as error:
        raise Refused(f"the sealed tree cannot be read ({error}): see manage.py verify_log") from None
    except NoteError:
        raise Refused("a stored checkpoint cannot be read: see manage.py verify_log") from None


def write_record(file: IO[bytes], record: Record) -> Manifest:
    """Write the bundle of one record: its write batch, with neighbours. Raises Refused while it is not sealed."""
    microsecond = timedelta(microseconds=1)
    return write(file, Wanted(record.at, record.at + microsecond))


@dataclass(slots=True)
class _Part:
    """A log, and what of it the bundle shows. `kept`: up to which index records are its own."""

    log: Log
    newest: Checkpoint
    kept: int
    tree: Tree = field(init=False)

    def __post_init__(self) -> None:
        self.prove(self.newest)

    def prove(self, checkpoint: Checkpoint) -> None:
        """Use this checkpoint."""
        self.newest, self.tree = checkpoint, logtree.tree(self.log, checkpoint.size)


class _Writing:
    """One bundle."""

    def __init__(self, file: IO[bytes], wanted: Wanted) -> None:
        self.wanted = wanted
        self.parts = _parts()
        self.end = self.parts[-1].log.start + self.parts[-1].newest.size
        self.neighbours: set[int] = set()
        self.first, self.last = self._bounds()
        self.opened = 0
        self.version = 0  # the newest policy version that an open decision was made from
        self.writer = bundle.Writer(file)

    def run(self) -> Manifest:
        """Write all files."""
        try:
            return self._run()
        except BaseException:
            self.writer.abort()
            raise

    def _run(self) -> Manifest:
        writer, wanted = self.writer, self.wanted
        count = writer.lines(bundle.RECORDS, self._records())
        self._choose()
        writer.lines(bundle.BATCHES, bundle_reading.batches(self.first, self.last))
        writer.lines(bundle.CONTEXT, bundle_reading.context(self.first, self.last, list(self._spans())))
        writer.lines(bundle.CHECKPOINTS, self._checkpoints())
        disclosed = writer.lines(bundle.DISCLOSURES, self._details() if wanted.disclose else iter(()))
        writer.document(bundle.KEYS, jwks())
        counts = {"records": count, "opened": self.opened, "closed": count - self.opened, "disclosed": disclosed}
        manifest = Manifest(
            bundle.FORMAT, _text(timezone.now()), wanted.asked, self.first, self.last,
            [Head(part.log.number, part.log.origin, part.log.start, part.tree.size) for part in self.parts],
            list(self._segments()), counts, {},
        )  # fmt: skip
        if wanted.disclose:
            self._tell(counts)
        writer.close(manifest, readme(manifest, settings.MUNIMENT_URL))
        return manifest

    # --- the range ----------------------------------------------------------------------------------------

    def _bounds(self) -> tuple[int, int]:
        """First and last index: the time that was asked for, the neighbours, and the whole write batches of them."""
        since, until = self.wanted.since, self.wanted.until
        indices = Record.objects.values_list("index", flat=True)
        newest = indices.filter(at__lt=until).order_by("-at").first()
        if newest is not None and newest >= self.end:
            raise Refused("part of the range is not sealed yet: the sealer looks every second, so try again soon")
        before = indices.filter(at__lt=since).order_by("-at").first()
        after = indices.filter(at__gte=until).order_by("at").first()
        if before is None:
            before = indices.order_by("at").first() or 0
        if after is None or after >= self.end:
            after = self.end - 1
        self.neighbours = {before, after}
        return self._rounded(min(before, after), after)

    def _rounded(self, first: int, last: int) -> tuple[int, int]:
        """Out to whole write batches, and to the whole of what one log adopted of the log before it."""
        for earlier, later in zip(self.parts, self.parts[1:], strict=False):
            if earlier.kept <= first < later.log.start:
                first = earlier.kept
            if earlier.kept <= last < later.log.start:
                last = later.log.start - 1
        low, high = _batch_at(first), _batch_at(last)
        first = low.first if low else first
        return first, min(high.first + high.size, self.end) - 1 if high else last

    def _segments(self) -> Iterator[Segment]:
        for part in self.parts:
            start = part.log.start
            low, high = max(self.first, start), min(self.last, part.kept - 1, start + part.tree.size - 1)
            if low <= high:
                yield Segment(part.log.number, low, high, part.tree.range(low - start, high - low + 1))

    def _spans(self) -> Iterator[Span]:
        for earlier, part in zip([None, *self.parts], self.parts, strict=False):
            start = part.log.start
            if earlier is not None and earlier.kept < start:
                yield bundle_reading.adopted(part.log.number, earlier.kept, start)
            yield Span(part.log.number, start, start, min(part.kept, start + part.tree.size), part.tree)

    def _choose(self) -> None:
        """Prove with the newest checkpoint that a witness cosigned, if it has all that is shown and held."""
        part = self.parts[-1]
        leaf = self.last - part.log.start
        sizes = [one.checkpoint.size for one in self.wanted.held if one.checkpoint.origin == part.log.origin]
        most = max([leaf + 1, *sizes])
        if most > part.newest.size:
            raise Refused(f"rollback: a checkpoint that is held has {most:,} records, the log has {part.newest.size:,}")
        if self.last < self.end - 1 and (found := logtree.telling(part.log, max(most - 1, 0))):
            part.prove(found)

    def _checkpoints(self) -> Iterator[bundle.CheckpointLine]:
        for part in self.parts:
            held = [one.checkpoint.size for one in self.wanted.held if one.checkpoint.origin == part.log.origin]
            yield from bundle_reading.checkpoints(part.newest, part.tree, held)

    # --- records ------------------------------------------------------------------------------------------

    def _records(self) -> Iterator[RecordLine]:
        """Each index of the range. It grows to the end of the log where an open decision was made from a policy whose
        record is not in the log yet."""
        known, at = bundle_reading.policy_version(self.end), self.first
        while at <= self.last:
            for page in bundle_reading.records(at, self.last + 1):
                leaves = self._leaves(at, len(page))
                for row, leaf in zip(page, leaves, strict=True):
                    yield self._line(at, row, leaf)
                    at += 1
            if self.version > known:
                self.last = self.end - 1

    def _line(self, index: int, row: Row | None, leaf: bytes | None) -> RecordLine:
        if row is None:
            return RecordLine(index, leaf or bytes(HASH_BYTES), gone=leaf is not None)
        found = merkle.leaf_hash(row.statement)
        said = bundle_reading.said(row.statement)
        # What was changed is shown, whoever it is about: it is what an auditor must see.
        changed = said is None or (leaf is not None and leaf != found)
        leaf = leaf or found
        if not changed and said is not None and not self._opens(row, said):
            return RecordLine(index, leaf)
        self.opened += 1
        if said is not None and said.policy is not None and said.type != "policy":
            self.version = max(self.version, said.policy.version)
        try:
            return RecordLine(index, leaf, row.statement.decode())
        except UnicodeDecodeError:
            return RecordLine(index, leaf, None, row.statement)

    def _opens(self, row: Row, said: Said) -> bool:
        return row.index in self.neighbours or bundle_reading.told(said) or self.wanted.covers(row, said)

    def _leaves(self, first: int, count: int) -> list[bytes | None]:
        """The hashes that the trees have for these indices; None for those that are in no log."""
        found: list[bytes | None] = [None] * count
        for part in self.parts:
            start = part.log.start
            low, high = max(first, start), min(first + count, part.kept, start + part.tree.size)
            if low < high:
                found[low - first : high - first] = part.tree.leaves(low - start, high - low)
        return found

    def _details(self) -> Iterator[DisclosureLine]:
        for page in bundle_reading.records(self.first, self.last + 1, protected=True):
            yield from bundle_reading.details([row for row in page if row], self.wanted.covers)

    def _tell(self, counts: dict[str, int]) -> None:
        """The record of what was disclosed comes before anybody has the bundle."""
        asked = self.wanted.asked
        members = {
            "action": "bundle.disclosed", "from": asked.since, "to": asked.until, "of": asked.subject,
            "of_client": asked.client, "first": self.first, "last": self.last, "records": counts["opened"],
            "disclosed": counts["disclosed"],
        }  # fmt: skip
        with transaction.atomic():
            Outbox.objects.create(
                kind="staff", members=members, private={"reason": self.wanted.reason}, at=timezone.now(),
                actor=self.wanted.actor, xact="",
            )  # fmt: skip


def _parts() -> list[_Part]:
    """The logs that have a checkpoint, the oldest first. Raises Refused where there is none."""
    found: list[_Part] = []
    for log in Log.objects.order_by("number"):
        newest = logtree.newest(log)
        if newest is None:
            break
        if found:
            found[-1].kept = _kept(found[-1].log, log)
        found.append(_Part(log, newest, log.start + newest.size))
    if not found or not found[-1].newest.size:
        raise Refused("nothing is sealed yet")
    return found


def _kept(old: Log, log: Log) -> int:
    """Up to which index the records of a closed log were kept, as the record says that opened the next."""
    statement = Record.objects.filter(index=log.start).values_list("statement", flat=True).first()
    try:
        said: Any = msgspec.json.decode(bytes(statement or b""))
        return old.start + int(said["kept"]["size"])
    except (ValueError, KeyError, TypeError):
        raise Refused(f"record {log.start:,}, which opened log {log.number}, cannot be read") from None


def _batch_at(index: int) -> Batch | None:
    """The write batch that has this index."""
    found = Batch.objects.filter(first__lte=index).order_by("-first").first()
    return found if found and index < found.first + found.size else None


def jwks(before: datetime | None = None) -> bytes:
    """The published keys as GET /v1/keys names them, those of a time where one is given; in a bundle they are for
    information."""
    published = PublishedKey.objects.filter(**({"not_before__lt": before} if before else {}))
    keys = [
        {
            "kty": "OKP", "crv": "Ed25519", "x": urlsafe_b64encode(bytes(key.public)).rstrip(b"=").decode(),
            "kid": key.key_id, "alg": "EdDSA", "use": key.use,
        }
        for key in published.order_by("not_before", "key_id")
    ]  # fmt: skip
    return msgspec.json.format(msgspec.json.encode({"keys": keys}), indent=1) + b"\n"


def _text(at: datetime) -> str:
    return bundle.text_of((at - bundle.EPOCH) // timedelta(microseconds=1))
