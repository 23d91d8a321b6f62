"""Users' keys in PostgreSQL: each caller reaches one's own alone, and who destroys it destroys what it opens."""

import base64
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from muniment.calls import calling
from muniment.encryption import PostgresKeys, Undecryptable, Vault
from muniment.isolation import as_caller, assert_protected, policy_sql
from tests.sdk.test_isolation import ALICE, BOB, ROLE, Notes, notes  # noqa: F401  # fixture

# ruff: noqa: F811
ROOT = bytes(range(32))
TABLE = "keys of 100%s"  # whatever it is called


@pytest.fixture(scope="module")
def url(notes: Notes) -> Iterator[str]:
    with psycopg.connect(notes.owner, autocommit=True) as owner:
        owner.execute(f'CREATE TABLE "{TABLE}" (uid text PRIMARY KEY, wrapped bytea NOT NULL)')
        for statement in policy_sql(TABLE):
            owner.execute(statement.encode())
        owner.execute(f'GRANT SELECT, INSERT, UPDATE, DELETE ON "{TABLE}" TO {ROLE}'.encode())
        yield notes.url
        owner.execute(f'DROP TABLE "{TABLE}"')


@pytest.fixture
def connection(url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url, autocommit=True) as found:
        for caller in (ALICE, BOB):
            with as_caller(found, caller):
                found.execute(f'DELETE FROM "{TABLE}"')
        yield found


def vault(connection: psycopg.Connection, *roots: bytes) -> Vault:
    return Vault(list(roots) or ROOT, PostgresKeys(connection, TABLE))


def test_each_callers_key_is_made_kept_wrapped_again_and_destroyed(connection: psycopg.Connection) -> None:
    assert_protected(connection, TABLE)
    connection.row_factory = dict_row  # type: ignore[assignment]
    with as_caller(connection, ALICE):
        stored = vault(connection).encrypt("usr_alice", 1, "of alice")
    with as_caller(connection, BOB):
        of_bob = vault(connection).encrypt("usr_bob", 1, "of bob")
    new = os.urandom(32)
    with as_caller(connection, ALICE):
        assert vault(connection, new, ROOT).rewrap("usr_alice")
        assert vault(connection, new).decrypt("usr_alice", 1, stored) == b"of alice"
        vault(connection, new).destroy("usr_alice")
        with pytest.raises(Undecryptable):
            vault(connection, new, ROOT).decrypt("usr_alice", 1, stored)
    with as_caller(connection, BOB):
        assert vault(connection).decrypt("usr_bob", 1, of_bob) == b"of bob"


def test_another_callers_key_is_not_reached(connection: psycopg.Connection) -> None:
    with as_caller(connection, ALICE):
        stored = vault(connection).encrypt("usr_alice", 1, "x")
    with as_caller(connection, BOB):
        with pytest.raises(Undecryptable):
            vault(connection).decrypt("usr_alice", 1, stored)
        assert not vault(connection, os.urandom(32), ROOT).rewrap("usr_alice")
        vault(connection).destroy("usr_alice")
    with pytest.raises(psycopg.errors.InsufficientPrivilege), as_caller(connection, BOB):
        vault(connection).encrypt("usr_alice", 1, "forged")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        vault(connection).encrypt("usr_alice", 1, "nobody's")
    with as_caller(connection, ALICE):
        assert vault(connection).decrypt("usr_alice", 1, stored) == b"x"


def test_a_key_is_replaced_only_where_it_is_still_the_one_that_was_read(connection: psycopg.Connection) -> None:
    with as_caller(connection, ALICE):
        keys = PostgresKeys(connection, TABLE)
        assert keys.get("usr_alice") is None and not keys.replace("usr_alice", b"old", b"new")
        assert keys.add("usr_alice", b"kept") == b"kept" == keys.add("usr_alice", b"too late")
        assert not keys.replace("usr_alice", b"old", b"new") and keys.get("usr_alice") == b"kept"
        assert keys.replace("usr_alice", b"kept", b"new") and keys.get("usr_alice") == b"new"


def test_two_who_encrypt_a_first_time_at_once_use_one_key(connection: psycopg.Connection, url: str) -> None:
    first = threading.Barrier(4)
    found: list[bytes] = []

    def work(number: int) -> None:
        with psycopg.connect(url, autocommit=True) as own:
            first.wait(30)
            with as_caller(own, ALICE):
                found.append(vault(own).encrypt("usr_alice", number, "x"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4 and len({stored[1:9] for stored in found}) == 1
    with as_caller(connection, ALICE):
        assert all(vault(connection).is_current("usr_alice", stored) for stored in found)


def test_it_goes_over_djangos_connection_too(db: None, url: str) -> None:
    from django.db import connections

    django = connections["owner"]
    with as_caller(django, ALICE):
        one = Vault(ROOT, PostgresKeys(django, TABLE))
        assert one.decrypt("usr_alice", 1, one.encrypt("usr_alice", 1, "x")) == b"x"
        one.destroy("usr_alice")


def test_the_documented_service_works(notes: Notes, superuser_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/integrations/postgresql.md").read_text()
    found: dict[str, Any] = {}
    for snippet in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S):
        exec(snippet.replace("inner_serving", ROLE), found)
    monkeypatch.setenv("MUNIMENT_ROOT_KEYS", base64.b64encode(ROOT).decode())
    found["migrate"](notes.owner)
    try:
        with psycopg.connect(notes.url) as connection:
            found["start"](connection)
            with calling(ALICE):
                id = found["capture"](connection, "the sea")
                assert found["recall"](connection) == ["the sea"]
                assert found["ids"].__wrapped__(connection) == [id]
            with calling(BOB):
                assert found["recall"](connection) == []
        with psycopg.connect(superuser_url) as thief:
            stolen = str(thief.execute("SELECT * FROM memories, user_keys").fetchall())
        assert "usr_alice" in stolen and "sea" not in stolen
    finally:
        found["guard"].close()
        with psycopg.connect(notes.owner) as owner:
            owner.execute("DROP TABLE memories, user_keys")
