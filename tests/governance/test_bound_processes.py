"""A proof serves one request, whichever process it comes to; all processes know the same nonces."""

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from audit.models import Record
from clients.models import Issuer, IssuerBinding
from tests import live
from tests import world as worlds
from tests.clients.proving import URL, holder
from tests.reset import reset
from tests.world import World, token

ALICE = holder()
ROUNDS, AT_ONCE = 6, 8


@pytest.fixture(scope="module")
def world(migrated: None) -> Iterator[World]:
    reset()
    yield worlds.build()


@pytest.fixture(scope="module")
def ports(world: World) -> Iterator[list[int]]:
    """Two web processes that share nothing but PostgreSQL and Redis."""
    with live.web(servers=2, workers=1) as servers:
        yield [server.port for server in servers]


def ask(port: int, world: World, text: str, proof: str) -> dict[str, Any]:
    dpop = {"proof": proof, "method": "POST", "url": URL}
    body = json.dumps({"token": text, "tool": "memory.recall", "dpop": dpop})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=live.TIMEOUT)
    try:
        connection.request("POST", "/v1/verify", body, {"Authorization": f"Bearer {world.key}"})
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        assert response.status == 200, answer
        return answer
    finally:
        connection.close()


def test_of_many_at_once_at_two_processes_one_is_served(world: World, ports: list[int]) -> None:
    text = token(cnf={"jkt": ALICE.jkt})
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for _ in range(ROUNDS):
            proof = ALICE.proof(text)
            asked = [threads.submit(ask, ports[n % 2], world, text, proof) for n in range(AT_ONCE)]
            reasons = [one.result()["reason"] for one in asked]
            assert sorted(reasons) == ["granted", *["proof_invalid"] * (AT_ONCE - 1)]
    kept = Record.objects.filter(type="decision")
    assert kept.filter(reason="granted").count() == ROUNDS
    assert kept.filter(reason="proof_invalid").count() == ROUNDS * (AT_ONCE - 1)


def test_a_proof_that_one_process_took_the_other_refuses(world: World, ports: list[int]) -> None:
    text = token(cnf={"jkt": ALICE.jkt})
    for first, second in (ports, reversed(ports)):
        proof = ALICE.proof(text)
        assert ask(first, world, text, proof)["decision"] == "allow"
        assert ask(second, world, text, proof)["reason"] == "proof_invalid"


def test_a_nonce_of_one_process_is_good_at_the_other(world: World, ports: list[int]) -> None:
    IssuerBinding.objects.create(issuer=Issuer.objects.get(), require="dpop", dpop_nonce=True)
    text = token(cnf={"jkt": ALICE.jkt})
    nonce = ask(ports[0], world, text, ALICE.proof(text))["dpop_nonce"]
    assert ask(ports[1], world, text, ALICE.proof(text, nonce=nonce))["decision"] == "allow"
