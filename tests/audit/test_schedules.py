"""When exports are due: presets and crontabs, slots that follow each other without a gap, schedules that never come."""

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise

import pytest
from celery.schedules import crontab
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.exports import schedules
from audit.exports.schedules import ScheduleError, parse


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "after", "expected"),
    [
        ("hourly", "2026-03-29T00:59:59.999999", ["2026-03-29T01:00", "2026-03-29T02:00", "2026-03-29T03:00"]),
        ("daily", "2028-02-28T00:00", ["2028-02-29T00:00", "2028-03-01T00:00"]),
        ("weekly", "2026-11-26T10:00", ["2026-11-30T00:00", "2026-12-07T00:00"]),
        ("monthly", "2026-12-31T23:59", ["2027-01-01T00:00", "2027-02-01T00:00"]),
        ("30 2 31 * *", "2026-01-31T02:30", ["2026-03-31T02:30", "2026-05-31T02:30"]),
        ("0 0 29 2 *", "2096-02-29T00:00", ["2104-02-29T00:00", "2108-02-29T00:00"]),
        ("*/20 22-23 * * 0,7", "2026-11-22T22:15", ["2026-11-22T22:20", "2026-11-22T22:40", "2026-11-22T23:00"]),
    ],
)
def test_slots_are_those_after_and_not_later_than(text: str, after: str, expected: list[str]) -> None:
    found = schedules.slots(parse(text), at(after), at("2110-01-01"))
    assert list(islice(found, len(expected))) == [at(one) for one in expected]
    assert schedules.following(parse(text), at(after)) == at(expected[0])


def test_until_is_included_and_after_is_not() -> None:
    first, second = at("2026-05-01T00:00"), at("2026-05-02T00:00")
    assert list(schedules.slots(parse("daily"), first, second)) == [second]
    assert list(schedules.slots(parse("daily"), first, second - timedelta(microseconds=1))) == []


@pytest.mark.parametrize("text", ["0 0 31 2 *", "0 0 30 2 *", "0 0 31 2,4,6,9,11 *", "0 0 31 4 *"])
def test_what_never_comes_is_said_so(text: str) -> None:
    with pytest.raises(ScheduleError, match="never comes"):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "yearly", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *",
        "* * * * 8", "5-1 * * * *", "*/0 * * * *", "1/5 * * * *", "a * * * *", "-1 * * * *", "1,,2 * * * *",
        "٣ * * * *", "1.5 * * * *", "0 0 1 * 1", "@daily", "* * * JAN *", "0 0 L * *", "0 " * 60, "001 * * * *",
    ],
)  # fmt: skip
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ScheduleError):
        parse(text)


FIELD = st.sampled_from(["*", "0", "1", "2-5", "*/3", "1,4", "1-6/2"])
CRONTABS = st.tuples(FIELD, FIELD, st.sampled_from(["*", "1", "28-31", "*/3"]), st.sampled_from(["*", "2", "1,12"]))


@settings(max_examples=60, deadline=None)
@given(CRONTABS, st.datetimes(datetime(2024, 1, 1), datetime(2031, 1, 1)))
def test_slots_follow_each_other_and_the_one_before_is_the_one_before(fields: tuple[str, ...], start: datetime) -> None:
    schedule = parse(" ".join([*fields, "*"]))
    start = start.replace(tzinfo=UTC)
    found = list(islice(schedules.slots(schedule, start, start + timedelta(days=800)), 20))
    assert found[0] > start
    for earlier, later in pairwise(found):
        assert earlier < later
        assert schedules.before(schedule, later) == earlier
        assert schedules.following(schedule, earlier) == later


@settings(max_examples=40, deadline=None)
@given(CRONTABS)
def test_celery_reads_the_fields_as_we_do(fields: tuple[str, ...]) -> None:
    schedule = parse(" ".join([*fields, "*"]))
    minute, hour, day, month, weekday = schedule.crontab
    celery = crontab(minute=minute, hour=hour, day_of_month=day, month_of_year=month, day_of_week=weekday)
    assert (celery.minute, celery.hour) == (set(schedule.minutes), set(schedule.hours))
    assert (celery.day_of_month, celery.month_of_year) == (schedule.days, schedule.months)
    assert celery.day_of_week == schedule.weekdays
    assert all(len(field) <= most for field, most in zip(schedule.crontab, (240, 96, 124, 64, 64), strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hourly", "every hour"), ("daily", "every day at 00:00 UTC"), ("weekly", "every Monday at 00:00 UTC"),
        ("monthly", "on day 1 of every month at 00:00 UTC"), ("30 2 * * *", "every day at 02:30 UTC"),
        ("0 6 * * 7", "every Sunday at 06:00 UTC"), ("0 0,12 * * *", "by crontab 0 0,12 * * *, UTC"),
        ("0 0 1 1 *", "by crontab 0 0 1 1 *, UTC"),
    ],
)  # fmt: skip
def test_words_for_people(text: str, expected: str) -> None:
    assert schedules.words(text) == expected
