"""What a backend tells the platform without anybody waiting for it: its tools, outcomes, and what ran without us."""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from muniment import forks
from muniment.errors import MunimentError, Throttled, Unavailable

logger = logging.getLogger("muniment")

MAX_WAITING = 10_000  # outcomes
MOST_PAUSE = 30.0  # seconds between attempts while the platform is away
CLOSE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do until the platform answers; `what` names it in the log."""

    what: str
    do: Callable[[], Any]


class Background:
    """One daemon thread in each process, started with the first job. Jobs are done in order, again and again while the
    platform is away; one that the platform refuses is logged and left."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._busy = False
        self.dropped = 0
        forks.remember(self)

    def add(self, job: Job, once: bool = False) -> None:
        """Queue a job; with `once`, not beside one of the same name that has yet to begin. What is beyond the bound is
        dropped, counted and logged: it must not hold up calls."""
        forks.notice()
        with self._lock:
            # The first may be under way, and may have looked already at what there was to tell.
            if once and any(other.what == job.what for other in islice(self._jobs, int(self._busy), None)):
                return
            if len(self._jobs) >= MAX_WAITING:
                self.dropped += 1
                if self.dropped == 1 or self.dropped % 1000 == 0:
                    logger.error("%d reports to the platform were dropped: too many wait", self.dropped)
                return
            self._jobs.append(job)
            self._closing = False
            self._start()
            self._lock.notify()

    def after_fork(self) -> None:
        """In a child: the thread is the parent's, and so is what waits."""
        self._lock, self._jobs, self._thread = threading.Condition(), deque(), None
        self._busy = self._closing = False
        _running.discard(self)

    def _start(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        thread = threading.Thread(target=self._run, name="muniment", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter ends: the next job tries again
            logger.error("nothing can be reported to the platform: %s", error)
            return
        self._thread = thread
        _running.add(self)

    def wait(self, seconds: float = CLOSE_SECONDS) -> bool:
        """Until nothing waits any more; whether that came in time."""
        deadline = time.monotonic() + seconds
        with self._lock:
            while self._jobs or self._busy:
                left = deadline - time.monotonic()
                if left <= 0 or self._thread is None or not self._thread.is_alive():
                    return not self._jobs
                self._lock.wait(min(left, 0.05))
        return True

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Do what waits, for so long at most, and stop."""
        _running.discard(self)
        done = self.wait(seconds)
        with self._lock:
            self._closing = True
            self._lock.notify_all()
            thread, left = self._thread, len(self._jobs)
        if not done and left:
            logger.error("%d reports to the platform were not made before the end", left)
        if thread is not None and thread is not threading.current_thread():
            with contextlib.suppress(RuntimeError):
                thread.join(max(0.05, min(seconds, 1.0)))

    def _run(self) -> None:
        pause = 0.1
        while True:
            with self._lock:
                while not self._jobs and not self._closing:
                    self._lock.wait()
                if self._closing:
                    return
                job, self._busy = self._jobs[0], True
            again = self._attempt(job)
            with self._lock:
                self._busy = False
                if not again:
                    self._jobs.popleft()
                    pause = 0.1
                elif not self._closing:
                    self._lock.wait(pause)
                    pause = min(pause * 2, MOST_PAUSE)
                self._lock.notify_all()

    def _attempt(self, job: Job) -> bool:
        """Do a job; whether it is to be tried again."""
        try:
            job.do()
        except (Unavailable, Throttled):
            return True
        except MunimentError as error:
            logger.error("%s: %s", job.what, error)
        except Exception as error:
            logger.error("%s failed: %s", job.what, type(error).__name__)
        return False


_running: set[Background] = set()


@atexit.register
def _close_all() -> None:
    """What waits is told before the process ends: all guards of it together have CLOSE_SECONDS for that."""
    latest = time.monotonic() + CLOSE_SECONDS
    for one in list(_running):
        one.close(max(0.0, latest - time.monotonic()))
