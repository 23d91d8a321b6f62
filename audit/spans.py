"""Many index ranges, asked quickly: what retention records say was deleted can be a million of them."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator


class Spans:
    """Index ranges, given as (first, size), those that touch or overlap taken as one."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._first: list[int] = []
        self._end: list[int] = []
        for first, size in sorted(ranges):
            if self._end and first <= self._end[-1]:
                self._end[-1] = max(self._end[-1], first + size)
            elif size > 0:
                self._first.append(first)
                self._end.append(first + size)

    def __contains__(self, index: int) -> bool:
        place = bisect_right(self._first, index) - 1
        return place >= 0 and index < self._end[place]

    def without(self, first: int, size: int) -> Iterator[tuple[int, int]]:
        """What of a range is in none of these, as (first, size), in order."""
        at, end = first, first + size
        place = max(bisect_right(self._first, first) - 1, 0)
        while at < end:
            while place < len(self._end) and self._end[place] <= at:
                place += 1
            if place == len(self._first) or self._first[place] >= end:
                yield at, end - at
                return
            if self._first[place] > at:
                yield at, self._first[place] - at
            at = self._end[place]
