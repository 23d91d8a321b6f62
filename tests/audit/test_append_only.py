"""Records and batches are only ever added to: refused by trigger to whoever asks, by rights to the serving role."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest
from psycopg import sql

from audit.maintenance import make_partition
from audit.models import Record
from tests.audit import chain
from tests.audit.recorders import entry, receipts, running
from tests.world import World, build

REFUSED = psycopg.errors.InsufficientPrivilege


@pytest.fixture
def log(db: None) -> Iterator[list[str]]:
    """A log with records in a month's partition and, of the last century, in the default one; its tables."""
    month = datetime.now(UTC).date().replace(day=1)
    make_partition(month)
    with running(clock=lambda: datetime(1999, 5, 1, tzinfo=UTC)) as recorder:
        receipts(recorder.record([entry("old")]))
    with running() as recorder:
        receipts(recorder.record([entry("new")]))
    with psycopg.connect(os.environ["DATABASE_OWNER_URL"]) as owner:
        found = owner.execute(
            "SELECT tableoid::regclass::text, count(*) FROM audit_record GROUP BY 1 ORDER BY 1"
        ).fetchall()
        assert found == [(f"audit_record_{month:%Y%m}", 1), ("audit_record_default", 1)]
        tree = owner.execute("SELECT relid::regclass::text FROM pg_partition_tree('audit_record')").fetchall()
    yield ["audit_batch", *(name for (name,) in tree)]
    assert Record.objects.count() == 2
    assert chain.findings(os.environ["DATABASE_OWNER_URL"]) == []


@pytest.fixture(params=["serving", "owner", "superuser"])
def role(request: pytest.FixtureRequest, log: list[str], superuser_url: str) -> Iterator[psycopg.Connection]:
    urls = {"serving": "DATABASE_URL", "owner": "DATABASE_OWNER_URL"}
    url = os.environ[urls[request.param]] if request.param in urls else superuser_url
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def test_nobody_changes_a_record_or_a_batch(log: list[str], role: psycopg.Connection) -> None:
    for table in log:
        column = "size = size" if table == "audit_batch" else "reason = 'granted'"
        for statement in (f"UPDATE {table} SET {column}", f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"):
            if "TRUNCATE" not in statement and not _rows(role, table):
                continue
            with pytest.raises(REFUSED):
                role.execute(statement)


def _rows(role: psycopg.Connection, table: str) -> bool:
    try:
        found = role.execute(sql.SQL("SELECT EXISTS (SELECT 1 FROM {})").format(sql.Identifier(table))).fetchone()
    except REFUSED:  # the serving role has no business in a partition, so that everything in it is refused
        return True
    return bool(found and found[0])


def test_maintenance_is_only_the_owners_and_only_for_deleting(log: list[str], superuser_url: str) -> None:
    for url in (os.environ["DATABASE_URL"], os.environ["DATABASE_OWNER_URL"], superuser_url):
        with psycopg.connect(url) as connection:
            connection.execute("SET muniment.maintenance = 'on'")
            with pytest.raises(REFUSED):
                connection.execute("UPDATE audit_record SET reason = 'x'")
    for url in (os.environ["DATABASE_URL"], superuser_url):
        with psycopg.connect(url) as connection:
            connection.execute("SET muniment.maintenance = 'on'")
            with pytest.raises(REFUSED):
                connection.execute("DELETE FROM audit_record")
    with psycopg.connect(os.environ["DATABASE_OWNER_URL"]) as owner:
        owner.execute("SET muniment.maintenance = 'on'")
        assert owner.execute("DELETE FROM audit_record").rowcount == 2
        owner.rollback()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_head SET policy = policy + 1",
        "INSERT INTO audit_head (id, policy, next, at, batch, drained) VALUES (2, 0, 0, now(), '', 0)",
        "DELETE FROM audit_head",
        "DELETE FROM audit_subject",
        "DELETE FROM audit_datakey",
        "UPDATE audit_datakey SET wrapped = ''",
        "DELETE FROM audit_publishedkey",
        "DELETE FROM audit_outbox",
        "UPDATE audit_outbox SET actor = 'staff:1'",
        "UPDATE audit_outbox SET version = 1",
        "UPDATE audit_record SET reason = 'x'",
        "DELETE FROM audit_record",
        "UPDATE audit_batch SET size = 1",
        "DELETE FROM audit_batch",
        "DELETE FROM django_migrations",
        "CREATE TABLE mine (id int)",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE SCHEMA mine",
        "DROP TABLE audit_record",
        "ALTER TABLE audit_record DISABLE TRIGGER ALL",
        "DROP TRIGGER muniment_append_only ON audit_record",
        "ALTER TABLE clients_grant DISABLE TRIGGER muniment_policy_change",
        "ALTER FUNCTION muniment_policy_change() SET search_path = pg_temp",
        "SET session_replication_role = replica",
        "SELECT muniment_make_partition('2030-01-01')",
        "TRUNCATE clients_grant CASCADE",
        "SET ROLE muniment_owner",
    ],
)
def test_the_serving_role_may_not(migrated: None, statement: str) -> None:
    with psycopg.connect(os.environ["DATABASE_URL"]) as serving, pytest.raises(REFUSED):
        serving.execute(statement)


def test_the_serving_roles_rights_end_at_partitions_too(log: list[str]) -> None:
    held = "SELECT p FROM unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE']) p WHERE has_table_privilege(%s, p)"
    with psycopg.connect(os.environ["DATABASE_URL"]) as serving:
        found = {table: serving.execute(held, [table]).fetchall() for table in log}
    assert len(found) > 2 and not any(found.values()), found


def test_no_role_of_ours_is_more_than_it_must_be(world: World, superuser_url: str) -> None:
    with psycopg.connect(superuser_url) as connection:
        found = connection.execute(
            "SELECT rolname, rolsuper OR rolcreaterole OR rolreplication OR rolbypassrls, rolcreatedb FROM pg_roles"
            " WHERE rolname IN ('muniment', 'muniment_owner') ORDER BY 1"
        ).fetchall()
        owned = connection.execute(
            "SELECT count(*) FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner WHERE r.rolname = 'muniment'"
        ).fetchone()
    assert found == [("muniment", False, False), ("muniment_owner", False, True)]
    assert owned == (0,)


@pytest.fixture
def world(db: None) -> World:
    return build()
