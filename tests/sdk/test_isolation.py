"""One user's rows are not shown to another, on one connection or on many, whatever goes wrong; on PostgreSQL."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from muniment import Misconfigured
from muniment.calls import Caller, calling
from muniment.isolation import OtherCaller, as_caller, assert_protected, policy_sql

ROLE = "isolation_test"


@dataclass
class Notes:
    """A table of notes in a database with row-level security: the URLs of its owner and of a role that is bound."""

    owner: str
    url: str


def who(uid: str) -> Caller:
    return Caller(uid, "i", "s", None, None, (), "claude", "Claude", "notes.read", (), "r")


ALICE, BOB = who("usr_alice"), who("usr_bob")


@pytest.fixture(scope="module")
def notes(superuser_url: str, owner_url: str) -> Iterator[Notes]:
    with psycopg.connect(superuser_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x' NOBYPASSRLS").format(sql.Identifier(ROLE)))
        connection.execute(f"GRANT CONNECT ON DATABASE {urlsplit(owner_url).path[1:]} TO {ROLE}")
    with psycopg.connect(owner_url, autocommit=True) as connection:
        connection.execute('CREATE TABLE "my notes" (id serial PRIMARY KEY, "the owner" text NOT NULL, words text)')
        for statement in policy_sql("my notes", "the owner") * 2:
            connection.execute(statement)
        connection.execute(f'GRANT ALL ON "my notes" TO {ROLE}; GRANT ALL ON SEQUENCE "my notes_id_seq" TO {ROLE}')
    parts = urlsplit(owner_url)
    try:
        yield Notes(owner_url, urlunsplit(parts._replace(netloc=f"{ROLE}:x@")))
    finally:
        with psycopg.connect(owner_url, autocommit=True) as connection:
            connection.execute('DROP TABLE "my notes"')
        with psycopg.connect(superuser_url, autocommit=True) as connection:
            connection.execute(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")


@pytest.fixture
def connection(notes: Notes) -> Iterator[psycopg.Connection]:
    with psycopg.connect(notes.url, autocommit=True) as found:
        for caller in (ALICE, BOB):
            with as_caller(found, caller):
                found.execute('DELETE FROM "my notes"')
                found.execute('INSERT INTO "my notes" (words) VALUES (%s)', (f"of {caller.uid}",))
        yield found


def seen(connection: psycopg.Connection) -> list[str]:
    return sorted(row[0] for row in connection.execute('SELECT words FROM "my notes"'))


def test_each_caller_sees_their_own_rows_on_one_connection(connection: psycopg.Connection) -> None:
    for caller in (ALICE, BOB, ALICE):  # as a pooler hands it from one to the other
        with as_caller(connection, caller):
            assert seen(connection) == [f"of {caller.uid}"]
        assert seen(connection) == []


def test_the_caller_of_a_denial_is_nobody_also_within_a_tool_of_another(connection: psycopg.Connection) -> None:
    with calling(ALICE), as_caller(connection, None):
        assert seen(connection) == []


def test_the_caller_of_the_tool_that_runs_is_taken(connection: psycopg.Connection) -> None:
    with calling(BOB), as_caller(connection):
        assert seen(connection) == ["of usr_bob"]


def test_no_caller_means_no_rows_and_no_writing(connection: psycopg.Connection) -> None:
    with as_caller(connection):
        assert seen(connection) == []
        assert connection.execute('DELETE FROM "my notes"').rowcount == 0
    with pytest.raises(psycopg.Error), as_caller(connection):
        connection.execute("INSERT INTO \"my notes\" (words) VALUES ('nobody''s')")
    assert seen(connection) == []


def test_a_setting_that_the_session_made_for_itself_counts_for_nothing(connection: psycopg.Connection) -> None:
    connection.execute("SET muniment.uid = 'usr_alice'")
    with as_caller(connection):
        assert seen(connection) == []
    with as_caller(connection, BOB):
        assert seen(connection) == ["of usr_bob"]
    with connection.transaction(), pytest.raises(OtherCaller), as_caller(connection, BOB):
        pass


def test_another_users_rows_cannot_be_written(connection: psycopg.Connection) -> None:
    with as_caller(connection, BOB):
        assert connection.execute("UPDATE \"my notes\" SET words = 'mine'").rowcount == 1
        assert connection.execute('DELETE FROM "my notes" WHERE "the owner" = \'usr_alice\'').rowcount == 0
    for statement in (
        "INSERT INTO \"my notes\" (\"the owner\", words) VALUES ('usr_alice', 'forged')",
        'UPDATE "my notes" SET "the owner" = \'usr_alice\'',
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), as_caller(connection, BOB):
            connection.execute(statement)
    with as_caller(connection, ALICE):
        assert seen(connection) == ["of usr_alice"]


def test_after_an_error_nothing_is_left_of_the_caller(connection: psycopg.Connection) -> None:
    with pytest.raises(ZeroDivisionError), as_caller(connection, ALICE):
        connection.execute('DELETE FROM "my notes"')
        raise ZeroDivisionError
    assert seen(connection) == []
    with as_caller(connection, ALICE):
        assert seen(connection) == ["of usr_alice"]


def test_within_itself_it_is_a_savepoint_and_another_caller_is_refused(connection: psycopg.Connection) -> None:
    with as_caller(connection, ALICE):
        with pytest.raises(ZeroDivisionError), as_caller(connection, ALICE):
            raise ZeroDivisionError
        assert seen(connection) == ["of usr_alice"]
        with pytest.raises(OtherCaller), as_caller(connection, BOB):
            pass
        with pytest.raises(OtherCaller), as_caller(connection):
            pass
        assert seen(connection) == ["of usr_alice"]


def test_in_a_transaction_that_was_open_already_nothing_stays_after_it(notes: Notes) -> None:
    with psycopg.connect(notes.url) as connection:  # no autocommit: the first statement opens one
        assert seen(connection) == []
        with as_caller(connection, ALICE):
            assert seen(connection) == ["of usr_alice"]
        assert seen(connection) == []


@pytest.mark.parametrize("uid", ["' OR true --", "usr_alice' OR '1'='1", "\\", "%s", "usr_alice\n", "ü"])
def test_a_hostile_uid_is_a_name_like_any_other(connection: psycopg.Connection, uid: str) -> None:
    with as_caller(connection, who(uid)):
        assert seen(connection) == []


def test_a_uid_with_a_nul_is_refused(connection: psycopg.Connection) -> None:
    with pytest.raises(ValueError, match="NUL"):
        as_caller(connection, who("usr\x00"))


def test_async_connections_are_isolated_too(connection: psycopg.Connection, notes: Notes) -> None:
    async def words(found: psycopg.AsyncConnection) -> list[str]:
        cursor = await found.execute('SELECT words FROM "my notes"')
        return [row[0] for row in await cursor.fetchall()]

    async def both() -> None:
        async with await psycopg.AsyncConnection.connect(notes.url, autocommit=True) as found:
            for caller in (ALICE, BOB):
                async with as_caller(found, caller):
                    assert await words(found) == [f"of {caller.uid}"]
                assert await words(found) == []
            with pytest.raises(OtherCaller):
                async with as_caller(found, ALICE), as_caller(found, BOB):
                    pass
            assert await words(found) == []

    asyncio.run(both())


def test_djangos_connection_is_isolated_too(db: None, connection: psycopg.Connection) -> None:
    from django.db import connection as django

    with as_caller(django, ALICE), django.cursor() as cursor:
        cursor.execute("SELECT current_setting('muniment.uid')")
        assert cursor.fetchone() == ("usr_alice",)
        with pytest.raises(OtherCaller), as_caller(django, BOB):
            pass
    with django.cursor() as cursor:
        cursor.execute("SELECT current_setting('muniment.uid', true)")
        assert cursor.fetchone()[0] in ("", None)


def test_a_policy_that_is_more_generous_does_not_open_the_table(connection: psycopg.Connection, notes: Notes) -> None:
    with psycopg.connect(notes.owner, autocommit=True) as owner:
        owner.execute('CREATE POLICY everybody ON "my notes" USING (true)')
        try:
            with as_caller(connection, BOB):
                assert seen(connection) == ["of usr_bob"]
        finally:
            owner.execute('DROP POLICY everybody ON "my notes"')


def test_a_role_that_is_not_bound_is_told_at_start(notes: Notes, superuser_url: str) -> None:
    with psycopg.connect(notes.url) as bound, psycopg.connect(notes.owner) as owner:
        assert_protected(bound, "my notes")
        assert_protected(owner, "my notes")  # forced: the owner is bound too
        with pytest.raises(Misconfigured, match="not on"):
            assert_protected(bound, "audit_head")
    with psycopg.connect(superuser_url) as superuser, pytest.raises(Misconfigured, match="bypasses"):
        assert_protected(superuser, "my notes")


@pytest.mark.parametrize("name", ["", "a.", "a\x00", "a.b.c.d"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        policy_sql(name)


def test_names_are_quoted() -> None:
    assert policy_sql('x"; DROP TABLE y; --')[0] == 'ALTER TABLE "x""; DROP TABLE y; --" ENABLE ROW LEVEL SECURITY'
