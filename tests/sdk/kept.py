"""Answers of a log in memory, and the same log written anew by one who holds all of its keys."""

import json
from base64 import b64encode
from pathlib import Path
from typing import Any
from uuid import UUID

from muniment import batches, merkle
from muniment.bundle import BatchLine
from muniment.keys import thumbprint
from muniment.receipts import Store
from tests.sdk.bundles import Log, Said, at, public_of

TOOL = "memory.recall"


def record_of(index: int) -> str:
    """The id of the record at an index."""
    return str(UUID(int=index, version=4))


def lived() -> Log:
    """Keys, a policy, and twelve batches of three decisions, each with its id and its tool."""
    log = Log()
    log.write(log.introduced(log.writer, "writer"), log.introduced(log.sealer, "log"))
    log.write(log.policy(1))
    for first in range(3, 39, 3):
        log.write(*(decided(log, index) for index in range(first, first + 3)))
    return log


def decided(log: Log, index: int) -> Said:
    """A decision; every third is a denial."""
    decision = "allow" if index % 3 else "deny"
    return log.decision(1, "usr_a", decision, id=record_of(index), tool=TOOL)


def answer(log: Log, index: int) -> dict[str, Any]:
    """What was answered for the record at this index, with the user, as the platform does."""
    batch, path = log._vouching(index)
    said = json.loads(log.statements[index])
    body = {
        "index": index,
        "leaf": text(log.leaves()[index]),
        "signature": text(batch.signature),
        "key": batch.key_id,
        "batch": {
            "first": batch.first,
            "size": batch.size,
            "previous": text(batch.previous),
            "root": text(batch.root),
            "position": index - batch.first,
            "path": [text(one) for one in path],
        },
    }
    return {
        "decision": said["decision"], "record": said["id"], "tool": {"name": said["tool"], "access": "read"},
        "subject": {"uid": "usr_a", "sub": "alice", "email": "alice@x.example"}, "receipt": body, "status": 200,
    }  # fmt: skip


def keeping(folder: Path, log: Log, *indices: int, late: int = 0) -> Path:
    """A folder with the receipts of these records, each kept a millisecond (and `late` seconds) after it."""
    for index in indices:
        Store(folder, clock=lambda index=index: at(index + late) + 1000).keep(answer(log, index))  # type: ignore[misc]
    return folder


def rewritten(log: Log, size: int | None = None, **changes: Said) -> Log:
    """The same log up to a size, with other members in some statements (`_12={...}`), signed and sealed anew."""
    new = Log(log.writer, log.sealer, details=log.details)
    previous = batches.GENESIS
    for old in log.batches:
        if size is not None and old.first + old.size > size:
            break
        for index in range(old.first, old.first + old.size):
            members = json.loads(log.statements[index]) | changes.get(f"_{index}", {})
            new.statements.append(json.dumps(members, sort_keys=True, separators=(",", ":")).encode())
        root = merkle.root(new.leaves()[old.first :])
        signed = batches.message(old.first, old.size, previous, root)
        signature = batches.sign(log.writer, signed)
        new.batches.append(BatchLine(old.first, old.size, previous, root, signature, thumbprint(public_of(log.writer))))
        previous = batches.digest(signed)
    return new


def text(data: bytes) -> str:
    """As the platform writes bytes."""
    return b64encode(data).decode()
