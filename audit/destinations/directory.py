"""A directory as a destination: on a disk or a share that is mounted here."""

import errno
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from audit.configured import ConfigError, Fields
from audit.destinations.base import (
    LEFTOVER,
    DeliveryFailed,
    Destination,
    Differs,
    Sending,
    chunks,
    same,
)
from audit.disk import sync_folder

MODE = 0o640  # whom the folder's group names may read it
LEFTOVER_SECONDS = 24 * 3600.0
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Directory(Destination):
    """`path`: absolute. It must exist, so that a share which is not mounted is noticed."""

    kind = "directory"

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name, str(path))
        self._path = path

    @classmethod
    def parse(cls, name: str, given: Fields) -> "Directory":
        """From an entry of MUNIMENT_DESTINATIONS. Raises ConfigError."""
        path = Path(given.text("path"))
        if not path.is_absolute() or ".." in path.parts or path == Path("/"):
            raise ConfigError("path must be an absolute one, and not the root")
        return cls(name, path)

    def put(self, sending: Sending) -> None:
        """A temporary file, on disk before it gets its name; a name that is taken is never replaced."""
        target = self._path / sending.name
        try:
            if not self._path.is_dir():
                raise DeliveryFailed("the folder does not exist; is the share mounted?")
            if not _is_there(target, sending):
                self._sweep()
                self._write(target, sending)
            sync_folder(self._path)
        except OSError as error:
            raise DeliveryFailed(_words(error)) from None

    def _write(self, target: Path, sending: Sending) -> None:
        fresh = self._path / f".{sending.name}.{token_hex(8)}.part"
        try:
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, MODE), "wb") as file:
                with sending.open() as source:
                    for piece in chunks(source):
                        sending.check_time()
                        file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            _name(fresh, target, sending)
        finally:
            fresh.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """What a worker that was killed left here more than a day ago."""
        for path in self._path.glob(".*.part"):
            with suppress(OSError):
                if LEFTOVER.fullmatch(path.name) and time.time() - path.lstat().st_mtime > LEFTOVER_SECONDS:
                    path.unlink()


def _name(fresh: Path, target: Path, sending: Sending) -> None:
    """Give the file its name: a hard link never replaces what has the name already."""
    try:
        os.link(fresh, target)
    except FileExistsError:
        _is_there(target, sending)  # somebody was faster: with the same file, or it raises
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A share without hard links. Only one worker makes a run, so that looking first is nearly as good.
        if not _is_there(target, sending):
            fresh.rename(target)


def _is_there(target: Path, sending: Sending) -> bool:
    """Whether the very file has the name. Raises Differs for anything else that has it."""
    try:
        number = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise Differs(sending.name) from None
        raise
    with os.fdopen(number, "rb") as file:
        state = os.fstat(number)
        if not stat.S_ISREG(state.st_mode) or state.st_size != sending.size or not same(sending, chunks(file)):
            raise Differs(sending.name)
    return True


def _words(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "there is no space left in the folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "the worker may not write to the folder"
    return f"the folder cannot be written: {error.strerror}"
