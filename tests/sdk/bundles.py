"""Logs in memory and bundles of them, to be taken apart and put together otherwise: whoever attacks a bundle makes all
of its digests fit."""

import io
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from muniment import batches, bundle, checkpoints, disclosures, keys, merkle, notes, statements
from muniment.bundle import (
    Asked,
    BatchLine,
    CheckpointLine,
    ContextLine,
    DisclosureLine,
    Head,
    Manifest,
    RecordLine,
    Segment,
)
from muniment.keys import Trust, thumbprint
from muniment.policy import digest_of
from muniment.report import Report
from muniment.tiles import Builder, Tree
from muniment.verify import verify_file
from muniment.verify_heads import Held

ORIGIN = "muniment.test/log"
NOON = 1_795_000_000_000_000  # microseconds; record i bears NOON + i seconds
SECOND = 1_000_000
CONTEXT = ("policy", "key", "retention", "erasure", "notice")
Said = dict[str, Any]


def public_of(private: Ed25519PrivateKey) -> bytes:
    """The raw public key."""
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def at(index: int) -> int:
    """The time that record `index` bears."""
    return NOON + index * SECOND


@dataclass
class Parts:
    """What a bundle holds, to be changed."""

    manifest: Manifest
    records: list[RecordLine]
    batches: list[BatchLine]
    checkpoints: list[CheckpointLine]
    context: list[ContextLine]
    disclosures: list[DisclosureLine]
    keys: bytes

    def pack(self) -> bytes:
        """The ZIP, with a manifest whose digests fit."""
        file = io.BytesIO()
        writer = bundle.Writer(file)
        for name, lines in (
            (bundle.RECORDS, self.records), (bundle.BATCHES, self.batches), (bundle.CHECKPOINTS, self.checkpoints),
            (bundle.CONTEXT, self.context), (bundle.DISCLOSURES, self.disclosures),
        ):  # fmt: skip
            writer.lines(name, iter(lines))
        writer.document(bundle.KEYS, self.keys)
        writer.close(self.manifest, "README\n")
        return file.getvalue()


