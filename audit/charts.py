"""Charts as geometry: pure functions from counts to the bars of an SVG, which `templates/admin/chart.html` draws. No
script, no inline style; the same figures stand beside it as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

WIDTH, HEIGHT, GAP = 720.0, 120.0, 1.0


@dataclass(frozen=True, slots=True)
class Bucket:
    """One span of time: how many calls, and how many of them were denied."""

    at: datetime
    calls: int
    denied: int


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar in the units of the view box: all calls, and from the ground up those denied."""

    x: float
    width: float
    top: float
    height: float
    denied_top: float
    denied_height: float
    bucket: Bucket


@dataclass(frozen=True, slots=True)
class Chart:
    """What the template draws. `words` is the text alternative, `first` and `last` name the ends of the axis."""

    bars: list[Bar]
    words: str
    first: str
    last: str
    buckets: Sequence[Bucket]
    unit: str
    width: float = WIDTH
    height: float = HEIGHT


def bars(buckets: Sequence[Bucket], words: str, first: str, last: str, unit: str) -> Chart:
    """A chart of calls over time; `unit` names a bucket (`hour`). What is there at all is at least one unit high, so
    that a single denial among thousands is seen."""
    most = max((bucket.calls for bucket in buckets), default=0)
    step = WIDTH / max(1, len(buckets))
    made = []
    for number, bucket in enumerate(buckets):
        high, denied = _tall(bucket.calls, most), _tall(bucket.denied, most)
        left = round(number * step, 2)
        wide = round(max(0.5, step - GAP), 2)
        made.append(Bar(left, wide, round(HEIGHT - high, 2), high, round(HEIGHT - denied, 2), denied, bucket))
    return Chart(made, words, first, last, buckets, unit)


def _tall(count: int, most: int) -> float:
    return round(max(1.0, count * HEIGHT / most), 2) if count else 0.0
