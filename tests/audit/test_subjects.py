"""Users: one uid each, found by keyed hash; blocking and signing out count on the very next call."""

import time
from base64 import urlsafe_b64decode
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, connections

from audit import subjects
from audit.models import DataKey, Outbox, Record, Subject
from audit.outbox import acting
from audit.protection import keyed_hash
from muniment import statements
from tests.audit.recorders import at_once
from tests.live import until
from tests.world import ISSUER, World, build, token


@pytest.fixture
def world(db: None) -> World:
    return build()


def change(uid: str, **values: Any) -> None:
    with acting("staff:7", "Sam Staff", "they asked"):
        Subject.objects.filter(uid=uid).update(**values)


def outcome(answer: dict[str, Any]) -> tuple[str, str]:
    return answer["decision"], answer["reason"]


def recorded(answer: dict[str, Any]) -> bool:
    return Record.objects.filter(id=answer["record"], decision=answer["decision"], reason=answer["reason"]).exists()


def test_one_user_has_one_uid_however_many_ask_first(db: None) -> None:
    def resolve() -> str:
        try:
            return subjects.resolve(ISSUER, "alice", "alice@example.com")
        finally:
            connection.close()

    for _ in range(5):
        found = at_once([resolve] * 8)
        assert len(set(found)) == 1 and found[0].startswith("usr_")
        assert Subject.objects.count() == 1
        subjects.clear()
    assert DataKey.objects.filter(holder=found[0]).count() == 1
    assert subjects.read(Subject.objects.get(), "sub") == "alice"


def test_users_are_told_apart_by_issuer_and_exact_sub(db: None) -> None:
    names = [
        (ISSUER, "alice"),
        (ISSUER, "Alice"),
        ("https://other/", "alice"),
        (ISSUER + "a", "lice"),
        (ISSUER, "alicé"),
    ]
    uids = [subjects.resolve(*name) for name in names]
    assert len(set(uids)) == len(names)
    subjects.clear()
    assert [subjects.resolve(*name) for name in names] == uids


def test_identity_and_address_are_found_by_keyed_hash(db: None) -> None:
    uid = subjects.resolve(ISSUER, "alice", "Alice@Example.com")
    row = Subject.objects.get(uid=uid)
    assert bytes(row.identity_key) == keyed_hash("identity", f"{ISSUER}\x00alice")
    assert subjects.find_by_email(" alice@EXAMPLE.com ") == [uid] == subjects.find_by_sub("alice")
    assert subjects.find_by_email("bob@example.com") == [] == subjects.find_by_sub("bob")
    subjects.resolve(ISSUER, "alice", "new@example.com")
    assert subjects.find_by_email("alice@example.com") == [] and subjects.find_by_email("new@example.com") == [uid]
    assert subjects.read(Subject.objects.get(uid=uid), "email") == "new@example.com"


def test_a_uid_is_random(db: None) -> None:
    uid = subjects.resolve(ISSUER, "alice")
    assert len(urlsafe_b64decode(uid.removeprefix("usr_"))) == 15
    Subject.objects.using("owner").all().delete()
    subjects.clear()
    assert subjects.resolve(ISSUER, "alice") != uid


def test_a_block_counts_on_the_next_call_and_is_recorded(world: World) -> None:
    first = world.verify()
    uid = first["subject"]["uid"]
    change(uid, blocked_at=datetime.now(UTC))
    blocked = world.verify()
    assert outcome(blocked) == ("deny", "subject_blocked") and blocked["status"] == 403
    assert outcome(world.verify(token=token(sub="bob"))) == ("allow", "granted")
    change(uid, blocked_at=None)
    again = world.verify()
    assert outcome(again) == ("allow", "granted")
    assert all(map(recorded, (first, blocked, again)))
    until(lambda: not Outbox.objects.filter(record_index=None).exists(), 30)
    told = [statements.decode(bytes(r.statement)) for r in Record.objects.filter(type="staff").order_by("index")]
    assert [(one["action"], one["subject"], one["actor"]) for one in told] == [
        ("subject.block", uid, "staff:7"), ("subject.unblock", uid, "staff:7"),
    ]  # fmt: skip
    assert not Outbox.objects.exclude(private=None).exists()


def test_signing_out_refuses_older_tokens_and_no_newer_ones(world: World) -> None:
    uid = world.verify()["subject"]["uid"]
    older, newer = token(iat=int(time.time()) - 60), token(iat=int(time.time()) - 1)
    assert outcome(world.verify(token=older)) == ("allow", "granted")
    change(uid, signed_out_at=datetime.now(UTC) - timedelta(seconds=30))
    refused = world.verify(token=older)
    assert refused["decision"] == "deny" and refused["status"] == 401
    assert outcome(world.verify(token=newer)) == ("allow", "granted")
    unknown = token(iat=None)  # who does not say when, may be older
    assert world.verify(token=unknown)["decision"] == "deny"
    until(lambda: Record.objects.filter(type="staff").exists(), 30)


def test_a_user_whose_row_is_gone_is_met_as_a_new_one(world: World) -> None:
    uid = world.verify()["subject"]["uid"]
    with connections["owner"].cursor() as cursor:
        cursor.execute("UPDATE audit_subject SET identity_key = NULL, erased_at = now() WHERE uid = %s", [uid])
    answer = world.verify()
    assert answer["decision"] == "allow" and answer["subject"]["uid"] != uid


def test_a_block_while_calls_are_under_way_lets_none_through_afterwards(world: World) -> None:
    uid = world.verify()["subject"]["uid"]
    asked = token()
    ended: list[float] = []
    answers: list[tuple[float, str]] = []
    deadline = time.monotonic() + 60

    def call() -> None:
        while time.monotonic() < deadline:
            if sum(started > ended[0] for started, _ in answers) > 5 if ended else False:
                break
            started = time.monotonic()
            answers.append((started, world.verify(token=asked)["decision"]))
        connection.close()

    def block() -> None:
        until(lambda: len(answers) > 20, 30)
        change(uid, blocked_at=datetime.now(UTC))
        ended.append(time.monotonic())
        connection.close()

    assert at_once([call, call, call, block]) == [None] * 4
    after = [decision for started, decision in answers if started > ended[0]]
    assert set(after) == {"deny"} and "allow" in {decision for _, decision in answers}
