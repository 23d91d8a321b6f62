"""The files of an evidence pack: a ZIP whose bytes are the same whenever the same is written, with the SHA-256 of each
file as it goes in."""

import csv
from base64 import b64encode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from tempfile import SpooledTemporaryFile
from typing import IO, Any, Protocol
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import msgspec

from audit.evidence.reading import Found
from audit.evidence.tables import time_text
from audit.records_csv import cell

IN_MEMORY = 4 << 20  # bytes of a file that waits for another to be finished; more is on disk, without a name
BEGAN = (1980, 1, 1, 0, 0, 0)  # the earliest time that a ZIP can name: the same for every file and every run


class Sink(Protocol):
    """What takes bytes."""

    def write(self, data: bytes, /) -> int:
        """Take them."""


class _Measured:
    """Bytes on their way into the archive: how many, and their SHA-256."""

    def __init__(self, into: IO[bytes]) -> None:
        self.into, self.digest, self.size = into, sha256(), 0

    def write(self, data: bytes, /) -> int:
        """Pass them on."""
        self.digest.update(data)
        self.size += len(data)
        return self.into.write(data)


class Files:
    """Writes the archive into `file`, which can be seeked. `files` has what the manifest names of each."""

    def __init__(self, file: IO[bytes]) -> None:
        self._zip = ZipFile(file, "w", ZIP_DEFLATED)
        self.files: dict[str, dict[str, Any]] = {}

    @contextmanager
    def stream(self, name: str) -> Iterator[Sink]:
        """A file that is written bit by bit."""
        info = ZipInfo(name, BEGAN)
        info.compress_type, info.external_attr, info.create_system = ZIP_DEFLATED, 0o644 << 16, 3
        with self._zip.open(info, "w", force_zip64=True) as into:
            measured = _Measured(into)
            yield measured
        self.files[name] = {"sha256": measured.digest.hexdigest(), "bytes": measured.size}

    def document(self, name: str, data: bytes) -> None:
        """A file that is there as a whole."""
        with self.stream(name) as into:
            into.write(data)

    def close(self) -> None:
        """Finish the archive, or let go of the file, which is none then."""
        self._zip.close()


def document(value: object) -> bytes:
    """JSON for people and machines, the same bytes for the same value."""
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1) + b"\n"


class Rows:
    """A CSV file for a spreadsheet: UTF-8 with a byte order mark, RFC 4180, no cell that would run as a formula."""

    def __init__(self, into: Sink, columns: Iterable[str]) -> None:
        into.write(b"\xef\xbb\xbf")
        self._text = _Text(into)
        self._writer = csv.writer(self._text, quoting=csv.QUOTE_ALL)
        self._writer.writerow(columns)

    def add(self, row: Iterable[Any]) -> None:
        """One row; None is empty."""
        self._writer.writerow(map(cell, row))


class _Text:
    """Text for the CSV writer to write into."""

    def __init__(self, into: Sink) -> None:
        self._into = into

    def write(self, text: str, /) -> int:
        """What UTF-8 cannot have is replaced."""
        return self._into.write(text.encode("utf-8", "replace"))


@contextmanager
def aside() -> Iterator[IO[bytes]]:
    """A file that waits until another is finished: an archive takes one at a time."""
    with SpooledTemporaryFile(max_size=IN_MEMORY, mode="w+b") as waiting:
        yield waiting


def take(waiting: IO[bytes], into: Sink) -> None:
    """Move what waited into the archive."""
    waiting.seek(0)
    while chunk := waiting.read(1 << 16):
        into.write(chunk)


def record_line(found: Found) -> bytes:
    """A record as `records/*.jsonl` has it: its exact statement, whose leaf anybody can compute (RFC 9162 section
    2.1), and the disclosures that the pack shows, which the statement commits to (RFC 9901)."""
    record = found.record
    line = {
        "index": record.index, "id": str(record.id), "at": time_text(record.at), "leaf": bytes(record.leaf).hex(),
        "disclosures": list(found.opened.texts),
    }  # fmt: skip
    data = bytes(record.statement)
    try:
        line["statement"] = data.decode()
    except UnicodeDecodeError:  # it was changed; the verifier says so
        line["statement_base64"] = b64encode(data).decode()
    return msgspec.json.encode(line) + b"\n"
