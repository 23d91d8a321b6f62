"""What every kind of anchor is: a place that takes checkpoints, outside of the database administrator's reach."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, unquote

from muniment.checkpoints import Checkpoint

SECONDS = 10.0
"""What one attempt at an anchor may take."""

MAX_NOTE = 64 * 1024  # bytes; what is longer in an anchor is none of ours


class ConfigError(ValueError):
    """An entry of MUNIMENT_ANCHORS cannot be. Never repeats the entry, which may hold credentials."""


class AnchorError(Exception):
    """An anchor did not take a checkpoint, or could not be read. In plain words, without secrets."""


class Disagreement(AnchorError):
    """The anchor holds what this log does not go on from: the log was cut off, or rewritten."""

    def __init__(self, words: str, held: int | None = None) -> None:
        super().__init__(words)
        self.held = held  # size of what the anchor holds, where the anchor says so


@dataclass(frozen=True, slots=True)
class Submission:
    """A checkpoint on its way out. `note` is as the sealer signed it; `taken` is the size of the last checkpoint of
    this log that the anchor took, 0 for none; `consistency(first)` gives the proof from that size to this one
    (RFC 9162, 2.1.4) and raises AnchorError where the tiles do not."""

    checkpoint: Checkpoint
    note: str
    taken: int
    consistency: Callable[[int], list[bytes]]


class Anchor:
    """One configured anchor. `name`: kind and place, without credentials and without anybody's e-mail address;
    `every`: seconds that lie at least between two checkpoints."""

    kind: str = ""
    every: float = 0.0

    def __init__(self, name: str) -> None:
        self.name = name

    def send(self, submission: Submission) -> str:
        """Hand a checkpoint over; sending the same one again does no harm. A witness's cosignature lines, else
        nothing. Raises AnchorError, Disagreement. Opens no transaction."""
        raise NotImplementedError

    def held(self, origin: str) -> Iterator[str]:
        """What the anchor has in the log's folder, largest first, each read when it is asked for; nothing if it cannot
        be read back. Not verified, not even that they are notes of this log. Raises AnchorError."""
        return iter(())


def is_loopback(host: str | None) -> bool:
    """Whether a URL's host is this machine by name."""
    return host in ("127.0.0.1", "::1", "localhost")


def options(parts: SplitResult, *allowed: str) -> dict[str, str]:
    """The parameters of an anchor's URL, each once. Raises ConfigError."""
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else []
    except ValueError:
        raise ConfigError("its parameters cannot be read") from None
    found = dict(pairs)
    if len(found) != len(pairs) or not found.keys() <= set(allowed):
        raise ConfigError(f"its parameters may be {', '.join(allowed)}" if allowed else "it takes no parameters")
    return found


def check_parts(parts: SplitResult) -> None:
    """What no anchor's URL may have. Raises ConfigError."""
    if "@" in parts.netloc:
        raise ConfigError("credentials do not belong in it")
    if parts.fragment:
        raise ConfigError("it has a fragment")


def number(text: str, name: str, least: int, most: int) -> int:
    """A whole number of a parameter. Raises ConfigError."""
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and least <= int(text) <= most):
        raise ConfigError(f"{name} must be a number from {least} to {most}")
    return int(text)


def folder_of(origin: str) -> str:
    """The folder of a log in a directory or bucket. Raises AnchorError for an origin that can be none."""
    if origin.startswith(".") or not origin.isprintable() or "\\" in origin or len(origin) > 200:
        raise AnchorError("the log's origin cannot be the name of a folder")
    return origin.replace("/", "_")


def file_of(checkpoint: Checkpoint) -> str:
    """The name of a checkpoint in there: it says the content, so that nothing is overwritten; sorts by size."""
    return f"{checkpoint.size:020}-{checkpoint.root.hex()[:16]}.checkpoint"


def size_of(name: str) -> int | None:
    """The size that such a name says; None for what is not ours."""
    size, dash, rest = name.partition("-")
    good = dash and rest.endswith(".checkpoint") and len(size) == 20 and size.isascii() and size.isdecimal()
    return int(size) if good else None


def compare(checkpoint: Checkpoint, newest: str | None) -> bool:
    """Whether the file name of the largest held checkpoint is that of this very one. Raises Disagreement when the
    anchor holds a larger one, or another root for this size."""
    held = size_of(newest) if newest else None
    if held is None or held < checkpoint.size:
        return False
    if held > checkpoint.size:
        raise ahead(held, checkpoint.size)
    if newest != file_of(checkpoint):
        raise Disagreement(f"it holds another root for {held} records: the log has forked", held)
    return True


def ahead(held: int, size: int) -> Disagreement:
    """The anchor holds a larger checkpoint than the database."""
    return Disagreement(f"it holds a checkpoint of {held} records, the database one of {size}: the log was cut", held)


def path_of(parts: SplitResult) -> str:
    """The URL's path, percent-decoded. Raises ConfigError for one with control characters or dot segments."""
    path = unquote(parts.path)
    if not path.isprintable() or ".." in path.split("/"):
        raise ConfigError("its path cannot be one")
    return path
