"""Verify with its durable record, beside a bare Django view on the same server; batch beside single."""

import json
from typing import Any

from bench import platform
from tests.world import World, token

BATCH = 100


def requests(world: World) -> list[dict[str, Any]]:
    """One verify request for each of a thousand users."""
    tokens = [token(sub=f"user-{number}") for number in range(platform.USERS)]
    calls = [{"token": text, "tool": "memory.recall", "request": {"id": f"r{i}"}} for i, text in enumerate(tokens)]
    return [{"path": "/v1/verify", "key": world.key, "body": json.dumps(call)} for call in calls]


def batches(world: World, single: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same calls, a hundred in a request."""
    items = [json.loads(request["body"]) for request in single]
    return [
        {"path": "/v1/verify/batch", "key": world.key, "body": json.dumps({"items": items[at : at + BATCH]})}
        for at in range(0, len(items), BATCH)
    ]


def warm_up(world: World, single: list[dict[str, Any]]) -> None:
    """Every user has called before, at each of the web processes."""
    platform.load(batches(world, single), 4, 12.0)
    platform.load(single, 64, 2.0)


def measure(world: World, seconds: float) -> None:
    """Rates at 1, 16 and 64 connections, bare and verify taking turns."""
    single = requests(world)
    bare = [request | {"path": "/bare"} for request in single]
    warm_up(world, single)
    print("verify, durable record included, against a bare Django view on the same server (target >= 0.40)")
    print(f"{'connections':>12} {'bare/s':>9} {'verify/s':>9} {'ratio':>6} {'p50 ms':>8} {'p99 ms':>8}")
    rates = {}
    for connections in (1, 16, 64):
        nothing = platform.load(bare, connections, seconds)
        verify = platform.load(single, connections, seconds)
        rates[connections] = verify["rate"]
        print(
            f"{connections:>12} {nothing['rate']:>9.0f} {verify['rate']:>9.0f}"
            f" {verify['rate'] / nothing['rate']:>6.2f} {verify['p50']:>8.1f} {verify['p99']:>8.1f}"
        )
    batch = platform.load(batches(world, single), 16, seconds)
    decisions = batch["rate"] * BATCH
    print("\nbatch verify, decisions/s against single at 16 connections (target >= 4)")
    print(f"{decisions:>12.0f} against {rates[16]:.0f}: {decisions / rates[16]:.1f}\n")
