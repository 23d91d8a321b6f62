"""Proofs from a tree of a million leaves, made as the API makes them: from the tiles in the database."""

import random
import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar

from bench.revoking import percentile

if TYPE_CHECKING:
    from audit.models import Log

LEAVES, STEP = 1_000_000, 65_536
PROOFS = 1000
Made = TypeVar("Made")


def measure() -> None:
    """In this process, for a log of its own behind all others; its transaction is rolled back."""
    from django.db import transaction

    print(f"proofs from a tree of {LEAVES} leaves, tiles read from the database (target p99 <= 10 ms, <= 1024 bytes)")
    with transaction.atomic():
        log = _grow()
        _inclusion(log)
        _consistency(log)
        transaction.set_rollback(True)


def _grow() -> "Log":
    """The log, its tiles, and one checkpoint over all leaves."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from django.utils import timezone

    from audit.models import Checkpoint, Head, Log, Tile
    from muniment import checkpoints, tiles

    builder = tiles.Builder()
    grown: dict[tuple[int, int], bytes] = {}
    for start in range(0, LEAVES, STEP):
        grown |= builder.extend([_leaf(index) for index in range(start, min(start + STEP, LEAVES))])
    number, now = 1 + max(Log.objects.values_list("number", flat=True), default=0), timezone.now()
    log = Log.objects.create(
        number=number, origin=f"bench.example/{number}", start=Head.objects.get().next, opened_at=now
    )
    rows = (Tile(log=number, level=level, index=index, hashes=found) for (level, index), found in grown.items())
    Tile.objects.bulk_create(rows, batch_size=500)
    note = checkpoints.sign(checkpoints.Checkpoint(log.origin, LEAVES, builder.root()), Ed25519PrivateKey.generate())
    Checkpoint.objects.create(log=number, size=LEAVES, root=builder.root(), note=note, key_id="bench", at=now)
    return log


def _leaf(index: int) -> bytes:
    return sha256(b"%d" % index).digest()


def _inclusion(log: "Log") -> None:
    from audit import logtree
    from audit.models import Record

    chosen = random.Random(1)
    times: list[float] = []
    raw = whole = 0
    for _ in range(PROOFS):
        record = Record(index=log.start + chosen.randrange(LEAVES))
        proof, spent = _timed(partial(logtree.proof_of, record))
        times.append(spent)
        raw, whole = max(raw, 32 * len(proof.path)), max(whole, len(proof.encode()))
    _show("inclusion", times, f"{raw} bytes of hashes, {whole} as a .tlog-proof")


def _path(log: "Log", first: int) -> list[bytes]:
    from audit import logtree

    return logtree.tree(log, LEAVES, [first - 1]).consistency(first)


def _consistency(log: "Log") -> None:
    chosen, raw = random.Random(2), 0
    times: list[float] = []
    for _ in range(PROOFS):
        first = chosen.randrange(1, LEAVES)
        path, spent = _timed(partial(_path, log, first))
        times.append(spent)
        raw = max(raw, 32 * len(path))
    _show("consistency", times, f"{raw} bytes of hashes")


def _timed(make: Callable[[], Made]) -> tuple[Made, float]:
    """What it made, and the seconds that it took."""
    start = time.perf_counter()
    made = make()
    return made, time.perf_counter() - start


def _show(kind: str, times: list[float], size: str) -> None:
    print(f"{kind:>16} p50 {percentile(times, 0.5):.1f} ms, p99 {percentile(times, 0.99):.1f} ms, at most {size}")
