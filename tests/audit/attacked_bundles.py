"""Bundles of the attacked log, and what a dishonest messenger can do to one: take it apart, change it, and put it
together again with a manifest that fits."""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from datetime import timedelta
from hashlib import sha256
from io import BytesIO
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit import bundling
from audit.keys import public_of
from audit.models import Record
from muniment import batches, bundle, checkpoints
from muniment.checkpoints import Checkpoint
from muniment.keys import Trust, thumbprint
from muniment.notes import Note
from muniment.report import Report
from muniment.verify import verify_file
from muniment.verify_heads import Held
from tests.audit.attacked import Scene

Parts = dict[str, Any]  # file -> its lines as JSON, or a document


def of(log: Scene, first: str = "alice", last: str = "again", held: Sequence[tuple[str, str]] = ()) -> bytes:
    """A bundle of the calls between two."""
    low, high = (Record.objects.get(index=log.at[name]).at for name in (first, last))
    made = BytesIO()
    bundling.write(
        made, bundling.Wanted(low, high + timedelta(microseconds=1), held=tuple(Held.parse(*one) for one in held))
    )
    return made.getvalue()


def verified(
    data: bytes, believed: Trust | None, held: list[tuple[str, str]], since: str | None = None, until: str | None = None
) -> Report:
    """What `muniment verify` says of a bundle."""
    times = [None if text is None else bundle.time_of(text) for text in (since, until)]
    return verify_file(BytesIO(data), believed, [Held.parse(name, note) for name, note in held], *times)


def changed(data: bytes, change: Callable[[Parts], None]) -> bytes:
    """The bundle with other content, and a manifest whose digests are right."""
    with ZipFile(BytesIO(data)) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    parts: Parts = {
        name: [json.loads(line) for line in content.splitlines()] if name.endswith(".jsonl") else json.loads(content)
        for name, content in held.items()
        if name != bundle.README
    }
    change(parts)
    manifest = parts.pop(bundle.MANIFEST)
    files = {name: _encoded(name, part) for name, part in parts.items()}
    manifest["files"] = {
        name: {"sha256": sha256(content).hexdigest(), "bytes": len(content), "lines": content.count(b"\n")}
        for name, content in files.items()
    }
    made = BytesIO()
    with ZipFile(made, "w", ZIP_DEFLATED) as archive:
        for name, content in [*files.items(), (bundle.MANIFEST, json.dumps(manifest).encode())]:
            archive.writestr(name, content)
        archive.writestr(bundle.README, held[bundle.README])
    return made.getvalue()


def _encoded(name: str, part: Any) -> bytes:
    if name.endswith(".jsonl"):
        return b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in part)
    return json.dumps(part).encode()


def with_other_keys(parts: Parts) -> None:
    """Everything in the bundle signed anew by keys of one's own, which stand in it as its keys."""
    writer, log = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    for batch in parts[bundle.BATCHES]:
        previous, root = b64decode(batch["previous"]), b64decode(batch["root"])
        message = batches.message(batch["first"], batch["size"], previous, root)
        batch["signature"] = b64encode(batches.sign(writer, message)).decode()
        batch["key_id"] = thumbprint(public_of(writer))
    for line in parts[bundle.CHECKPOINTS]:
        if line.get("note"):
            line["note"] = checkpoints.sign(Checkpoint.parse(Note.parse(line["note"]).text), log)
    held = Trust(
        writers={thumbprint(public_of(writer)): public_of(writer)}, logs={thumbprint(public_of(log)): public_of(log)}
    )
    parts[bundle.KEYS] = {"keys": [
        {"kty": "OKP", "crv": "Ed25519", "kid": kid, "use": use,
         "x": b64encode(public).decode().rstrip("=").replace("+", "-").replace("/", "_")}
        for use, found in (("writer", held.writers), ("log", held.logs)) for kid, public in found.items()
    ]}  # fmt: skip
