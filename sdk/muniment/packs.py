"""Evidence packs, `muniment/pack/v1`: a ZIP of pages and records for an audit, verified offline.

A pack may come from anybody: what is read is bounded, no path is followed, no length is trusted. Its manifest is signed
by an export key of the platform and names each file; each record in it gives the leaf that the log has of it, and what
staff wrote beside it is what it commits to. That the log holds those leaves, a proof bundle of the same period shows.
"""

import re
from collections.abc import Iterator
from hashlib import sha256
from os import SEEK_END
from typing import IO, Annotated, Any, cast
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import msgspec
from msgspec import Meta, Struct, field

from muniment import checkpoints, disclosures, exported, merkle, notes, statements
from muniment.bundle import BROKEN, MAX_MEMBER, MAX_RATIO, Guard, text_of, time_of
from muniment.checkpoints import CheckpointError, CheckpointUntrusted
from muniment.findings import counted
from muniment.keys import Trust
from muniment.report import Report

FORMAT = "muniment/pack/v1"
MANIFEST, CHECKPOINT = "manifest.json", "checkpoint.txt"
MAX_DOCUMENT = 1 << 20
MAX_LINE = 1 << 20
MAX_FILES = 500
_NAME = re.compile(r"(?:[a-z0-9-]+/)?[a-z0-9][a-z0-9-]*\.[a-z]+", re.ASCII)
_CHUNK = 1 << 16

Count = Annotated[int, Meta(ge=0, lt=2**53)]
Text = Annotated[str, Meta(max_length=4096)]


class File(Struct):
    """One file of the pack: the SHA-256 of its bytes in hexadecimal, and how many there are."""

    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    bytes: Count


class Manifest(Struct):
    """What a pack says that it is: made for whom, of which period and indices (both ends included; `last` below `first`
    where there was no record), how many records each part has, and a checkpoint of the log that covers them. `start`:
    the index of that log's first record."""

    format: Text
    made_at: Text
    made_for: Text
    since: Text
    until: Text
    frameworks: list[Text]
    origin: Text
    start: Count
    first: Count
    last: Annotated[int, Meta(ge=-1, lt=2**53)]
    counts: dict[str, Count]
    files: dict[str, File]
    checkpoint: Annotated[str, Meta(max_length=notes.MAX_BYTES)] | None = None


class _Line(Struct):
    """A record of the pack."""

    index: Count
    id: Text
    at: Text
    leaf: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    statement: str | None = None
    statement_base64: bytes | None = None
    disclosures: Annotated[list[str], Meta(max_length=100)] = []

    @property
    def data(self) -> bytes:
        """The statement's bytes."""
        return (self.statement_base64 or b"") if self.statement is None else self.statement.encode()


class Facts(Struct):
    """What was looked at."""

    made_for: str = ""
    made_at: str = ""
    since: str = ""
    until: str = ""
    first: int = 0
    last: int = -1
    frameworks: list[str] = field(default_factory=list)
    files: int = 0
    records: int = 0
    disclosed: int = 0
    key: str = ""
    origin: str = ""
    sealed: int = 0


class PackError(Exception):
    """The pack cannot be read. Never repeats the input."""


def is_pack(file: IO[bytes]) -> bool:
    """Whether this is a ZIP whose manifest says that it is an evidence pack. Leaves the file at its beginning."""
    try:
        with ZipFile(cast(IO[bytes], Guard(file))) as archive, archive.open(MANIFEST) as member:
            said = statements.load(member.read(MAX_DOCUMENT + 1))
        return isinstance(said, dict) and said.get("format") == FORMAT
    except (*BROKEN, KeyError, statements.StatementError):
        return False
    finally:
        file.seek(0)


def verify(
    file: IO[bytes], trust: Trust | None = None, since: int | None = None, until: int | None = None
) -> tuple[Report, Facts]:
    """Verify a pack against the keys in `trust` (None: none are known, which is a finding); `since` and `until`
    (microseconds): the period that it must show. Never raises for what is in it."""
    report, facts = Report(), Facts()
    try:
        length = file.seek(0, SEEK_END)
        with ZipFile(cast(IO[bytes], Guard(file))) as archive:
            _check_members(archive, length)
            _Verification(archive, trust, report, facts).run(since, until)
    except PackError as error:
        report.find("export-malformed", str(error))
    except BROKEN:
        report.find("export-malformed", "the pack cannot be unpacked")
    return report, facts


