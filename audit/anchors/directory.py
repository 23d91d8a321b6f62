"""A directory as an anchor: on a disk, a share or a write-once device that the database's administrator cannot
write to. A file for each checkpoint, never overwritten."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from urllib.parse import SplitResult

from audit.anchors.base import (
    MAX_NOTE,
    Anchor,
    AnchorError,
    ConfigError,
    Submission,
    check_parts,
    compare,
    file_of,
    folder_of,
    options,
    path_of,
    size_of,
)
from audit.disk import sync_folder


class Directory(Anchor):
    """`file:///path`. The directory must exist, so that a share which is not mounted is noticed."""

    kind = "directory"

    def __init__(self, path: Path) -> None:
        super().__init__(f"file://{path}")
        self._path = path

    @classmethod
    def parse(cls, parts: SplitResult) -> "Directory":
        """From an entry of MUNIMENT_ANCHORS. Raises ConfigError."""
        check_parts(parts)
        options(parts)
        path = path_of(parts)
        if parts.netloc or not path.startswith("/") or path == "/":
            raise ConfigError("it must be file:///absolute/path")
        return cls(Path(path))

    def send(self, submission: Submission) -> str:
        """Write the note to a file of its own, on disk when this returns."""
        checkpoint = submission.checkpoint
        try:
            if not self._path.is_dir():
                raise AnchorError("the directory does not exist")
            folder = self._path / folder_of(checkpoint.origin)
            folder.mkdir(exist_ok=True)
            newest = max((name for name in os.listdir(folder) if size_of(name) is not None), default=None)  # noqa: PTH208
            if not compare(checkpoint, newest):
                _write(folder, file_of(checkpoint), submission.note)
            sync_folder(folder)
            sync_folder(self._path)
        except OSError as error:
            raise AnchorError(f"the directory cannot be written: {error.strerror}") from None
        return ""

    def held(self, origin: str) -> Iterator[str]:
        """Read back what is there. A directory that does not exist is an error, one without this log is empty."""
        try:
            if not self._path.is_dir():
                raise AnchorError("the directory does not exist")
            folder = self._path / folder_of(origin)
            names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208
            for name in sorted((name for name in names if size_of(name) is not None), reverse=True):
                yield _read(folder / name)
        except OSError as error:
            raise AnchorError(f"the directory cannot be read: {error.strerror}") from None


def _write(folder: Path, name: str, note: str) -> None:
    """Put the file there whole, or not at all; a hard link never replaces what has the name already."""
    fresh = folder / f".{token_hex(8)}.new"
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444), "wb") as file:
            os.fchmod(file.fileno(), 0o444)
            file.write(note.encode())
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another worker was faster, with the same note
            os.link(fresh, folder / name)
    finally:
        fresh.unlink(missing_ok=True)


def _read(path: Path) -> str:
    """The start of a file, a plain one: whatever else has the name is read as nothing."""
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(number, "rb") as file:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            return ""
        return file.read(MAX_NOTE).decode("utf-8", "replace")
