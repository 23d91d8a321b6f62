"""Real web processes for tests: granian on a free loopback port, as `make run` starts it, and callers for it."""

import http.client
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from threading import Event, Thread
from typing import Any

from governance.embedded_process import Process, exited, last_lines, launch, stop_group
from governance.supervisor_plan import Plan, web_command

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 60
TIMEOUT = 20.0  # of one call
WORKERS = 8  # of pytest that have ports of their own
_given: set[int] = set()  # ports, for servers of this process


@dataclass
class Web:
    """One granian with its worker processes: a process group of its own."""

    port: int
    log: Path
    environment: Mapping[str, str]
    workers: int
    process: Process

    def alive(self) -> list[int]:
        """The process numbers of the workers that run, the oldest first."""
        # They are forked, and so have granian's command line; Python's resource tracker has one of its own.
        return [pid for pid in children(self.process.pid) if b"granian" in command_line(pid)]

    def kill_worker(self) -> int:
        """kill -9 of the oldest worker; its number. (Granian gives up on one that dies twice in 5 s.)"""
        until(lambda: bool(self.alive()), 30)  # granian may be starting one just now
        pid = self.alive()[0]
        os.kill(pid, SIGKILL)
        return pid

    def kill(self) -> None:
        """kill -9 of all of its processes at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, SIGKILL)
        self.process.wait(30)

    def restart(self) -> None:
        """Start again on the same port."""
        self.process = _launch(self.port, self.workers, self.environment, self.log)
        self.wait()

    def wait(self) -> None:
        """Until /readyz answers 200. AssertionError, with the end of the log, when it does not."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            assert exited(self.process) is None, f"granian ended:\n{last_lines(self.log)}"
            with suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/readyz")
                status = connection.getresponse().status
                connection.close()
                if status == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"the web process is not ready:\n{last_lines(self.log)}")


def children(pid: int) -> list[int]:
    """The numbers of a process's children, whichever of its threads started them."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return sorted(found)


def command_line(pid: int) -> bytes:
    """A process's command line; empty when it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _launch(port: int, workers: int, environment: Mapping[str, str], log: Path) -> Process:
    plan = Plan(Path(environment["MUNIMENT_VAR"]), port, workers, None, None, None)
    return launch(web_command(plan), log=log, account=None, death_signal=SIGKILL, environment=environment, cwd=ROOT)


def free_port() -> int:
    """A loopback port that nobody listened on a moment ago, and below those that the system hands out: until a server
    takes it, no connection of another test is given it, and no server of another test or another worker of pytest."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
    while True:
        port = 12_000 + secrets.randbelow(20_000 // WORKERS) * WORKERS + worker
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


@contextmanager
def closed_port() -> Iterator[int]:
    """A loopback port on which nobody listens, and that nobody else is given: only who names it may listen there."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextmanager
def web(
    servers: int = 1, workers: int = 2, environment: Mapping[str, str] | None = None, **more: str
) -> Iterator[list[Web]]:
    """Start web servers in the environment of the tests (or another), wait until they are ready, and stop all
    that was started, whatever happens."""
    given = dict(os.environ if environment is None else environment)
    given.pop("DATABASE_OWNER_URL", None)  # a web process is not given it
    started: list[Web] = []
    try:
        for _ in range(servers):
            port = free_port()
            own = given | {"MUNIMENT_PROCESS": "web", "MUNIMENT_PORT": str(port), "PYTHONUNBUFFERED": "1"} | more
            log = Path(own["MUNIMENT_VAR"]) / f"web-{port}.log"
            started.append(Web(port, log, own, workers, _launch(port, workers, own, log)))
        for server in started:
            server.wait()
        yield started
    finally:
        for server in started:
            stop_group(server.process, 5)


@dataclass
class Answer:
    """One call that was answered with 200: when it started and ended (monotonic seconds), and its body."""

    user: str
    started: float
    ended: float
    body: dict[str, Any]


@dataclass
class Load:
    """Threads that call verify until they are told to stop, each over a connection that it keeps."""

    ports: list[int]
    key: str
    tokens: dict[str, str]
    threads: int = 16
    name: str = field(default_factory=lambda: secrets.token_hex(4))  # makes request ids unlike any other load's
    answers: list[Answer] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    lost: int = 0
    stopping: Event = field(default_factory=Event)
    faults: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self._running = [Thread(target=self._work, args=(number,)) for number in range(self.threads)]
        for thread in self._running:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self._running:
            thread.join(TIMEOUT + 30)  # else its calls would be in the next test's log
        assert not any(thread.is_alive() for thread in self._running)

    def since(self, moment: float) -> list[Answer]:
        """The answers of calls that started after a moment."""
        return [answer for answer in list(self.answers) if answer.started > moment]

    def wait_for(self, count: int, seconds: float = 60) -> None:
        """Until so many more calls were answered."""
        goal = len(self.answers) + count
        until(lambda: len(self.answers) >= goal, seconds)

    def _work(self, number: int) -> None:
        users = list(self.tokens)
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[number % len(self.ports)], timeout=TIMEOUT)
        try:
            for turn in range(1_000_000):
                if self.stopping.is_set():
                    return
                self._call(connection, users[(number + turn) % len(users)], f"{self.name}-{number}-{turn}")
        except BaseException as error:
            self.faults.append(error)
            raise
        finally:
            connection.close()

    def _call(self, connection: http.client.HTTPConnection, user: str, request: str) -> None:
        body = json.dumps({"token": self.tokens[user], "tool": "memory.recall", "request": {"id": request}})
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        started = time.monotonic()
        try:
            connection.request("POST", "/v1/verify", body, headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            self.lost += 1
            connection.close()
            time.sleep(0.05)
            return
        if response.status == 200:
            self.answers.append(Answer(user, started, time.monotonic(), json.loads(content)))
        else:
            self.refused.append(response.status)
            time.sleep(0.05)


def until(holds: Callable[[], bool], seconds: float) -> None:
    """Wait until it holds. AssertionError when it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
