"""The spool: what ran without the platform, on local disk, until it is reported. One file for each process and outage.

A file is lines of canonical JSON (RFC 8785, as `muniment.statements`), each with the spool's id, a dense sequence from
1, and the SHA-256 of the line before (zeros for the first): what is taken out, changed or put in afterwards breaks the
chain, here and again at the platform. A call's line is on disk (fdatasync) before its body runs. No token is in it.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from muniment import forks, statements
from muniment.background import logger
from muniment.calls import AGENT_NAME, MAX_AGENTS, REQUEST_BOUNDS, Incoming, request_info
from muniment.errors import Misconfigured, MunimentError

NOTHING = "0" * 64  # before the first line
LIMIT = 64 << 20  # bytes of one file
BATCH, BATCH_BYTES = 100, 100 << 10  # of lines in a report; written as JSON they double at most
MAX_CLAIM = 255
_NAME = re.compile(r"[0-9a-f]{32}\.spool")


class SpoolFailed(MunimentError):
    """A call could not be written down, so that it must not run: the disk is full, or the spool is at its limit."""

    status = 503
    retry_after = 5


class SpoolDamaged(MunimentError):
    """A file of the spool is not what was written: `sequence` is the last line that holds."""

    def __init__(self, sequence: int) -> None:
        super().__init__(f"The spool's chain does not hold after line {sequence}.")
        self.sequence = sequence


@dataclass(frozen=True, slots=True)
class Line:
    """A line that holds: its sequence, its bytes, their SHA-256 in hex."""

    sequence: int
    data: bytes

    @property
    def hash(self) -> str:
        """What the next line names as `previous`."""
        return sha256(self.data).hexdigest()


def lines_of(data: bytes, spool: str) -> tuple[list[Line], int]:
    """The lines of a file, and how many bytes of it are whole lines: what comes after was being written when its
    process died. Raises SpoolDamaged for a line that does not fit the chain."""
    whole = data.rfind(b"\n") + 1
    found: list[Line] = []
    previous = NOTHING
    for number, line in enumerate(data[:whole].split(b"\n")[:-1], start=1):
        try:
            said = msgspec.json.decode(line)
            fits = (said["spool"], said["sequence"], said["previous"]) == (spool, number, previous)
        except (ValueError, KeyError, TypeError, RecursionError):  # DecodeError is a ValueError
            fits = False
        if not fits:
            raise SpoolDamaged(number - 1)
        found.append(Line(number, line))
        previous = found[-1].hash
    return found, whole


def claimed(token: str | None) -> dict[str, str] | None:
    """Whom an unverified token says that it is of: `iss`, `sub`, `client_id`, as far as they are there and plain. A
    claim, and nothing more: nobody looked at the signature."""
    parts = (token or "").split(".")
    if len(parts) != 3 or len(token or "") > 16_384:
        return None
    try:
        said = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (msgspec.DecodeError, binascii.Error, ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    names = {"iss": said.get("iss"), "sub": said.get("sub"), "client_id": said.get("client_id", said.get("azp"))}
    return {
        name: value for name, value in names.items()
        if isinstance(value, str) and value.isprintable() and 0 < len(value) <= MAX_CLAIM
    } or None  # fmt: skip


def told(tool: str, given: Incoming, cause: str) -> dict[str, Any]:
    """The members of a call's line that are the call's own."""
    token = given.token
    return {
        "at": time.time_ns() // 1000,
        "tool": tool,
        "cause": cause,
        "token": None if token is None else sha256(token.encode("utf-8", "surrogatepass")).hexdigest(),
        "claimed": claimed(token),
        # Held to what the platform takes: one line that it does not take would keep out those that follow it.
        "request": request_info(**{name: given.request.get(name) for name in REQUEST_BOUNDS}),
        "agent": [name for name in given.agent.chain if AGENT_NAME.fullmatch(name)][:MAX_AGENTS],
    }


class File:
    """One file, held by a lock (flock) that ends with the process. Thread-safe."""

    def __init__(self, path: Path, descriptor: int, lines: list[Line], size: int) -> None:
        self.path, self.spool = path, path.stem
        self._descriptor, self._lock = descriptor, threading.Lock()
        self._lines, self._size = lines, size
        self._taken = 0
        forks.remember(self)

    def after_fork(self) -> None:
        """In a child: it is the parent's. While a child has it open too, nobody could adopt it when the parent ends."""
        self._lock = threading.Lock()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @classmethod
    def new(cls, folder: Path) -> File:
        """An empty one. Raises SpoolFailed where none can be made."""
        path = folder / f"{secrets.token_hex(16)}.spool"
        # It gets its name when it is locked, so that no other process adopts it before.
        unnamed = path.with_suffix(".new")
        descriptor = -1
        try:
            descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.rename(path)
            sync_folder(folder)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
                unnamed.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            raise SpoolFailed(f"The spool cannot be written: {error.strerror}.") from None
        return cls(path, descriptor, [], 0)

    @classmethod
    def adopt(cls, path: Path) -> File | None:
        """What a process left behind that is no more; None where it is alive, or the file is gone. Raises SpoolDamaged,
        after putting the file aside."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            data = path.read_bytes()
            lines, whole = lines_of(data, path.stem)
            if whole < len(data):
                logger.warning("the spool's last line was cut off when its process ended")
                os.ftruncate(descriptor, whole)
        except BaseException as error:
            if isinstance(error, SpoolDamaged):
                path.rename(path.with_suffix(".damaged"))
            os.close(descriptor)
            if isinstance(error, BlockingIOError | FileNotFoundError):
                return None
            raise
        return cls(path, descriptor, lines, whole)

    @property
    def finished(self) -> bool:
        """Whether it was removed, put aside or closed."""
        return self._descriptor < 0

    @property
    def waiting(self) -> int:
        """How many lines are not reported yet."""
        return len(self._lines) - self._taken

    def append(self, members: dict[str, Any], limit: int = LIMIT) -> None:
        """Add a line; it is on disk when this returns. Raises SpoolFailed; then it is not there at all."""
        with self._lock:
            if self._descriptor < 0:
                raise SpoolFailed("The spool is closed.")
            previous = self._lines[-1].hash if self._lines else NOTHING
            sequence = len(self._lines) + 1
            data = statements.dump(members | {"spool": self.spool, "sequence": sequence, "previous": previous})
            if self._size + len(data) + 1 > limit:
                raise SpoolFailed("The spool has reached its limit.")
            try:
                written = os.write(self._descriptor, data + b"\n")
                if written != len(data) + 1:
                    raise OSError(0, "it was written in part")
                os.fdatasync(self._descriptor)
            except OSError as error:
                try:
                    os.ftruncate(self._descriptor, self._size)
                except OSError:  # half a line is left: nothing may come after it
                    os.close(self._descriptor)
                    self._descriptor = -1
                raise SpoolFailed(f"The spool cannot be written: {error.strerror}.") from None
            self._size += len(data) + 1
            self._lines.append(Line(sequence, data))

    def batches(self) -> Iterator[list[Line]]:
        """What is not reported yet, in order."""
        while batch := self._lines[self._taken : self._taken + BATCH]:
            while len(batch) > 1 and sum(len(line.data) for line in batch) > BATCH_BYTES:
                batch = batch[: len(batch) // 2]
            yield batch

    def taken(self, batch: list[Line]) -> None:
        """The platform has these on record."""
        self._taken = max(self._taken, batch[-1].sequence)

    def again(self) -> None:
        """Report all of it again: the platform has lost what it had taken (a restored backup). What it has, it takes
        once."""
        self._taken = 0

    def finish(self) -> bool:
        """Remove the file if everything of it is on record; whether it was."""
        with self._lock:
            if self.waiting or self._descriptor < 0:
                return False
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1
            return True

    def refuse(self) -> None:
        """Put it aside: the platform does not take it. It is evidence, so that it is not removed."""
        with self._lock:
            if self._descriptor < 0:
                return
            self.path.rename(self.path.with_suffix(".refused"))
            os.close(self._descriptor)
            self._descriptor = -1

    def close(self) -> None:
        """Let go of it; another process may report what is left."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


