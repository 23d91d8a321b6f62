"""Idempotency-Key: a retry gets the first answer, recorded once; an allow only while it still holds."""

import json
import threading
from typing import Any

import pytest
import redis

from audit.models import Record, Subject
from governance import idempotency
from tests.world import World, build, token


@pytest.fixture
def world(db: None) -> World:
    return build()


def call(world: World, key: str = "k1", **members: Any) -> Any:
    body = {"token": BODY["token"], "tool": "memory.recall"} | members
    return world.post("/v1/verify", body, **{"Idempotency-Key": key})


BODY: dict[str, str] = {}


@pytest.fixture(autouse=True)
def one_token() -> None:
    BODY["token"] = token()


def decisions() -> int:
    return Record.objects.filter(type="decision").count()


def test_a_retry_gets_the_same_answer_and_one_record(world: World) -> None:
    first, second = call(world).json(), call(world).json()
    assert first == second
    assert decisions() == 1


def test_the_same_key_with_another_body_is_a_422(world: World) -> None:
    call(world)
    assert call(world, tool="memory.capture").status_code == 422
    assert decisions() == 1


def test_another_backend_key_has_keys_of_its_own(world: World) -> None:
    from tools.credentials import issue

    first = call(world).json()
    world.key = issue(world.backend)
    assert call(world).json()["record"] != first["record"]


def test_an_allow_is_decided_anew_when_the_policy_moved(world: World) -> None:
    assert call(world).json()["decision"] == "allow"
    world.grant.delete()
    assert call(world).json()["reason"] == "not_granted"


def test_an_allow_is_decided_anew_when_the_user_was_blocked(world: World) -> None:
    from django.utils import timezone

    assert call(world).json()["decision"] == "allow"
    Subject.objects.update(blocked_at=timezone.now())
    assert call(world).json()["reason"] == "subject_blocked"


def test_a_denial_is_returned_again(world: World) -> None:
    first, second = call(world, tool="memory.capture").json(), call(world, tool="memory.capture").json()
    assert first == second
    assert first["reason"] == "not_granted"


def test_what_is_kept_names_nobody(world: World) -> None:
    answer = call(world).json()
    store = idempotency.store()
    names = store.keys()
    kept = b" ".join(store.get(name) or b"" for name in names) + b" ".join(names)
    for secret in ("alice", answer["subject"]["uid"], BODY["token"], "k1"):
        assert secret.encode() not in kept


def test_sixteen_retries_at_once_are_recorded_once(world: World) -> None:
    world.verify()
    before, answers = decisions(), []

    def retry() -> None:
        from django.db import connection

        answers.append(call(world).json())
        connection.close()

    threads = [threading.Thread(target=retry) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({json.dumps(answer, sort_keys=True) for answer in answers}) == 1
    assert decisions() == before + 1


def test_without_redis_calls_are_decided_as_if_without_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = redis.Redis(host="127.0.0.1", port=9, socket_connect_timeout=0.2)
    monkeypatch.setattr(idempotency, "store", lambda: nowhere)
    assert call(world).json()["decision"] == "allow"
    assert call(world).json()["decision"] == "allow"
    assert decisions() == 2


@pytest.mark.parametrize("key", ["x" * 256, "a\x7fb"])
def test_a_key_that_is_not_printable_or_too_long_is_a_400(world: World, key: str) -> None:
    assert call(world, key=key).status_code == 400
