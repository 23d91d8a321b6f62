"""The bundle's format, `muniment/bundle/v1`: a ZIP of JSON that proves a range of a log offline.

Reader and writer. A bundle may come from anybody: the reader bounds what it takes into memory, follows no path and
trusts no length, and knows one error. What a bundle says is judged in `verify`.
"""

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from types import TracebackType
from typing import IO, Annotated, TypeVar, cast
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

import msgspec
from msgspec import Meta, Struct

FORMAT = "muniment/bundle/v1"
README, MANIFEST, KEYS = "README.txt", "manifest.json", "keys.json"
RECORDS, BATCHES, CHECKPOINTS = "records.jsonl", "batches.jsonl", "checkpoints.jsonl"
CONTEXT, DISCLOSURES = "context.jsonl", "disclosures.jsonl"
FILES = (RECORDS, BATCHES, CHECKPOINTS, CONTEXT, DISCLOSURES, KEYS)
"""What the manifest names the digests of. All of them are in every bundle, some of them empty."""

MAX_LINE = 1 << 18  # a statement of 64 KiB whose every byte is escaped, and the rest of its line
MAX_DOCUMENT = 1 << 20  # README, manifest and keys
MAX_DIRECTORY = 1 << 21  # of the archive, and what is read at once; ours has 2 KiB
MAX_MEMBER = 1 << 40
MAX_RATIO = 250  # of a member's size to what it takes in the archive; ours stay below 30

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:\d\d))?", re.ASCII)
# What zipfile, zlib and the operating system raise on an archive that is none, or that ends early.
BROKEN = (BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError, struct.error)

Count = Annotated[int, Meta(ge=0, lt=2**53)]
Number = Annotated[int, Meta(ge=1, lt=2**15)]
Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
Path = Annotated[list[Hash], Meta(max_length=128)]
Word = Annotated[str, Meta(max_length=255)]


class BundleError(Exception):
    """Part of a bundle is missing or cannot be read: `code` is that of the finding. Never repeats the input."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RecordLine(Struct, omit_defaults=True):
    """One record. `leaf`: its hash in the tree. `statement`: its exact bytes, when it is open (`statement_base64`: of
    one that is not text, because it was changed). `gone`: the log does not have it any more."""

    i: Count
    leaf: Hash
    statement: str | None = None
    statement_base64: bytes | None = None
    gone: bool = False

    @property
    def data(self) -> bytes | None:
        """The statement's bytes; None for a record that is closed."""
        return self.statement_base64 if self.statement is None else self.statement.encode()


class BatchLine(Struct):
    """One signed write batch, as `muniment.batches` has it."""

    first: Count
    size: Count
    previous: Hash
    root: Hash
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
    key_id: Word


class CheckpointLine(Struct, omit_defaults=True):
    """A checkpoint of a log (`note`, with its cosignatures), or only the root that the tree had at a size, and the
    consistency path from there to the tree that proves the records; no path for that tree itself."""

    log: Number
    size: Count
    root: Hash
    note: str | None = None
    path: Path = []


class ContextLine(Struct, omit_defaults=True):
    """A record outside of the range that is needed to judge it, with its inclusion path: in the tree of its log, or
    (`adopted`) in the tree over what its log took over when it was opened. `within` leads to the root of its write
    batch, which its writer signed: the tree alone would be the word of whoever has the log key."""

    i: Count
    log: Number
    statement: str
    path: Path
    adopted: bool = False
    batch: BatchLine | None = None
    within: Path = []


class DisclosureLine(Struct, omit_defaults=True):
    """The protected details of an open record, in the form of RFC 9901. `gone`: they can no longer be read."""

    i: Count
    disclosures: Annotated[list[str], Meta(max_length=1000)] = []
    gone: bool = False


class Asked(Struct, rename={"since": "from", "until": "to"}):
    """What the bundle was asked for: records from `since` to before `until`, opened where they are about this user and
    of this client; `disclose`: with protected details."""

    since: Word
    until: Word
    subject: Word | None = None
    client: Word | None = None
    disclose: bool = False


