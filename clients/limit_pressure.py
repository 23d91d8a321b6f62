"""Who is near or over which limit at this moment, as Redis has it; a look takes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clients.buckets import MICROSECONDS, Bucket, Counted, Level, level
from clients.limit_words import SECONDS
from clients.limits import MOST_NEAR, counter
from clients.models import Limit

NOBODY = Counted("", None, None)


@dataclass(frozen=True, slots=True)
class Near:
    """One bucket that is four fifths used up, or more."""

    counted: Counted
    level: Level


def near(limit: Limit, tenants: frozenset[str] | None = None) -> list[Near]:
    """Whoever is near or over, the fullest first; with `tenants`, in those alone. Raises `limits.Away`."""
    key = _bucket(limit, NOBODY).near_key
    now, members = _read([("TIME",), ("ZREVRANGEBYSCORE", key, "+inf", "-inf", "LIMIT", 0, MOST_NEAR)])
    if not isinstance(now, (list, tuple)) or not isinstance(members, list):  # another's value
        return []
    moment = int(now[0]) * MICROSECONDS + int(now[1])
    counted = [one for member in members if (one := Counted.read(member)) is not None]
    buckets = [_bucket(limit, one) for one in counted if tenants is None or one.tenant in tenants]
    figures = _read([("GET", one.key) for one in buckets]) if buckets else []
    found = [
        Near(one.counted, state)
        for one, stored in zip(buckets, figures, strict=True)
        if isinstance(stored, bytes) and (state := level(stored, one, moment)) is not None
    ]
    return sorted(found, key=lambda one: (not one.level.full, -one.level.used, one.counted.member))


def named(limits: Sequence[Limit]) -> list[Limit]:
    """Those of the limits that somebody may be near, in their order and with one question: most never are. Raises
    `limits.Away`."""
    counts = _read([("ZCARD", _bucket(limit, NOBODY).near_key) for limit in limits]) if limits else []
    return [limit for limit, count in zip(limits, counts, strict=True) if isinstance(count, int) and count]


def _bucket(limit: Limit, counted: Counted) -> Bucket:
    return Bucket(limit.pk, limit.count, SECONDS[limit.period], limit.burst or limit.count, counted)


def _read(commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    def ask() -> list[Any]:
        pipeline = counter.store().pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        answers: list[Any] = pipeline.execute(raise_on_error=False)
        return answers

    found: list[Any] = counter.ask(ask)
    return found
