"""When an export is due: hourly to monthly, or five fields of a crontab, in UTC. Pure.

A slot is a time that the schedule names; its file covers the time from the slot before it. Fields are those of POSIX
crontab(5), with steps: `*`, numbers, ranges and lists. A day of the month and a weekday together are refused, since
programs disagree on what that means; and so is a schedule that never comes, such as 31 February.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property

PRESETS = {"hourly": "0 * * * *", "daily": "0 0 * * *", "weekly": "0 0 * * 1", "monthly": "0 0 1 * *"}
FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of the month", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
LONGEST = 100
DAY = timedelta(days=1)
# 29 February comes at least every eight years; on one weekday of it alone the fields cannot insist.
FARTHEST = 366 * 9  # days
WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")


class ScheduleError(ValueError):
    """Not a schedule, or one that never comes; the message is for the person who wrote it."""


@dataclass(frozen=True)
class Schedule:
    """The numbers of each field; weekdays are 0 (Sunday) to 6. Raises ScheduleError for one that never comes."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]

    def __post_init__(self) -> None:
        if len(self.days) < 31 and len(self.weekdays) < 7:
            raise ScheduleError("Say a day of the month or a weekday, not both.")
        longest = {1: 31, 2: 29, 3: 31, 4: 30, 5: 31, 6: 30, 7: 31, 8: 31, 9: 30, 10: 31, 11: 30, 12: 31}
        if not any(day <= longest[month] for month in self.months for day in self.days):
            raise ScheduleError("That never comes: none of the months has such a day.")

    def on(self, day: date) -> bool:
        """Whether it comes on this day."""
        return day.day in self.days and day.month in self.months and day.isoweekday() % 7 in self.weekdays

    @cached_property
    def times(self) -> tuple[time, ...]:
        """The times of a day on which it comes, in order."""
        return tuple(time(hour, minute, tzinfo=UTC) for hour in self.hours for minute in self.minutes)

    @property
    def crontab(self) -> tuple[str, str, str, str, str]:
        """Its fields, each as `*` or as a list of numbers, which every crontab reads alike."""
        minutes, hours = _field(self.minutes, 60), _field(self.hours, 24)
        return minutes, hours, _field(self.days, 31), _field(self.months, 12), _field(self.weekdays, 7)


def _field(numbers: Collection[int], most: int) -> str:
    return "*" if len(numbers) == most else ",".join(map(str, sorted(numbers)))


def parse(text: str) -> Schedule:
    """The schedule of a preset's name or five fields. Raises ScheduleError."""
    fields = PRESETS.get(text.strip(), text).split()
    if len(text) > LONGEST or len(fields) != len(FIELDS):
        raise ScheduleError("A schedule is hourly, daily, weekly, monthly, or the five fields of a crontab.")
    minutes, hours, days, months, weekdays = map(_numbers, fields, FIELDS)
    return Schedule(
        tuple(sorted(minutes)), tuple(sorted(hours)), days, months, frozenset(number % 7 for number in weekdays)
    )  # fmt: skip


def _numbers(field: str, about: tuple[str, int, int]) -> frozenset[int]:
    name, low, high = about
    found: set[int] = set()
    for part in field.split(","):
        told, slash, step = part.partition("/")
        first, dash, last = told.partition("-")
        if told == "*":
            first, dash, last = str(low), "-", str(high)
        if slash and not dash:
            raise ScheduleError(f"The {name} has a step without a range: write {told}-{high}/{step}.")
        numbers = [first, last] if dash else [first, first]
        numbers.append(step if slash else "1")
        if not all(number.isascii() and number.isdecimal() and len(number) <= 2 for number in numbers):
            raise ScheduleError(f"The {name} is not *, a number, a range or a list: numbers from {low} to {high}.")
        start, end, every = map(int, numbers)
        if not low <= start <= end <= high or not every:
            raise ScheduleError(f"The {name} is outside of {low} to {high}.")
        found.update(range(start, end + 1, every))
    return frozenset(found)


def slots(schedule: Schedule, after: datetime, until: datetime) -> Iterator[datetime]:
    """The slots later than `after` and not later than `until`, in order."""
    day = after.astimezone(UTC).date()
    while day <= until.astimezone(UTC).date():
        if schedule.on(day):
            for clock in schedule.times:
                if after < (slot := datetime.combine(day, clock)) <= until:
                    yield slot
        day += DAY


def following(schedule: Schedule, after: datetime) -> datetime:
    """The first slot later than `after`."""
    return next(slots(schedule, after, after + FARTHEST * DAY))


def before(schedule: Schedule, slot: datetime) -> datetime:
    """The last slot earlier than `slot`: from where on its file covers."""
    day = slot.astimezone(UTC).date()
    for _ in range(FARTHEST):
        if schedule.on(day):
            for clock in reversed(schedule.times):
                if (found := datetime.combine(day, clock)) < slot:
                    return found
        day -= DAY
    raise ScheduleError("That never came.")


def words(text: str) -> str:
    """A schedule for people: `every day at 02:00 UTC`; a crontab that is not so plain as it is written. Raises
    ScheduleError."""
    schedule = parse(text)
    if text.strip() == "hourly":
        return "every hour"
    plain = len(schedule.times) == 1 and len(schedule.months) == 12
    at = f"at {schedule.times[0]:%H:%M} UTC" if plain else ""
    if plain and len(schedule.days) == 31 and len(schedule.weekdays) == 7:
        return f"every day {at}"
    if plain and len(schedule.weekdays) == 1:
        return f"every {WEEKDAYS[min(schedule.weekdays)]} {at}"
    if plain and len(schedule.days) == 1:
        return f"on day {min(schedule.days)} of every month {at}"
    return f"by crontab {' '.join(text.split())}, UTC"
