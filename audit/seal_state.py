"""What the sealer remembers outside of the database: `state.json`, which is replaced whole, and `leaves`, which grows.

The database can be put back to an old copy or changed; these files are how the sealer notices. In `leaves` stand the
32 bytes of each leaf of the current log; what stands there beyond the state's size was never signed.
"""

import fcntl
import json
import os
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from audit.disk import sync_folder
from muniment import merkle
from muniment.merkle import EMPTY_ROOT, HASH_BYTES, Frontier
from muniment.tiles import HEIGHT, WIDTH

STATE, LEAVES, LOCK, HALTED = "state.json", "leaves", "lock", "halted.json"
PIECE = 65_536  # leaves at once: 2 MB
Mark = tuple[int, int, int]


class Halt(Exception):
    """Something does not hold, so that nothing more is signed. `cause` is a short code (`findings.CODES`, or one of
    ours), `words` one line without personal data, `index` the record's, where it is about one."""

    def __init__(self, cause: str, words: str, index: int | None = None) -> None:
        super().__init__(f"{cause}: {words}")
        self.cause, self.words, self.index = cause, words, index


class Refused(Exception):
    """The sealer must not start like this; the text is one line for the person who started it."""


class StateBroken(Exception):
    """The files do not hold what the sealer wrote there. The text names the file, for an operator."""


@dataclass(frozen=True, slots=True)
class Passing:
    """A signed checkpoint that the records must lead to before anything new is signed."""

    size: int
    root: bytes
    note: str