class Head(Struct):
    """A log, and the size of the tree that proves what is shown of it. `start`: the index of its first record."""

    log: Number
    origin: Word
    start: Count
    size: Count


class Segment(Struct):
    """The records of one log that the bundle shows, both ends included, and the path for `merkle.verify_range`."""

    log: Number
    first: Count
    last: Count
    path: Path


class File(Struct):
    """One file of the bundle: its SHA-256 in hex, its bytes, and how many lines it has."""

    sha256: Word
    bytes: Count
    lines: Count


class Manifest(Struct):
    """What is in a bundle. Nothing of it is believed: it says where to look."""

    format: Word
    created_at: Word
    asked: Asked
    first: Count
    last: Count
    logs: Annotated[list[Head], Meta(min_length=1, max_length=100)]
    segments: Annotated[list[Segment], Meta(max_length=100)]
    counts: dict[str, Count]
    files: dict[str, File]


Line = TypeVar("Line", bound=Struct)


class Bundle:
    """A bundle that is read. Use as a context manager."""

    def __init__(self, file: IO[bytes]) -> None:
        """Raises BundleError for what is no archive of the expected files, or does not look like a harmless one."""
        start = file.read(2)
        guard = Guard(file)
        try:
            self._zip = ZipFile(cast(IO[bytes], guard))
        except BROKEN:
            if start == b"PK":
                raise BundleError("bundle-truncated", "the archive has no end: it was cut off") from None
            raise BundleError("bundle-malformed", "it is not a ZIP archive") from None
        self._check_members()
        self.manifest = self._manifest()

    def __enter__(self) -> "Bundle":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._zip.close()

    def document(self, name: str) -> bytes:
        """One of the small files. Raises BundleError."""
        with self._open(name) as member:
            data = member.read(MAX_DOCUMENT + 1)
        if len(data) > MAX_DOCUMENT:
            raise BundleError("bundle-malformed", f"{name} is longer than {MAX_DOCUMENT:,} bytes")
        return data

    def lines(self, name: str, kind: type[Line]) -> Iterator[Line]:
        """The lines of a file, one at a time. Raises BundleError at one that is none."""
        decoder = msgspec.json.Decoder(kind)
        with self._open(name) as member:
            number = 0
            while line := member.readline(MAX_LINE + 1):
                number += 1
                try:
                    if len(line) > MAX_LINE or not line.endswith(b"\n"):
                        raise ValueError
                    yield decoder.decode(line)
                except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
                    raise BundleError("bundle-malformed", f"line {number:,} of {name} cannot be read") from None

    def faults(self) -> Iterator[BundleError]:
        """Files that are not as the manifest has them: cut off, or changed on the way."""
        for name in FILES:
            expected = self.manifest.files.get(name)
            if expected is None:
                yield BundleError("bundle-malformed", f"the manifest does not name {name}")
                continue
            try:
                digest, lines, size = self._measure(name)
            except BundleError as error:
                yield error
                continue
            if size < expected.bytes or lines < expected.lines:
                words = f"{name} has {lines:,} of {expected.lines:,} lines"
                yield BundleError("bundle-truncated", words)
            elif digest != expected.sha256:
                yield BundleError("bundle-malformed", f"{name} is not the file that the manifest names")

    def _check_members(self) -> None:
        members = self._zip.infolist()
        names = [member.filename for member in members]
        if len(set(names)) != len(names) or not set(names) <= {README, MANIFEST, *FILES}:
            raise BundleError("bundle-malformed", "the archive has a file twice, or one that is not of a bundle")
        for member in members:
            if member.flag_bits & 1 or member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                raise BundleError("bundle-malformed", f"{member.filename} is encrypted, or packed in an unusual way")
            if member.file_size > min(MAX_MEMBER, MAX_DOCUMENT + MAX_RATIO * member.compress_size):
                raise BundleError("bundle-malformed", f"{member.filename} claims to be far larger than what is there")

    def _manifest(self) -> Manifest:
        data = self.document(MANIFEST)
        try:
            manifest = msgspec.json.decode(data, type=Manifest)
        except (ValueError, RecursionError):
            raise BundleError("bundle-malformed", f"{MANIFEST} cannot be read") from None
        if manifest.format != FORMAT:
            raise BundleError("bundle-malformed", f"its format is not {FORMAT}: a newer muniment may read it")
        return manifest

    def _measure(self, name: str) -> tuple[str, int, int]:
        digest, lines, size = sha256(), 0, 0
        with self._open(name) as member:
            while chunk := member.read(1 << 16):
                digest.update(chunk)
                lines, size = lines + chunk.count(b"\n"), size + len(chunk)
        return digest.hexdigest(), lines, size

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        try:
            member = self._zip.open(name)
        except KeyError:
            raise BundleError("bundle-truncated", f"{name} is missing") from None
        except BROKEN:
            raise BundleError("bundle-malformed", f"{name} cannot be unpacked") from None
        try:
            yield member
        except BROKEN:
            raise BundleError("bundle-malformed", f"{name} cannot be unpacked") from None
        finally:
            with suppress(*BROKEN):
                member.close()