def sync_folder(folder: Path) -> None:
    """A new file's name is on disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prepared(folder: Path) -> Path:
    """The folder, made with mode 0700. Raises Misconfigured for one that is no folder, or that others can look into."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode
    except OSError as error:
        raise Misconfigured(f"The spool's folder cannot be made: {error.strerror}.") from None
    if not stat.S_ISDIR(mode) or mode & 0o077:
        raise Misconfigured("The spool's folder must be one that nobody else can look into (mode 0700).")
    return folder


def files(folder: Path) -> list[Path]:
    """The files of the spool, the oldest first."""
    found = []
    for path in folder.iterdir():
        if _NAME.fullmatch(path.name):
            with suppress(OSError):  # reported and removed by another process at this moment
                found.append((path.lstat().st_mtime_ns, path.name, path))
    return [path for _, _, path in sorted(found)]


def look(folder: Path) -> list[tuple[str, bool]]:
    """Each file of a folder in a line of words, and whether it is as it must be: what waits, what is damaged, what was
    put aside. Nothing is changed. Raises OSError."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".damaged", ".refused"):
            found.append((f"{path.name}: put aside, to be looked at", False))
        elif _NAME.fullmatch(path.name):
            found.append(_seen(path))
    return found


def _seen(path: Path) -> tuple[str, bool]:
    try:
        lines, _ = lines_of(path.read_bytes(), path.stem)
    except SpoolDamaged as error:
        return f"{path.name}: damaged after line {error.sequence}", False
    said = [msgspec.json.decode(line.data).get("at") for line in lines]
    times = [at for at in said if type(at) is int and 0 <= at < 2**53]
    since = f", since {datetime.fromtimestamp(min(times) / 1e6, UTC):%Y-%m-%d %H:%M:%S} UTC" if times else ""
    return f"{path.name}: {len(lines)} calls wait{since}", True
