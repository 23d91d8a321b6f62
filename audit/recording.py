"""The recorder: the only writer of records (DESIGN.md section 6, Writing).

One thread and one connection in each web process take all that is queued and write it in one transaction of
two round trips, under the lock of the head row: index order is commit order, without gaps, and all batches of
all processes form one signed chain. An answer leaves only after its record has committed.
"""

import logging
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from threading import Condition, Event, Lock, Thread

import psycopg
from django.db import close_old_connections

from audit import outbox
from audit.batching import Batch, Begun, Signer, build, finish, landed, lock
from audit.entries import Entry, Receipt
from audit.faults import AlreadyRecorded, QueueFull, Stale, SubjectChanged, Unavailable
from audit.journal import Journal

__all__ = ["AlreadyRecorded", "QueueFull", "Recorder", "Stale", "SubjectChanged", "Unavailable"]

logger = logging.getLogger(__name__)

MAX_BATCH = 512
DRAIN_EVERY = 0.25  # seconds
PAUSE = 0.1  # seconds between attempts to reach the database
# What callers without a verified token may not use of the queue.
RESERVED = 0.25

# The server said no before the commit, or a value could not even be written or read: nothing of the batch can be
# in the log.
REFUSED = (
    psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError, psycopg.NotSupportedError,
    ValueError, TypeError, AttributeError, ArithmeticError, struct.error,
)  # fmt: skip

Result = Receipt | Exception


class Submission:
    """Some entries that one caller waits for together."""

    __slots__ = ("deadline", "done", "entries", "left", "results")

    def __init__(self, entries: Sequence[Entry], deadline: float) -> None:
        self.entries = entries
        self.results: list[Result | None] = [None] * len(entries)
        self.left = len(entries)
        self.deadline = deadline
        self.done = Lock()
        self.done.acquire()

    def resolve(self, position: int, result: Result) -> None:
        """Called by the writer alone; the last one wakes the caller. The first result counts: were a second
        one counted, the caller would wake while others of its entries are still being written."""
        if self.results[position] is not None:
            return
        self.results[position] = result
        self.left -= 1
        if self.left == 0:
            self.done.release()


Job = tuple[Submission, int]


def resolve(jobs: Sequence[Job], result: Result) -> None:
    """The same result for all."""
    for submission, position in jobs:
        submission.resolve(position, result)


