"""Checkpoints: the signed state of a log (C2SP tlog-checkpoint), as notes whose key name is the log's origin."""

import re
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from muniment import merkle, notes

MAX_SIZE = 2**63 - 1
_SIZE = re.compile("0|[1-9][0-9]{0,18}")


class CheckpointError(ValueError):
    """Not a checkpoint, or one that cannot be believed. Never repeats the input."""


class CheckpointUntrusted(CheckpointError):
    """Well-formed, but without a signature by any of the given keys."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tree of the first `size` leaves of the log `origin` has this `root` (32 bytes).

    Raises CheckpointError for an empty origin, a size outside 0 to MAX_SIZE, a root of another length, and for an
    empty tree whose root is not that of the empty tree.
    """

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if not self.origin or min(self.origin) < " ":
            raise CheckpointError("the checkpoint's origin is empty or holds a control character")
        if not 0 <= self.size <= MAX_SIZE:
            raise CheckpointError("the checkpoint's size is out of range")
        if len(self.root) != merkle.HASH_BYTES or (not self.size and self.root != merkle.EMPTY_ROOT):
            raise CheckpointError("the checkpoint's root cannot be one")

    @property
    def text(self) -> str:
        """What is signed: three lines, origin, size and root in base64."""
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode('ascii')}\n"

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """The checkpoint of a note's text, if it is exactly what `text` writes. Raises CheckpointError.

        Extension lines, which the format allows and advises against, are refused: we write none, and no verifier
        could say what they promise.
        """
        lines = text.split("\n")
        if len(lines) != 4 or lines[3]:
            raise CheckpointError("a checkpoint has three lines: origin, size and root")
        origin, size, root = lines[:3]
        if not _SIZE.fullmatch(size):
            raise CheckpointError("the checkpoint's size is not a plain number")
        try:
            return cls(origin, int(size), notes.from_base64(root))
        except notes.NoteError as error:
            raise CheckpointError(f"the checkpoint's root is {error}") from None


def sign(checkpoint: Checkpoint, private: Ed25519PrivateKey) -> str:
    """The signed note. Raises CheckpointError for an origin that can be no key name (signed-note, "Format")."""
    text = checkpoint.text
    try:
        return notes.Note(text, (notes.sign(text, checkpoint.origin, private),)).encode()
    except notes.NoteError as error:
        raise CheckpointError(f"the checkpoint cannot be signed: {error}") from None


def read(note: str, keys: Iterable[notes.Key]) -> Checkpoint:
    """The checkpoint of a note that one of these Ed25519 keys signed, whose name is the checkpoint's origin.

    Raises CheckpointUntrusted when none of them signed it, CheckpointError when it is malformed or a signature
    by one of them does not hold (which spoils the note, even if another's does: signed-note, "Signatures").
    """
    try:
        signed = notes.Note.parse(note)
    except notes.NoteError as error:
        raise CheckpointError(f"not a signed checkpoint: {error}") from None
    checkpoint = Checkpoint.parse(signed.text)
    ours = [key for key in keys if key.name == checkpoint.origin and key.algorithm == notes.ED25519]
    claimed = [key for key in ours if notes.signatures_of(signed, key)]
    if not claimed:
        raise CheckpointUntrusted("no trusted key of its log signed the checkpoint")
    if not all(notes.verify(signed, key) for key in claimed):
        raise CheckpointError("the signature of the checkpoint does not hold")
    return checkpoint
