"""The file of an export while it is made: beside those that are kept (`audit.exports.store`), under a name that nobody
looks for. What has its own name is whole."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from audit.exports import store
from audit.exports.claims import Lost
from audit.exports.store import StoreFailed
from audit.models import ExportRun


@contextmanager
def explained() -> Iterator[None]:
    """What the operating system says of a file, as StoreFailed."""
    try:
        yield
    except OSError as error:
        raise StoreFailed(store.words(error)) from None


@contextmanager
def opened(run: ExportRun, offset: int) -> Iterator[IO[bytes]]:
    """A run's unfinished file, cut off at `offset`, to go on from there; with 0 it begins anew. Raises OSError, also
    where it is not that long any more (ESTALE), StoreFailed, and Lost where another worker still has it open: one that
    hung while its connection, and the run's lock with it, was lost, and that may write once more when it wakes."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(store.part(run.pk), flags, 0o600), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Lost from None
        if file.seek(0, os.SEEK_END) < offset:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        file.truncate(offset)
        file.seek(offset)
        yield file


def synced(file: IO[bytes]) -> int:
    """Put what was written on the disk; how long the file is."""
    file.flush()
    os.fsync(file.fileno())
    return file.tell()


def has(run: ExportRun, offset: int) -> bool:
    """Whether the unfinished file has all that was saved of it."""
    with suppress(OSError):
        return store.part(run.pk).stat().st_size >= offset
    return False


def publish(run: ExportRun, manifest: str) -> None:
    """Give the finished file and its manifest their names: the manifest first, so that no file is there without it.
    Raises OSError and StoreFailed."""
    beside = store.part(run.pk, "manifest")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(manifest.encode())
    store.keep(beside, run.file + store.MANIFEST)
    store.keep(store.part(run.pk), run.file)


def discard(run: ExportRun) -> None:
    """Remove what was begun."""
    for kind in ("part", "manifest"):
        with suppress(OSError, StoreFailed):
            store.part(run.pk, kind).unlink()
