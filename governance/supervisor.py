"""`make run`: one command that starts all of Muniment for development, watches it and stops it.

    python -m governance.supervisor

Exit status: 0 after Ctrl-C or SIGTERM, 1 when something cannot run or died, 2 when the environment is wrong.
Whatever the way out, nothing that was started here is left running.
"""

import contextlib
import errno
import http.client
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from governance import devkeys, embedded
from governance.embedded_process import (
    EmbeddedError,
    Process,
    exited,
    last_lines,
    launch,
    stop_group,
    stop_matching,
)
from governance.supervisor_plan import (
    MARK,
    Plan,
    PlanError,
    Urls,
    beat_command,
    environment_for,
    instance_lines,
    manage_command,
    read_plan,
    seal_command,
    web_command,
    worker_command,
)

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 60
TICK = 0.1


class Failure(Exception):
    """Something that must run does not; the text is for the person who typed the command."""


class Stopped(Exception):
    """Ctrl-C or SIGTERM came."""


@dataclass(frozen=True)
class Child:
    """A process that must stay up."""

    name: str
    process: Process
    log: Path
    grace: float


class Supervisor:
    """One instance, from the servers to the web processes. ``run`` is the whole story."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.servers: embedded.Servers | None = None
        self.children: list[Child] = []
        self.stop_asked = False

    def run(self) -> None:
        """Start everything, say so, watch until Stopped. Failure or EmbeddedError says what went wrong."""
        var = embedded.make_var(self.plan.var)
        with contextlib.ExitStack() as cleanup:
            cleanup.enter_context(
                embedded.lock(var / "supervisor.lock", f"Muniment already runs in {var}; MUNIMENT_VAR moves this one")
            )
            self._stop_leftovers()
            cleanup.enter_context(reserved_port(self.plan.port))
            devkeys.make(var / "keys")
            devkeys.private_directory(var / "anchor")
            urls = self._start_servers(cleanup)
            self._write_instance(urls, cleanup)
            self._prepare_database(urls)
            cleanup.callback(self._stop_children)
            self._start_children(urls)
            self._wait_until_ready()
            say(f"{self._hello(urls).strip()}\n\nCtrl-C stops it.")
            self._until(lambda: False, None, "")

    # --- starting -------------------------------------------------------------------------------------------

    def _stop_leftovers(self) -> None:
        """What a kill -9 left behind carries our mark with this very folder in its environment."""
        mark = f"{MARK}={self.plan.var}".encode()

        def is_ours(proc: str) -> bool:
            try:
                return mark in Path(proc, "environ").read_bytes().split(b"\0")
            except OSError:
                return False

        if count := stop_matching(is_ours, signal.SIGTERM):
            say(f"stopped {count} processes that an earlier run had left")

    def _start_servers(self, cleanup: contextlib.ExitStack) -> Urls:
        plan = self.plan
        own_postgres, own_redis = plan.database_url is None, plan.redis_url is None
        if own_postgres or own_redis:
            names = [name for name, own in (("PostgreSQL", own_postgres), ("Redis", own_redis)) if own]
            say(f"starting {' and '.join(names)} in {plan.var}")
            self.servers = embedded.start(plan.var, postgres=own_postgres, redis=own_redis)
            cleanup.callback(self.servers.stop)
        self._check()
        return Urls(
            database=plan.database_url or self._own.database_url,
            owner=plan.owner_url or self._own.owner_url,
            redis=plan.redis_url or self._own.redis_url,
        )

    @property
    def _own(self) -> embedded.Servers:
        assert self.servers is not None
        return self.servers

    def _write_instance(self, urls: Urls, cleanup: contextlib.ExitStack) -> None:
        path = self.plan.var / "instance.env"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(instance_lines(self.plan, urls))
        cleanup.callback(path.unlink, missing_ok=True)

    def _prepare_database(self, urls: Urls) -> None:
        say("preparing the database")
        self._manage(urls, "migrate", "--database", "owner", "--no-input", seconds=300)
        # Writes records itself, so it has the part of a web process, before there is one.
        self._manage(urls, "demo_load", process="web", seconds=300)

    def _hello(self, urls: Urls) -> str:
        return self._manage(urls, "demo_hello", seconds=60)

    def _manage(self, urls: Urls, *arguments: str, process: str = "manage", seconds: float) -> str:
        """Run one command of manage.py and return what it printed, which may be a token: no log gets it."""
        name = arguments[0]
        log = self.plan.var / "log" / f"{name}.log"
        # Only commands get the owner's URL: of the servers, only the worker does.
        variables = environment_for(process, self.plan, urls, os.environ, owner=True)
        with tempfile.TemporaryFile() as output:
            command = launch(
                manage_command(*arguments),
                log=log,
                account=None,
                death_signal=signal.SIGTERM,
                environment=variables,
                stdout=output,
                cwd=ROOT,
            )
            try:
                self._until(lambda: exited(command) is not None, seconds, f"manage.py {name}")
            finally:
                status = stop_group(command, 5)
            output.seek(0)
            printed = output.read().decode(errors="replace")
        if status != 0:
            raise Failure(f"manage.py {name} failed{why(status, log)}")
        return printed

    def _start_children(self, urls: Urls) -> None:
        self._check()
        say("starting web, sealer, worker and beat")
        # In this order they are stopped, last to first: web, seal, beat, worker.
        for name, command, owner, grace in (
            ("worker", worker_command(), True, 20.0),
            ("beat", beat_command(self.plan), False, 10.0),
            ("seal", seal_command(), False, 10.0),
            ("web", web_command(self.plan), False, 15.0),
        ):
            log = self.plan.var / "log" / f"{name}.log"
            variables = environment_for(name, self.plan, urls, os.environ, owner=owner)
            process = launch(
                command, log=log, account=None, death_signal=signal.SIGTERM, environment=variables, cwd=ROOT
            )
            self.children.append(Child(name, process, log, grace))

    def _wait_until_ready(self) -> None:
        self._until(lambda: is_ready(self.plan.port), READY_SECONDS, "/readyz", self.plan.var / "log" / "web.log")

    # --- watching and stopping ------------------------------------------------------------------------------

    def _until(self, done: Callable[[], bool], seconds: float | None, what: str, log: Path | None = None) -> None:
        """Wait while everything runs that must. Stopped when asked to; Failure when it takes too long."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not done():
            self._check()
            if deadline is not None and time.monotonic() > deadline:
                raise Failure(f"{what} took more than {seconds:.0f} s" + (why(None, log) if log else ""))
            time.sleep(TICK)

    def _check(self) -> None:
        if self.stop_asked:
            raise Stopped
        for child in self.children:
            if (status := exited(child.process)) is not None:
                raise Failure(f"{child.name} died{why(status, child.log)}")
        for name, status, log in self.servers.ended() if self.servers else []:
            raise Failure(f"{name} died{why(status, log)}")

    def _stop_children(self) -> None:
        while self.children:
            child = self.children.pop()
            stop_group(child.process, child.grace)


