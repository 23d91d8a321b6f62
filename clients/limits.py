"""Counting calls against limits, in Redis: one script call for all limits of all calls that are decided together, or a
few where those are very many.

For each bucket Redis keeps three figures: when the calls so far would be over at an even pace (the theoretical arrival
time of the generic cell rate algorithm, ITU-T I.371), which bounds how many come at once; when the current window
began, and how many calls were let through in it, which bounds the window strictly. A window begins with its first call.
The clock is that of Redis, so that all processes share one.

While Redis is away nobody waits for it: after the first failure calls are not counted until a thread of our own finds
that it takes writes again. What to do with them meanwhile each limit says (`governance.limiting`).
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import Any

import redis
from django.conf import settings
from django.db import Error, connections

from audit import alerts
from clients import impatient
from clients.buckets import MICROSECONDS, NEAR, Bucket

logger = logging.getLogger(__name__)

LOOK = 0.5  # seconds between looks whether it is back
LASTING = 60.0  # seconds after which the alert is said to last
PROBE = "limit-probe"
MOST_TOGETHER = 1000  # buckets of one script call: meanwhile Redis answers nobody else, and `impatient.TIMEOUT` goes on
MOST_NEAR = 1000  # buckets of one limit that are remembered as nearly used up
ALERT = "limits-uncounted"

# KEYS: for each limit where its buckets are named that are nearly used up; then for each bucket where its figures are.
# ARGV: the time in microseconds (0: Redis' own), and how many limits; for each limit interval, burst * interval,
# period, count, and from how many calls on a bucket is named; for each bucket the number of its limit; for each call
# how many buckets, and their numbers.
# Answer: for each call {0, the window's begin for each bucket}, or {microseconds to wait, the places of those that
# refuse}. A call takes from all of its buckets or from none, and sees what the calls before it took.
_TAKE = """
local now = tonumber(ARGV[1])
if now == 0 then local time = redis.call('TIME'); now = time[1] * 1000000 + time[2] end
local number_of_limits = tonumber(ARGV[2])
local limits = {}
for l = 1, number_of_limits do
    local a = 5 * l - 2
    limits[l] = {near = KEYS[l], interval = tonumber(ARGV[a]), room = tonumber(ARGV[a + 1]),
        period = tonumber(ARGV[a + 2]), count = tonumber(ARGV[a + 3]), from = tonumber(ARGV[a + 4])}
end
local at = 5 * number_of_limits + 3
local buckets = {}
for b = 1, #KEYS - number_of_limits do
    local limit = limits[tonumber(ARGV[at])]
    at = at + 1
    local one = {key = KEYS[number_of_limits + b], near = limit.near, interval = limit.interval, room = limit.room,
        period = limit.period, count = limit.count, from = limit.from, arrival = 0, start = 0, used = 0, wait = 0}
    local stored = redis.pcall('GET', one.key)
    if type(stored) == 'string' then
        local arrival, start, used = string.match(stored, '^(%d+) (%d+) (%d+)$')
        if arrival then
            -- No clock that is put back, and no value of another's, makes anybody wait for more than one period: what
            -- is brought back to now is stored, also where the call is refused.
            one.arrival = math.min(tonumber(arrival), now + one.room)
            one.start = math.min(tonumber(start), now)
            one.used = math.min(tonumber(used), one.count)
            one.mended = one.arrival < tonumber(arrival) or one.start < tonumber(start)
        end
    end
    if one.used == 0 or now >= one.start + one.period then one.start, one.used = now, 0 end
    buckets[b] = one
