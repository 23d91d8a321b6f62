"""A circuit breaker: while the platform is away, calls are not made to wait for it one after another."""

import time
from collections.abc import Callable
from threading import Lock

from muniment import forks


class Breaker:
    """Closed, it lets calls pass. After `limit` outages in a row it is open for `pause` seconds, twice as long each
    time up to `longest`; then one call at a time may try. An answer of any kind closes it."""

    def __init__(
        self,
        limit: int = 5,
        pause: float = 1.0,
        longest: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._first, self._longest, self._clock = limit, pause, longest, clock
        self._lock = Lock()
        self._outages = 0
        self._pause = pause
        self._until: float | None = None
        self._trying = False
        forks.remember(self)

    def after_fork(self) -> None:
        """In a child: the parent's calls are not its own."""
        self._lock, self._trying = Lock(), False

    def enter(self) -> bool:
        """Whether a call may be made now. One that may must end in `answered`, `failed` or `left`."""
        with self._lock:
            if self._until is None:
                return True
            if self._trying or self._clock() < self._until:
                return False
            self._trying = True
            return True

    @property
    def wait(self) -> int:
        """Whole seconds until a call may be tried; at least 1."""
        with self._lock:
            return 1 if self._until is None else max(1, int(self._until - self._clock() + 0.999))

    def answered(self) -> bool:
        """The platform answered. Whether there had been an outage that this ends."""
        with self._lock:
            ended = self._outages > 0
            self._outages, self._until, self._trying, self._pause = 0, None, False, self._first
            return ended

    def failed(self) -> None:
        """The platform did not answer, or with a 5xx."""
        with self._lock:
            self._outages += 1
            if self._trying:
                self._pause = min(self._pause * 2, self._longest)
            if self._trying or self._outages >= self._limit:
                self._until = self._clock() + self._pause
            self._trying = False

    def left(self) -> None:
        """A call ended without telling anything of the platform (it was cancelled)."""
        with self._lock:
            self._trying = False
