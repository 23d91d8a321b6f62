"""Counting calls in Redis: never more than a limit allows, whole seconds that are exact, all limits or none, what is
given back, and what nobody wrote there."""

from collections.abc import Iterator
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.buckets import Bucket, Counted, level
from clients.limits import Counter, Payment, Refusal, counter

SECOND = 1_000_000
T0 = 1_800_000_000 * SECOND  # a moment


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    counter.forget()
    counter.store().flushdb()
    yield
    counter.forget()


def bucket(count: int = 3, seconds: int = 60, burst: int | None = None, what: str = "usr_a", limit: int = 1) -> Bucket:
    return Bucket(limit, count, seconds, burst or count, Counted(what, "acme", None))


def take(*buckets: Bucket, at: int = T0) -> Payment | Refusal:
    [found] = counter.take([buckets], at)
    return found


def paid(*buckets: Bucket, at: int = T0) -> bool:
    return isinstance(take(*buckets, at=at), Payment)


class Model:
    """The same, written down plainly: what one bucket lets through, at exact moments."""

    def __init__(self, one: Bucket) -> None:
        self.one, self.arrival, self.start, self.used = one, 0, 0, 0

    def wait(self, now: int) -> int:
        one = self.one
        window = self.start + one.period - now if self.used >= one.count and now < self.start + one.period else 0
        return max(0, window, max(self.arrival, now) + one.interval - one.burst * one.interval - now)

    def take(self, now: int) -> None:
        if not self.used or now >= self.start + self.one.period:
            self.start, self.used = now, 0
        self.used += 1
        self.arrival = max(self.arrival, now) + self.one.interval


# Redis forgets a bucket by its own clock: no period is shorter than what a machine that is busy takes.
RATES = st.tuples(st.integers(1, 7), st.sampled_from([10, 60]), st.integers(1, 7))
STEPS = st.lists(st.tuples(st.integers(0, 40 * SECOND), st.sets(st.integers(0, 2), min_size=1)), max_size=40)


