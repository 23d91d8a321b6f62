"""What DPoP costs: verify with tokens that are bound to a key, known already and each time with a new proof, against
bearer tokens; and a proof's own cost."""

import json
from typing import Any

from bench import platform, verifying
from bench.deciding import best
from tests.clients.proving import URL, Holder, holder
from tests.world import World, token

CONNECTIONS = 16
SPARE = 2  # proofs made for each request that is expected: none may be sent twice


def measure(world: World, seconds: float) -> None:
    """Rates at 16 connections, bearer tokens and bound ones taking turns; the web processes run."""
    from audit.models import Record

    bearer, who = verifying.requests(world), holder()
    tokens = [token(sub=f"user-{number}", cnf={"jkt": who.jkt}) for number in range(platform.USERS)]
    platform.load(verifying.batches(world, _proved(world, tokens, who, 10 * platform.USERS)), 4, 3.0)
    platform.load(bearer, CONNECTIONS, 1.0)
    print(f"verify with DPoP (tokens known, each proof new), {CONNECTIONS} connections, against bearer tokens")
    print(f"{'tokens':>12} {'verify/s':>9} {'ratio':>6} {'p50 ms':>8} {'p99 ms':>8}")
    plain = platform.load(bearer, CONNECTIONS, seconds)
    bound = _proved(world, tokens, who, int(plain["rate"] * seconds * SPARE))
    before = Record.objects.filter(type="decision", reason="proof_invalid").count()
    proved = platform.load(bound, CONNECTIONS, seconds)
    for name, found in (("bearer", plain), ("DPoP", proved)):
        line = f"{name:>12} {found['rate']:>9.0f} {found['rate'] / plain['rate']:>6.2f}"
        print(f"{line} {found['p50']:>8.1f} {found['p99']:>8.1f}")
    refused = Record.objects.filter(type="decision", reason="proof_invalid").count() - before
    print(f"{refused} of {proved['requests']} refused\n")


def _proved(world: World, tokens: list[str], who: Holder, number: int) -> list[dict[str, Any]]:
    """So many verify requests, with a new proof each."""
    found = []
    for turn in range(number):
        text = tokens[turn % len(tokens)]
        dpop = {"proof": who.proof(text), "method": "POST", "url": URL}
        call = {"token": text, "tool": "memory.recall", "dpop": dpop}
        found.append({"path": "/v1/verify", "key": world.key, "body": json.dumps(call)})
    return found


def alone(world: World) -> None:
    """In this process: looking at a proof, by its algorithm, and using proofs up, which is one exchange with Redis."""
    import time

    from clients import replays
    from clients.dpop import Asked, Proof, check

    text, now = "a token", time.time()
    print("a DPoP proof, microseconds")
    for algorithm in ("ES256", "EdDSA", "RS256"):
        who = holder(algorithm)
        proof, asked = who.proof(text), Asked("POST", URL, text, who.jkt, 60)
        print(f"{algorithm + ', looked at':>22} {best(lambda p=proof, a=asked: check(p, a, now)):>8.1f}")  # type: ignore[misc]
    for number in (1, 100):
        proofs = [(Proof(f"bench {one}", now + 60), replays.request_name()) for one in range(number)]
        print(f"{f'{number} used up':>22} {best(lambda p=proofs: replays.use(p, now), 100, 5):>8.1f}")  # type: ignore[misc]
    print()
