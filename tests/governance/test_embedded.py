"""The embedded PostgreSQL and Redis, for real: started, stopped, killed, started again."""

import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from governance import embedded
from governance.embedded import EmbeddedError, Servers
from governance.embedded_process import can_reach, choose_account, stop_leftovers
from governance.embedded_redis import binary
from tests.live import command_line

ROOT = Path(__file__).resolve().parents[2]

# A starter in a process of its own: says what it started, then waits to be killed.
STARTER = """
import pathlib, sys, time
from governance import embedded
servers = embedded.start(pathlib.Path(sys.argv[1]))
pids = servers.postgres.process.pid, servers.redis.process.pid
print(*pids, servers.database_url, servers.redis_url, flush=True)
time.sleep(120)
"""

# What a plain user does. The interpreter may be where only root can read, so it loads all that it needs before.
AS_A_PLAIN_USER = """
import os, pathlib, sys
import encodings.idna, psycopg
from governance import embedded
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[1]))
with embedded.start(pathlib.Path(sys.argv[3]), durable=False) as running, psycopg.connect(running.database_url) as made:
    print(made.execute("SELECT 7").fetchone()[0])
"""


@pytest.fixture(scope="module")
def var(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("instance") / "var"


@pytest.fixture(scope="module")
def servers(var: Path) -> Iterator[Servers]:
    with embedded.start(var, durable=False) as running:
        yield running


def value(url: str, query: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query).fetchone()
    return row[0] if row else None


def client(url: str) -> "redis.Redis":
    return redis.Redis.from_url(url, decode_responses=True)


def pids_in(*folders: Path) -> list[int]:
    """Every process that serves one of the folders (its command line says so) or works in it."""
    found = []
    names = {os.fsencode(folder) for folder in folders}
    for proc in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not proc.name.isdecimal():
                continue
            words = (proc / "cmdline").read_bytes().split(b"\0")
            if names.intersection(words) or Path(os.readlink(proc / "cwd")) in folders:
                found.append(int(proc.name))
    return found


def ends(process_id: int, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# --- roles --------------------------------------------------------------------------------------------------


def test_the_serving_role_may_log_in_and_no_more(servers: Servers) -> None:
    with psycopg.connect(servers.database_url) as connection:
        row = connection.execute(
            "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls FROM pg_roles"
            " WHERE rolname = current_user"
        ).fetchone()
    assert row == (False,) * 5
    for attempt in (
        "CREATE TABLE public.mine (id int)",
        "CREATE SCHEMA mine",
        "CREATE TEMPORARY TABLE mine (id int)",
        "CREATE DATABASE mine",
        "SET ROLE muniment_owner",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT pg_read_file('/etc/passwd')",
    ):
        with (
            psycopg.connect(servers.database_url, autocommit=True) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(attempt)


def test_the_owner_makes_tables_and_databases_but_is_no_superuser(servers: Servers) -> None:
    assert value(servers.owner_url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
    with psycopg.connect(servers.owner_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE owned (id int); DROP TABLE owned")
        connection.execute("CREATE DATABASE test_other")
        connection.execute("DROP DATABASE test_other")
        for attempt in (
            "ALTER ROLE muniment SUPERUSER",
            "CREATE ROLE more",
            "SELECT pg_read_file('/etc/passwd')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(attempt)


def test_the_serving_role_sees_no_other_database(servers: Servers) -> None:
    for database in ("postgres", "template1"):
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            psycopg.connect(servers.database_url.replace("/muniment?", f"/{database}?"))


@pytest.mark.parametrize("role", ["database_url", "owner_url", "superuser_url"])
def test_a_wrong_or_missing_password_is_refused(servers: Servers, role: str) -> None:
    url = getattr(servers, role)
    name, _, password = url.removeprefix("postgresql://").partition("@")[0].partition(":")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url.replace(password, "0" * len(password)))
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(url.replace(f"{name}:{password}", name), passfile="/dev/null")


def test_redis_refuses_a_wrong_or_missing_password(servers: Servers) -> None:
    assert client(servers.redis_url).ping()
    password = servers.redis_url.split(":")[2].split("@")[0]
    with pytest.raises(redis.exceptions.AuthenticationError):
        client(servers.redis_url.replace(password, "0" * len(password))).ping()
    with pytest.raises(redis.exceptions.AuthenticationError):
        client(servers.redis_url.replace(f":{password}@", "")).ping()
    with pytest.raises(redis.exceptions.ResponseError, match="unknown command"):
        client(servers.redis_url).config_set("dir", "/")


# --- folders, files, what can be seen -----------------------------------------------------------------------


def test_nothing_is_open_to_others(servers: Servers, var: Path) -> None:
    assert servers.postgres is not None and servers.redis is not None
    assert mode(var) == (0o711 if os.geteuid() == 0 else 0o700)
    for folder in (var / "keys", var / "log", var / "postgres", var / "redis", servers.redis.socket.parent):
        assert mode(folder) == 0o700, folder
    assert mode(servers.redis.socket) == 0o700
    for file in (*var.glob("keys/*"), *var.glob("log/*"), var / "sockets", var / "embedded.lock"):
        assert mode(file) == 0o600, file


def test_passwords_are_on_no_command_line_and_in_no_log(servers: Servers, var: Path) -> None:
    assert servers.postgres is not None and servers.redis is not None
    with contextlib.suppress(psycopg.Error), psycopg.connect(servers.owner_url) as connection:
        connection.execute("SELECT 'private' || 1/0")
    seen = b"".join(command_line(pid) for pid in pids_in(var / "postgres", var / "redis"))
    seen += b"".join(log.read_bytes() for log in var.glob("log/*"))
    assert b"division by zero" in seen and b"private" not in seen
    seen += repr(servers).encode()  # as a traceback would show it
    for name in ("postgres_superuser", "postgres_owner", "postgres_muniment", "redis"):
        assert (var / "keys" / name).read_bytes() not in seen


def test_no_tcp_port_and_nothing_of_our_environment(servers: Servers) -> None:
    assert servers.postgres is not None and servers.redis is not None
    assert value(servers.owner_url, "SHOW listen_addresses") == ""
    assert "PYTEST_VERSION" in os.environ
    for process in (servers.postgres.process, servers.redis.process):
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        except PermissionError:
            pytest.skip("root lacks CAP_SYS_PTRACE here, so another account's environment cannot be read")
        assert b"PYTEST_VERSION" not in environment


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the account")
def test_as_root_the_servers_run_as_nobody(servers: Servers) -> None:
    assert servers.postgres is not None and servers.redis is not None
    for process in (servers.postgres.process, servers.redis.process):
        status = Path(f"/proc/{process.pid}/status").read_text()
        uid = str(pwd.getpwnam("nobody").pw_uid)
        assert [line.split()[1:] for line in status.splitlines() if line.startswith("Uid")] == [[uid] * 4]
        assert "NoNewPrivs:\t1" in status


# --- start, stop, start again -------------------------------------------------------------------------------


def test_stop_leaves_nothing_and_a_restart_finds_the_data(tmp_path: Path) -> None:
    var = tmp_path / "var"
    with embedded.start(var) as first:
        assert value(first.owner_url, "SHOW fsync") == "on"
        assert value(first.database_url, "SHOW synchronous_commit") == "on"
        assert value(first.database_url, "SHOW timezone") == "UTC"
        assert first.redis is not None
        sockets = first.redis.socket.parent
        with psycopg.connect(first.owner_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        client(first.redis_url).set("kept", "42")
        urls = (first.database_url.partition("?")[0], first.redis_url.partition("@")[0])
    first.stop()  # twice does no harm
    assert not sockets.exists() and not (var / "sockets").exists()
    assert pids_in(var / "postgres", var / "redis") == []
    # A crash's remains, with a number that now belongs to a stranger: us.
    (var / "postgres" / "postmaster.pid").write_text(f"{os.getpid()}\n{var}/postgres\n0\n5432\n\n\n 0 0\nready\n")
    with embedded.start(var) as second:
        assert value(second.owner_url, "SELECT answer FROM kept") == 42
        assert client(second.redis_url).get("kept") == "42"
        assert urls == (second.database_url.partition("?")[0], second.redis_url.partition("@")[0])


def test_one_folder_has_one_runner(servers: Servers, var: Path) -> None:
    with pytest.raises(EmbeddedError, match="another process"):
        embedded.start(var)
    assert value(servers.database_url, "SELECT 1") == 1


def test_two_instances_side_by_side(servers: Servers, tmp_path: Path) -> None:
    with embedded.start(tmp_path / "var", durable=False) as other:
        client(other.redis_url).set("whose", "other")
        assert client(servers.redis_url).get("whose") is None
        with pytest.raises(psycopg.OperationalError):  # each has passwords of its own
            psycopg.connect(servers.database_url.partition("?")[0] + "?" + other.database_url.partition("?")[2])
    assert value(servers.database_url, "SELECT 1") == 1


def test_a_long_path(tmp_path: Path) -> None:
    var = tmp_path / ("long " * 20) / ("é" * 60) / 'va\'r "x"'
    assert len(os.fsencode(var)) > 200
    with embedded.start(var, durable=False) as running:
        assert value(running.database_url, "SELECT 1") == 1
        assert client(running.redis_url).ping()


def test_folders_that_were_there_keep_their_mode(tmp_path: Path) -> None:
    var = tmp_path / "closed" / "var"
    var.mkdir(parents=True)
    for folder in (var, var.parent):
        folder.chmod(0o700)
    with embedded.start(var, durable=False) as running:
        assert value(running.database_url, "SELECT 1") == 1
        assert client(running.redis_url).ping()
    assert (mode(var), mode(var.parent)) == (0o700, 0o700)
    assert var.stat().st_uid == os.geteuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a plain user")
def test_as_a_plain_user(tmp_path: Path) -> None:
    nobody = choose_account(Path("/"), [])
    assert nobody is not None
    if not can_reach(nobody, Path("/"), [binary()]):
        pytest.skip("a plain user cannot reach the virtual environment of this clone")
    home = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())  # tmp_path is closed to others
    try:
        os.chown(home, nobody.uid, nobody.gid)
        arguments = [sys.executable, "-c", AS_A_PLAIN_USER, str(nobody.uid), str(nobody.gid), str(home / "var")]
        told = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
        assert (told.returncode, told.stdout) == (0, "7\n"), told.stderr
        assert mode(home / "var") == 0o700
        assert pids_in(home / "var/postgres", home / "var/redis") == []
    finally:
        shutil.rmtree(home)


# --- after a kill -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def starter(var: Path) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    process = subprocess.Popen([sys.executable, "-c", STARTER, str(var)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().split()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_when_the_starter_is_killed_the_servers_end_and_start_again(tmp_path: Path) -> None:
    var = tmp_path / "var"
    with starter(var) as (process, (postgres, store, *_)):
        process.kill()
        process.wait()
        with embedded.start(var) as running:  # at once: it waits for what is still on its way out
            assert value(running.database_url, "SELECT 1") == 1
        assert ends(int(postgres)) and ends(int(store))


def test_after_a_kill_of_everything_what_was_committed_is_there(tmp_path: Path) -> None:
    var = tmp_path / "var"
    with starter(var) as (process, (postgres, store, url, redis_url)):
        assert value(url, "SELECT 1") == 1
        owner = url.replace("muniment:", "muniment_owner:", 1).replace(
            (var / "keys/postgres_muniment").read_text(), (var / "keys/postgres_owner").read_text()
        )
        with psycopg.connect(owner) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        for pid in (int(postgres), int(store), process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        old_sockets = Path(redis_url.partition("@")[2].partition("?")[0]).parent
        assert old_sockets.exists()  # stale, as after a power cut
        with embedded.start(var) as running:
            assert value(running.owner_url, "SELECT answer FROM kept") == 42
            assert not old_sockets.exists()


def test_ended_names_a_server_that_died(tmp_path: Path) -> None:
    with embedded.start(tmp_path / "var", postgres=False) as running:
        assert running.redis is not None and running.ended() == []
        running.redis.process.kill()
        running.redis.process.wait()
        assert running.ended() == [("redis", -signal.SIGKILL, tmp_path / "var/log/redis.log")]
        with pytest.raises(EmbeddedError, match="no PostgreSQL"):
            _ = running.database_url


def test_only_our_own_leftovers_are_stopped(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    sleep = ["-c", "import time; time.sleep(60)", "--dir"]
    places = (("redis-server", ours), ("redis-server", theirs), ("sleep", ours), ("redis-server", f"{ours}2"))
    processes = [subprocess.Popen([name, *sleep, str(place)], executable=sys.executable) for name, place in places]
    try:
        time.sleep(0.3)
        assert stop_leftovers("redis-server", "--dir", ours, None, signal.SIGTERM) == 1
        assert processes[0].wait(30) == -signal.SIGTERM
        assert [process.poll() for process in processes[1:]] == [None, None, None]
    finally:
        for process in processes:
            process.kill()
            process.wait()


# --- refusals -----------------------------------------------------------------------------------------------


def test_data_without_their_keys_are_refused_clearly(tmp_path: Path) -> None:
    var = tmp_path / "var"
    embedded.start(var, redis=False, durable=False).stop()
    (var / "keys" / "postgres_superuser").unlink()
    with pytest.raises(EmbeddedError, match="not of the same instance"):
        embedded.start(var, redis=False, durable=False)
    assert pids_in(var / "postgres") == []
    with (var / "embedded.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # and the failed start holds nothing


def test_broker_url_is_kombus_form() -> None:
    assert embedded.broker_url("unix://:pw@/tmp/x/redis.sock?db=3") == (
        "redis+socket://:pw@/tmp/x/redis.sock?virtual_host=3"
    )
    assert embedded.broker_url("redis://example:6379/0") == "redis://example:6379/0"
