"""The manifest of an exported file: what was asked for, what is in it, the checkpoint that covers it, and the export
key's signature. `muniment.exported` verifies it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings

from audit import keys, logtree
from audit.exports import rights
from audit.models import Export, ExportRun
from audit.retention import gone
from muniment import exported

CHUNK = 1 << 20


class NoKey(Exception):
    """This process signs no exports: it has no export key."""


def sign(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with `key_id` and `signature` by this process's export key, which is published at /v1/keys. Raises
    NoKey."""
    if "EXPORT_KEY" not in settings.MUNIMENT_KEYS:
        raise NoKey("only the worker signs exports: this process has no export key")
    private = Ed25519PrivateKey.from_private_bytes(settings.MUNIMENT_KEYS["EXPORT_KEY"])
    keys.publish(private, "export")
    return exported.sign(manifest, private)


def make(run: ExportRun, export: Export, file: Path, made_at: datetime) -> tuple[str, int, str]:
    """The text of the manifest of a run's file as it lies on the disk, and the file's length and SHA-256. Raises NoKey,
    OSError, and audit.logtree.NotSealed where no checkpoint covers the range."""
    length, digest = _hash(file)
    members = {
        "format": exported.FORMAT, "type": export.format, "export": {"id": export.pk, "name": export.name},
        "run": run.pk, "slot": text_of(run.slot), "query": export.query, "columns": export.columns,
        "personal": run.personal, "tenants": run.definition.get(rights.MADE_WITH),
        "range": {
            "since": text_of(run.since), "until": text_of(run.until),
            "first": run.first if _some(run) else None, "last": run.last if _some(run) else None,
        },
        "records": run.records, "counts": run.counts,
        "file": {"name": run.file, "bytes": length, "sha256": digest},
        "deleted": [f"{month:%Y-%m}" for month in gone.months(run.since, run.until)],
        "made_at": text_of(made_at), "url": settings.MUNIMENT_URL, "log": _log(run),
    }  # fmt: skip
    return msgspec.json.format(msgspec.json.encode(sign(members)), indent=1).decode() + "\n", length, digest


def text_of(at: datetime) -> str:
    """A time as exports write it: UTC, ISO 8601, with microseconds."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _some(run: ExportRun) -> bool:
    return run.first is not None and run.last is not None and run.first <= run.last


def _log(run: ExportRun) -> dict[str, Any] | None:
    """The log that has the last record of the range, with a checkpoint that covers it."""
    if not _some(run) or run.last is None:
        return None
    log = logtree.log_of(run.last)
    checkpoint = logtree.telling(log, run.last - log.start) if log else None
    if log is None or checkpoint is None:
        raise logtree.NotSealed("no checkpoint covers the range")
    return {"origin": log.origin, "start": log.start, "checkpoint": logtree.with_cosignatures(checkpoint)}


def _hash(path: Path) -> tuple[int, str]:
    found, length = sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
            length += len(chunk)
    return length, found.hexdigest()
