"""Receipts: what a verify answer proves by itself, and a folder in which a backend keeps them.

A receipt says that a writer of the platform signed a write batch with this record in it. Whoever keeps it can show
later that the record was answered for, whatever the log says then. The checks are pure: no network, no files.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal
from uuid import UUID

import msgspec

from muniment import batches, merkle, statements
from muniment.bundle import text_of, time_of
from muniment.errors import Misconfigured, MunimentError
from muniment.keys import Trust, TrustError
from muniment.notes import NoteError, from_base64

SKEW = 300 * 1_000_000
"""How far, in microseconds, the clocks of a backend and of the platform may differ."""

MAX_LINE = 1 << 14  # bytes; a receipt with the longest path has 3 KiB
_LONGEST = 88  # characters of base64: a signature of 64 bytes
_NAME = re.compile(r"receipts-\d{4}-\d\d-\d\d\.jsonl", re.ASCII)
_WHOLE = b"}}}"  # how a line ends: batch, receipt, line


class ReceiptError(MunimentError):
    """Not a receipt, or one that does not hold: `code` is that of the finding. Never repeats the input."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class WriterKey:
    """A key with which write batches are signed, and from when until when (microseconds since 1970; None: no bound)."""

    id: str
    public: bytes
    not_before: int | None = None
    not_after: int | None = None

    def valid(self, at: int) -> bool:
        """Whether it could sign at that time, by a clock that may be wrong by SKEW."""
        early = self.not_before is not None and at < self.not_before - SKEW
        return not early and (self.not_after is None or at <= self.not_after + SKEW)


def writer_keys(text: str) -> tuple[WriterKey, ...]:
    """The writers among the keys of a saved GET /v1/keys, with their validity, or of a list of vkeys, which has none
    (`keys.Trust.parse`). Raises TrustError, also where no writer is among them."""
    trust = Trust.parse(text)
    spans = _validity(text) if text.lstrip().startswith("{") else {}
    if not trust.writers:
        raise TrustError("the document of trusted keys holds no key of a writer")
    return tuple(WriterKey(key_id, public, *spans.get(key_id, ())) for key_id, public in trust.writers.items())


def _validity(text: str) -> dict[str, tuple[int | None, int | None]]:
    """By key id, of a JWKS that was found well-formed."""
    found = {}
    document: Any = statements.load(text.encode())
    for number, jwk in enumerate(document["keys"], 1):
        if jwk["use"] != "writer":
            continue
        span = [jwk.get("not_before"), jwk.get("not_after")]
        try:
            if any(one is not None and type(one) is not str for one in span):
                raise ValueError
            begin, end = (None if one is None else time_of(one) for one in span)
        except ValueError:
            raise TrustError(f"key {number} of the JWKS does not say from when until when it is valid") from None
        found[jwk["kid"]] = (begin, end)
    return found


@dataclass(frozen=True, slots=True)
class Receipt:
    """The member `receipt` of a verify answer, read. Byte strings are raw: 32 bytes, `signature` 64. `key` is None in
    an answer that does not name it."""

    index: int
    leaf: bytes
    signature: bytes
    key: str | None
    first: int
    size: int
    previous: bytes
    root: bytes
    position: int
    path: tuple[bytes, ...]

    @classmethod
    def parse(cls, receipt: object) -> "Receipt":
        """Read one. Raises ReceiptError for another type, base64 that is not canonical (RFC 4648), a wrong length, a
        number out of range, or a place that is not in the batch. Members that it does not know are ignored."""
        batch = receipt.get("batch") if isinstance(receipt, Mapping) else None
        if not isinstance(receipt, Mapping) or not isinstance(batch, Mapping):
            raise ReceiptError("receipt-malformed", "it is no receipt with a batch")
        key = receipt.get("key")
        if key is not None and (type(key) is not str or not 1 <= len(key) <= _LONGEST):
            raise ReceiptError("receipt-malformed", "its key is no id of a key")
        found = cls(
            _count(receipt, "index"),
            _bytes(receipt, "leaf"),
            _bytes(receipt, "signature", 64),
            key,
            _count(batch, "first"),
            _count(batch, "size"),
            _bytes(batch, "previous"),
            _bytes(batch, "root"),
            _count(batch, "position"),
            _path(batch),
        )
        if not found.position < found.size < 2**32 or found.index != found.first + found.position:
            raise ReceiptError("receipt-malformed", "its index is not a place in its batch")
        return found

    @property
    def message(self) -> bytes:
        """What the writer signed (`batches.message`)."""
        return batches.message(self.first, self.size, self.previous, self.root)

    def body(self) -> dict[str, Any]:
        """The members that it was read from, byte strings raw (msgspec writes them in base64), and no others."""
        named = {} if self.key is None else {"key": self.key}
        batch = {
            "first": self.first,
            "size": self.size,
            "previous": self.previous,
            "root": self.root,
            "position": self.position,
            "path": list(self.path),
        }
        return {"index": self.index, "leaf": self.leaf, "signature": self.signature} | named | {"batch": batch}


