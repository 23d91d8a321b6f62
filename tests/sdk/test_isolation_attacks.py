"""Row-level security by caller holds against what goes wrong around it: failed statements, threads, cancelled tasks,
pools, odd cursors, roles that are not bound, tables that are open at another side."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import class_row, dict_row, namedtuple_row, scalar_row
from psycopg_pool import ConnectionPool

from muniment import Misconfigured, Muniment
from muniment.assertion import AssertedCaller
from muniment.calls import calling
from muniment.isolation import OtherCaller, as_caller, assert_protected, policy_sql
from tests.sdk.test_isolation import ALICE, BOB, ROLE, Notes, connection, notes, seen  # noqa: F401  # fixtures

# ruff: noqa: F811
TABLE = '"my notes"'


def uid_of(connection: psycopg.Connection) -> str:
    row = connection.execute("SELECT coalesce(current_setting('muniment.uid', true), '')").fetchone()
    assert row is not None
    return str(row[0])


class TestAfterAFailedStatement:
    def test_that_was_swallowed_the_block_fails_and_the_connection_serves_on(
        self, connection: psycopg.Connection
    ) -> None:
        with pytest.raises(psycopg.errors.InFailedSqlTransaction), as_caller(connection, ALICE):
            connection.execute(f"UPDATE {TABLE} SET words = 'lost'")
            with pytest.raises(psycopg.errors.DivisionByZero):
                connection.execute("SELECT 1 / 0")
        with as_caller(connection, ALICE):
            assert seen(connection) == ["of usr_alice"]
        assert uid_of(connection) == "" and connection.info.transaction_status.name == "IDLE"

    def test_in_a_savepoint_the_transaction_goes_on_as_it_was(self, connection: psycopg.Connection) -> None:
        with connection.transaction():
            failed, swallowed = psycopg.errors.InFailedSqlTransaction, pytest.raises(psycopg.errors.DivisionByZero)
            with pytest.raises(failed), as_caller(connection, ALICE), swallowed:
                connection.execute("SELECT 1 / 0")
            assert uid_of(connection) == "" and seen(connection) == []
            with as_caller(connection, BOB):
                assert seen(connection) == ["of usr_bob"]

    def test_a_transaction_that_failed_before_is_not_entered(self, notes: Notes) -> None:
        with psycopg.connect(notes.url) as connection:
            with pytest.raises(psycopg.errors.DivisionByZero):
                connection.execute("SELECT 1 / 0")
            with pytest.raises(psycopg.errors.InFailedSqlTransaction), as_caller(connection, ALICE):
                pass
            connection.rollback()
            with as_caller(connection, ALICE):
                assert uid_of(connection) == "usr_alice"

    def test_async_connections_end_as_the_others_do(self, notes: Notes) -> None:
        async def ends() -> None:
            async with await psycopg.AsyncConnection.connect(notes.url) as found:

                async def uid() -> tuple[str] | None:
                    return await (await found.execute("SELECT current_setting('muniment.uid', true)")).fetchone()

                assert await uid() in ((None,), ("",))  # opens a transaction
                async with as_caller(found, ALICE):
                    assert await uid() == ("usr_alice",)
                assert await uid() == ("",)
                await found.commit()
                with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                    async with as_caller(found, ALICE):
                        with pytest.raises(psycopg.errors.DivisionByZero):
                            await found.execute("SELECT 1 / 0")
                assert found.info.transaction_status.name == "IDLE"

        asyncio.run(ends())

    def test_a_lost_connection_is_an_error_of_the_database(self, notes: Notes) -> None:
        with psycopg.connect(notes.url, autocommit=True) as lost:
            with pytest.raises(psycopg.OperationalError), as_caller(lost, ALICE):
                lost.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            with pytest.raises(psycopg.OperationalError), as_caller(lost, ALICE):
                pass


class TestOneConnectionForMany:
    def test_alternating_callers_are_told_apart_with_prepared_statements(self, connection: psycopg.Connection) -> None:
        connection.prepare_threshold = 0
        for caller in (ALICE, BOB) * 10:
            with as_caller(connection, caller):
                assert seen(connection) == [f"of {caller.uid}"]

    def test_a_pool_hands_nobody_on(self, connection: psycopg.Connection, notes: Notes) -> None:
        wrong: list[object] = []
        with ConnectionPool(notes.url, min_size=2, max_size=2, open=True) as pool:

            def work(number: int) -> None:
                for turn in range(25):
                    caller = (ALICE, BOB)[(number + turn) % 2]
                    with pool.connection() as one:
                        before = seen(one)
                    with pool.connection() as one, as_caller(one, caller):
                        found = seen(one)
                    if before or found != [f"of {caller.uid}"]:
                        wrong.append((before, found))

            threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
                assert not thread.is_alive()
        assert wrong == []

    def test_threads_that_share_one_are_never_each_other(self, connection: psycopg.Connection) -> None:
        """Sharing is a mistake, but one that must show: the second caller is refused, and the first keeps their own."""
        inside, told = threading.Event(), threading.Event()
        found: list[list[str]] = []

        def first() -> None:
            with as_caller(connection, ALICE):
                inside.set()
                told.wait(10)
                found.append(seen(connection))

        thread = threading.Thread(target=first)
        thread.start()
        try:
            assert inside.wait(10)
            with pytest.raises(OtherCaller), as_caller(connection, BOB):
                pass
        finally:
            told.set()
            thread.join(10)
        assert found == [["of usr_alice"]] and uid_of(connection) == ""

    def test_tasks_that_share_one_are_never_each_other(self, connection: psycopg.Connection, notes: Notes) -> None:
        async def both() -> None:
            async with await psycopg.AsyncConnection.connect(notes.url, autocommit=True) as shared:
                inside, told = asyncio.Event(), asyncio.Event()

                async def first() -> str:
                    async with as_caller(shared, ALICE):
                        inside.set()
                        await told.wait()
                        cursor = await shared.execute(f"SELECT words FROM {TABLE}")
                        return str(await cursor.fetchall())

                running = asyncio.create_task(first())
                await asyncio.wait_for(inside.wait(), 10)
                with pytest.raises(OtherCaller):
                    async with as_caller(shared, BOB):
                        pass
                told.set()
                assert await asyncio.wait_for(running, 10) == "[('of usr_alice',)]"

        asyncio.run(both())

    def test_a_cancelled_task_leaves_nobody_behind(self, notes: Notes) -> None:
        async def cancelled() -> None:
            async with await psycopg.AsyncConnection.connect(notes.url, autocommit=True) as found:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        async with as_caller(found, ALICE):
                            await found.execute("SELECT pg_sleep(30)")
                cursor = await found.execute("SELECT coalesce(current_setting('muniment.uid', true), '')")
                assert await cursor.fetchone() == ("",)
                async with as_caller(found, BOB):
                    pass

        asyncio.run(cancelled())

    def test_one_object_may_be_entered_again_and_within_itself(self, connection: psycopg.Connection) -> None:
        block = as_caller(connection, ALICE)
        for _ in range(2):
            with block, block:
                assert seen(connection) == ["of usr_alice"]
            assert uid_of(connection) == ""


class TestConnections:
    @pytest.mark.parametrize("rows", [dict_row, scalar_row, namedtuple_row, class_row(Notes)])
    def test_may_make_any_rows(self, connection: psycopg.Connection, rows: object) -> None:
        connection.row_factory = rows  # type: ignore[assignment]
        refused = pytest.raises(OtherCaller)
        with as_caller(connection, ALICE), as_caller(connection, ALICE), refused, as_caller(connection, BOB):
            pass

    @pytest.mark.parametrize("cursor", [psycopg.RawCursor, psycopg.ClientCursor])
    def test_may_make_any_cursors(self, connection: psycopg.Connection, cursor: type[psycopg.Cursor]) -> None:
        connection.cursor_factory = cursor
        with as_caller(connection, ALICE), as_caller(connection, ALICE):
            assert seen(connection) == ["of usr_alice"]

    def test_of_another_kind_or_entered_the_other_way_are_told(self, connection: psycopg.Connection) -> None:
        for other in (None, object(), "postgresql://"):
            with pytest.raises(Misconfigured, match="psycopg"), as_caller(other, ALICE):
                pass

        async def wrong(url: str) -> None:
            with pytest.raises(Misconfigured, match="not asynchronous"):
                async with as_caller(connection, ALICE):
                    pass
            async with await psycopg.AsyncConnection.connect(url) as found:
                with pytest.raises(Misconfigured, match="asynchronous"), as_caller(found, ALICE):
                    pass

        asyncio.run(wrong(connection.info.dsn + " password=x"))

    def test_are_those_of_the_guards_caller(self, connection: psycopg.Connection) -> None:
        with Muniment("http://127.0.0.1:9", "mk_1_x") as guard:
            for caller in (ALICE, BOB):
                with calling(caller), guard.as_caller(connection):
                    assert seen(connection) == [f"of {caller.uid}"]
            with guard.as_caller(connection):
                assert seen(connection) == []

    def test_are_those_of_the_caller_of_an_assertion_too(self, connection: psycopg.Connection) -> None:
        with as_caller(connection, AssertedCaller("usr_bob", "claude", "notes.read", (), "r", "i", 0)):
            assert seen(connection) == ["of usr_bob"]


@pytest.fixture(scope="module")
def ways(notes: Notes, superuser_url: str) -> Iterator[None]:
    """A view, and functions that run as who owns them."""
    function = (
        f"CREATE FUNCTION {{}}() RETURNS SETOF {TABLE} SECURITY DEFINER SET search_path = public, pg_temp"
        f" LANGUAGE sql AS 'SELECT * FROM public.{TABLE}'"
    )
    with psycopg.connect(notes.owner, autocommit=True) as owner:
        owner.execute(sql.SQL(function).format(sql.Identifier("of_the_owner")))
        owner.execute(f"CREATE VIEW view_of_the_owner AS SELECT * FROM {TABLE}")
        owner.execute(f"GRANT SELECT ON view_of_the_owner TO {ROLE}")
        with psycopg.connect(superuser_url, autocommit=True) as superuser:
            superuser.execute(sql.SQL(function).format(sql.Identifier("of_a_superuser")))
            yield
            superuser.execute("DROP FUNCTION of_a_superuser")
        owner.execute("DROP VIEW view_of_the_owner; DROP FUNCTION of_the_owner")


class TestEveryWayToTheRows:
    @pytest.mark.parametrize(
        "statement",
        [
            f"COPY {TABLE} TO STDOUT",
            f"COPY (SELECT * FROM {TABLE}) TO STDOUT",
            f"WITH a AS (UPDATE {TABLE} SET words = words RETURNING words) SELECT string_agg(words, ',') FROM a",
            f"SELECT string_agg(words, ',') FROM {TABLE} WHERE \"the owner\" = 'usr_alice' OR true",
            f"SELECT string_agg(n::text, ',') FROM {TABLE} n",
            f"DELETE FROM {TABLE} RETURNING words",
            "SELECT string_agg(words, ',') FROM of_the_owner()",
            "SELECT string_agg(words, ',') FROM view_of_the_owner",
        ],
    )
    def test_leads_to_the_callers_own_alone(self, connection: psycopg.Connection, ways: None, statement: str) -> None:
        with as_caller(connection, BOB):
            if statement.startswith("COPY"):
                with connection.cursor().copy(statement.encode()) as copy:
                    found = b"".join(bytes(part) for part in copy).decode()
            else:
                found = str(connection.execute(statement.encode()).fetchall())
        assert "of usr_bob" in found and "alice" not in found

    def test_but_for_a_function_that_runs_as_a_superuser(self, connection: psycopg.Connection, ways: None) -> None:
        """What the module says is not covered."""
        with as_caller(connection, BOB):
            row = connection.execute("SELECT count(*) FROM of_a_superuser()").fetchone()
        assert row == (2,)


@contextmanager
def changed(url: str, change: str, back: str) -> Iterator[None]:
    """A change to the database, undone afterwards."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(change.encode())
        try:
            yield
        finally:
            connection.execute(back.encode())


