"""Personal data: a dump of the database names nobody, and what is protected opens only where it belongs."""

import json
import os
from base64 import b64encode
from typing import Any

import psycopg
import pytest
from cryptography.exceptions import InvalidTag
from django.conf import settings

from audit import subjects
from audit.models import DataKey, Outbox, Record, Subject
from audit.protection import KeyDestroyed, keyed_hash, keyring, protect, reveal
from muniment import disclosures, statements
from tests.live import until
from tests.world import ISSUER, World, build, token

PERSONAL = {
    "sub": "alice-4711", "email": "alice-4711@example.com", "ip": "203.0.113.77", "request": "req-5f3a-0001",
    "trace": "trace-77aa-0002", "session": "sess-12cd-0003", "resource": "diary-of-alice-0004",
    "agent": "Agent Smith/9.0 (alice's phone)", "digest": "sha256:" + "ab" * 32,
}  # fmt: skip


@pytest.fixture
def world(db: None) -> World:
    return build()


def call(world: World, **claims: Any) -> dict[str, Any]:
    """A call full of personal data."""
    return world.verify(
        token=token(sub=PERSONAL["sub"], email=PERSONAL["email"], **claims),
        resource={"type": "memory", "id": PERSONAL["resource"]},
        request={
            "id": PERSONAL["request"], "trace_id": PERSONAL["trace"], "session_id": PERSONAL["session"],
            "ip": PERSONAL["ip"], "user_agent": PERSONAL["agent"],
        },
        arguments_digest=PERSONAL["digest"],
    )  # fmt: skip


def dump(url: str) -> str:
    """Every column of every row of every table, as text; bytes as hex, and as they are."""
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT quote_ident(table_name) FROM information_schema.tables"
            " WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"
        ).fetchall()
        text = []
        for (table,) in tables:
            for (row,) in connection.execute(f"SELECT to_jsonb(t)::text FROM {table} t").fetchall():
                text.append(row)
                for value in json.loads(row).values():
                    if isinstance(value, str) and value.startswith("\\x"):
                        text.append(bytes.fromhex(value[2:]).decode("latin-1"))
    return "\n".join(text)


def test_a_dump_of_the_database_names_nobody(world: World, superuser_url: str) -> None:
    assert call(world)["decision"] == "allow"
    assert call(world, aud="https://elsewhere.example")["reason"] == "audience_mismatch"
    assert call(world, iss="https://unknown.example")["reason"] == "issuer_unknown"
    answer = call(world)
    world.post(
        f"/v1/records/{answer['record']}/outcome",
        {"status": "ok", "resources": [{"type": "memory", "id": PERSONAL["resource"]}]},
    )
    until(lambda: not Outbox.objects.filter(record_index=None).exists(), 30)
    found = dump(superuser_url)
    assert answer["subject"]["uid"] in found and "memory.recall" in found
    for name, value in PERSONAL.items():
        for form in (value, value.encode().hex(), b64encode(value.encode()).decode().rstrip("=")):
            assert form not in found, name
    assert token() not in found and world.key not in found


def test_a_record_opens_under_its_holders_key_and_matches_its_statement(world: World) -> None:
    answer = call(world)
    record = Record.objects.get(id=answer["record"])
    assert record.holder == answer["subject"]["uid"]
    packed = reveal(keyring.get(record.holder), bytes(record.disclosures), bytes(record.leaf))
    found = disclosures.unpack(packed)
    values = {one.name: one.value for one in found}
    assert values == {
        "sub": PERSONAL["sub"], "email": PERSONAL["email"], "request_id": PERSONAL["request"],
        "trace_id": PERSONAL["trace"], "session_id": PERSONAL["session"], "ip": PERSONAL["ip"],
        "user_agent": PERSONAL["agent"], "resource": {"type": "memory", "id": PERSONAL["resource"]},
        "arguments_digest": PERSONAL["digest"],
    }  # fmt: skip
    statement = statements.decode(bytes(record.statement))
    assert sorted(one.digest for one in found) == statement["_sd"]
    assert all(disclosures.matches(statement, one.text) for one in found)


def test_what_was_swapped_does_not_open(world: World) -> None:
    first, second = (Record.objects.get(id=call(world)["record"]) for _ in range(2))
    assert first.holder == second.holder
    key = keyring.get(first.holder)
    with pytest.raises(InvalidTag):  # another record's, of the same person
        reveal(key, bytes(second.disclosures), bytes(first.leaf))
    with pytest.raises(InvalidTag):
        reveal(key, bytes(first.disclosures)[:-1] + b"\0", bytes(first.leaf))
    bob = Record.objects.get(id=world.verify(token=token(sub="bob"))["record"])
    with pytest.raises(InvalidTag):
        reveal(key, bytes(bob.disclosures), bytes(bob.leaf))


def test_identifiers_do_not_open_in_another_row_or_column(world: World) -> None:
    uid, other = subjects.resolve(ISSUER, "carol", "c@example.com"), subjects.resolve(ISSUER, "dave", "d@example.com")
    carol, dave = Subject.objects.get(uid=uid), Subject.objects.get(uid=other)
    carol.sub, dave.email = dave.sub, dave.sub
    assert subjects.read(carol, "sub") is None and subjects.read(dave, "email") is None
    assert subjects.read(carol, "email") == "c@example.com"


def test_a_wrapped_key_does_not_open_for_another_holder(world: World) -> None:
    uid, other = subjects.resolve(ISSUER, "carol"), subjects.resolve(ISSUER, "dave")
    stolen = DataKey.objects.get(holder=other)
    with psycopg.connect(os.environ["DATABASE_OWNER_URL"]) as owner:
        owner.execute("UPDATE audit_datakey SET wrapped = %s WHERE holder = %s", [bytes(stolen.wrapped), uid])
    keyring.clear()
    with pytest.raises(InvalidTag):
        keyring.get(uid)


def test_a_destroyed_key_is_not_made_again(world: World) -> None:
    uid = subjects.resolve(ISSUER, "carol", "c@example.com")
    with psycopg.connect(os.environ["DATABASE_OWNER_URL"]) as owner:
        owner.execute("DELETE FROM audit_datakey WHERE holder = %s", [uid])
    subjects.clear()
    with pytest.raises(KeyDestroyed):
        keyring.get(uid)
    assert subjects.read(Subject.objects.get(uid=uid), "email") is None
    assert not DataKey.objects.filter(holder=uid).exists()


def test_keys_are_wrapped_by_a_key_outside_the_database(world: World) -> None:
    uid = subjects.resolve(ISSUER, "carol")
    wrapped = bytes(DataKey.objects.get(holder=uid).wrapped)
    assert len(wrapped) == 12 + 32 + 16
    secrets = [settings.MUNIMENT_KEYS[name] for name in ("KEY_ENCRYPTION_KEY", "PEPPER", "WRITER_KEY")]
    assert not any(secret in wrapped for secret in secrets)
    other = protect(keyring.get(uid), b"same", b"bound"), protect(keyring.get(uid), b"same", b"bound")
    assert other[0] != other[1]


def test_keyed_hashes_of_equal_values_of_different_kinds_differ() -> None:
    assert keyed_hash("email", "x") != keyed_hash("identity", "x")
    assert keyed_hash("a", "b") == keyed_hash("a", "b") and len(keyed_hash("a", "b")) == 32


def test_callers_who_were_not_established_fall_under_the_backends_day(world: World) -> None:
    record = Record.objects.get(id=call(world, aud="https://elsewhere.example")["record"])
    assert record.subject is None and record.holder == f"backend:inner:{record.at:%Y-%m-%d}"