@dataclass
class Log:
    """A log in memory, as its writer and its sealer made it."""

    writer: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    sealer: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    batches: list[BatchLine] = field(default_factory=list)
    statements: list[bytes] = field(default_factory=list)
    details: dict[int, list[disclosures.Disclosure]] = field(default_factory=dict)

    @classmethod
    def lived(cls) -> "Log":
        """Keys, a policy of two versions, and decisions of two users between; 40 records in batches of one to four."""
        log = cls()
        log.write(log.introduced(log.writer, "writer"), log.introduced(log.sealer, "log"))
        log.write(log.policy(1))
        for _ in range(4):
            log.write(*(log.decision(1, user) for user in ("usr_a", "usr_b", "usr_a", "usr_b")))
        log.write(log.policy(2))
        for _ in range(4):
            log.write(log.decision(2, "usr_a"), log.decision(2, "usr_b", "deny"))
        for _ in range(12):
            log.write(log.decision(2, "usr_b"))
        return log

    @staticmethod
    def introduced(private: Ed25519PrivateKey, use: str, by: Ed25519PrivateKey | None = None) -> Said:
        """The statement that publishes a key."""
        return {"type": "key", **keys.introduce(by or private, use, public_of(private))}

    @staticmethod
    def policy(version: int) -> Said:
        """A change of policy: it adds one row."""
        row = {"id": version}
        change = {"table": "clients_grant", "op": "insert", "key": str(version), "old": None, "new": row}
        return {"type": "policy", "policy": {"version": version, "digest": None}, "part": 1, "parts": 1,
                "changes": [change]}  # fmt: skip

    @staticmethod
    def decision(version: int, subject: str, decision: str = "allow", **more: Any) -> Said:
        """A decision, with two protected details."""
        digest = digest_of({"clients_grant": [{"id": number + 1} for number in range(version)]})
        return {"type": "decision", "decision": decision, "subject": subject, "client": "claude",
                "policy": {"version": version, "digest": digest}} | more  # fmt: skip

    def _vouching(self, index: int) -> tuple[BatchLine, list[bytes]]:
        """The write batch of a record, and the path from it to the batch's root."""
        batch = next(one for one in self.batches if one.first <= index < one.first + one.size)
        leaves = self.leaves()[batch.first : batch.first + batch.size]
        return copy(batch), merkle.inclusion_path(leaves, index - batch.first)

    def write(self, *said: Said, key: Ed25519PrivateKey | None = None) -> None:
        """One write batch."""
        first = len(self.statements)
        for index, one in enumerate(said, first):
            private = disclosures.make_all(
                {"email": f"{one['subject']}@x.example", "ip": "::1"} if "subject" in one else {}
            )
            self.details[index] = private
            members = {"v": 1, "at": at(index), "_sd": disclosures.digests(private)} | one
            self.statements.append(statements.encode(members))
        root = merkle.root(self.leaves()[first:])
        previous = batches.GENESIS
        if self.batches:
            last = self.batches[-1]
            previous = batches.digest(batches.message(last.first, last.size, last.previous, last.root))
        signed = batches.message(first, len(said), previous, root)
        key = key or self.writer
        self.batches.append(
            BatchLine(first, len(said), previous, root, batches.sign(key, signed), thumbprint(public_of(key)))
        )

    def leaves(self) -> list[bytes]:
        """All leaf hashes."""
        return [merkle.leaf_hash(data) for data in self.statements]

    def tree(self, size: int | None = None) -> Tree:
        """The tree of the first `size` leaves."""
        leaves = self.leaves()[:size]
        tiles = Builder().extend(leaves)
        return Tree(len(leaves), lambda level, index: tiles[level, index])

    def checkpoint(self, size: int | None = None, key: Ed25519PrivateKey | None = None) -> str:
        """A signed checkpoint."""
        tree = self.tree(size)
        return checkpoints.sign(checkpoints.Checkpoint(ORIGIN, tree.size, tree.root()), key or self.sealer)

    def trust(self, *witnesses: notes.Key) -> Trust:
        """The auditor's keys."""
        trust = Trust(witnesses={key.vkey: key for key in witnesses})
        trust.writers[thumbprint(public_of(self.writer))] = public_of(self.writer)
        trust.logs[thumbprint(public_of(self.sealer))] = public_of(self.sealer)
        return trust

    def jwks(self) -> bytes:
        """As /v1/keys."""
        found = []
        for use, private in (("writer", self.writer), ("log", self.sealer)):
            public = public_of(private)
            x = keys._base64url(public)
            found.append({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": thumbprint(public), "use": use})
        return msgspec.json.encode({"keys": found})

    def parts(
        self, since: int, until: int, subject: str | None = None, disclose: bool = False, size: int | None = None,
        earlier: tuple[int, ...] = (), roots: tuple[int, ...] = (),
    ) -> Parts:  # fmt: skip
        """A bundle of the records [since, until), by their times. `earlier`: checkpoints; `roots`: sizes held."""
        tree = self.tree(size)
        asked = Asked(bundle.text_of(at(since)), bundle.text_of(at(until)), subject, None, disclose)
        first, last = self._around(since - 1, 0), self._around(until, 1)
        first, last = max(first, 0), min(last, tree.size - 1)
        records, details = [], []
        for index in range(first, last + 1):
            said, data = msgspec.json.decode(self.statements[index]), self.statements[index]
            wanted = since <= index < until and subject in (None, said.get("subject"))
            told = said["type"] in CONTEXT or index in (since - 1, until)
            records.append(RecordLine(index, tree.leaf(index), data.decode() if wanted or told else None))
            if wanted and disclose and self.details[index]:
                details.append(DisclosureLine(index, [one.text for one in self.details[index]]))
        context = [
            ContextLine(index, 1, data.decode(), tree.inclusion(index), False, *self._vouching(index))
            for index, data in enumerate(self.statements[: tree.size])
            if not first <= index <= last and msgspec.json.decode(data)["type"] in CONTEXT
        ]
        lines = [CheckpointLine(1, tree.size, tree.root(), self.checkpoint(size))]
        lines += [CheckpointLine(1, n, self.tree(n).root(), self.checkpoint(n), tree.consistency(n)) for n in earlier]
        lines += [CheckpointLine(1, n, self.tree(n).root(), None, tree.consistency(n)) for n in roots]
        segment = Segment(1, first, last, tree.range(first, last - first + 1))
        manifest = Manifest(
            bundle.FORMAT, bundle.text_of(NOON), asked, first, last, [Head(1, ORIGIN, 0, tree.size)], [segment], {}, {}
        )  # fmt: skip
        chain = [copy(batch) for batch in self.batches if first <= batch.first <= last]
        return Parts(manifest, records, chain, lines, context, details, self.jwks())

    def _around(self, index: int, end: int) -> int:
        for batch in self.batches:
            if batch.first <= index < batch.first + batch.size:
                return batch.first + (batch.size - 1 if end else 0)
        return len(self.statements) - 1 if end else 0


def held(note: str, name: str = "mine.txt") -> Held:
    """A checkpoint that the auditor keeps."""
    return Held.parse(name, note)


def verified(
    data: bytes | Parts, trust: Trust | None, *kept: Held, since: int | None = None, until: int | None = None
) -> Report:
    """The report of a bundle; `since` and `until` by record."""
    packed = data.pack() if isinstance(data, Parts) else data
    times = [None if index is None else at(index) for index in (since, until)]
    return verify_file(io.BytesIO(packed), trust, kept, *times)


def codes(report: Report) -> list[str]:
    """The codes of the findings, each once, in order."""
    return list(dict.fromkeys(one.code for one in report.findings))
