"""Exports that are made up by hand, with real signatures: a file, its manifest, and the keys to trust."""

import json
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from muniment import checkpoints, exported, notes, statements
from muniment.bundle import text_of
from muniment.keys import Trust, thumbprint
from muniment.merkle import leaf_hash

ORIGIN = "muniment.test/log"
START = 1_770_000_000_000_000  # microseconds since 1970
SECOND = 1_000_000


def public_of(private: Ed25519PrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def said(index: int) -> dict[str, Any]:
    """The statement of a call; every third is denied."""
    denied = index % 3 == 0
    return {
        "v": 1, "id": f"00000000-0000-7000-8000-{index:012}", "at": START + index * SECOND, "type": "decision",
        "decision": "deny" if denied else "allow", "reason": "not_granted" if denied else "granted",
        "client": "claude", "tool": "memory.recall", "subject": "usr_alice", "_sd": [],
    }  # fmt: skip


def line(index: int) -> dict[str, Any]:
    """Its line in an export with the statement."""
    found = said(index)
    return {
        "time": text_of(found["at"]), "index": index, "record": found["id"], "kind": "decision",
        "decision": found["decision"], "reason": found["reason"], "user": "usr_alice", "client": "claude",
        "statement": statements.encode(found).decode(),
    }  # fmt: skip


@dataclass
class Made:
    """One export in a folder, whose records are `first` to `last`."""

    folder: Path
    first: int = 10
    last: int = 40
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    log: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    name: str = "all-7-20260201T0000Z.jsonl"
    type: str = "jsonl"

    @property
    def manifest(self) -> Path:
        return self.folder / (self.name + exported.SUFFIX)

    @property
    def trust(self) -> Trust:
        keys, logs = public_of(self.key), public_of(self.log)
        return Trust(exports={thumbprint(keys): keys}, logs={thumbprint(logs): logs})

    @property
    def vkeys(self) -> str:
        """The same as a file of trusted keys."""
        one = notes.Key("muniment.test/export", notes.ED25519, public_of(self.key))
        two = notes.Key(ORIGIN, notes.ED25519, public_of(self.log))
        return f"{one.vkey}\n{two.vkey}\n"

    def note(self, size: int) -> str:
        return checkpoints.sign(checkpoints.Checkpoint(ORIGIN, size, leaf_hash(b"some")), self.log)

    def members(self, data: bytes, **changes: Any) -> dict[str, Any]:
        """The manifest as it should be, unsigned."""
        indices = range(self.first, self.last + 1)
        denied = sum(index % 3 == 0 for index in indices)
        return {
            "format": exported.FORMAT, "type": self.type, "export": {"id": 7, "name": "all"},
            "slot": text_of(START), "query": "client=claude", "columns": list(line(0)), "personal": False,
            "range": {
                "since": text_of(START), "until": text_of(START + 100 * SECOND), "first": self.first, "last": self.last,
            },
            "records": len(indices), "counts": {"allow": len(indices) - denied, "deny": denied},
            "file": {"name": self.name, "bytes": len(data), "sha256": sha256(data).hexdigest()},
            "made_at": text_of(START + 200 * SECOND),
            "log": {"origin": ORIGIN, "start": 0, "checkpoint": self.note(self.last + 1)},
        } | changes  # fmt: skip

    def write(self, data: bytes | None = None, **changes: Any) -> "Made":
        """File and signed manifest."""
        if data is None:
            data = b"".join(json.dumps(line(index)).encode() + b"\n" for index in range(self.first, self.last + 1))
        (self.folder / self.name).write_bytes(data)
        signed = exported.sign(self.members(data, **changes), self.key)
        self.manifest.write_text(json.dumps(signed, indent=1))
        return self

    def found(self, trust: Trust | None = None) -> set[str]:
        """The codes of what a verification finds."""
        report, _ = exported.verify(self.manifest, trust or self.trust)
        return {one.code for one in report.findings}