class TestAtTheStart:
    @pytest.mark.parametrize(
        ("change", "back"),
        [
            ("NO FORCE ROW LEVEL SECURITY", "FORCE ROW LEVEL SECURITY"),
            ("DISABLE ROW LEVEL SECURITY", "ENABLE ROW LEVEL SECURITY"),
        ],
    )
    def test_a_table_without_it_is_told(self, notes: Notes, change: str, back: str) -> None:
        with changed(notes.owner, f"ALTER TABLE {TABLE} {change}", f"ALTER TABLE {TABLE} {back}"):
            self.refused(notes.url, "not on")
        with psycopg.connect(notes.url) as bound:
            assert_protected(bound, "my notes")

    @pytest.mark.parametrize(
        "policy",
        [
            "USING (true) WITH CHECK (true)",
            "USING (true OR \"the owner\" = nullif(current_setting('muniment.uid', true), ''))",
            "USING (\"the owner\" = nullif(current_setting('muniment.other', true), ''))",
            "USING (\"the owner\" = current_setting('muniment.uid', true))",
            "FOR SELECT USING (\"the owner\" = nullif(current_setting('muniment.uid', true), ''))",
            "TO CURRENT_USER USING (\"the owner\" = nullif(current_setting('muniment.uid', true), ''))",
            "USING (\"the owner\" = nullif(current_setting('muniment.uid', true), '')) WITH CHECK (true)",
            None,
        ],
    )
    def test_a_policy_that_is_not_ours_is_told(self, notes: Notes, policy: str | None) -> None:
        name = f"muniment_only_caller ON {TABLE}"
        change = f"DROP POLICY {name}" + (f"; CREATE POLICY {name} AS RESTRICTIVE {policy}" if policy else "")
        with changed(notes.owner, change, "; ".join(policy_sql("my notes", "the owner"))):
            self.refused(notes.url, "not on")

    @pytest.mark.parametrize(("column", "kind"), [("uid", "text"), ("Uid", "text"), ("uid", "varchar(64)")])
    def test_names_in_capitals_schemas_and_varchar_are_known(self, notes: Notes, column: str, kind: str) -> None:
        made = f'CREATE SCHEMA "S"; CREATE TABLE "S"."T" ("{column}" {kind} NOT NULL)'
        with changed(notes.owner, made, 'DROP SCHEMA "S" CASCADE'), psycopg.connect(notes.owner) as owner:
            with pytest.raises(Misconfigured, match="not on"):
                assert_protected(owner, "S.T")
            for statement in policy_sql("S.T", column):
                owner.execute(statement.encode())
            assert_protected(owner, "S.T")

    def test_a_partition_that_can_be_read_past_its_parent_is_told(self, notes: Notes) -> None:
        made = (
            "CREATE TABLE whole (uid text NOT NULL) PARTITION BY LIST (uid);"
            "CREATE TABLE part PARTITION OF whole DEFAULT;" + ";".join(policy_sql("whole"))
        )  # fmt: skip
        table = changed(notes.owner, f"{made}; GRANT SELECT ON whole TO {ROLE}", "DROP TABLE whole")
        with table, psycopg.connect(notes.url, autocommit=True) as bound:
            assert_protected(bound, "whole")  # nobody but its owner can read the part
            change = changed(notes.owner, f"GRANT SELECT ON part TO {ROLE}", ";".join(policy_sql("part")))
            with change, pytest.raises(Misconfigured, match="part"):
                assert_protected(bound, "whole")
            assert_protected(bound, "whole")

    @pytest.mark.parametrize("power", ["BYPASSRLS", "SUPERUSER"])
    def test_a_role_that_is_not_bound_or_can_change_into_one_is_told(
        self, notes: Notes, superuser_url: str, power: str
    ) -> None:
        with changed(superuser_url, f"ALTER ROLE {ROLE} {power}", f"ALTER ROLE {ROLE} NO{power}"):
            self.refused(notes.url, "bypasses")
        made = f"CREATE ROLE isolation_strong {power}; GRANT isolation_strong TO {ROLE}"
        with changed(superuser_url, made, "DROP ROLE isolation_strong"):
            self.refused(notes.url, "bypasses")
        with psycopg.connect(superuser_url) as superuser:
            superuser.execute(f"SET ROLE {ROLE}")  # it can change back
            with pytest.raises(Misconfigured, match="bypasses"):
                assert_protected(superuser, "my notes")

    def test_a_table_that_is_none_is_told(self, notes: Notes) -> None:
        with psycopg.connect(notes.url) as bound, pytest.raises(Misconfigured, match="nowhere"):
            assert_protected(bound, "nowhere")

    def test_djangos_connection_is_looked_at_as_well(self, db: None, notes: Notes) -> None:
        from django.db import connection as django

        assert_protected(django, "my notes")
        with pytest.raises(Misconfigured, match="audit_head"):
            assert_protected(django, "audit_head")

    def refused(self, url: str, why: str) -> None:
        with psycopg.connect(url) as bound, pytest.raises(Misconfigured, match=why):
            assert_protected(bound, "my notes")
