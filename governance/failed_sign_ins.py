"""Sign-ins that failed, for the log: one by one while they are few, counted when they are many, so that guessing
passwords does not fill the log. The name that was typed is not kept, since it may be a password; nor is a token."""

import time
from collections import Counter
from threading import Lock
from typing import Final

from audit.entries import Entry, entry
from audit.staff_log import tell

ONE_BY_ONE: Final = 10  # a minute, in each process; beyond that they are counted
MINUTE: Final = 60.0


class FailedSignIns:
    """What one process saw."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counted: Counter[tuple[str, str]] = Counter()
        self._told = 0
        self._since = time.monotonic()

    def note(self, how: str, reason: str, *, about: int | None = None, address: str | None = None) -> None:
        """A sign-in failed: by `oidc` or `password`, for a `reason` that is one of ours. `about` is the number of the
        account, where there is one. The address is protected in the log."""
        with self._lock:
            if time.monotonic() - self._since < MINUTE and self._told >= ONE_BY_ONE:
                self._counted[how, reason] += 1
                return
            if time.monotonic() - self._since >= MINUTE:
                self._since, self._told = time.monotonic(), 0
            self._told += 1
        account = None if about is None else f"staff:{about}"
        tell("system", "", "staff.sign_in_failed", {"address": address}, how=how, reason=reason, about=account)

    def counted(self) -> list[Entry]:
        """Once a minute is over: one entry for each way and reason, with how many were not told one by one."""
        with self._lock:
            if not self._counted or time.monotonic() - self._since < MINUTE:
                return []
            counted, self._counted = self._counted, Counter()
            self._since, self._told = time.monotonic(), 0
        told = {"type": "staff", "actor": "system", "action": "staff.sign_ins_failed"}
        return [
            entry(told | {"how": how, "reason": reason, "count": count}, {}, "system")
            for (how, reason), count in sorted(counted.items())
        ]

    def clear(self) -> None:
        """Forget, for tests."""
        with self._lock:
            self._counted.clear()
            self._since, self._told = time.monotonic(), 0


failures = FailedSignIns()