def check(receipt: object, keys: Sequence[WriterKey], at: int | None = None) -> Receipt:
    """Whether a receipt holds: its leaf is in the batch, at its place, and one of these writers signed the batch's
    first index, size, root and the batch before. `at` (microseconds since 1970): when it was answered; the key must
    have been valid then. Returns it, read. Raises ReceiptError with the code of what does not hold."""
    found = Receipt.parse(receipt)
    if not merkle.verify_inclusion(found.leaf, found.position, found.size, found.path, found.root):
        raise ReceiptError("receipt-broken", "its path does not lead from its leaf to the root of its batch")
    named = [key for key in keys if found.key in (None, key.id)]
    if not named:
        raise ReceiptError("batch-key-untrusted", "its batch is signed by a key that you do not trust")
    signers = [key for key in named if batches.verify(key.public, found.message, found.signature)]
    if not signers:
        raise ReceiptError("receipt-broken", "the signature of its batch does not hold")
    if at is not None and not any(key.valid(at) for key in signers):
        raise ReceiptError("receipt-untimely", "its batch is signed by a key that was not valid at that time")
    return found


def signer_of(receipt: Receipt, keys: Sequence[WriterKey]) -> str:
    """The id of the key that signed a receipt that holds."""
    if receipt.key is not None:
        return receipt.key
    return next((key.id for key in keys if batches.verify(key.public, receipt.message, receipt.signature)), "")


@dataclass(frozen=True, slots=True)
class Kept:
    """One line of a store: when it was kept (microseconds since 1970, by the backend's clock), the id of the record,
    what was decided, of which tool (None: of one that is not known), and the receipt as it was answered."""

    at: int
    record: UUID
    decision: str
    tool: str | None
    receipt: Any

    @classmethod
    def parse(cls, line: bytes) -> "Kept":
        """Read a line; its receipt is not judged. Raises ReceiptError."""
        try:
            said = msgspec.json.decode(line, type=_Said)
            if said.tool is not None:
                said.tool.encode()
            return cls(time_of(said.at), UUID(said.record), said.decision, said.tool, said.receipt)
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            raise ReceiptError("receipt-malformed", "it is no line of a kept receipt") from None


class _Said(msgspec.Struct):
    """A line, in the order in which its members are written: the receipt is last, so that a line that was cut off does
    not end as a whole one does."""

    at: str
    record: str
    decision: Literal["allow", "deny"]
    tool: str | None
    receipt: Any


@dataclass(frozen=True, slots=True)
class Line:
    """A line as it was found. `torn`: it was cut off, as when a machine stops; what stood there is not known."""

    file: str
    number: int
    data: bytes

    @property
    def torn(self) -> bool:
        """Whether it does not end as a line does."""
        return not self.data.endswith(_WHOLE)

    @property
    def place(self) -> str:
        """For people."""
        return f"line {self.number:,} of {self.file}"


def kept_lines(folder: Path) -> Iterator[Line]:
    """The lines that are kept in a folder, in the order in which they were kept, one at a time. Raises OSError where
    one of its files cannot be read, and ReceiptError for what is none."""
    for path in sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)):
        if not path.is_file():
            raise ReceiptError("receipt-malformed", f"{path.name} is not a file")
        with path.open("rb") as file:
            for number, line in enumerate(_bounded(file), 1):
                if data := line.strip():
                    yield Line(path.name, number, data)


