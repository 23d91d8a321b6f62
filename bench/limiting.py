"""What limits cost: verify with none, one and three that apply to every call, and with Redis gone."""

import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

from bench import platform, verifying
from bench.deciding import best
from tests.world import World, token

KINDS = ("subject", "client", "tool")
MOST = 1_000_000_000  # calls a day: none is ever refused
CONNECTIONS, ROUNDS = 16, 3
NUMBERS = (0, 1, 3)
CALLS = 300


def measure(world: World, seconds: float) -> None:
    """Rates at 16 connections with each number of limits, taking turns, against none; the web processes run."""
    single = verifying.requests(world)
    found: dict[int, list[dict[str, float]]] = {number: [] for number in NUMBERS}
    for _ in range(ROUNDS):
        for number in NUMBERS:
            _limits(number)
            platform.load(single, CONNECTIONS, 1.0)  # the policy moved: every token is verified again
            found[number].append(platform.load(single, CONNECTIONS, seconds / ROUNDS))
    _limits(0)
    print(f"verify with limits, {CONNECTIONS} connections, median of {ROUNDS} rounds: requests/s against none")
    print(f"{'limits':>12} {'verify/s':>9} {'ratio':>6} {'p50 ms':>8} {'p99 ms':>8}")
    none = median(one["rate"] for one in found[0])
    for number, rounds in found.items():
        rate, p50, p99 = (median(one[name] for one in rounds) for name in ("rate", "p50", "p99"))
        print(f"{number:>12} {rate:>9.0f} {rate / none:>6.2f} {p50:>8.1f} {p99:>8.1f}")
    print()


def alone(world: World) -> None:
    """In this process: what one question to Redis takes, for one call and for a batch; and verify without Redis."""
    from clients.limits import counter

    taken = [counting(limits, calls) for limits, calls in ((1, 1), (3, 1), (3, 100))]
    print("taking from limits, microseconds for one question to Redis")
    for (limits, calls), spent in zip(((1, 1), (3, 1), (3, 100)), taken, strict=True):
        print(f"{limits:>12} limits, {calls:>3} calls {spent:>9.1f}")
    _limits(3)
    world.verify()  # starts the recorder
    there = spread(lambda: world.verify(token=text)) if (text := token()) else {}
    url, counter.url = counter.url, lambda: "unix:///nowhere/redis.sock"
    counter.forget()
    gone = spread(lambda: world.verify(token=text))
    counter.url = url
    counter.forget()
    _limits(0)
    print(f"\none verify with three limits, {CALLS} calls one after the other, ms")
    for name, found in (("Redis is there", there), ("Redis is gone", gone)):
        print(f"{name:>20}   p50 {found['p50']:.2f}   p99 {found['p99']:.2f}   slowest {found['slowest']:.2f}")
    print()


def counting(limits: int, calls: int) -> float:
    """Microseconds of one question for so many calls, each by another user, which so many limits apply to."""
    from clients.buckets import Bucket, Counted
    from clients.limits import counter

    asked = [
        [Bucket(n, MOST, 86_400, MOST, Counted(f"usr_{call}", None, None)) for n in range(limits)]
        for call in range(calls)
    ]
    return best(lambda: counter.take(asked), times=max(20, 1000 // calls), rounds=5)


def spread(action: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of calls one after the other."""
    spent = []
    for _ in range(CALLS):
        begun = time.perf_counter()
        action()
        spent.append((time.perf_counter() - begun) * 1000)
    cuts = quantiles(spent, n=100)
    return {"p50": cuts[49], "p99": cuts[98], "slowest": max(spent)}


def _limits(number: int) -> None:
    from clients.models import Limit

    Limit.objects.all().delete()
    for per in KINDS[:number]:
        Limit.objects.create(per=per, count=MOST, period="day", reason="bench")
