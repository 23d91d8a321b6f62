"""POST /v1/verify?wait=sealed: the proof comes with the answer, or null does; nothing else of the answer changes."""

import base64
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Barrier, BoundedSemaphore, Event, Thread
from typing import Any
from uuid import UUID

import psycopg
import pytest
from django.db import connection

from audit.models import Record
from governance import waiting
from muniment import proofs
from tests.audit.recorders import at_once
from tests.audit.trees import HandSealed
from tests.world import World, build, token


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second is what nobody waits longer than."""
    monkeypatch.setattr(waiting, "LONGEST", 0.5)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For those whose record is sealed, however slow this machine is."""
    monkeypatch.setattr(waiting, "LONGEST", 30.0)


def call(**more: str) -> dict[str, Any]:
    """What is sent, with a token of now: one that was made when this was imported may have ended by then."""
    return {"token": token(), "tool": "memory.recall"} | more


@contextmanager
def sealing(sealed: HandSealed) -> Iterator[None]:
    """Seals what is new, all the time."""
    stop = Event()

    def work() -> None:
        try:
            while not stop.wait(0.05):
                if Record.objects.filter(index__gte=sealed.start + sealed.builder.size).exists():
                    sealed.seal()
        finally:
            connection.close()

    thread = Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


def ask(world: World, given: dict[str, Any], wait: str = "sealed", **headers: str) -> dict[str, Any]:
    response = world.post(f"/v1/verify?wait={wait}", given, **headers)
    assert response.status_code == 200, response.content
    found: dict[str, Any] = response.json()
    return found


def proves(answer: dict[str, Any], sealed: HandSealed) -> bool:
    """Whether the proof is of the very record that the receipt names."""
    leaf = base64.b64decode(answer["receipt"]["leaf"])
    checkpoint = proofs.verify(proofs.Proof.parse(answer["tlog_proof"]), leaf, [sealed.key])
    return checkpoint.size > answer["receipt"]["index"] - sealed.start


def test_the_answer_comes_with_the_proof_once_the_record_is_sealed(world: World, patient: None) -> None:
    with sealing(sealed := HandSealed()):
        answer = ask(world, call())
    assert (answer["decision"], answer["status"]) == ("allow", 200)
    assert proves(answer, sealed)


def test_a_denial_is_proven_as_well(world: World, patient: None) -> None:
    with sealing(sealed := HandSealed()):
        answer = ask(world, call(tool="memory.capture"))
    assert answer["decision"] == "deny"
    assert proves(answer, sealed)


def test_what_is_not_sealed_in_time_is_answered_with_null(world: World, impatient: None) -> None:
    plain = world.verify()
    HandSealed().seal()
    started = time.monotonic()
    answer = ask(world, call())
    assert 0.5 <= time.monotonic() - started < 5
    assert answer["tlog_proof"] is None
    assert answer["decision"] == plain["decision"]
    assert set(answer) == {*plain, "tlog_proof"}


def test_without_the_parameter_there_is_no_proof(world: World) -> None:
    assert "tlog_proof" not in world.verify()
    assert "tlog_proof" not in world.post("/v1/verify?other=1", call()).json()


@pytest.mark.parametrize("query", ["wait=", "wait=1", "wait=Sealed", "wait=sealed%00", "wait=sealed&wait=sealed"])
def test_another_value_is_a_400_that_names_it_and_records_nothing(world: World, query: str) -> None:
    response = world.post(f"/v1/verify?{query}", call())
    assert (response.status_code, response.json()["type"]) == (400, "urn:muniment:problem:invalid-parameter")
    assert "`wait`" in response.json()["detail"]
    assert not Record.objects.filter(type="decision").exists()


def test_far_too_many_parameters_are_a_400(world: World) -> None:
    response = world.post("/v1/verify?" + "&".join(f"p{number}=" for number in range(1100)), call())
    assert (response.status_code, response.headers["Content-Type"]) == (400, "application/problem+json")


@pytest.mark.parametrize("query", ["wait=sealed", "wait=1"])
def test_a_batch_does_not_wait(world: World, query: str) -> None:
    response = world.post(f"/v1/verify/batch?{query}", {"items": [call()]})
    assert response.status_code == 400
    assert "`wait`" in response.json()["detail"]
    assert not Record.objects.filter(type="decision").exists()


def test_a_wrong_key_is_told_before_a_wrong_parameter(world: World) -> None:
    assert world.post("/v1/verify?wait=1", call(), key="mk_x").status_code == 401


def test_a_retry_gets_the_first_answer_with_its_proof_though_none_was_kept(world: World, impatient: None) -> None:
    sealed, given, key = HandSealed(), call(), {"Idempotency-Key": "k1"}
    first = ask(world, given, "sealed", **key)
    assert first["tlog_proof"] is None
    sealed.seal()
    again = ask(world, given, "sealed", **key)
    assert again["record"] == first["record"]
    assert proves(again, sealed)
    assert "tlog_proof" not in world.post("/v1/verify", given, **key).json()
    assert Record.objects.filter(type="decision").count() == 1


def test_only_so_many_wait_at_once_and_the_others_are_answered(
    world: World, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_asked, looks, look = Barrier(5), Counter[UUID](), waiting._proof

    class Seats(BoundedSemaphore):
        def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
            taken = super().acquire(blocking, timeout)
            all_asked.wait(30)  # nobody gets up before that
            return taken

    def counted(record: Record) -> str | None:
        looks[record.id] += 1
        return look(record)

    monkeypatch.setattr(waiting, "seats", seats := Seats(2))
    monkeypatch.setattr(waiting, "_proof", counted)
    HandSealed()
    world.verify()

    def one() -> str | None:
        try:
            proof: str | None = ask(world, call())["tlog_proof"]
            return proof
        finally:
            connection.close()

    assert at_once([one] * 5) == [None] * 5
    assert [count > 1 for count in sorted(looks.values())] == [False, False, False, True, True]
    assert BoundedSemaphore.acquire(seats, blocking=False)  # a seat is given back


def test_a_sealed_log_that_cannot_be_read_changes_no_answer(world: World, superuser_url: str) -> None:
    sealed = HandSealed()
    world.verify()
    sealed.seal()
    with psycopg.connect(superuser_url, autocommit=True) as superuser:
        superuser.execute("ALTER TABLE audit_checkpoint RENAME TO audit_checkpoint_away")
        try:
            answer = ask(world, call())
        finally:
            superuser.execute("ALTER TABLE audit_checkpoint_away RENAME TO audit_checkpoint")
    assert (answer["decision"], answer["tlog_proof"]) == ("allow", None)