end
local answers = {}
local call = 1
while at <= #ARGV do
    local mine, wait, refusing = {}, 0, {}
    for place = 1, tonumber(ARGV[at]) do
        local one = buckets[tonumber(ARGV[at + place])]
        local until_paced = math.max(one.arrival, now) + one.interval - one.room - now
        local until_next = 0
        if one.used >= one.count then until_next = one.start + one.period - now end
        local needed = math.max(until_paced, until_next)
        if needed > 0 then
            refusing[#refusing + 1] = place
            one.wait = math.max(one.wait, needed)
            wait = math.max(wait, needed)
        end
        mine[place] = one
    end
    at = at + tonumber(ARGV[at]) + 1
    local answer = {wait}
    if wait > 0 then
        for _, place in ipairs(refusing) do answer[#answer + 1] = place end
    else
        for place, one in ipairs(mine) do
            one.arrival = math.max(one.arrival, now) + one.interval
            one.used = one.used + 1
            one.taken = true
            answer[place + 1] = one.start
        end
    end
    answers[call] = answer
    call = call + 1
end
for _, one in ipairs(buckets) do
    local ends = one.start + one.period
    if one.taken or one.mended then
        local left = math.ceil((math.max(one.arrival, ends) - now) / 1000) + 1
        redis.call('SET', one.key, string.format('%.0f %.0f %.0f', one.arrival, one.start, one.used), 'PX',
            string.format('%.0f', left))
    end
    if one.wait > 0 or (one.taken and one.used >= one.from) then
        if type(redis.pcall('ZREMRANGEBYSCORE', one.near, '-inf', string.format('%.0f', now))) == 'table' then
            redis.call('DEL', one.near)
        end
        -- Both names begin alike, up to one character.
        local name = string.sub(one.key, #one.near + 1)
        redis.call('ZADD', one.near, string.format('%.0f', math.max(ends, now + one.wait)), name)
        redis.call('ZREMRANGEBYRANK', one.near, 0, MOST)
        redis.call('PEXPIRE', one.near, string.format('%.0f', math.ceil(one.period / 1000) + 1000))
    end
end
return answers
""".replace("MOST", str(-MOST_NEAR - 1))

# KEYS: where the figures are; ARGV: for each the interval and the window's begin, in which it was taken from.
_GIVE_BACK = """
for b, key in ipairs(KEYS) do
    local stored = redis.pcall('GET', key)
    if type(stored) == 'string' then
        local arrival, start, used = string.match(stored, '^(%d+) (%d+) (%d+)$')
        if arrival then
            arrival = math.max(0, tonumber(arrival) - tonumber(ARGV[2 * b - 1]))
            if start == ARGV[2 * b] then used = math.max(0, tonumber(used) - 1) end
            redis.call('SET', key, string.format('%.0f %s %.0f', arrival, start, used), 'KEEPTTL')
        end
    end
end
"""


class Away(Exception):
    """Redis is away: nothing was counted."""


@dataclass(frozen=True, slots=True)
class Payment:
    """What a call took: one from each bucket, in the windows that began then (microseconds)."""

    buckets: tuple[Bucket, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The buckets that are used up, and after how many whole seconds the call would be let through if nobody else
    called: not sooner."""

    buckets: tuple[Bucket, ...]
    retry_after: int


class Counter:
    """The limits' own connections to Redis in one process, and whether it is away. `url` is asked for when it is first
    needed."""

    def __init__(self, url: Callable[[], str]) -> None:
        self.url = url
        self._lock = Lock()
        self._stopping = Event()
        self._looking: Thread | None = None
        self._store: redis.Redis | None = None
        self._away = False

    @property
    def away(self) -> bool:
        """Whether calls are not counted now."""
        return self._away

    def store(self) -> redis.Redis:
        """The connection pool. Nothing is tried twice: a script that ran, and whose answer got lost, has counted."""
        if (held := self._store) is not None:
            return held
        with self._lock:
            if self._store is None:
                made = impatient.pool(self.url())
                self._take, self._back = made.register_script(_TAKE), made.register_script(_GIVE_BACK)
                self._store = made  # last: others use the scripts as soon as it is there
            return self._store

    def take(self, calls: Sequence[Sequence[Bucket]], now: int = 0) -> list[Payment | Refusal]:
        """Take one from each bucket of each call, in their order; a call that one bucket refuses takes from none. `now`
        is in microseconds, 0: the clock of Redis. Raises Away."""
        found: list[Payment | Refusal] = []
        for part in _parts(calls):
            found += self._taken(part, now)
        return found

    def _taken(self, calls: Sequence[Sequence[Bucket]], now: int) -> list[Payment | Refusal]:
        limits: dict[str, Bucket] = {}
        numbers: dict[Bucket, int] = {}
        for buckets in calls:
            for bucket in buckets:
                limits.setdefault(bucket.near_key, bucket)
                numbers.setdefault(bucket, len(numbers) + 1)
        values: list[Any] = [now, len(limits)]
        for one in limits.values():
            values += [one.interval, one.burst * one.interval, one.period, one.count, math.ceil(one.count * NEAR)]
        places = {name: place for place, name in enumerate(limits, 1)}
        values += [places[bucket.near_key] for bucket in numbers]
        for buckets in calls:
            values += [len(buckets), *(numbers[bucket] for bucket in buckets)]
        keys = [*limits, *(bucket.key for bucket in numbers)]
        answers = self.ask(lambda: self._take(keys=keys, args=values))
        return [_read(buckets, answer) for buckets, answer in zip(calls, answers, strict=True)]

    def give_back(self, payments: Sequence[Payment]) -> None:
        """Put back what calls took that were not let through after all. Without Redis it stays taken."""
        taken = [pair for payment in payments for pair in zip(payment.buckets, payment.starts, strict=True)]
        if not taken:
            return
        values = [value for bucket, start in taken for value in (bucket.interval, start)]
        with suppress(Away):
            self.ask(lambda: self._back(keys=[bucket.key for bucket, _ in taken], args=values))

    def ask(self, action: Callable[[], Any]) -> Any:
        """What an action that talks to `store()` comes to. Raises Away, at once where that is known."""
        if self._away:
            raise Away
        try:
            self.store()
            return action()
        except (redis.RedisError, OSError, ValueError) as error:
            self._gone(type(error).__name__)
            raise Away from None

    # --- an outage --------------------------------------------------------------------------------------------

    def _gone(self, why: str) -> None:
        """Nobody asks any more, but for a thread that ends when Redis is back."""
        with self._lock:
            if self._away:
                return
            self._away, self._stopping = True, Event()
            self._looking = Thread(target=self._look, args=[self._stopping], name="limits", daemon=True)
            self._looking.start()
        logger.error("calls are not counted against limits: Redis is away (%s)", why)

    def _look(self, stopping: Event) -> None:
        told = float("-inf")
        while not stopping.wait(LOOK):
            if self._takes_writes():
                self._away = False
                logger.warning("calls are counted against limits again")
                _tell(lambda: alerts.clear(ALERT))
                break
            if time.monotonic() - told > LASTING:
                told = time.monotonic()
                _tell(lambda: alerts.raise_alert(ALERT, "", "Redis does not answer, or does not take writes."))
        connections.close_all()  # this thread's

    def _takes_writes(self) -> bool:
        try:
            self.store().set(PROBE, 1, px=1000)
        except (redis.RedisError, OSError, ValueError):
            return False
        return True

    def begin(self) -> None:
        """A process starts: end the alert that another left behind which was killed during an outage."""
        if self._takes_writes():
            _tell(lambda: alerts.clear(ALERT))

    def forget(self) -> None:
        """Take Redis for there, with new connections: for tests."""
        self._stopping.set()
        if self._looking is not None:
            self._looking.join(10)
        self._away, store, self._store = False, self._store, None
        if store is not None:
            store.close()


def _parts(calls: Sequence[Sequence[Bucket]]) -> Iterator[Sequence[Sequence[Bucket]]]:
    """The calls in their order, so many together as one script call can take in good time; nearly always that is all
    of them."""
    start, buckets = 0, 0
    for place, call in enumerate(calls):
        if buckets and buckets + len(call) > MOST_TOGETHER:
            yield calls[start:place]
            start, buckets = place, 0
        buckets += len(call)
    if start < len(calls):
        yield calls[start:]


def _read(buckets: Sequence[Bucket], answer: Sequence[int]) -> Payment | Refusal:
    wait, *found = answer
    if wait:
        return Refusal(tuple(buckets[place - 1] for place in found), -(-wait // MICROSECONDS))
    return Payment(tuple(buckets), tuple(found))


def _tell(action: Callable[[], object]) -> None:
    """An alert is for people; without a database there is nobody to show it to."""
    try:
        action()
    except Error:
        logger.exception("the alert about limits could not be kept")


counter = Counter(lambda: settings.REDIS_URL)