class Recorder:
    """The writer thread of one web process. `connect` opens its connection; `clock`, in demo mode and tests
    only, sets record time (which never goes back); `periodic` is asked about four times a second what else
    there is to record; `journal` remembers each batch outside of the database; `written` is told of each batch that has
    committed."""

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection],
        signer: Signer,
        capacity: int = 2048,
        timeout: float = 5.0,
        clock: Callable[[], datetime] | None = None,
        periodic: Callable[[], list[Entry]] = list,
        journal: Journal | None = None,
        written: Callable[[Batch], None] | None = None,
    ) -> None:
        self.connect, self.signer, self.clock, self.periodic = connect, signer, clock, periodic
        self.journal, self.written = journal, written
        self.capacity, self.timeout = capacity, timeout
        self.queue: deque[Job] = deque()
        self.ready = Condition(Lock())
        self.stopping = Event()
        self.unsettled: tuple[Batch, list[Job]] | None = None
        self.connection: psycopg.Connection | None = None
        self.own = Submission([], float("inf"))
        self.drained_at = 0.0
        self.thread = Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> "Recorder":
        """Start the thread."""
        self.thread.start()
        return self

    def stop(self) -> None:
        """Write what is queued, then stop."""
        with self.ready:
            self.stopping.set()
            self.ready.notify()
        self.thread.join(timeout=10)

    def record(self, entries: Sequence[Entry]) -> list[Result]:
        """Record entries and wait until their transaction has committed; one result for each, in order: a
        Receipt, or Stale, SubjectChanged, AlreadyRecorded or another exception. Raises QueueFull or
        Unavailable for all of them; then they may or may not be in the log, and must not be answered."""
        if not entries:
            return []
        submission = Submission(entries, time.monotonic() + self.timeout)
        with self.ready:
            if self.stopping.is_set():
                raise Unavailable("the recorder is stopping")
            room = self.capacity if all(e.established for e in entries) else self.capacity * (1 - RESERVED)
            if len(self.queue) + len(entries) > room:
                raise QueueFull
            self.queue.extend((submission, position) for position in range(len(entries)))
            self.ready.notify()
        if not submission.done.acquire(timeout=self.timeout):
            raise Unavailable("the record could not be written in time")
        return [result for result in submission.results if result is not None]

    # --- the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not (self.stopping.is_set() and not self.queue):
            jobs: list[Job] = []
            try:
                self._settle()
                if self._wait():
                    # First the lock, then the jobs: while other processes write, this one's batch grows.
                    begun = lock(self._connected())
                    jobs = self._take()
                    self._write(jobs, begun)
                self._drain()
            except psycopg.OperationalError as error:
                self._lost(jobs, error)
            except Exception as error:
                logger.exception("recording failed")
                self._disconnect()
                resolve(self._undecided(jobs), Unavailable(type(error).__name__))
        self._disconnect()

    def _wait(self) -> bool:
        """Until something is queued, or it is time to look after the rest; whether something is queued."""
        with self.ready:
            if not self.queue and not self.stopping.is_set():
                self.ready.wait(DRAIN_EVERY)
            return bool(self.queue)

    def _take(self) -> list[Job]:
        """Everything queued, up to the size of a batch, without those whose callers have given up."""
        with self.ready:
            jobs = [self.queue.popleft() for _ in range(min(MAX_BATCH, len(self.queue)))]
        now = time.monotonic()
        return [job for job in jobs if job[0].deadline > now]

    def _lost(self, jobs: list[Job], error: Exception) -> None:
        """The database is away: keep the jobs that nobody can have recorded, first in line, and try again."""
        logger.warning("database connection lost: %s", type(error).__name__)
        self._disconnect()
        with self.ready:
            self.queue.extendleft(reversed(self._undecided(jobs)))
        time.sleep(PAUSE)

    def _undecided(self, jobs: list[Job]) -> list[Job]:
        """Those without a result, but for those of a commit whose outcome is unknown: `_settle` tells it."""
        unknown = {(id(s), i) for s, i in self.unsettled[1]} if self.unsettled else set()
        return [(s, i) for s, i in jobs if s.results[i] is None and (id(s), i) not in unknown]

    def _connected(self) -> psycopg.Connection:
        if self.connection is None or self.connection.closed:
            self.connection = self.connect()
        return self.connection

    def _disconnect(self) -> None:
        """Let go of both connections, ours and Django's of this thread; nothing here may end the thread."""
        connection, self.connection = self.connection, None
        try:
            if connection is not None:
                connection.close()
            close_old_connections()
        except Exception as error:
            logger.warning("closing a connection failed: %s", type(error).__name__)

    def _settle(self) -> None:
        """After a connection was lost during a commit: find out whether the batch is there, before anything
        else is written. What is absent is decided again by its caller."""
        if self.unsettled is None:
            return
        batch, jobs = self.unsettled
        is_there = landed(self._connected(), batch)
        self.unsettled = None
        logger.warning("batch at %d %s", batch.first, "had committed" if is_there else "had not committed")
        if is_there:
            self._answer(batch, jobs)
        else:
            resolve(jobs, Stale())

    def _write(self, jobs: list[Job], begun: Begun | None = None) -> None:
        """One batch of those that may be recorded as they were decided."""
        connection = self._connected()
        begun = begun or lock(connection)
        entries = [submission.entries[position] for submission, position in jobs]
        try:
            begun.look(connection, entries)
        except REFUSED as error:
            connection.rollback()
            self._apart(jobs, error)
            return
        kept = []
        for job, entry in zip(jobs, entries, strict=True):
            if fault := begun.fault(entry):
                job[0].resolve(job[1], fault)
            else:
                kept.append(job)
        self._append(begun, kept)

    def _append(self, begun: Begun, jobs: list[Job]) -> None:
        batch, faults = build(begun, [s.entries[i] for s, i in jobs], self.signer, self._time(begun))
        kept = []
        for job, fault in zip(jobs, faults, strict=True):
            if fault is None:
                kept.append(job)
            else:
                job[0].resolve(job[1], fault)
        if batch is None:
            self._connected().rollback()
            return
        self.unsettled = (batch, kept)
        try:
            finish(self._connected(), batch)
        except REFUSED as error:
            self.unsettled = None
            self._connected().rollback()
            self._apart(kept, error)
        else:
            self.unsettled = None
            self._answer(batch, kept)

    def _apart(self, jobs: list[Job], error: Exception) -> None:
        """The database refuses something in this batch: find it by halves, so that it fails alone."""
        if len(jobs) == 1:
            logger.error("an entry cannot be recorded: %s", type(error).__name__)
            resolve(jobs, Unavailable(type(error).__name__))
        else:
            middle = len(jobs) // 2
            self._write(jobs[:middle])
            self._write(jobs[middle:])

    def _answer(self, batch: Batch, jobs: list[Job]) -> None:
        """The batch has committed. `jobs` is empty when it was the outbox's: then nobody waits."""
        if self.journal is not None:
            self.journal.append(batch.first, len(batch.rows), batch.digest, time.time_ns() // 1_000_000)
        if self.written is not None:
            self.written(batch)
        if not jobs:
            return
        for receipt, (submission, position) in zip(batch.receipts(), jobs, strict=True):
            submission.resolve(position, receipt)

    def _time(self, begun: Begun) -> datetime:
        """The log's clock: the database's, or the demo's, and always after the newest record."""
        now = self.clock() if self.clock else begun.now
        return max(now.astimezone(UTC), begun.at + timedelta(microseconds=1))

    def _drain(self) -> None:
        """Put what waits in the outbox, and what came up by itself, into the log."""
        if time.monotonic() - self.drained_at < DRAIN_EVERY:
            return
        # Noted before the work: a drain that fails must not be tried again with every batch.
        self.drained_at = time.monotonic()
        connection = self._connected()
        self._write_own()
        while outbox.waiting(connection) and self._drain_some(connection):
            if self.queue:  # callers are waiting: one batch of theirs, then on
                self.drained_at = 0.0
                return

    def _write_own(self) -> None:
        """Record what `periodic` brings; what a lost connection kept from being recorded is still at hand."""
        results = zip(self.own.entries, self.own.results, strict=True)
        entries = [entry for entry, result in results if result is None or isinstance(result, Stale)]
        self.own = Submission(entries + self.periodic(), float("inf"))
        if self.own.entries:
            self._write([(self.own, position) for position in range(len(self.own.entries))])

    def _drain_some(self, connection: psycopg.Connection) -> bool:
        """One batch of the outbox. False when another process was faster."""
        begun = lock(connection)
        entries, drained = outbox.entries(connection, begun.drained)
        batch, faults = build(begun, entries, self.signer, self._time(begun), drained=drained)
        if any(faults):
            # Left waiting, it would hold up all that comes after it, for ever.
            entries = [outbox.by_digest(e) if fault else e for e, fault in zip(entries, faults, strict=True)]
            batch, faults = build(begun, entries, self.signer, self._time(begun), drained=drained)
        if batch is None or any(faults):
            connection.rollback()
            return False
        self.unsettled = (batch, [])
        finish(connection, batch)
        self.unsettled = None
        self._answer(batch, [])
        return True