class Writer:
    """Writes a bundle into `file`, which can be seeked."""

    def __init__(self, file: IO[bytes]) -> None:
        self._zip = ZipFile(file, "w", ZIP_DEFLATED)
        self._encoder = msgspec.json.Encoder()
        self.files: dict[str, File] = {}

    def document(self, name: str, data: bytes) -> None:
        """Add a small file."""
        self._zip.writestr(name, data)
        self.files[name] = File(sha256(data).hexdigest(), len(data), data.count(b"\n"))

    def lines(self, name: str, lines: Iterator[Struct]) -> int:
        """Add a file of one line for each of these; how many there were."""
        digest, count, size = sha256(), 0, 0
        with self._zip.open(name, "w", force_zip64=True) as member:
            for line in lines:
                data = self._encoder.encode(line) + b"\n"
                digest.update(data)
                member.write(data)
                count, size = count + 1, size + len(data)
        self.files[name] = File(digest.hexdigest(), size, count)
        return count

    def close(self, manifest: Manifest, readme: str) -> None:
        """Finish the archive, with a manifest that gets the digests of the files."""
        manifest.files = {name: found for name, found in self.files.items() if name in FILES}
        self._zip.writestr(MANIFEST, msgspec.json.format(self._encoder.encode(manifest), indent=1) + b"\n")
        self._zip.writestr(README, readme.encode())
        self._zip.close()

    def abort(self) -> None:
        """Let go of the file, which is no bundle then."""
        self._zip.close()


class Guard:
    """A file for zipfile to read from in small pieces: it asks for the archive's directory in one, whatever size the
    archive claims for that."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """At most MAX_DIRECTORY bytes at a time; ValueError where there are, or should be, more."""
        data = self._file.read(min(size, MAX_DIRECTORY + 1) if size >= 0 else MAX_DIRECTORY + 1)
        if len(data) > MAX_DIRECTORY:
            raise ValueError("too much at once")
        return data


def time_of(text: str) -> int:
    """Microseconds since 1970 of an ISO 8601 time with its offset from UTC; of a date alone, its first in UTC. Raises
    ValueError."""
    if not _TIME.fullmatch(text):
        raise ValueError("a time is written like 2026-11-24T10:00:00Z, or 2026-11-24 for the beginning of a day in UTC")
    try:
        found = datetime.fromisoformat(text if "T" in text else f"{text}T00:00:00Z")
        return (found - EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        raise ValueError("there is no such time") from None


def text_of(at: int) -> str:
    """The same time in UTC, as bundles and reports write it."""
    try:
        return (EPOCH + timedelta(microseconds=at)).isoformat().replace("+00:00", "Z")
    except OverflowError:
        return "a time that there is not"


def asked_for(said: Mapping[str, object], asked: Asked) -> bool:
    """Whether a statement is about the user and of the client that were asked for."""
    wanted = {"subject": asked.subject, "client": asked.client}
    return all(value is None or said.get(name) == value for name, value in wanted.items())