class _Verification:
    """One pack."""

    def __init__(self, archive: ZipFile, trust: Trust | None, report: Report, facts: Facts) -> None:
        self.archive, self.trust, self.report, self.facts = archive, trust, report, facts
        self.manifest, self.members = _manifest(archive)

    def run(self, since: int | None, until: int | None) -> None:
        """All of it."""
        self._tell()
        self._signature()
        self._checkpoint()
        self._period(since, until)
        self._members()
        for name in sorted(self.manifest.files):
            self._file(name, self.manifest.files[name])
        for slug, number in sorted(self.manifest.counts.items()):
            if number and not {f"records/{slug}.jsonl", f"records/{slug}.csv"} & self.manifest.files.keys():
                self.report.find(
                    "export-differs", f"the manifest counts records of {slug!a}, and names no file of them"
                )

    def _tell(self) -> None:
        facts, said = self.facts, self.manifest
        facts.made_for, facts.made_at, facts.since, facts.until = said.made_for, said.made_at, said.since, said.until
        facts.first, facts.last, facts.frameworks = said.first, said.last, said.frameworks

    def _signature(self) -> None:
        if self.trust is None:
            self.report.find("keys-untrusted", "no key that you trust was given, so nothing is proved yet (--trust)")
        try:
            self.facts.key = exported.signed_by(self.members, self.trust or Trust()) or ""
        except exported.ManifestError as error:
            self.report.find("export-unsigned", str(error))
            return
        if not self.facts.key and self.trust is not None:
            self.report.find("export-untrusted", "the manifest is signed by no export key that you trust")

    def _checkpoint(self) -> None:
        """Signed by a trusted key of its log, and with all records of the period in it."""
        said = self.manifest
        if said.checkpoint is None:
            if said.last >= said.first:
                self.report.find("export-differs", "the manifest tells of records, and has no checkpoint that has them")
            return
        try:
            found = checkpoints.read(said.checkpoint, (self.trust or Trust()).log_keys(said.origin))
        except CheckpointUntrusted:
            if self.trust is not None:
                self.report.find("checkpoint-untrusted", "the checkpoint is signed by no log key that you trust")
            return
        except CheckpointError as error:
            self.report.find("checkpoint-unsigned", str(error))
            return
        self.facts.origin, self.facts.sealed = found.origin, found.size
        if said.last >= said.start + found.size:
            self.report.find("export-differs", "the checkpoint does not have the last record of the period")

    def _period(self, since: int | None, until: int | None) -> None:
        try:
            begins, ends = time_of(self.manifest.since), time_of(self.manifest.until)
        except ValueError:
            raise PackError("the manifest names a period that is none") from None
        if (since is not None and since < begins) or (until is not None and until > ends):
            words = f"the pack was made for the time from {text_of(begins)} to {text_of(ends)} only"
            self.report.find("range-narrowed", words)
        self.begins, self.ends = begins, ends

    def _members(self) -> None:
        """The archive holds what the manifest names, once each, and nothing else."""
        names = [member.filename for member in self.archive.infolist()]
        for name in sorted(set(names) - self.manifest.files.keys() - {MANIFEST}):
            self.report.find("export-differs", f"{name[:100]!a} is in the pack, and the manifest does not name it")

    def _file(self, name: str, expected: File) -> None:
        try:
            length, digest = self._measure(name)
        except KeyError:
            self.report.find("export-missing", f"{name} is missing")
            return
        except BROKEN:
            self.report.find("export-changed", f"{name} cannot be unpacked")
            return
        self.facts.files += 1
        if (length, digest) != (expected.bytes, expected.sha256):
            self.report.find("export-changed", f"{name} is not the file that the manifest names")
            return
        if name == CHECKPOINT and digest != sha256((self.manifest.checkpoint or "").encode()).hexdigest():
            self.report.find("export-differs", f"{name} is not the checkpoint of the manifest")
        if name.startswith("records/") and name.endswith(".jsonl"):
            self._records(name)

    def _measure(self, name: str) -> tuple[int, str]:
        digest, length = sha256(), 0
        with self.archive.open(name) as member:
            while chunk := member.read(_CHUNK):
                digest.update(chunk)
                length += len(chunk)
        return length, digest.hexdigest()

    def _records(self, name: str) -> None:
        """Each record of a file: its leaf, its place and time, and the details that are shown of it."""
        number = 0
        for line in self._lines(name):
            number += 1
            self._record(name, line)
        self.facts.records += number
        slug = name.removeprefix("records/").removesuffix(".jsonl")
        if self.manifest.counts.get(slug) != number:
            words = f"{name} has {counted(number, 'record')}, the manifest counts {self.manifest.counts.get(slug, 0):,}"
            self.report.find("export-differs", words)

    def _lines(self, name: str) -> Iterator[_Line]:
        decoder = msgspec.json.Decoder(_Line)
        with self.archive.open(name) as member:
            number = 0
            while line := member.readline(MAX_LINE + 1):
                number += 1
                try:
                    if len(line) > MAX_LINE:
                        raise ValueError
                    yield decoder.decode(line)
                except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
                    raise PackError(f"line {number:,} of {name} cannot be read") from None

    def _record(self, name: str, line: _Line) -> None:
        find, words = self.report.find, f"record {line.index:,} in {name}"
        if merkle.leaf_hash(line.data).hex() != line.leaf:
            find("record-changed", f"{words}: its bytes do not give its leaf", line.index)
            return
        try:
            said = statements.decode(line.data)
        except statements.StatementError:
            find("record-malformed", f"{words} is not a statement", line.index)
            return
        at = said.get("at")
        if said.get("id") != line.id or type(at) is not int or text_of(at) != text_of(_time(line.at)):
            find("export-differs", f"{words} has another id or time than its statement", line.index)
        elif not self.manifest.first <= line.index <= self.manifest.last or not self.begins <= at < self.ends:
            find("export-differs", f"{words} is not of the period", line.index)
        for text in line.disclosures:
            if not disclosures.matches(said, text):
                find("disclosure-foreign", f"{words}: a detail is not one that its statement commits to", line.index)
        self.facts.disclosed += bool(line.disclosures)


