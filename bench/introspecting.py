"""What introspection costs: verify with opaque tokens whose answers are kept, against JWTs; and one question."""

import hashlib
import json
from typing import Any

from bench import platform, verifying
from bench.deciding import best
from tests.world import World, token

CONNECTIONS = 16


def measure(world: World, seconds: float) -> None:
    """Rates at 16 connections, JWTs and opaque tokens taking turns; the web processes run. The authorization server is
    one of this process."""
    from clients.models import Introspection, OAuthClientId
    from tests.clients.introspecting import active, introspecting, register

    jwts = verifying.requests(world)
    tokens = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(platform.USERS)]
    with introspecting() as server:
        server.tokens = {one: active(sub=f"user-{number}", exp=None) for number, one in enumerate(tokens)}
        issuer = register(server, cache_seconds=600)
        OAuthClientId.objects.create(client=world.client, issuer=issuer, oauth_id="claude-app")
        opaque = [request | {"body": _with(request, one)} for request, one in zip(jwts, tokens, strict=True)]
        platform.load(verifying.batches(world, opaque), 4, 12.0)  # each process has asked about each token
        platform.load(verifying.batches(world, jwts), 4, 6.0)
        asked = len(server.forms)
        print(f"verify with opaque tokens whose answers are kept, {CONNECTIONS} connections, against JWTs")
        print(f"{'tokens':>12} {'verify/s':>9} {'ratio':>6} {'p50 ms':>8} {'p99 ms':>8}")
        rates: dict[str, float] = {}
        for name, requests in (("JWT", jwts), ("opaque", opaque)):
            found = platform.load(requests, CONNECTIONS, seconds)
            rates[name] = found["rate"]
            line = f"{name:>12} {found['rate']:>9.0f} {found['rate'] / rates['JWT']:>6.2f}"
            print(f"{line} {found['p50']:>8.1f} {found['p99']:>8.1f}")
        print(f"{asked} questions to warm up, {len(server.forms) - asked} meanwhile\n")
        Introspection.objects.all().delete()


def alone(world: World) -> None:
    """In this process: deciding with a token that was seen, with one whose answer is kept while the policy moves on,
    and with one that must be asked about."""
    from clients.introspected import desk
    from clients.models import Introspection, OAuthClientId
    from governance.contract import Call
    from governance.snapshot import snapshots
    from governance.verification import authenticate, judge
    from tests.clients.introspecting import active, introspecting, register
    from tools import credentials

    with introspecting(opaque=active()) as server:
        issuer = register(server, cache_seconds=600)
        OAuthClientId.objects.create(client=world.client, issuer=issuer, oauth_id="claude-app")
        snapshots.at_head()
        snapshot, backend = authenticate(credentials.read(f"Bearer {world.key}"))
        jwt, opaque = (Call(token=one, tool="memory.recall") for one in (token(), "opaque"))

        def decide(call: Call, again: bool = False, ask: bool = False) -> float:
            def once() -> None:
                if again:
                    snapshot.tokens.clear()
                if ask:
                    desk.clear()
                judge(snapshot, backend, call)

            once()
            return best(once, times=50 if ask else 500, rounds=5)

        print("deciding alone, microseconds")
        print(f"{'JWT, seen':>34} {decide(jwt):>8.1f}")
        print(f"{'opaque, seen':>34} {decide(opaque):>8.1f}")
        print(f"{'JWT, under a new policy':>34} {decide(jwt, again=True):>8.1f}")
        print(f"{'opaque, under a new policy':>34} {decide(opaque, again=True):>8.1f}")
        print(f"{'opaque, asked about':>34} {decide(opaque, again=True, ask=True):>8.1f}\n")
        Introspection.objects.all().delete()


def _with(request: dict[str, Any], text: str) -> str:
    return json.dumps(json.loads(request["body"]) | {"token": text})
