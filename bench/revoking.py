"""How long verify and a revoke wait for each other: grants switched while sixteen connections call."""

import threading
import time

from bench import platform
from bench.verifying import requests
from tests.world import World


def percentile(times: list[float], part: float) -> float:
    """In milliseconds."""
    return 1000 * sorted(times)[int(len(times) * part)]


def measure(world: World, seconds: float) -> None:
    """A grant is revoked and given back all the time."""
    from django.db import connection
    from django.utils import timezone

    waits: list[float] = []
    stop = threading.Event()

    def switch() -> None:
        grant = world.grant
        while not stop.is_set():
            grant.revoked_at = None if grant.revoked_at else timezone.now()
            start = time.perf_counter()
            grant.save(update_fields=["revoked_at"])
            waits.append(time.perf_counter() - start)
            stop.wait(0.05)
        grant.revoked_at = None
        grant.save(update_fields=["revoked_at"])
        connection.close()

    thread = threading.Thread(target=switch)
    thread.start()
    try:
        verify = platform.load(requests(world), 16, seconds)
    finally:
        stop.set()
        thread.join()
    print(f"a grant switched {len(waits)} times while 16 connections verify ({verify['rate']:.0f}/s)")
    print(f"{'verify waited':>16} p50 {verify['p50']:.1f} ms, p99 {verify['p99']:.1f} ms")
    print(f"{'revoke waited':>16} p50 {percentile(waits, 0.5):.1f} ms, p99 {percentile(waits, 0.99):.1f} ms\n")