def _bounded(file: IO[bytes]) -> Iterator[bytes]:
    """Lines; one that is too long is given as its beginning and an end that no line has."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            line = b"too long" + _WHOLE
        yield line


class Store:
    """A folder of kept receipts: a file for each day (UTC), a line for each answer.

    The folder (made with mode 0700, where there is none) and its files (0600) hold no token and nobody's name. Several
    processes and threads may use one folder, on a local disk: each line is appended with one write. `sync`: it is on
    disk when `keep` returns; else a machine (not a process) that stops may lose the last seconds.
    """

    def __init__(
        self, folder: Path, *, sync: bool = False, clock: Callable[[], int] = lambda: time.time_ns() // 1000
    ) -> None:
        """Raises Misconfigured for a folder that cannot be written, or that others can write. `clock`: microseconds
        since 1970."""
        self.folder, self.sync, self._clock = folder, sync, clock
        try:
            folder.mkdir(0o700, parents=True, exist_ok=True)
            mode = folder.stat().st_mode
        except OSError as error:
            raise Misconfigured(f"The folder for receipts cannot be made: {error.strerror}.") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise Misconfigured("The folder for receipts cannot be written.")
        if mode & 0o022:
            raise Misconfigured("The folder for receipts can be written by others: its mode should be 0700.")

    def __iter__(self) -> Iterator[Kept]:
        """What is kept, in order; lines that were cut off are left out. Raises ReceiptError at one that is none."""
        return (Kept.parse(line.data) for line in kept_lines(self.folder) if not line.torn)

    def keep(self, answer: Mapping[str, Any]) -> None:
        """Keep the receipt of a verify answer. Raises ReceiptError for an answer without one, and Misconfigured where
        it cannot be written: what cannot be kept must not pass for kept."""
        at = self._clock()
        line = _line(at, answer)
        try:
            self._append(self.folder / f"receipts-{text_of(at)[:10]}.jsonl", line)
        except OSError as error:
            raise Misconfigured(f"A receipt cannot be kept: {error.strerror}.") from None

    def _append(self, path: Path, line: bytes) -> None:
        # Opened anew each time: a file that was moved away is not written to, and a fork shares nothing.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(path, flags, 0o600)
        try:
            size = os.fstat(file).st_size
            # After a line that was cut off, this one would be lost with it.
            data = b"\n" + line if size and os.pread(file, 1, size - 1) != b"\n" else line
            if os.write(file, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self.sync:
                os.fsync(file)
        finally:
            os.close(file)
        if self.sync and not size:
            _sync_folder(self.folder)


def _line(at: int, answer: Mapping[str, Any]) -> bytes:
    receipt, tool = Receipt.parse(answer.get("receipt")), answer.get("tool")
    try:
        record, decision = str(UUID(answer["record"])), answer["decision"]
        name = None if tool is None else tool["name"]
        if decision not in ("allow", "deny") or not (name is None or 1 <= len(name.encode()) <= 1024):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ReceiptError("receipt-malformed", "the answer does not say what its receipt is of") from None
    return msgspec.json.encode(_Said(text_of(at), record, decision, name, receipt.body())) + b"\n"


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _count(given: Mapping[str, Any], name: str) -> int:
    value = given.get(name)
    if type(value) is not int or not 0 <= value < 2**53:  # exact: True is no index
        raise ReceiptError("receipt-malformed", f"its {name} is no count")
    return value


def _bytes(given: Mapping[str, Any], name: str, length: int = merkle.HASH_BYTES) -> bytes:
    return _decoded(given.get(name), name, length)


def _path(batch: Mapping[str, Any]) -> tuple[bytes, ...]:
    value = batch.get("path")
    if type(value) is not list or len(value) > batches.MAX_PATH:
        raise ReceiptError("receipt-malformed", f"its path is no list of at most {batches.MAX_PATH} hashes")
    return tuple(_decoded(one, "path", merkle.HASH_BYTES) for one in value)


def _decoded(value: object, name: str, length: int) -> bytes:
    try:
        if type(value) is str and len(value) <= _LONGEST and len(data := from_base64(value)) == length:
            return data
    except NoteError:
        pass
    raise ReceiptError("receipt-malformed", f"its {name} is not {length} bytes in base64")
