"""Of which months retention has deleted records: whoever looks at such a time is told, since what is left of it is not
all that happened."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from audit.models import RetentionStep
from audit.retention.words import month

REST = "what is left of that time is not all that happened."


def months(since: datetime, until: datetime) -> list[date]:
    """The months, by their first days and in order, of whose records some were deleted, as far as they reach into
    [since, until)."""
    if since >= until:
        return []
    first = since.astimezone(UTC).date().replace(day=1)
    last = (until.astimezone(UTC) - timedelta(microseconds=1)).date()
    steps = RetentionStep.objects.filter(deleted__gt=0, month__gte=first, month__lte=last)
    return list(steps.order_by("month").values_list("month", flat=True).distinct())


def words(since: datetime, until: datetime) -> str:
    """A sentence for people, of whatever records; empty where nothing was deleted."""
    spans = _spans(months(since, until))
    if not spans:
        return ""
    named = [month(low) if low == high else f"{month(low)} to {month(high)}" for low, high in spans]
    listed = " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))
    return f"Records of {listed} were deleted by the rules of retention: {REST}"


def _spans(found: Sequence[date]) -> list[tuple[date, date]]:
    """Months that follow one another are one span."""
    spans: list[tuple[date, date]] = []
    for one in found:
        if spans and (spans[-1][1] + timedelta(days=31)).replace(day=1) == one:
            spans[-1] = (spans[-1][0], one)
        else:
            spans.append((one, one))
    return spans
