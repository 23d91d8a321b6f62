"""What every kind of destination is: a place of the operator's that takes the files of exports, each name once."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

CHUNK = 256 * 1024  # bytes
CONNECT_SECONDS = 10.0
SILENT_SECONDS = 30.0
"""How long a server may say and take nothing before the attempt has failed."""
FILE_SECONDS = 25 * 60.0
"""What one file may take, however slowly it goes: less than a task of the worker may."""
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
LEFTOVER = re.compile(r"\.[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.[0-9a-f]{16}\.part")
"""What we call a file that is on its way. The folder may be somebody else's too, with unfinished files of their own."""


class DeliveryFailed(Exception):
    """A destination did not take a file. In words for people, without secrets."""


class Differs(DeliveryFailed):
    """Something else has the file's name there already; it is never overwritten."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"there is another file named {name} already, with other content; it was left as it is. "
            "Look at it, move it away, and retry"
        )


@dataclass(frozen=True, slots=True)
class Sending:
    """A file on its way: its name there, and what is in it. `until`: time.monotonic() at which it must be done."""

    path: Path
    name: str
    size: int
    sha256: str
    until: float = field(default_factory=lambda: time.monotonic() + FILE_SECONDS)

    @classmethod
    def of(cls, path: Path) -> "Sending":
        """Read and hashed. Raises DeliveryFailed where the file cannot be read or has a name that is not plain."""
        if not FILE_NAME.fullmatch(path.name):
            raise DeliveryFailed("the file has a name that not every destination can take")
        try:
            with path.open("rb") as file:
                size, digest = digest_of(chunks(file))
        except OSError as error:
            raise DeliveryFailed(f"the file cannot be read here: {error.strerror}") from None
        return cls(path, path.name, size, digest)

    def open(self) -> IO[bytes]:
        """The file, to be read. Raises DeliveryFailed."""
        try:
            return self.path.open("rb")
        except OSError as error:
            raise DeliveryFailed(f"the file cannot be read here: {error.strerror}") from None

    def check_time(self, *_: Any) -> None:
        """Raises DeliveryFailed when its time is over. Takes what progress callbacks are given."""
        if time.monotonic() > self.until:
            raise DeliveryFailed(f"it was not done within {FILE_SECONDS / 60:.0f} minutes")


class Destination:
    """One configured destination. `name`: the operator's; `place`: where it is, without credentials."""

    kind: str = ""

    def __init__(self, name: str, place: str) -> None:
        self.name, self.place = name, place

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"

    def put(self, sending: Sending) -> None:
        """Put the file there whole under its name, or not at all. Where it is already, with the same content, nothing
        is done. Raises Differs, DeliveryFailed. Opens no transaction."""
        raise NotImplementedError


def chunks(file: Any) -> Iterator[bytes]:
    """A file's content, piece by piece."""
    while chunk := file.read(CHUNK):
        yield chunk


def digest_of(pieces: Iterator[bytes], most: int | None = None) -> tuple[int, str]:
    """Size and SHA-256 in hexadecimal; what is longer than `most` bytes is not read to its end."""
    size, digest = 0, sha256()
    for piece in pieces:
        size += len(piece)
        digest.update(piece)
        if most is not None and size > most:
            break
    return size, digest.hexdigest()


def same(sending: Sending, pieces: Iterator[bytes]) -> bool:
    """Whether what a place has is the very file. Reads at most one piece more than the file has."""

    def timed() -> Iterator[bytes]:
        for piece in pieces:
            sending.check_time()
            yield piece

    return digest_of(timed(), sending.size) == (sending.size, sending.sha256)


def is_loopback(host: str | None) -> bool:
    """Whether a URL's host is this machine by name."""
    return host in ("127.0.0.1", "::1", "localhost")