@contextlib.contextmanager
def reserved_port(port: int) -> Iterator[None]:
    """Fail now if the port is taken, and keep it until web listens.

    A socket that is bound but does not listen gets no connection. granian binds beside it (SO_REUSEPORT); a
    second supervisor's first bind, without that option, fails: else two would share the port's connections.
    """
    with contextlib.ExitStack() as sockets:
        try:
            with socket.socket() as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(("127.0.0.1", port))
            holder = sockets.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind(("127.0.0.1", port))
        except OSError as error:
            reason = "is taken by another program" if error.errno == errno.EADDRINUSE else f"({error.strerror})"
            raise Failure(f"port {port} on 127.0.0.1 {reason}; MUNIMENT_PORT=8001 (say) moves it") from None
        yield


def is_ready(port: int) -> bool:
    """Whether GET /readyz answers 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def why(status: int | None, log: Path) -> str:
    """How a process ended and the end of its log."""
    if status is None:
        how = ""
    elif status < 0:
        how = f" (killed by {signal.Signals(-status).name})"
    else:
        how = f" (exit status {status})"
    lines = last_lines(log)
    return f"{how}; the last lines of {log}:\n{lines}" if lines else f"{how}; {log} is empty"


def say(text: str) -> None:
    """A line for the person who typed the command."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run one instance until it is stopped."""
    try:
        supervisor = Supervisor(read_plan(os.environ))
    except PlanError as error:
        sys.stderr.write(f"muniment: {error}\n")
        return 2

    def ask_to_stop(number: int, frame: object) -> None:
        supervisor.stop_asked = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ask_to_stop)
    try:
        supervisor.run()
    except Stopped:
        say("stopped")
    except (Failure, EmbeddedError, PermissionError) as error:
        sys.stderr.write(f"muniment: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
