"""Charts: bars that say the counts they are drawn from."""

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from audit import charts
from audit.charts import Bucket

START = datetime(2026, 11, 1, tzinfo=UTC)
COUNTS = st.integers(0, 10**9).flatmap(lambda calls: st.tuples(st.just(calls), st.integers(0, calls)))


def buckets(counts: list[tuple[int, int]]) -> list[Bucket]:
    return [Bucket(START + timedelta(hours=n), calls, denied) for n, (calls, denied) in enumerate(counts)]


@settings(deadline=None)
@given(st.lists(COUNTS, max_size=60))
def test_bars_stay_in_the_picture_and_denials_in_their_bar(counts: list[tuple[int, int]]) -> None:
    chart = charts.bars(buckets(counts), "words", "first", "last", "hour")
    assert len(chart.bars) == len(counts)
    for bar in chart.bars:
        assert bar.x >= 0 and bar.x + bar.width <= charts.WIDTH + 0.01
        assert bar.top >= 0 and bar.height <= charts.HEIGHT
        assert bar.denied_height <= max(bar.height, 1.0)
        assert (bar.height > 0) == (bar.bucket.calls > 0) and (bar.denied_height > 0) == (bar.bucket.denied > 0)


def test_the_highest_bar_fills_the_picture_and_others_are_in_proportion() -> None:
    first, second, third = charts.bars(buckets([(100, 0), (50, 25), (0, 0)]), "", "", "", "hour").bars
    assert (first.height, second.height, third.height) == (charts.HEIGHT, charts.HEIGHT / 2, 0.0)
    assert second.denied_height == charts.HEIGHT / 4


def test_one_denial_among_thousands_is_seen() -> None:
    [bar] = charts.bars(buckets([(1_000_000, 1)]), "", "", "", "hour").bars
    assert bar.denied_height == 1.0


def test_no_buckets_are_no_bars() -> None:
    assert charts.bars([], "nothing", "", "", "hour").bars == []
