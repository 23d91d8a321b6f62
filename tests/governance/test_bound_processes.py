"""A proof serves one request, whichever process it comes to; all processes know the same nonces."""

import http.client
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from audit.models import Record
from clients.models import Issuer, IssuerBinding
from governance import process
from tests import live
from tests import world as worlds
from tests.clients.proving import URL, holder
from tests.reset import reset
from tests.world import World, token

ALICE = holder()
Ask = Callable[[str, str], dict[str, Any]]
ROUNDS, AT_ONCE = 6, 8


@pytest.fixture(scope="module")
def world(migrated: None) -> Iterator[World]:
    reset()
    yield worlds.build()
    process.stop_recorder()


@pytest.fixture(scope="module")
def askers(world: World) -> Iterator[list[Ask]]:
    """Ways to verify: at this process, and at another that shares nothing with it but PostgreSQL and Redis."""
    with live.web(workers=1) as [server]:
        yield [
            lambda text, proof: world.verify(**call(text, proof)),
            lambda text, proof: ask(server.port, world, text, proof),
        ]


def call(text: str, proof: str) -> dict[str, Any]:
    return {"token": text, "dpop": {"proof": proof, "method": "POST", "url": URL}}


def ask(port: int, world: World, text: str, proof: str) -> dict[str, Any]:
    body = json.dumps(call(text, proof) | {"tool": "memory.recall"})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=live.TIMEOUT)
    try:
        connection.request("POST", "/v1/verify", body, {"Authorization": f"Bearer {world.key}"})
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        assert response.status == 200, answer
        return answer
    finally:
        connection.close()


def test_of_many_at_once_at_two_processes_one_is_served(world: World, askers: list[Ask]) -> None:
    text = token(cnf={"jkt": ALICE.jkt})
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for _ in range(ROUNDS):
            proof = ALICE.proof(text)
            asked = [threads.submit(askers[n % 2], text, proof) for n in range(AT_ONCE)]
            reasons = [one.result()["reason"] for one in asked]
            assert sorted(reasons) == ["granted", *["proof_invalid"] * (AT_ONCE - 1)]
    kept = Record.objects.filter(type="decision")
    assert kept.filter(reason="granted").count() == ROUNDS
    assert kept.filter(reason="proof_invalid").count() == ROUNDS * (AT_ONCE - 1)


def test_a_proof_that_one_process_took_the_other_refuses(world: World, askers: list[Ask]) -> None:
    text = token(cnf={"jkt": ALICE.jkt})
    for first, second in (askers, reversed(askers)):
        proof = ALICE.proof(text)
        assert first(text, proof)["decision"] == "allow"
        assert second(text, proof)["reason"] == "proof_invalid"


def test_a_nonce_of_one_process_is_good_at_the_other(world: World, askers: list[Ask]) -> None:
    IssuerBinding.objects.create(issuer=Issuer.objects.get(), require="dpop", dpop_nonce=True)
    text = token(cnf={"jkt": ALICE.jkt})
    nonce = askers[0](text, ALICE.proof(text))["dpop_nonce"]
    assert askers[1](text, ALICE.proof(text, nonce=nonce))["decision"] == "allow"
