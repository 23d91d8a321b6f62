"""A small relay between the recorder and PostgreSQL that loses the connection around a COMMIT, in every way."""

import os
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import psycopg
from psycopg.conninfo import conninfo_to_dict

OPTIONS = "-c synchronous_commit=on -c statement_timeout=10s -c lock_timeout=5s -c timezone=UTC"
WAYS = ("request lost", "answer lost", "answered late", "request held back, then lost")
SYNC = b"S\0\0\0\4"  # so that the server answers, should ours still be on its way
HOLD = 1.0  # seconds for which a COMMIT is held back


class Relay:
    """Listens on a socket of its own. `plan` says what becomes of the next commits, in their order; each is one
    of WAYS, or None for a commit that goes well. Further ones go well."""

    def __init__(self, plan: list[str | None] | None = None) -> None:
        self.plan = list(plan or [])
        self.commits = 0
        self.folder = Path(tempfile.mkdtemp(prefix="muniment-relay-"))
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.folder / ".s.PGSQL.5432"))
        self.listener.listen()
        self.threads: list[Thread] = []
        self.open: list[socket.socket] = []
        self._spawn(self._accept)

    def connect(self) -> psycopg.Connection:
        """As the serving role, through the relay."""
        to = {"host": str(self.folder), "port": "5432", "sslmode": "disable"}
        return psycopg.connect(os.environ["DATABASE_URL"], **to, options=OPTIONS)

    def close(self) -> None:
        """Stop relaying."""
        for end in (self.listener, *self.open):
            _close(end)
        for thread in self.threads:
            thread.join(5)
        (self.folder / ".s.PGSQL.5432").unlink()
        self.folder.rmdir()

    def __enter__(self) -> "Relay":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _spawn(self, target, *arguments: object) -> None:  # type: ignore[no-untyped-def]
        thread = Thread(target=target, args=arguments, daemon=True)
        self.threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = _server()
                self.open += [client, server]
                committed = Event()
                lost = Event()
                self._spawn(self._upwards, client, server, committed, lost)
                self._spawn(self._downwards, client, server, committed, lost)

    def _upwards(self, client: socket.socket, server: socket.socket, committed: Event, lost: Event) -> None:
        """From the recorder to the server."""
        with suppress(OSError):
            while data := client.recv(1 << 20):
                if b"COMMIT\0" not in data:
                    server.sendall(data)
                    continue
                self.commits += 1
                match self.plan.pop(0) if self.plan else None:
                    case None:
                        server.sendall(data)
                    case "request lost":
                        break
                    case "answer lost":
                        lost.set()
                        server.sendall(data + SYNC)
                        committed.wait(5)
                        break
                    case "answered late":  # the recorder is back before the server even has the COMMIT
                        lost.set()
                        _close(client)
                        time.sleep(HOLD)
                        server.sendall(data + SYNC)
                        committed.wait(5)
                        break
                    case "request held back, then lost":
                        _close(client)
                        time.sleep(HOLD)
                        break
        _close(client)
        _close(server)

    def _downwards(self, client: socket.socket, server: socket.socket, committed: Event, lost: Event) -> None:
        """From the server to the recorder; once the answer is to be lost, nothing."""
        with suppress(OSError):
            while data := server.recv(1 << 20):
                if not lost.is_set():
                    client.sendall(data)
                elif b"COMMIT\0" in data:  # CommandComplete
                    committed.set()
        committed.set()
        _close(client)


def _server() -> socket.socket:
    parts = conninfo_to_dict(os.environ["DATABASE_URL"])
    host, port = str(parts.get("host", "localhost")), str(parts.get("port", "5432"))
    if not host.startswith("/"):
        return socket.create_connection((host, int(port)))
    server = socket.socket(socket.AF_UNIX)
    server.connect(f"{host}/.s.PGSQL.{port}")
    return server


def _close(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