@given(rates=st.lists(RATES, min_size=3, max_size=3), steps=STEPS)
@settings(max_examples=60, deadline=None)
def test_the_script_does_what_is_written_down_plainly(rates: list[tuple[int, int, int]], steps: list) -> None:
    counter.store().flushdb()
    buckets = [bucket(count, seconds, min(burst, count), limit=n) for n, (count, seconds, burst) in enumerate(rates)]
    models, now = [Model(one) for one in buckets], T0
    for passed, chosen in steps:
        now += passed
        places = sorted(chosen)
        waits = {place: wait for place in places if (wait := models[place].wait(now))}
        found = take(*(buckets[place] for place in places), at=now)
        if waits:
            assert found == Refusal(tuple(buckets[place] for place in waits), -(-max(waits.values()) // SECOND))
        else:
            assert isinstance(found, Payment)
            for place in places:
                models[place].take(now)


@given(steps=st.lists(st.integers(0, 20 * SECOND), min_size=20, max_size=60), burst=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_no_window_has_more_than_the_limit_and_no_moment_more_than_the_burst(steps: list[int], burst: int) -> None:
    counter.store().flushdb()
    one, now, allowed = bucket(5, 60, burst), T0, list[tuple[int, int]]()
    for passed in steps:
        now += passed
        found = take(one, at=now)
        if isinstance(found, Payment):
            allowed.append((found.starts[0], now))
    for start in {window for window, _ in allowed}:
        inside = [at for window, at in allowed if window == start]
        assert len(inside) <= 5 and start == inside[0] and inside[-1] < start + 60 * SECOND
    assert all(sum(1 for _, other in allowed if other == at) <= burst for _, at in allowed)


def test_after_retry_after_it_is_allowed_and_a_moment_before_the_last_second_it_is_not() -> None:
    one = bucket(2, 60, 1)
    assert paid(one)
    found = take(one, at=T0 + 1)
    assert found == Refusal((one,), 30)
    assert not paid(one, at=T0 + 30 * SECOND - 1)
    assert paid(one, at=T0 + 30 * SECOND)
    found = take(one, at=T0 + 30 * SECOND + 400_000)
    assert found == Refusal((one,), 30), "the window ends in 29.6 s"
    assert not paid(one, at=T0 + 59 * SECOND + 999_999)
    assert paid(one, at=T0 + 60 * SECOND)


def test_a_call_takes_from_all_of_its_limits_or_from_none() -> None:
    wide, narrow = bucket(10), bucket(1, limit=2)
    assert paid(wide, narrow)
    for _ in range(20):
        assert take(wide, narrow, at=T0 + 1) == Refusal((narrow,), 60)
    assert [paid(wide, at=T0 + 2) for _ in range(10)] == [True] * 9 + [False], "denials did not consume"


def test_the_longest_wait_counts_and_every_limit_that_refuses_is_named() -> None:
    short, long, free = bucket(1, 10), bucket(1, 3600, limit=2), bucket(9, limit=3)
    assert paid(short, long, free)
    assert take(free, short, long, at=T0 + 1) == Refusal((short, long), 3600)


def test_a_batch_is_decided_in_order_and_each_sees_what_those_before_took() -> None:
    mine, theirs = bucket(2), bucket(2, what="usr_b")
    found = counter.take([[mine], [theirs], [mine], [mine], [theirs], [theirs]], T0)
    assert [isinstance(one, Payment) for one in found] == [True, True, True, False, True, False]


def test_a_batch_with_more_buckets_than_one_script_call_takes_is_counted_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = [[bucket(n, limit=n) for n in range(1, 5)][: 1 + turn % 4] for turn in range(30)]
    together = counter.take(calls, T0)
    counter.store().flushdb()
    asked, taken = list[int](), counter._taken

    def counted(part: list[list[Bucket]], now: int) -> list[Payment | Refusal]:
        asked.append(sum(map(len, part)))
        return taken(part, now)

    monkeypatch.setattr(counter, "_taken", counted)
    monkeypatch.setattr("clients.limits.MOST_TOGETHER", 7)
    assert counter.take(calls, T0) == together and len(together) == 30
    assert sum(asked) == sum(map(len, calls)) and max(asked) <= 7 < sum(asked)
    assert counter.take([], T0) == []


def test_what_is_given_back_can_be_taken_again_and_only_in_its_own_window() -> None:
    one = bucket(2, 60, 2)
    first, second = take(one), take(one, at=T0 + 1)
    assert isinstance(first, Payment) and isinstance(second, Payment) and not paid(one, at=T0 + 2)
    counter.give_back([second])
    assert paid(one, at=T0 + 3) and not paid(one, at=T0 + 4)
    later = T0 + 120 * SECOND
    assert paid(one, at=later)
    counter.give_back([first])  # of a window that is over
    assert paid(one, at=later + 1) and not paid(one, at=later + 2)


def test_another_rate_is_counted_anew() -> None:
    assert paid(bucket(1, 86_400)) and not paid(bucket(1, 86_400), at=T0 + 1)
    assert paid(bucket(1, 60), at=T0 + 2)


@pytest.mark.parametrize("value", [b"", b"1 2", b"-1 -1 -1", b"nan nan nan", b"9" * 400 + b" 1 1", b"\xff\x00 1 1"])
def test_what_is_not_ours_in_redis_makes_nobody_wait_for_more_than_a_period(value: bytes) -> None:
    one = bucket(3, 60)
    counter.store().set(one.key, value)
    found = take(one)
    assert isinstance(found, Payment) or found.retry_after <= 60
    assert paid(one, at=T0 + 60 * SECOND)


def test_a_clock_that_is_put_back_makes_nobody_wait_for_more_than_a_period() -> None:
    one = bucket(1, 60)
    assert paid(one, at=T0 + 3600 * SECOND)
    found = take(one)
    assert isinstance(found, Refusal) and found.retry_after <= 60
    assert paid(one, at=T0 + 60 * SECOND)


def test_a_value_of_another_type_is_replaced() -> None:
    one = bucket(1)
    counter.store().lpush(one.key, "x")
    counter.store().set(one.near_key, "x")
    assert paid(one) and not paid(one, at=T0 + 1)


def test_figures_do_not_stay_for_ever() -> None:
    one = bucket(1, 10)
    assert paid(one, at=0)
    store = counter.store()
    assert 0 < store.pttl(one.key) <= 10_002 and 0 < store.pttl(one.near_key) <= 11_000


def test_a_script_that_redis_has_forgotten_is_loaded_again() -> None:
    assert paid(bucket())
    counter.store().script_flush()
    assert paid(bucket()) and not counter.away


def test_tenants_that_are_called_anything_have_buckets_of_their_own() -> None:
    tenants = [None, "", "null", 'a","b', "a:b", "\u2028", "x" * 255]
    buckets = [Bucket(1, 1, 60, 1, Counted("usr_a", tenant, None)) for tenant in tenants]
    assert all(paid(one) for one in buckets) and not any(paid(one, at=T0 + 1) for one in buckets)
    assert [Counted.read(one.counted.member) for one in buckets] == [one.counted for one in buckets]


def test_threads_that_call_at_once_get_no_more_than_the_limit() -> None:
    one, let_through = bucket(60, 60), list[bool]()
    threads = [Thread(target=lambda: let_through.extend(paid(one, at=0) for _ in range(20))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(let_through), sum(let_through)) == (100, 60)


def test_a_level_says_how_far_a_bucket_is_used_up() -> None:
    one = bucket(2, 60, 1)
    assert level(None, one, T0) is None and level(b"x", one, T0) is None
    assert paid(one)
    stored = counter.store().get(one.key)
    assert isinstance(stored, bytes)
    found = level(stored, one, T0 + 1)
    assert found is not None and (found.used, found.full) == (1, True), "the next comes after half a minute"
    found = level(stored, one, T0 + 30 * SECOND)
    assert found is not None and (found.used, found.full) == (1, False)
    assert level(stored, one, T0 + 60 * SECOND) is None


def test_what_is_nearly_used_up_is_bounded() -> None:
    buckets = [bucket(1, 3600, what=f"usr_{n}") for n in range(1100)]
    for at in range(0, 1100, 100):
        counter.take([[one] for one in buckets[at : at + 100]], T0)
    assert counter.store().zcard(buckets[0].near_key) == 1000


def test_a_counter_of_nowhere_is_away() -> None:
    nowhere = Counter(lambda: "unix:///nowhere/redis.sock?db=0")
    nowhere._takes_writes()
    from clients.limits import Away

    with pytest.raises(Away):
        nowhere.take([[bucket()]])
    assert nowhere.away
    nowhere.forget()
