"""The web process's own memory of what it answered, outside of the database (DESIGN.md section 6, Writing).

Each batch that committed is a line in a local file before anyone is answered: first index, number of records, digest
in hex, unix milliseconds. Whoever takes the newest batches out of the database, before they are sealed, leaves a log
that is whole in itself; the file still has them (`audit.journal_watch` compares).

A line is one write(2), which survives a kill -9 of the process. What survives a loss of the machine's power is put
on the disk about once a second, by the watch: an fsync for each batch would cost each answer milliseconds.

What cannot be written to the file (a full disk, a folder that is gone) is kept in memory and watched all the same; it
is answered, logged as an error once, and raised as an alert. The records themselves are safe in the database: to
refuse every call because a guard against losing them is away would do more harm than it prevents.
"""

import fcntl
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from errno import ENOSPC
from pathlib import Path
from threading import Lock
from typing import NamedTuple

logger = logging.getLogger(__name__)

SLOTS = 1000
DIGEST_BYTES = 32
# Lines in the file that nobody needs any more, before it is written anew.
SLACK = 1000


class Entry(NamedTuple):
    """One batch that this machine answered for: `at` is in unix milliseconds."""

    first: int
    size: int
    digest: bytes
    at: int

    @property
    def line(self) -> bytes:
        """As it is in the file."""
        return b"%d %d %s %d\n" % (self.first, self.size, self.digest.hex().encode(), self.at)

    @property
    def last(self) -> int:
        """The index of its last record."""
        return self.first + self.size - 1


def parse(line: bytes) -> Entry | None:
    """The entry of a line; None for what is none, such as one that a full disk cut off."""
    try:
        first, size, digest, at = line.split(b" ")
        entry = Entry(int(first), int(size), bytes.fromhex(digest.decode()), int(at))
    except ValueError:
        return None
    return entry if entry.first >= 0 < entry.size and len(entry.digest) == DIGEST_BYTES else None


