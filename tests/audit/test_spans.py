"""Index ranges: joined where they touch, and asked what is outside of them."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from audit.spans import Spans

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=12)


@given(RANGES, st.integers(-2, 80))
def test_an_index_is_in_them_when_it_is_in_one(ranges: list[tuple[int, int]], index: int) -> None:
    assert (index in Spans(ranges)) == any(first <= index < first + size for first, size in ranges)


@given(RANGES, st.integers(0, 60), st.integers(0, 30))
def test_without_gives_the_rest_of_a_range_in_order_and_as_few_pieces(
    ranges: list[tuple[int, int]], first: int, size: int
) -> None:
    found = list(Spans(ranges).without(first, size))
    rest = [i for i in range(first, first + size) if not any(a <= i < a + n for a, n in ranges)]
    assert [i for a, n in found for i in range(a, a + n)] == rest
    assert all(n > 0 for _, n in found)
    assert all(a + n < b for (a, n), (b, _) in pairwise(found))