def _time(text: str) -> int:
    try:
        return time_of(text)
    except ValueError:
        return -1


def _check_members(archive: ZipFile, length: int) -> None:
    """Whether the archive, of so many bytes, looks harmless. Raises PackError."""
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(set(names)) != len(names) or len(names) > MAX_FILES or not all(map(_NAME.fullmatch, names)):
        raise PackError("the archive has a file twice, or one that is not of a pack")
    if sum(member.compress_size for member in members) > length:  # one part of it, unpacked again and again
        raise PackError("its files claim more than the archive has")
    for member in members:
        if member.flag_bits & 1 or member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            raise PackError(f"{member.filename} is encrypted, or packed in an unusual way")
        if member.file_size > min(MAX_MEMBER, MAX_DOCUMENT + MAX_RATIO * member.compress_size):
            raise PackError(f"{member.filename} claims to be far larger than what is there")


def _manifest(archive: ZipFile) -> tuple[Manifest, dict[str, Any]]:
    """The manifest, and its members as they are signed. Raises PackError."""
    try:
        with archive.open(MANIFEST) as file:
            data = file.read(MAX_DOCUMENT + 1)
        said = statements.load(data) if len(data) <= MAX_DOCUMENT else None
        statements.check(said, "manifest")
        found = msgspec.convert(said, Manifest)
    except (KeyError, ValueError, RecursionError):
        raise PackError(f"{MANIFEST} is missing or cannot be read") from None
    if found.format != FORMAT or not isinstance(said, dict):
        raise PackError(f"its format is not {FORMAT}: a newer muniment may read it")
    if MANIFEST in found.files or not all(map(_NAME.fullmatch, found.files)):
        raise PackError("the manifest names a file that is not of a pack")
    return found, said


def told(report: Report, facts: Facts) -> dict[str, Any]:
    """The report for machines."""
    found = [{"code": one.code, "index": one.index, "message": one.message} for one in report.findings]
    return {"ok": report.ok, "count": report.count, "findings": found, "pack": msgspec.to_builtins(facts)}


def words(report: Report, facts: Facts) -> Iterator[str]:
    """The report for people."""
    if not report.ok:
        yield from (one.line for one in report.findings)
        if report.count > len(report.findings):
            yield f"and {report.count - len(report.findings):,} more findings"
        if {one.code for one in report.findings} != {"keys-untrusted"}:
            return
        yield "With these keys all else would hold."
    else:
        yield "Everything holds: no file of the pack was changed since it was signed."
    yield f"Evidence from {facts.since} to before {facts.until}, made for {facts.made_for} at {facts.made_at}."
    yield f"{counted(facts.files, 'file')}; {counted(facts.records, 'record')}, each with the bytes of its leaf."
    if facts.disclosed:
        yield f"Names and reasons beside {counted(facts.disclosed, 'record')} are those that the records commit to."
    if facts.key:
        yield f"Signed by export key {facts.key}."
    if facts.sealed:
        yield f"Its checkpoint has {counted(facts.sealed, 'record')} of {facts.origin}."
    yield "That the log holds these records, a proof bundle of the same time shows."