def read(path: Path) -> list[Entry]:
    """The entries of a file; none where there is no file. What is no entry is left out and logged."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    parsed = [parse(line) for line in lines if line]
    if unread := parsed.count(None):
        logger.warning("%s: %d lines are no entries of the journal", path.name, unread)
    return [entry for entry in parsed if entry]


def write(descriptor: int, data: bytes) -> None:
    """One write(2), whole. OSError where it is not."""
    if os.write(descriptor, data) != len(data):
        raise OSError(ENOSPC, os.strerror(ENOSPC))


class Journal:
    """One slot of a folder: `<n>.log`, which is ours while we hold a flock(2) on `<n>.lock`, that is, however we end.

    `append` is for the recorder's thread, the rest for the watch's. `failing` says why the file cannot be written,
    empty when it can. Nothing here raises OSError.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slot = 0
        self.failing = ""
        self.fresh: deque[Entry] = deque()  # not yet taken by the watch; what a predecessor left comes first
        self._lines = 0
        self._file = self._held = -1
        self._closed = False
        self._lock = Lock()
        self.keep([])

    def append(self, first: int, size: int, digest: bytes, at: int) -> None:
        """Note a batch that committed, before anyone is answered."""
        entry = Entry(first, size, digest, at)
        with self._lock:
            self.fresh.append(entry)
            self._lines += 1
            if self.failing:
                return  # the watch tries again, once a second and not with each answer
            try:
                write(self._file, entry.line)
            except OSError as error:
                self._failed(error)

    def take(self) -> list[Entry]:
        """What came since it was last called."""
        with self._lock:
            taken = list(self.fresh)
            self.fresh.clear()
        return taken

    def keep(self, entries: Iterable[Entry]) -> None:
        """Have these and what is not yet taken on the disk, and not much else in the file."""
        entries = list(entries)
        if self._closed:
            return
        try:
            self._look_for_files()
            if self._file < 0:
                self._open()
            if self.failing or self._lines > 2 * len(entries) + SLACK:
                self._rewrite(entries)
            elif self._lines and not entries:
                self._empty()
            else:
                os.fdatasync(self._file)
        except OSError as error:
            self._failed(error)

    def take_over(self) -> None:
        """Take the entries of processes that are gone: of slots that have some and are free."""
        if self.failing:
            return
        for number in self._others():
            try:
                self._take_over(number)
            except OSError as error:
                logger.warning("slot %d of the journal cannot be taken over: %s", number, error.strerror)

    def put_by(self, log: int, entries: Iterable[Entry]) -> bool:
        """Move entries that are lost for good to `lost-<log>.log`; whether that was done. They are still to be left
        out of what is kept."""
        try:
            descriptor = os.open(self.folder / f"lost-{log}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                write(descriptor, b"".join(entry.line for entry in entries))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._failed(error)
            return False
        return True

    def close(self) -> None:
        """Let go of the slot. What is in the file is for the next process that takes it."""
        self._closed = True
        self._let_go("it is closed")

    # --- the files ----------------------------------------------------------------------------------------

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.log"

    def _failed(self, error: OSError) -> None:
        if not self.failing:
            logger.error("the journal of batches cannot be written: %s", error.strerror)
        self.failing = error.strerror or type(error).__name__

    def _let_go(self, why: str) -> None:
        with self._lock:
            for descriptor in (self._file, self._held):
                with suppress(OSError):
                    os.close(descriptor)
            self._file = self._held = -1
            self.failing = why

    def _look_for_files(self) -> None:
        """What somebody deleted could be written to without an error, and would be gone with us."""
        if self._file >= 0 and not all(os.fstat(descriptor).st_nlink for descriptor in (self._file, self._held)):
            logger.error("the journal of batches was deleted; it is made again")
            self._let_go("it was deleted")

    def _claim(self, number: int) -> int | None:
        """Hold a slot by the descriptor that is returned; None when another process does."""
        descriptor = os.open(self.folder / f"{number}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return None
            raise
        return descriptor

    def _open(self) -> None:
        """Take the first free slot, with what a predecessor left in it."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._held < 0:
            for number in range(1, SLOTS + 1):
                if (held := self._claim(number)) is not None:
                    self.slot, self._held = number, held
                    break
            else:
                raise OSError(ENOSPC, "every slot of the journal is taken")
        path = self._path(self.slot)
        left = read(path)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        if path.stat().st_size:
            write(self._file, b"\n")  # its last line may have been cut off
        with self._lock:
            self.fresh.extendleft(reversed(left))
            self._lines += len(left)

    def _rewrite(self, entries: list[Entry]) -> None:
        """A new file in the place of the old. The long part is done beside the recorder, the short one under the lock
        that its answers wait for."""
        draft = self.folder / f"{self.slot}.new"
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        try:
            write(descriptor, b"".join(entry.line for entry in entries))
            os.fsync(descriptor)
            with self._lock:
                write(descriptor, b"".join(entry.line for entry in self.fresh))
                draft.replace(self._path(self.slot))
                self._lines = len(entries) + len(self.fresh)
                self._file, descriptor = descriptor, self._file
                self.failing = ""
        finally:
            os.close(descriptor)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _empty(self) -> None:
        with self._lock:
            if not self.fresh:
                os.ftruncate(self._file, 0)
                self._lines = 0

    def _others(self) -> Iterator[int]:
        """The other slots that have something in them."""
        with suppress(OSError):
            for path in sorted(self.folder.glob("*.log")):
                if path.stem.isdecimal() and int(path.stem) != self.slot and path.stat().st_size:
                    yield int(path.stem)

    def _take_over(self, number: int) -> None:
        if (held := self._claim(number)) is None:
            return
        try:
            left = read(self._path(number))
            with self._lock:
                write(self._file, b"".join(entry.line for entry in left))
                self.fresh.extend(left)
                self._lines += len(left)
            os.fdatasync(self._file)  # in ours before it leaves theirs
            os.truncate(self._path(number), 0)
            logger.info("slot %d of the journal was left with %d batches", number, len(left))
        finally:
            os.close(held)
