"""The primary is killed under load and its synchronous standby promoted: everything that was answered is in the log of
the new primary, the same web processes go on, and the sealer finds nothing missing."""

import base64
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from governance import embedded, embedded_postgres, embedded_process
from governance.embedded_postgres import PORT, SETTINGS, SUPERUSER, Postgres, binaries
from governance.supervisor_plan import seal_command
from tests.governance.test_kill import WEB_KEYS, Instance
from tests.live import ROOT, until, web

STANDBY = "standby_one"


@dataclass
class Pair:
    """A primary, its synchronous standby, and the instance that reaches whichever of them takes writes."""

    primary: Postgres
    standby: Postgres
    instance: Instance

    def promote(self) -> None:
        """What an operator does once the old primary is fenced off."""
        with psycopg.connect(self.standby.url(SUPERUSER, "postgres"), autocommit=True) as superuser:
            # Nobody follows the new primary yet: without this each commit would wait for a standby for ever.
            superuser.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
            superuser.execute("SELECT pg_promote(true, 30)")


def copied(primary: Postgres, var: Path, sockets: Path) -> Postgres:
    """A standby of the primary, made by pg_basebackup and started on sockets of its own."""
    account = embedded_process.choose_account(var, [binaries() / "pg_basebackup", binaries() / "postgres"])
    if account is not None:
        os.chown(sockets, account.uid, account.gid)
        os.chown(var, account.uid, account.gid)
    conninfo = f"{primary.url(SUPERUSER, 'postgres')}&application_name={STANDBY}"
    data = var / "postgres"
    embedded_postgres._run(
        [str(binaries() / "pg_basebackup"), "-d", conninfo, "-D", str(data), "-R", "-X", "stream", "-c", "fast"],
        account, embedded_postgres.environment(sockets),
    )  # fmt: skip
    arguments = [str(binaries() / "postgres"), "-D", str(data), "-p", str(PORT)]
    for name, value in (SETTINGS | {"unix_socket_directories": str(sockets)}).items():
        arguments += ["-c", f"{name}={value}"]
    log = var / "standby.log"
    process = embedded_process.launch(
        arguments, log=log, account=account, death_signal=signal.SIGINT,
        environment=embedded_postgres.environment(sockets),
    )  # fmt: skip
    return Postgres(process, sockets, log, primary.passwords)


def either(first: str, second: Postgres) -> str:
    """A URL that leads to whichever of two servers takes writes (PostgreSQL manual 34.1.1.3)."""
    head, host, tail = first.partition("?host=")
    sockets, port = tail.split("&port=")
    both = f"{sockets},{second.sockets}&port={port},{PORT}"
    return f"{head}{host}{both}&target_session_attrs=read-write"


@pytest.fixture
def pair() -> Iterator[Pair]:
    folder = Path(tempfile.mkdtemp(prefix="muniment-failover-"))
    folder.chmod(0o711)
    sockets = Path(tempfile.mkdtemp(prefix="mn-standby-"))
    standby = None
    with embedded.start(folder / "a") as servers:
        assert servers.postgres is not None
        try:
            keys = {f"MUNIMENT_{name}": base64.b64encode(secrets.token_bytes(32)).decode() for name in WEB_KEYS}
            environment = os.environ | keys | {
                "DATABASE_URL": servers.database_url, "DATABASE_OWNER_URL": servers.owner_url,
                "REDIS_URL": servers.redis_url, "CELERY_BROKER_URL": servers.broker_url,
                "MUNIMENT_MODE": "demo", "MUNIMENT_PROCESS": "web", "MUNIMENT_VAR": str(folder / "a"),
            }  # fmt: skip
            instance = Instance(servers, servers.postgres, environment)
            instance.prepare()
            (folder / "b").mkdir(mode=0o700)
            standby = copied(servers.postgres, folder / "b", sockets)
            synchronous(servers.postgres)
            for name in ("DATABASE_URL", "DATABASE_OWNER_URL"):
                environment[name] = either(environment[name], standby)
            yield Pair(servers.postgres, standby, instance)
        finally:
            if standby is not None:
                standby.stop()
            servers.postgres.stop()
    for left in (folder, sockets):
        shutil.rmtree(left, ignore_errors=True)


def synchronous(primary: Postgres) -> None:
    """From now on no commit is told of before the standby has it on its disk."""
    with psycopg.connect(primary.url(SUPERUSER, "postgres"), autocommit=True) as superuser:
        superuser.execute(f"ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 ({STANDBY})'")
        superuser.execute("SELECT pg_reload_conf()")

        def follows() -> bool:
            return superuser.execute("SELECT sync_state FROM pg_stat_replication").fetchall() == [("sync",)]

        until(follows, 30)


def sealed(pair: Pair, *arguments: str) -> tuple[int, str]:
    """Run the sealer once; it keeps one state, whichever server there is."""
    keys = {f"MUNIMENT_{name}" for name in WEB_KEYS}
    environment = {name: value for name, value in pair.instance.environment.items() if name not in keys}
    environment.pop("DATABASE_OWNER_URL")
    environment |= {"MUNIMENT_PROCESS": "seal", "MUNIMENT_LOG_KEY": base64.b64encode(bytes(range(32))).decode()}
    done = subprocess.run(
        [*seal_command(), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_failover_to_a_synchronous_standby_loses_nothing_that_was_answered(pair: Pair) -> None:
    instance = pair.instance
    with web(environment=instance.environment) as [server]:
        workers = sorted(server.alive())
        with instance.load(server) as callers:
            callers.wait_for(300)
            code, words = sealed(pair, "--once")
            assert code == 0, words
            callers.wait_for(300)
            instance.kill_postgres()  # with it, whatever the standby had not confirmed
            pair.promote()
            promoted = time.monotonic()
            until(lambda: len(callers.since(promoted)) >= 100, 60)
            first = min(answer.ended for answer in callers.since(promoted))
        assert first - promoted < 20  # 0.2 s on two cores
        assert sorted(server.alive()) == workers, "the web processes themselves did not live on"
        assert not callers.faults and set(callers.refused) <= {503}
        instance.answers += [answer.body for answer in callers.answers]
        instance.environment["DATABASE_OWNER_URL"] = pair.standby.url("muniment_owner")
        instance.check()
        assert len(instance.answers) > 600
        code, words = sealed(pair, "--once")
        assert code == 0 and "sealed" in words, words
