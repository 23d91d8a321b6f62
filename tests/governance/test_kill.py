"""kill -9 under load, of a web worker, of the whole web process and of PostgreSQL: what was answered is in the log,
once, and the log is whole. On servers of their own, durable as in production, so that the suite's are not hurt. A
worker and a web process are killed in test_kill_sealed.py too, with the same check."""

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from governance import embedded, embedded_postgres, embedded_process
from governance.embedded_postgres import Postgres
from tests.audit import chain
from tests.live import ROOT, Load, Web, children, until, web

WEB_KEYS = ("DJANGO_SECRET", "WRITER_KEY", "ASSERTION_KEY", "KEY_ENCRYPTION_KEY", "PEPPER")
USERS = 16
# Tables and a small world, made by a process of that instance: this one belongs to the suite's database.
PREPARE = f"""
import json, os
os.environ["DJANGO_SETTINGS_MODULE"] = "governance.settings"
import django
django.setup()
from django.core.management import call_command
call_command("migrate", database="owner", verbosity=0, interactive=False)
from tests.world import build, token
made = build()
users = [f"user{{number}}" for number in range({USERS})]
print(json.dumps({{"key": made.key, "tokens": {{user: token(sub=user) for user in users}}}}))
"""


@dataclass
class Instance:
    """Servers of one's own, with a world in them, and every answer that a caller got."""

    servers: embedded.Servers
    postgres: Postgres
    environment: dict[str, str]
    key: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    answers: list[dict] = field(default_factory=list)

    def prepare(self) -> None:
        """Migrate and build."""
        done = subprocess.run(
            [sys.executable, "-c", PREPARE], env=self.environment, cwd=ROOT, capture_output=True, text=True,
            timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)
        self.key, self.tokens = made["key"], made["tokens"]

    def load(self, server: Web) -> Load:
        """Eight callers."""
        return Load([server.port], self.key, self.tokens, threads=8)

    def kill_postgres(self) -> None:
        """kill -9 of the postmaster and of each of its processes, at once."""
        leader = self.postgres.process
        for pid in (leader.pid, *children(leader.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        leader.wait(10)

    def start_postgres(self) -> None:
        """Start it again on the same data and the same socket, as a supervisor in production would."""
        old = self.postgres
        var = Path(self.environment["MUNIMENT_VAR"])
        account = embedded_process.choose_account(var, [embedded_postgres.binaries() / "postgres"])
        self.postgres = embedded_postgres.start(var, old.sockets, old.passwords, account=account, durable=True)

    def check(self) -> None:
        """The log is whole, and every answer of every run so far is in it, once, as it was told."""
        url = self.environment["DATABASE_OWNER_URL"]
        assert chain.findings(url) == []
        log = {str(record.id): record for record in chain.records(url)}
        for answer in self.answers:
            record = log[answer["record"]]
            assert answer["receipt"]["index"] == record.index
            assert base64.b64decode(answer["receipt"]["leaf"]) == record.leaf
            assert answer["decision"] == record.columns["decision"] == "allow"
        with psycopg.connect(url) as connection:
            twice = "SELECT request_key FROM audit_record WHERE type = 'decision' GROUP BY 1 HAVING count(*) > 1"
            assert connection.execute(twice).fetchall() == []


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    var = Path(tempfile.mkdtemp(prefix="muniment-kill-"))
    var.chmod(0o711)
    with embedded.start(var) as servers:
        keys = {f"MUNIMENT_{name}": base64.b64encode(secrets.token_bytes(32)).decode() for name in WEB_KEYS}
        environment = os.environ | keys | {
            "DATABASE_URL": servers.database_url, "DATABASE_OWNER_URL": servers.owner_url,
            "REDIS_URL": servers.redis_url, "CELERY_BROKER_URL": servers.broker_url,
            "MUNIMENT_MODE": "demo", "MUNIMENT_PROCESS": "web", "MUNIMENT_VAR": str(var),
        }  # fmt: skip
        assert servers.postgres is not None
        made = Instance(servers, servers.postgres, environment)
        try:
            made.prepare()
            yield made
        finally:
            made.postgres.stop()
    subprocess.run(["rm", "-rf", "--", str(var)], check=True)


def under_load(instance: Instance, server: Web, kills: int, kill) -> None:  # type: ignore[no-untyped-def]
    """Callers go on while `kill` strikes; after each strike they are answered again."""
    with instance.load(server) as callers:
        for _ in range(kills):
            callers.wait_for(100)
            struck = time.monotonic()
            kill()
            until(lambda: len(callers.since(struck)) >= 20, 60)  # noqa: B023
    assert not callers.faults
    assert set(callers.refused) <= {503}
    instance.answers += [answer.body for answer in callers.answers]
    instance.check()


def worker_killed(instance: Instance, kills: int) -> None:
    with web(environment=instance.environment) as [server]:

        def kill() -> None:
            until(lambda: len(server.alive()) == 2, 30)
            server.kill_worker()
            time.sleep(0 if kills == 2 else 3)

        under_load(instance, server, kills, kill)
        until(lambda: len(server.alive()) == 2, 30)


def web_killed(instance: Instance, kills: int) -> None:
    with web(environment=instance.environment) as [server]:

        def kill() -> None:
            server.kill()
            server.restart()

        under_load(instance, server, kills, kill)


def postgres_killed(instance: Instance, kills: int) -> None:
    with web(environment=instance.environment) as [server]:
        before = sorted(server.alive())

        def kill() -> None:
            instance.kill_postgres()
            time.sleep(0.3)
            instance.start_postgres()

        under_load(instance, server, kills, kill)
        assert sorted(server.alive()) == before, "the web processes themselves did not live on"


@pytest.mark.soak
@pytest.mark.timeout(180)
def test_a_killed_worker_loses_nothing_that_was_answered(instance: Instance) -> None:
    worker_killed(instance, 2)


@pytest.mark.soak
@pytest.mark.timeout(180)
def test_a_killed_web_process_loses_nothing_that_was_answered(instance: Instance) -> None:
    web_killed(instance, 2)


@pytest.mark.timeout(180)
def test_a_killed_postgres_loses_nothing_and_the_same_web_processes_go_on(instance: Instance) -> None:
    postgres_killed(instance, 2)


def test_without_a_database_the_answer_is_503(instance: Instance) -> None:
    with web(environment=instance.environment) as [server]:
        instance.kill_postgres()
        with instance.load(server) as callers:
            until(lambda: len(callers.refused) >= 20, 30)
        instance.start_postgres()
    assert set(callers.refused) == {503} and not callers.answers


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("strike", [worker_killed, web_killed, postgres_killed])
def test_twenty_kills(instance: Instance, strike) -> None:  # type: ignore[no-untyped-def]
    strike(instance, 20)
