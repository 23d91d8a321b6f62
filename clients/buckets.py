"""What a limit counts apart: pure, no Django, no Redis. A bucket is a limit and what it is counted for."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

MICROSECONDS = 1_000_000
NEAR = 0.8  # of a window's calls: from there on staff are shown it
_encode = json.JSONEncoder(separators=(",", ":")).encode
_STORED = re.compile(r"(\d{1,16}) (\d{1,16}) (\d{1,10})")


class Counted(NamedTuple):
    """For what a bucket counts. `what` is a uid, a client's slug, both (with a space between), a tool's id or empty;
    `tenant` and `mode` are None where the limit does not tell them apart, or the token has no tenant."""

    what: str
    tenant: str | None
    mode: str | None

    @property
    def member(self) -> str:
        """Its name in Redis: JSON in ASCII, so that no two are alike whatever a tenant is called."""
        return _encode(self)

    @classmethod
    def read(cls, member: bytes | str) -> "Counted | None":
        """The same, read again; None for what we did not write."""
        try:
            what, tenant, mode = json.loads(member)
        except (ValueError, TypeError):
            return None
        fits = isinstance(what, str) and all(part is None or isinstance(part, str) for part in (tenant, mode))
        return cls(what, tenant, mode) if fits else None


@dataclass(frozen=True)
class Bucket:
    """One bucket of one limit: at most `count` calls in a window of `seconds`, `burst` of them at once."""

    limit: int
    count: int
    seconds: int
    burst: int
    counted: Counted

    @cached_property
    def key(self) -> str:
        """Where its figures are. Its rate is part of the name: a rate that was changed is counted anew, and nobody
        waits out the old one."""
        return f"{prefix(self.limit, self.count, self.seconds, self.burst)}:{self.counted.member}"

    @cached_property
    def near_key(self) -> str:
        """Where the buckets of the limit are named that are nearly used up. As long as what `key` has before the name
        of the bucket, from which the script takes it."""
        return f"{prefix(self.limit, self.count, self.seconds, self.burst)}!"

    @property
    def period(self) -> int:
        """The length of a window in microseconds."""
        return self.seconds * MICROSECONDS

    @property
    def interval(self) -> int:
        """Microseconds in which one call comes back to `burst`. Rounded down: what is allowed in a window is counted
        besides, so that it never comes to more."""
        return max(1, self.period // self.count)


def prefix(limit: int, count: int, seconds: int, burst: int) -> str:
    """What the names of all keys of a limit begin with, while its rate stays."""
    return f"limit:{limit}:{count}/{seconds}/{burst}"


@dataclass(frozen=True, slots=True)
class Level:
    """How far a bucket is used up: `used` of its calls in the window that ends at `ends` (POSIX seconds). `full`: its
    next call would be refused now."""

    used: int
    full: bool
    ends: float


def level(stored: bytes | None, bucket: Bucket, now: int) -> Level | None:
    """What is stored of a bucket, at a moment in microseconds; None where nothing of ours counts."""
    found = _STORED.fullmatch(stored.decode("ascii", "replace")) if stored else None
    if found is None:
        return None
    arrival, start, used = map(int, found.groups())
    used = used if now < start + bucket.period else 0
    crowded = arrival + bucket.interval - now > bucket.burst * bucket.interval
    if not used and not crowded:
        return None
    return Level(used, crowded or used >= bucket.count, (start + bucket.period) / MICROSECONDS)
