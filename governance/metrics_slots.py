"""Where a web process keeps its counters: files under MUNIMENT_VAR/metrics, one set for each slot.

Several web processes serve behind one port, and a scrape asks one of them; so each keeps its counters in mapped files
that all of them read (prometheus_client's multiprocess mode). A process takes the lowest free slot, by flock(2), which
the kernel frees when it dies; the next one in that slot counts on from where it stood. So there are never more files
than processes that ran at once, none is to be cleaned up, and counters do not fall when a worker is started again.
"""

import fcntl
import json
import logging
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client import multiprocess, values
from prometheus_client.mmap_dict import MmapedDict

logger = logging.getLogger(__name__)

MOST_SLOTS = 256
KINDS = ("counter", "histogram", "gauge_livemax")
# Several times what our metrics need. Taken from the disk at once: a mapped page that a full disk has no room for
# would end the process (SIGBUS).
FILE_BYTES = 256 * 1024
BROKEN = (RuntimeError, ValueError, TypeError, KeyError, IndexError, struct.error)


class Slots:
    """The slots of one folder, and the one that this process holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held: tuple[int, int] | None = None  # number, descriptor of its lock
        os.register_at_fork(after_in_child=self._forked)

    def number(self) -> int:
        """The slot of this process, taken at the first call. OSError where there is no room for it."""
        if self.held is None:
            self.held = self._take()
        return self.held[0]

    def live(self) -> list[int]:
        """The slots that a process holds now. What the dead left of gauges is taken away."""
        return [number for number in self._known() if not self._tidied(number)]

    def files(self) -> list[str]:
        """The files with counters, of the living and the dead."""
        return sorted(str(path) for path in self.folder.glob("*.db"))

    def _forked(self) -> None:
        """The parent's slot stays the parent's: the lock is shared by both until one of them lets go of it."""
        if self.held is not None:
            os.close(self.held[1])
            self.held = None

    def _take(self) -> tuple[int, int]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in range(1, MOST_SLOTS + 1):
            descriptor = self._lock(number)
            if descriptor is not None:
                try:
                    self._prepare(number)
                except BaseException:
                    os.close(descriptor)
                    raise
                return number, descriptor
        raise OSError("every slot is taken")

    def _lock(self, number: int) -> int | None:
        descriptor = os.open(self.folder / f"{number}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor

    def _prepare(self, number: int) -> None:
        """Files that can be read, with room for all that will be written."""
        for kind in KINDS:
            path = self.folder / f"{kind}_{number}.db"
            if not readable(path):
                path.unlink(missing_ok=True)  # written when the machine went down
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, FILE_BYTES)
            finally:
                os.close(descriptor)

    def _known(self) -> Iterator[int]:
        for path in sorted(self.folder.glob("*.lock")):
            if path.stem.isdecimal():
                yield int(path.stem)

    def _tidied(self, number: int) -> bool:
        """Whether nobody holds the slot; then its gauges, which speak of a process, are taken away."""
        if self.held is not None and self.held[0] == number:
            return False
        descriptor = self._lock(number)
        if descriptor is None:
            return False
        try:
            with suppress(FileNotFoundError):
                multiprocess.mark_process_dead(number, str(self.folder))
        finally:
            os.close(descriptor)
        return True


def readable(path: Path) -> bool:
    """Whether a file of counters is whole, or is not there."""
    try:
        for key, *_ in MmapedDict.read_all_values_from_file(str(path)):
            json.loads(key)
    except FileNotFoundError:
        return True
    except BROKEN:
        return path.stat().st_size == 0
    return True


def count_in(folder: Path) -> Slots | None:
    """All metrics of this process that are made from now on count in the files of its slot. Gives the slots; None where
    there is no room: then they count in its memory, and a scrape tells of the process that answers it."""
    slots = Slots(folder)
    try:
        slots.number()
    except OSError as error:
        logger.warning("metrics count in this process alone: %s", error.strerror or error)
        return None
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    identifier: Callable[[], int] = slots.number
    values.ValueClass = values.MultiProcessValue(identifier)
    return slots
