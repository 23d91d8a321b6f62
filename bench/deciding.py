"""Deciding alone, against one Ed25519 signature; and where the time of one verify goes."""

import cProfile
import pstats
import time
from collections.abc import Callable

from tests.world import World, token


def best(action: Callable[[], object], times: int = 2000, rounds: int = 7) -> float:
    """Microseconds for one call: the best of some rounds."""
    spent = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(times):
            action()
        spent.append((time.perf_counter() - start) / times)
    return min(spent) * 1e6


def measure(world: World) -> None:
    """In this process, without a server: decide, its parts, and a profile of the request thread."""
    from governance.contract import Call
    from governance.process import signer
    from governance.verification import authenticate, judge, to_entry
    from tools import credentials

    credential = credentials.read(f"Bearer {world.key}")
    snapshot, backend = authenticate(credential)
    call = Call(token=token(), tool="memory.recall")
    judge(snapshot, backend, call)  # the token is seen
    private = signer("WRITER_KEY", "writer").private
    decide = best(lambda: judge(snapshot, backend, call))
    sign = best(lambda: private.sign(b"x" * 90))
    print("deciding alone (warm snapshot, token seen before) against one Ed25519 signature (target <= 1)")
    print(f"{decide:>9.1f} us against {sign:.1f} us: {decide / sign:.2f}\n")
    verdict = judge(snapshot, backend, call)
    print("where the time of one verify goes (microseconds, one thread, no load)")
    print(f"{'read the backend key':>34} {best(lambda: credentials.read(f'Bearer {world.key}')):>8.1f}")
    print(f"{'authenticate':>34} {best(lambda: authenticate(credential)):>8.1f}")
    print(f"{'identify and decide':>34} {decide:>8.1f}")
    print(f"{'make the entry (disclosures)':>34} {best(lambda: to_entry(verdict)):>8.1f}")
    print(f"{'whole request, recorded':>34} {best(lambda: world.verify(), times=50):>8.1f}\n")
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(300):
        world.verify()
    profile.disable()
    print("profile of 300 verify requests, the request thread alone")
    pstats.Stats(profile).sort_stats("tottime").print_stats(18)
