"""Logs that are sealed by hand: tiles and signed checkpoints without a sealer, so that a test says when and what."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.utils import timezone

from audit.keys import public_of
from audit.models import Anchoring, Checkpoint, Log, Record, Tile
from muniment import checkpoints, notes, tiles

ORIGIN = "muniment.test/log"


@dataclass
class HandSealed:
    """One log and its key. Leaves are those of its records, or others that a test makes up."""

    number: int = 1
    start: int = 0
    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    builder: tiles.Builder = field(default_factory=tiles.Builder)

    def __post_init__(self) -> None:
        origin = ORIGIN if self.number == 1 else f"{ORIGIN}/{self.number}"
        self.log = Log.objects.create(number=self.number, origin=origin, start=self.start, opened_at=timezone.now())

    @property
    def key(self) -> notes.Key:
        """With which its checkpoints verify."""
        return notes.Key(self.log.origin, notes.ED25519, public_of(self.private))

    def seal(self, leaves: Sequence[bytes] | None = None) -> Checkpoint:
        """Add leaves, else those of all records that are not sealed yet, and publish a checkpoint."""
        if leaves is None:
            fresh = Record.objects.filter(index__gte=self.start + self.builder.size).order_by("index")
            leaves = [bytes(leaf) for leaf in fresh.values_list("leaf", flat=True)]
        for (level, index), found in self.builder.extend(leaves).items():
            Tile.objects.update_or_create(log=self.number, level=level, index=index, defaults={"hashes": found})
        root = self.builder.root()
        note = checkpoints.sign(checkpoints.Checkpoint(self.log.origin, self.builder.size, root), self.private)
        return Checkpoint.objects.create(
            log=self.number, size=self.builder.size, root=root, note=note, key_id="by hand", at=timezone.now()
        )


def cosigned(checkpoint: Checkpoint, *witnesses: Ed25519PrivateKey, anchor: str = "witness") -> Anchoring:
    """An anchoring with a signature line of each of these witnesses; with none, that of another kind of anchor."""
    text = notes.Note.parse(checkpoint.note).text
    lines = [notes.cosign(text, "witness.example", private, 1_700_000_000).line + "\n" for private in witnesses]
    return Anchoring.objects.create(
        anchor=anchor, log=checkpoint.log, size=checkpoint.size, at=timezone.now(), cosignature="".join(lines)
    )
