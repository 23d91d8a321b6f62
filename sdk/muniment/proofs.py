"""Proofs that a log holds a leaf, as one text that can be checked offline (C2SP tlog-proof)."""

import re
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass

from muniment import checkpoints, merkle, notes

MAX_EXTRA = 65_536
"""How many bytes of extra data a proof may carry."""

MAX_PATH = 63
"""Hashes in a path: a log's size has 63 bits."""

_HEADER = "c2sp.org/tlog-proof@v1"
_INDEX = re.compile("index (0|[1-9][0-9]{0,18})")
_MAX_CHARACTERS = notes.MAX_BYTES + 2 * MAX_EXTRA + 64 * MAX_PATH


class ProofError(ValueError):
    """Not a proof, or one that does not hold. Says what is wrong, never repeats the input."""


@dataclass(frozen=True, slots=True)
class Proof:
    """The leaf at `index` is in the tree of `checkpoint`, a signed note; `path` as in `merkle.inclusion_path`.

    `extra` is not authenticated by anything (None: there is none). Nothing of it holds before `verify`.
    """

    index: int
    path: tuple[bytes, ...]
    checkpoint: str
    extra: bytes | None = None

    def encode(self) -> str:
        """The proof as tlog-proof writes it."""
        extra = [] if self.extra is None else [f"extra {_base64(self.extra)}"]
        lines = [_HEADER, *extra, f"index {self.index}", *map(_base64, self.path)]
        return "\n".join(lines) + "\n\n" + self.checkpoint

    @classmethod
    def parse(cls, text: str) -> "Proof":
        """The proof of this text, if it is exactly what `encode` writes. Raises ProofError.

        The checkpoint is taken as it is; `verify` judges it.
        """
        if len(text) > _MAX_CHARACTERS:
            raise ProofError("the proof is too long")
        head, empty, checkpoint = text.partition("\n\n")
        header, *lines = head.split("\n")
        if header != _HEADER or not empty or not checkpoint:
            raise ProofError(f"the text is not a {_HEADER} with a checkpoint")
        try:
            extra = notes.from_base64(lines.pop(0)[6:]) if lines and lines[0].startswith("extra ") else None
            found = _INDEX.fullmatch(lines.pop(0)) if lines else None
            path = tuple(map(notes.from_base64, lines[: MAX_PATH + 1]))
        except notes.NoteError as error:
            raise ProofError(f"a line of the proof is {error}") from None
        if found is None:
            raise ProofError("the proof does not name an index")
        if len(path) > MAX_PATH or not {merkle.HASH_BYTES}.issuperset(map(len, path)):
            raise ProofError(f"the proof's path is not at most {MAX_PATH} hashes")
        if extra is not None and len(extra) > MAX_EXTRA:
            raise ProofError(f"the proof's extra data is longer than {MAX_EXTRA} bytes")
        return cls(int(found[1]), path, checkpoint, extra)


def verify(proof: Proof, leaf: bytes, keys: Iterable[notes.Key]) -> checkpoints.Checkpoint:
    """The checkpoint whose tree holds this leaf hash (`merkle.leaf_hash`) at the proof's index.

    `keys`: the log's, as `checkpoints.read` takes them. Raises ProofError that says what does not hold.
    """
    try:
        checkpoint = checkpoints.read(proof.checkpoint, keys)
    except checkpoints.CheckpointError as error:
        raise ProofError(f"the proof's checkpoint: {error}") from None
    if proof.index >= checkpoint.size:
        raise ProofError("the proof's index is outside the tree of its checkpoint")
    if not merkle.verify_inclusion(leaf, proof.index, checkpoint.size, proof.path, checkpoint.root):
        raise ProofError("the path does not lead from the leaf to the root of the checkpoint")
    return checkpoint


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")
