"""Idempotency-Key: a retry gets the first answer, recorded once; an allow only while it still holds."""

import json
import threading
from datetime import timedelta
from typing import Any

import jwt
import pytest
import redis
from django.utils import timezone

from audit.models import Record, Subject
from clients.models import KeySet
from governance import idempotency
from tests.world import World, build, jwks, token


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


def test_of_a_user_who_came_back_after_a_sign_out_it_is_the_same_and_after_another_it_is_decided_anew(
    world: World,
) -> None:
    world.verify()
    Subject.objects.update(signed_out_at=timezone.now() - timedelta(days=3))
    first, second = call(world).json(), call(world).json()
    assert first == second and (first["decision"], decisions()) == ("allow", 2)
    Subject.objects.update(signed_out_at=timezone.now())
    assert call(world).json()["reason"] == "token_expired"


def test_a_denial_is_returned_again(world: World) -> None:
    first, second = call(world, tool="memory.capture").json(), call(world, tool="memory.capture").json()
    assert first == second
    assert first["reason"] == "not_granted"


def test_what_is_kept_names_nobody(world: World) -> None:
    key = "a-key-that-no-random-text-holds"
    answer = call(world, key=key).json()
    store: Any = idempotency.store()
    names = store.keys()
    kept = b" ".join(store.get(name) or b"" for name in names) + b" ".join(names)
    for secret in ("alice", answer["subject"]["uid"], BODY["token"], key):
        assert secret.encode() not in kept


def test_sixteen_retries_at_once_are_recorded_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "WAIT", 60.0)  # the call in flight may take its time
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


def test_an_assertion_is_signed_again_for_the_same_record(world: World) -> None:
    first, second = (call(world, assertion="https://db.example").json() for _ in range(2))
    claims = [jwt.decode(a["assertion"], options={"verify_signature": False}) for a in (first, second)]
    assert claims[0]["jti"] == claims[1]["jti"] == first["record"] == second["record"]
    assert decisions() == 1


def test_an_outage_is_not_kept(world: World) -> None:
    KeySet.objects.update(fetched_at=None, jwks=None, attempted_at=timezone.now(), finished_at=timezone.now())
    assert call(world).json()["reason"] == "issuer_unavailable"
    KeySet.objects.update(fetched_at=timezone.now(), jwks=jwks())
    assert call(world).json()["decision"] == "allow"


# What is in Redis is not believed, and not touched when it is another call's


def only_slot() -> str:
    [name] = idempotency.store().scan_iter("idem:*")
    return bytes(name).decode()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"junk",
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        b"5",
        b"[]",
        b'"text"',
        b"{}",
        b'{"body": null, "answer": null}',
        b'{"body": "\\u00e9", "answer": null}',
        b'{"body": "x"}',
        b'{"body": "x", "answer": {}}',
        b"f" * 64 + b' {"body": "x", "answer": {"decision": "allow"}}',
    ],
)
def test_a_slot_that_is_none_of_ours_is_no_slot(world: World, value: bytes) -> None:
    call(world)
    idempotency.store().set(only_slot(), value)
    response = call(world)
    assert (response.status_code, response.json()["decision"]) == (200, "allow")
    assert call(world).json() == response.json()
    assert decisions() == 2


def test_a_slot_that_is_no_string_is_no_slot(world: World) -> None:
    call(world)
    name = only_slot()
    idempotency.store().delete(name)
    idempotency.store().rpush(name, "a", "list")
    response = call(world)
    assert response.status_code == 200
    assert call(world).json() == response.json()
    assert decisions() == 2


def test_what_was_kept_for_one_key_is_no_answer_for_another(world: World) -> None:
    call(world, "k1")
    first = only_slot()
    value = idempotency.store().get(first)
    assert value
    idempotency.store().delete(first)
    call(world, "k2")
    idempotency.store().set(only_slot(), value)
    assert call(world, "k2", tool="memory.capture").status_code == 200  # not the first key's body either


def claimed(body: bytes = b"body") -> idempotency.Slot:
    slot = idempotency.claim("key", "k", body)
    assert slot is not None
    return slot


@pytest.fixture
def late(db: None) -> idempotency.Slot:
    """The slot of a call that took so long that its claim ran out."""
    slot = claimed()
    assert idempotency.store().delete(slot.name) == 1
    return slot


@pytest.mark.parametrize("act", ["keep", "release"])
def test_a_late_call_does_not_touch_the_claim_of_the_next(
    late: idempotency.Slot, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "WAIT", 0.0)
    current = claimed()
    late.keep({"decision": "late"}) if act == "keep" else late.release()
    with pytest.raises(idempotency.InFlight):
        claimed()
    current.keep({"decision": "current"})
    assert claimed().answer == {"decision": "current"}


@pytest.mark.parametrize("act", ["keep", "release"])
def test_a_late_call_does_not_touch_what_the_next_kept(late: idempotency.Slot, act: str) -> None:
    claimed().keep({"decision": "current"})
    late.keep({"decision": "late"}) if act == "keep" else late.release()
    assert claimed().answer == {"decision": "current"}


def test_a_late_call_keeps_nothing_where_nobody_claimed(late: idempotency.Slot) -> None:
    late.keep({"decision": "late"})
    assert claimed().answer is None


def test_one_of_two_that_decided_anew_keeps_its_answer(db: None) -> None:
    claimed().keep({"decision": "first"})
    one, two = claimed(), claimed()
    one.keep({"decision": "one"})
    two.keep({"decision": "two"})
    two.release()
    assert claimed().answer == {"decision": "one"}
    assert 0 < idempotency.store().ttl(one.name) <= idempotency.KEEP


def test_release_lets_the_next_be_first(db: None) -> None:
    slot = claimed()
    slot.release()
    assert claimed(b"another body").answer is None
