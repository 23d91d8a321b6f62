"""Formats that write their file in one go, with a way to be told that they are to stop."""

import io
from collections.abc import Callable
from datetime import datetime
from typing import IO, Any

from audit import bundling
from audit.bundling import Wanted
from audit.evidence import packing
from audit.models import Export
from audit.search import Query
from audit.viewer import Viewer


class Watched(io.RawIOBase):
    """A file that calls `tick` with each write, which may raise to stop it."""

    def __init__(self, file: IO[bytes], tick: Callable[[], None]) -> None:
        super().__init__()
        self._file, self._tick = file, tick

    def write(self, data: Any) -> int:
        """Pass bytes on."""
        self._tick()
        return self._file.write(data)

    def read(self, size: int = -1) -> bytes:
        """What was written."""
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As the file's."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As the file's."""
        return self._file.tell()

    def flush(self) -> None:
        """As the file's."""
        self._file.flush()

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True


def bundle(file: IO[bytes], query: Query, tick: Callable[[], None]) -> None:
    """The proof bundle of a search for a user, a client, both or neither. Raises audit.bundling.Refused."""
    wanted = Wanted(query.since, query.until, query.filters.get("subject"), query.filters.get("client"))
    bundling.write(Watched(file, tick), wanted)  # type: ignore[arg-type]


def pack(
    file: IO[bytes], viewer: Viewer, export: Export, query: Query, made_at: datetime, tick: Callable[[], None]
) -> int:
    """The evidence pack of a period; how many records it shows. Raises audit.evidence.packing.Refused and
    PermissionDenied."""
    chosen = export.frameworks
    told = packing.write(file, viewer, query.since, query.until, chosen, made_at=made_at, tick=tick)
    return sum(told["counts"].values())
