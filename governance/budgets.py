"""Failure budgets (DESIGN.md section 5, No flood): before verification, each backend and source address may fail
so often; beyond it calls are answered 429 and counted, and one `denials` record a second says how many."""

import time
from threading import Lock

from django.conf import settings

from audit.entries import Entry, entry

MAX_SOURCES = 20_000
# One backend's failures together, in budgets of one source: made-up source addresses do not multiply a budget.
BACKEND_SHARE = 10


class Budgets:
    """Token buckets (level, when) of failures, and the counts of what was turned away. `rate` is failures a second."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self._levels: dict[tuple[str, str], tuple[float, float]] = {}
        self._turned_away: dict[tuple[str, str], int] = {}
        self._lock = Lock()
        self._told_at = time.monotonic()

    def _level(self, key: tuple[str, str], share: int, now: float) -> float:
        level, at = self._levels.get(key, (self.burst * share, now))
        return min(self.burst * share, level + (now - at) * self.rate * share)

    def spent(self, backend: str, source: str) -> bool:
        """Whether this backend, or this source at it, has failed too often."""
        now = time.monotonic()
        return self._level((backend, source), 1, now) < 1 or self._level((backend, ""), BACKEND_SHARE, now) < 1

    def charge(self, backend: str, source: str, failures: int = 1) -> None:
        """Note failures."""
        now = time.monotonic()
        with self._lock:
            if len(self._levels) >= MAX_SOURCES:
                self._levels.clear()
            for key, share in (((backend, source), 1), ((backend, ""), BACKEND_SHARE)):
                self._levels[key] = (max(0.0, self._level(key, share, now) - failures), now)

    def turned_away(self, backend: str, reason: str, calls: int = 1) -> None:
        """Count calls that were answered without a record of their own."""
        with self._lock:
            key = (backend, reason)
            self._turned_away[key] = self._turned_away.get(key, 0) + calls

    def denials(self) -> list[Entry]:
        """At most once a second: one entry for each backend with what was turned away, by reason."""
        now = time.monotonic()
        if now - self._told_at < 1:
            return []
        with self._lock:
            counted, self._turned_away, self._told_at = self._turned_away, {}, now
        reasons: dict[str, dict[str, int]] = {}
        for (backend, reason), count in counted.items():
            reasons.setdefault(backend, {})[reason] = count
        return [
            entry(
                {"type": "denials", "backend": backend or None, "decision": "deny", "counts": counts},
                {},
                "system",
            )
            for backend, counts in reasons.items()
        ]


budgets = Budgets(settings.MUNIMENT_FAILURES_PER_SECOND, settings.MUNIMENT_FAILURES_BURST)
