"""What a web process keeps for its life: the recorder, its journal and its keys. Made at the first use, so that it is
made after granian has started its workers."""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import cache
from threading import Event, Lock, Thread

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from django.db import Error, connections

from audit import inbox, keys
from audit.batching import Signer
from audit.entries import Entry
from audit.journal import Journal
from audit.journal_watch import Watch
from audit.recording import Recorder
from clients.limits import counter
from clients.signals import polling
from governance import metrics
from governance.budgets import budgets
from governance.failed_sign_ins import failures
from governance.limiting import outage

# What Django adds to the connection parameters for its own cursors, and the limits that are ours to set.
DJANGO_ALONE = {"cursor_factory", "context", "prepare_threshold", "options"}

_recorder: Recorder | None = None
_watch: Watch | None = None
_polling: Event | None = None
_starting = Lock()


@cache
def signer(name: str, use: str) -> Signer:
    """The process's key of this name, published for those who verify."""
    private = Ed25519PrivateKey.from_private_bytes(settings.MUNIMENT_KEYS[name])
    return Signer(private, keys.publish(private, use))


def connect() -> psycopg.Connection:
    """The recorder's own connection. It says itself that a commit must be durable, whatever the server's default
    is, and that no statement of it may hang."""
    parameters = connections["default"].get_connection_params()
    ours = {name: value for name, value in parameters.items() if name not in DJANGO_ALONE}
    limits = ("synchronous_commit=on", "statement_timeout=10s", "lock_timeout=5s", "timezone=UTC",
              "idle_in_transaction_session_timeout=10s", r"default_transaction_isolation=read\ committed")  # fmt: skip
    ours |= {
        "options": " ".join(f"-c {limit}" for limit in limits),
        "application_name": "muniment recorder",
        "tcp_user_timeout": 10_000,  # milliseconds; a silent network must not hold the thread for minutes
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }
    return psycopg.connect(**ours)


def _periodic() -> list[Entry]:
    """What the recorder's thread looks after besides: the inbox, and what was turned away or failed, in numbers."""
    inbox.flush()
    if _recorder is not None:
        metrics.queue(len(_recorder.queue), _recorder.capacity)
    denials = budgets.denials()
    metrics.turned_away(denials)
    return [*denials, *failures.counted(), *outage.notices()]


def recorder() -> Recorder:
    """The recorder of this process, started at the first call."""
    if _recorder is not None:
        return _recorder
    with _starting:
        return _recorder or start_recorder()


def start_recorder(clock: Callable[[], datetime] | None = None) -> Recorder:
    """Start it, and the watch over its journal; `clock` is for the demo's history and for tests."""
    global _recorder, _watch
    key = signer("WRITER_KEY", "writer")  # first: without a database it fails, and is tried again with each call
    journal = Journal(settings.MUNIMENT_VAR / "batches")
    _watch = Watch(journal, settings.MUNIMENT_LOG_ORIGIN).start()
    _recorder = Recorder(
        connect,
        key,
        capacity=settings.MUNIMENT_QUEUE,
        timeout=settings.MUNIMENT_RECORD_TIMEOUT,
        clock=clock,
        periodic=_periodic,
        journal=journal,
        written=metrics.written,
    ).start()
    return _recorder


def begin(may: Callable[[], bool], every: float = 2.0, ended: Event | None = None) -> Thread:
    """Start the recorder as soon as `may` says so and the database answers, whether or not anybody calls: what staff
    and background jobs did is recorded by web processes, also by those that nobody has called since their start."""
    ended = ended or Event()

    def look() -> None:
        while not ended.is_set():
            with suppress(Error, psycopg.Error, OSError):  # /readyz says what is away
                if may():
                    recorder()
                    counter.begin()
                    break
            ended.wait(every)
        connections.close_all()  # this thread's

    thread = Thread(target=look, name="begin", daemon=True)
    thread.start()
    return thread


def poll(may: Callable[[], bool]) -> Thread:
    """Poll transmitters of security events from now on, whenever `may` says so, until `stop_recorder`."""
    global _polling
    _polling = Event()
    return polling.begin(may, _polling)


def stop_recorder() -> None:
    """Write what is queued and stop; poll no more."""
    global _recorder, _watch
    if _polling is not None:
        _polling.set()
    if _recorder is not None:
        _recorder.stop()
        with suppress(Error):  # without a database the counts of the last second are lost
            inbox.flush(last=True)
    if _watch is not None:
        _watch.stop()
    _recorder = _watch = None
