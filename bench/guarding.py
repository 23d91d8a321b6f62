"""What the decorator costs: a guarded call beside the bare call of the same function, and beside POST /v1/verify made
by hand over one kept connection. Loopback, sync and async."""

import asyncio
import http.client
import json
import logging
import time
from collections.abc import Callable
from statistics import quantiles

from bench import platform
from muniment import Muniment
from tests.world import World, token

CALLS = 1500
CONCURRENT = 16


def recall(query: str) -> str:
    """What is guarded: nothing to speak of."""
    return query


async def arecall(query: str) -> str:
    """The same, for an event loop."""
    return query


def timed(calls: int, call: Callable[[], object]) -> list[float]:
    """Milliseconds of each call, after a tenth of them to warm up."""
    found = []
    for number in range(-calls // 10, calls):
        started = time.perf_counter()
        call()
        if number >= 0:
            found.append((time.perf_counter() - started) * 1000)
    return found


def by_hand(world: World, text: str) -> Callable[[], None]:
    """POST /v1/verify with http.client: what nobody can do without."""
    connection = http.client.HTTPConnection("127.0.0.1", platform.PORT, timeout=20)
    headers = {"Authorization": f"Bearer {world.key}", "Content-Type": "application/json"}
    body = json.dumps({"token": text, "tool": "memory.recall"})

    def call() -> None:
        connection.request("POST", "/v1/verify", body, headers)
        answer = connection.getresponse()
        assert json.loads(answer.read())["decision"] == "allow", answer.status

    return call


async def many(guard: Muniment, tool: Callable[..., object], text: str, calls: int) -> float:
    """Calls a second, sixteen at a time."""

    async def worker() -> None:
        with guard.request(text):
            for _ in range(calls // CONCURRENT):
                await tool("sea")  # type: ignore[misc]

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(CONCURRENT)))
    return calls / (time.perf_counter() - started)


async def timed_async(guard: Muniment, tool: Callable[..., object], text: str) -> tuple[list[float], float]:
    """Milliseconds of each call, one after the other; and the rate of sixteen at a time."""
    found = []
    with guard.request(text):
        for number in range(-CALLS // 10, CALLS):
            started = time.perf_counter()
            await tool("sea")  # type: ignore[misc]
            if number >= 0:
                found.append((time.perf_counter() - started) * 1000)
    await many(guard, tool, text, CONCURRENT * 20)
    rate = await many(guard, tool, text, CALLS)
    await guard.platform.aclose()
    return found, rate


def row(name: str, times: list[float], base: float | None = None) -> float:
    """Print a line; the median."""
    cuts = quantiles(times, n=100)
    beside = "" if base is None else f" {cuts[49] - base:>12.3f} {cuts[49] / base:>8.2f}"
    print(f"{name:<34} {cuts[49]:>8.3f} {cuts[98]:>8.3f}{beside}")
    return cuts[49]


def measure(world: World) -> None:
    """The table."""
    text = token(sub="user-1")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each request would be measured too
    print("the decorator, over the bare call (loopback; outcomes are reported in the background meanwhile)")
    print(f"{'':<34} {'p50 ms':>8} {'p99 ms':>8} {'more, p50 ms':>12} {'ratio':>8}")
    with Muniment(f"http://127.0.0.1:{platform.PORT}", world.key) as guard:
        bare = row("bare call", timed(CALLS, lambda: recall("sea")))
        hand = row("POST /v1/verify by hand", timed(CALLS, by_hand(world, text)))
        guarded = guard.tool("memory.recall", scopes="memory:read")(recall)
        with guard.request(text):
            sync = row("guarded, sync (over by hand)", timed(CALLS, lambda: guarded("sea")), hand)
        guard.tools.clear()
        found, rate = asyncio.run(timed_async(guard, guard.tool("memory.recall", scopes="memory:read")(arecall), text))
        later = row("guarded, async (over by hand)", found, hand)
        print(f"over the bare call: sync {sync - bare:.3f} ms, async {later - bare:.3f} ms;", end=" ")
        print(f"async, {CONCURRENT} at a time: {rate:.0f} calls/s\n")
        guard.flush(30)
