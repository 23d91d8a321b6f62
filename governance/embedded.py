"""The real PostgreSQL and Redis that Muniment brings along, for development and for tests.

Everything lives under one folder, ``var``: two folders are two instances, side by side. A folder that is
already there keeps its mode; only what we make gets ours. Linux only; elsewhere set DATABASE_URL,
DATABASE_OWNER_URL and REDIS_URL.
"""

import contextlib
import fcntl
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from governance import devkeys, embedded_postgres, embedded_redis
from governance.embedded_postgres import OWNER, SERVING, SUPERUSER, Postgres
from governance.embedded_process import Account, EmbeddedError, choose_account
from governance.embedded_redis import Redis, broker_url

__all__ = ["EmbeddedError", "Servers", "broker_url", "lock", "make_var", "start"]

SOCKET_PREFIX = "muniment-"
MOST_SOCKET_PATH = 107  # bytes in sun_path, less the NUL (unix(7))


@dataclass
class Servers:
    """What runs, and the URLs to reach it. A context manager that stops it; ``stop`` may be called twice."""

    postgres: Postgres | None
    redis: Redis | None
    _cleanup: contextlib.ExitStack

    @property
    def database_url(self) -> str:
        """For the restricted role ``muniment``: may log in, owns nothing."""
        return self._postgres.url(SERVING)

    @property
    def owner_url(self) -> str:
        """For the role ``muniment_owner``: owns the database, may make others (tests), is no superuser."""
        return self._postgres.url(OWNER)

    @property
    def superuser_url(self) -> str:
        """For tests that attack. No process of the platform is ever given it."""
        return self._postgres.url(SUPERUSER)

    @property
    def redis_url(self) -> str:
        """``unix://:password@/path?db=0`` for redis-py and Django's cache."""
        return self._redis.url

    @property
    def broker_url(self) -> str:
        """``redis+socket://:password@/path?virtual_host=0`` for Celery."""
        return broker_url(self.redis_url)

    @property
    def _postgres(self) -> Postgres:
        if self.postgres is None:
            raise EmbeddedError("no PostgreSQL was started here")
        return self.postgres

    @property
    def _redis(self) -> Redis:
        if self.redis is None:
            raise EmbeddedError("no Redis was started here")
        return self.redis

    def ended(self) -> list[tuple[str, int, Path]]:
        """The servers that died by themselves: name, exit status, log file."""
        found: list[tuple[str, int, Path]] = []
        for name, server in (("postgres", self.postgres), ("redis", self.redis)):
            if server is not None and (status := server.process.poll()) is not None:
                found.append((name, status, server.log))
        return found

    def stop(self) -> None:
        """Stop Redis, then PostgreSQL, and take the sockets' folder away."""
        self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(var: Path, *, postgres: bool = True, redis: bool = True, durable: bool = True) -> Servers:
    """Start the servers of ``var``, making it when new and finding the data again when not.

    What an earlier start left running there is stopped first. ``durable=False`` (tests only) lets PostgreSQL
    skip fsync. Call from a thread that outlives the servers. EmbeddedError says which server failed and why,
    or that another process runs the servers of this folder; nothing is left running then.
    """
    if sys.platform != "linux":
        raise EmbeddedError("the embedded servers run on Linux only; set DATABASE_URL and REDIS_URL")
    var = make_var(var)
    with contextlib.ExitStack() as cleanup:
        cleanup.enter_context(lock(var / "embedded.lock", f"another process runs the servers of {var}"))
        keys = var / "keys"
        passwords = {name: devkeys.password(keys, name) for name in devkeys.SERVER_PASSWORDS}
        sockets = _make_socket_folder(var)
        cleanup.callback(_remove_socket_folder, var)
        account = _account(var, sockets, postgres=postgres, redis=redis)
        database = store = None
        if postgres:
            by_role = {
                SUPERUSER: passwords["postgres_superuser"],
                OWNER: passwords["postgres_owner"],
                SERVING: passwords["postgres_muniment"],
            }
            database = embedded_postgres.start(var, sockets, by_role, account=account, durable=durable)
            cleanup.callback(database.stop)
        if redis:
            store = embedded_redis.start(var, sockets, passwords["redis"], account=account)
            cleanup.callback(store.stop)
        return Servers(database, store, cleanup.pop_all())


def make_var(var: Path) -> Path:
    """Make the instance's folder and its ``log`` (0700); returns the absolute path.

    As root a new ``var`` is 0711: the servers' account must pass through it, though it may not look around;
    everything in it has a mode of its own.
    """
    var = var.resolve()
    if not var.exists():
        var.mkdir(parents=True, mode=0o700)
        if os.geteuid() == 0:
            var.chmod(0o711)
    var.joinpath("log").mkdir(mode=0o700, exist_ok=True)
    return var


@contextlib.contextmanager
def lock(path: Path, refusal: str) -> Iterator[None]:
    """Hold an exclusive flock(2), which ends with us however we end. EmbeddedError(refusal) if taken."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddedError(refusal) from None
        yield
    finally:
        os.close(descriptor)


def _account(var: Path, sockets: Path, *, postgres: bool, redis: bool) -> Account | None:
    programs = []
    if postgres:
        programs += [embedded_postgres.binaries() / name for name in ("initdb", "postgres")]
    if redis:
        programs.append(embedded_redis.binary())
    account = choose_account(var, programs)
    if account is not None:
        os.chown(sockets, account.uid, account.gid)
    return account


def _make_socket_folder(var: Path) -> Path:
    """A new folder of mode 0700 whose sockets' paths are short enough, remembered in ``var/sockets``."""
    _remove_socket_folder(var)
    longest = len(os.fsencode(embedded_postgres.SOCKET)) + 1
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) + len(SOCKET_PREFIX) + 10 + longest > MOST_SOCKET_PATH:
        parent = "/tmp"  # noqa: S108  # mkdtemp makes the folder ours alone
    sockets = Path(tempfile.mkdtemp(prefix=SOCKET_PREFIX, dir=parent))
    remembered = var / "sockets"
    remembered.touch(mode=0o600)
    remembered.write_text(str(sockets))
    return sockets


def _remove_socket_folder(var: Path) -> None:
    """Remove the remembered folder: only the names we know, and only if it still is a folder of ours."""
    remembered = var / "sockets"
    try:
        sockets = Path(remembered.read_text())
        found = sockets.lstat()
    except FileNotFoundError:
        remembered.unlink(missing_ok=True)
        return
    if stat.S_ISDIR(found.st_mode) and sockets.name.startswith(SOCKET_PREFIX) and found.st_mode & 0o077 == 0:
        for name in (
            embedded_postgres.SOCKET,
            f"{embedded_postgres.SOCKET}.lock",
            embedded_redis.SOCKET,
            "password",
        ):
            with contextlib.suppress(OSError):
                (sockets / name).unlink()
        with contextlib.suppress(OSError):
            sockets.rmdir()
    remembered.unlink()