@dataclass(frozen=True, slots=True)
class State:
    """Where the sealer stands in one log. `size` leaves are verified; `sealed` of them are under a checkpoint, which
    is fewer only while a log is read anew (`must`, `gaps`)."""

    log: int
    origin: str
    start: int  # index of the log's first record
    size: int = 0
    root: bytes = EMPTY_ROOT
    sealed: int = 0
    note: str = ""  # the newest checkpoint, as it was signed
    edge: dict[int, bytes] = field(default_factory=dict)  # level -> hashes of its last, partial tile
    batch: int | None = None  # first index of the write batch that ends here
    digest: bytes = bytes(HASH_BYTES)  # of that write batch
    at: int | None = None  # time of the newest record, microseconds since 1970
    writers: dict[str, bytes] = field(default_factory=dict)  # trusted, by key id
    logs: dict[str, bytes] = field(default_factory=dict)
    retired: tuple[str, ...] = ()
    must: tuple[Passing, ...] = ()
    gaps: tuple[tuple[int, int], ...] = ()  # index and count of records that retention must account for
    retained: tuple[tuple[int, int], ...] = ()
    closed: tuple[str, ...] = ()  # who closed the log: nothing is sealed until the next one is opened

    @property
    def next(self) -> int:
        """Index of the first record that is not yet in the tree."""
        return self.start + self.size

    def encode(self) -> str:
        """As JSON; byte strings in base64."""
        return json.dumps(_plain(asdict(self)), indent=1) + "\n"

    @classmethod
    def decode(cls, text: str) -> "State":
        """What `encode` wrote. StateBroken for anything else."""
        try:
            held = json.loads(text)
            for name in ("root", "digest"):
                held[name] = b64decode(held[name], validate=True)
            for name in ("writers", "logs"):
                held[name] = {key: b64decode(value, validate=True) for key, value in held[name].items()}
            held["edge"] = {int(level): b64decode(value, validate=True) for level, value in held["edge"].items()}
            held["must"] = tuple(Passing(p["size"], b64decode(p["root"]), p["note"]) for p in held["must"])
            for name in ("gaps", "retained"):
                held[name] = tuple((first, count) for first, count in held[name])
            for name in ("retired", "closed"):
                held[name] = tuple(held[name])
            return cls(**held)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise StateBroken(f"{STATE} is not what the sealer wrote; put back a copy, or start with --from") from None


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, dict):
        return {str(name): _plain(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    return value


class StateDir:
    """The folder of one sealer's state. What is written is on the disk when a method returns."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Whether the folder is ours (flock(2)), without waiting: another process may be at work in it."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)  # which unlocks it

    def mark(self) -> Mark | None:
        """Changes whenever the state is written, by whom ever; None without a state."""
        try:
            found = (self.path / STATE).stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self) -> State | None:
        """The state; None where there is none yet. StateBroken, or OSError where it cannot be read."""
        try:
            return State.decode((self.path / STATE).read_text())
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            return State.decode("")

    def write(self, state: State) -> None:
        """Replace the state, whole or not at all."""
        draft = self.path / f"{STATE}.new"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(state.encode())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path / STATE)
        sync_folder(self.path)

    def append(self, size: int, leaves: Sequence[bytes]) -> None:
        """Put leaves behind the first `size` ones; what a crash left there is cut off. StateBroken where fewer stand
        there."""
        path = self.path / LEAVES
        if size == 0:  # never cut: the leaves of a log that was closed may have this name still
            path.unlink(missing_ok=True)
        new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            held = os.fstat(descriptor).st_size
            if held < size * HASH_BYTES:
                raise StateBroken(f"{LEAVES} holds {held // HASH_BYTES:,} of {size:,} leaves")
            if held > size * HASH_BYTES:
                os.ftruncate(descriptor, size * HASH_BYTES)
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.seek(size * HASH_BYTES)
                file.write(b"".join(leaves))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            sync_folder(self.path)

    def leaves(self, first: int, count: int, name: str = LEAVES) -> list[bytes]:
        """Leaves of the current log, or of one that was kept under another name. StateBroken where they are gone."""
        try:
            with (self.path / name).open("rb") as file:
                file.seek(first * HASH_BYTES)
                data = file.read(count * HASH_BYTES)
        except FileNotFoundError:
            data = b""
        if len(data) < count * HASH_BYTES:
            raise StateBroken(f"{name} ends before leaf {first + count:,}")
        return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]

    def root(self, size: int, name: str = LEAVES) -> bytes:
        """The root of the first `size` leaves. StateBroken where they are gone."""
        frontier = Frontier()
        for first in range(0, size, PIECE):
            frontier.extend(self.leaves(first, min(PIECE, size - first), name))
        return frontier.root()

    def tiles(self, state: State, since: int, name: str = LEAVES) -> Iterator[tuple[tuple[int, int], bytes]]:
        """The tiles of the state's tree that the tree of `since` leaves had not, or not as long: (level, index) and
        content. StateBroken where leaves are gone."""
        level, count = 0, state.size
        while count:
            for index in range((since >> level * HEIGHT) // WIDTH, -(-count // WIDTH)):
                yield (level, index), self.tile(state, level, index, name)
            level, count = level + 1, count // WIDTH

    def tile(self, state: State, level: int, index: int, name: str = LEAVES) -> bytes:
        """A tile of the state's tree, as long as it is. StateBroken where leaves are gone."""
        if (index + 1) * WIDTH <= state.size >> level * HEIGHT:
            return b"".join(self._hashes(level, index, name))
        return state.edge.get(level, b"")

    def _hashes(self, level: int, index: int, name: str) -> list[bytes]:
        """Those of a full tile."""
        if level == 0:
            return self.leaves(index * WIDTH, WIDTH, name)
        below = range(index * WIDTH, (index + 1) * WIDTH)
        return [merkle.root(self._hashes(level - 1, tile, name)) for tile in below]

    def halted(self) -> dict[str, Any] | None:
        """What the last halt was, while it lasts: cause, words, index, at (unix seconds)."""
        try:
            found = json.loads((self.path / HALTED).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def halt(self, said: dict[str, Any] | None) -> None:
        """Note a halt for `seal --explain`, or that it is over. Not fsynced: nothing is decided by it."""
        if said is None:
            (self.path / HALTED).unlink(missing_ok=True)
            return
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self.path / f"{HALTED}.new"
        draft.write_text(json.dumps(said) + "\n")
        draft.replace(self.path / HALTED)

    def next_log(self, state: State, after: int) -> None:
        """Begin the state of the next log; the leaves of the one before are kept, as `leaves.<number>`."""
        kept = self.path / f"{LEAVES}.{after}"
        if (self.path / LEAVES).exists() and not kept.exists():
            os.link(self.path / LEAVES, kept)
        self.write(state)
        (self.path / LEAVES).unlink(missing_ok=True)
        sync_folder(self.path)
