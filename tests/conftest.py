"""The suite runs on the real, embedded PostgreSQL and Redis (or on those that the environment names), as the
restricted serving role, in a database of its own."""

import atexit
import base64
import gc
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import django
import psycopg
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as examples
from psycopg import sql

from governance import embedded
from governance.embedded import Servers

WEB_KEYS = ("DJANGO_SECRET", "WRITER_KEY", "ASSERTION_KEY", "KEY_ENCRYPTION_KEY", "PEPPER")
servers: Servers | None = None


def _start() -> None:
    """Servers, environment and an empty database, before Django reads its settings."""
    global servers
    var = Path(tempfile.mkdtemp(prefix="muniment-test-"))
    var.chmod(0o711)
    atexit.register(shutil.rmtree, var, ignore_errors=True)
    # A worker of pytest-xdist inherits what its controller set for itself; it needs servers of its own.
    if not os.environ.get("DATABASE_URL") or "MUNIMENT_TESTS_OWN_SERVERS" in os.environ:
        os.environ["MUNIMENT_TESTS_OWN_SERVERS"] = "1"
        servers = embedded.start(var / "servers", durable=False)
        atexit.register(servers.stop)
        os.environ["DATABASE_URL"], os.environ["DATABASE_OWNER_URL"] = servers.database_url, servers.owner_url
        os.environ["REDIS_URL"], os.environ["CELERY_BROKER_URL"] = servers.redis_url, servers.broker_url
    os.environ["MUNIMENT_MODE"], os.environ["MUNIMENT_PROCESS"] = "demo", "web"
    os.environ["MUNIMENT_VAR"] = str(var)
    os.environ["MUNIMENT_LOG_ORIGIN"] = "muniment.test/log"
    os.environ["DJANGO_SETTINGS_MODULE"] = "governance.settings"
    for name in WEB_KEYS:
        os.environ[f"MUNIMENT_{name}"] = base64.b64encode(secrets.token_bytes(32)).decode()
    _make_database(f"muniment_test_{secrets.token_hex(4)}")


def _make_database(name: str) -> None:
    owner = os.environ["DATABASE_OWNER_URL"]

    def run(statement: str) -> None:
        with psycopg.connect(owner, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(name)))

    run("CREATE DATABASE {}")
    atexit.register(run, "DROP DATABASE IF EXISTS {} WITH (FORCE)")
    for variable in ("DATABASE_URL", "DATABASE_OWNER_URL"):
        os.environ[variable] = urlunsplit(urlsplit(os.environ[variable])._replace(path=f"/{name}"))


def _static_files_once() -> None:
    """Every test client has middlewares of its own, each of which would look through all static files."""
    middleware = import_module("whitenoise.middleware").WhiteNoiseMiddleware
    look, found = middleware.add_files_from_finders, dict[str, Any]()

    def once(self: Any) -> None:
        if not found:
            look(self)
            found.update(self.files)
        self.files.update(found)

    middleware.add_files_from_finders = once


# On a machine that is busy each example may take its time, and to make it too. Examples may share a fixture.
SHARED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
examples.register_profile("patient", deadline=None, suppress_health_check=SHARED)
examples.load_profile("patient")
_start()
django.setup()
DemoPasswordHasher = import_module("governance.demo_hasher").DemoPasswordHasher
DemoPasswordHasher.iterations = 1000  # a password of a test is worth nothing, and there are thousands of them
_static_files_once()
# A worker of pytest-xdist that inherits it would have pytest-django read the settings before its servers are up.
del os.environ["DJANGO_SETTINGS_MODULE"]


def _superuser_url() -> str | None:
    if servers is None:
        return None
    path = urlsplit(os.environ["DATABASE_URL"]).path
    return urlunsplit(urlsplit(servers.superuser_url)._replace(path=path))


@pytest.fixture(scope="session")
def superuser_url() -> str:
    """The test database as its superuser, for attacks; skips where the server is not ours."""
    found = _superuser_url()
    if found is None:
        pytest.skip("the database server is not the embedded one: no superuser")
    return found


@pytest.fixture(scope="session")
def owner_url() -> str:
    """The test database as the owner of its tables."""
    return os.environ["DATABASE_OWNER_URL"]


@pytest.fixture(scope="session")
def django_db_setup() -> None:
    """Instead of pytest-django's: the database is made above, by its owner."""


@pytest.fixture(scope="session")
def migrated(django_db_setup: None, django_db_blocker: pytest.FixtureRequest) -> Iterator[None]:
    """The database with its tables, open to the tests of this session."""
    from django.core.management import call_command

    with django_db_blocker.unblock():  # type: ignore[attr-defined]
        call_command("migrate", database="owner", verbosity=0, interactive=False)
        from tests import reset

        reset.superuser_url = _superuser_url()
        yield
        from django.db import connections

        reset.close()
        connections.close_all()


def pytest_collection_finish() -> None:
    """All that is imported by now stays: to look through it for garbage again and again takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture
def db(migrated: None) -> Iterator[None]:
    """An empty database: no policy, no log, version 0."""
    from tests.reset import reset

    reset()
    yield
    from governance import process

    process.stop_recorder()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The attacks that were carried out, and what found each (tests/audit/test_attacks.py)."""
    rows = []
    for report in terminalreporter.getreports("passed"):
        told = dict(report.user_properties) if report.when == "call" else {}
        if "attack" in told:
            rows.append([str(told[name]) for name in ("attack", "detector", "finding")])
    if not rows:
        return
    rows = [["attack", "detected by", "finding"], *sorted(rows, key=lambda row: row[1])]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    terminalreporter.section("attacks on the log")
    for attack, detector, finding in rows:
        terminalreporter.write_line(f"{attack:<{widths[0]}} | {detector:<{widths[1]}} | {finding}")
