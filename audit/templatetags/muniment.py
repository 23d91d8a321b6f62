"""Times, pills and sizes in the admin's templates."""

from datetime import UTC, datetime, timedelta

from django import template
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from audit.reason_help import HELP, NOTHING
from audit.reasons import REASONS

register = template.Library()
# Seconds of a unit, the least number of it worth saying (`89 days` is more than `2 months`), and its name.
UNITS = [(31_557_600, 2, "year"), (2_629_800, 4, "month"), (86_400, 1, "day"), (3_600, 1, "hour"), (60, 1, "minute")]
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def relative(at: datetime, now: datetime) -> str:
    """`6 minutes ago`, `in 3 days`, `just now`."""
    seconds = (at - now).total_seconds()
    for size, least, unit in UNITS:
        if (number := int(abs(seconds) // size)) >= least:
            counted = f"{number} {unit}{'' if number == 1 else 's'}"
            return f"in {counted}" if seconds > 0 else f"{counted} ago"
    return "in a moment" if seconds > 5 else "just now"


def ago(at: datetime, now: datetime) -> str:
    """As `relative`, with the seconds that matter to a log: `3 s ago`."""
    seconds = (now - at).total_seconds()
    return f"{int(seconds)} s ago" if 1 <= seconds < 120 else relative(at, now)


def lapse(seconds: float) -> str:
    """How long something took: `0.8 s`, `42 s`, `3 minutes`."""
    if seconds < 120:
        if seconds < 0.1:
            return "less than 0.1 s"
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    start = datetime(2000, 1, 1, tzinfo=UTC)
    return relative(start, start + timedelta(seconds=seconds)).removesuffix(" ago")


def number_words(number: int) -> str:
    """`two`, and `12` from ten on."""
    return NUMBERS[number] if 0 <= number < len(NUMBERS) else f"{number:,}"


def exact(at: datetime) -> str:
    """`23 Nov 2026, 10:03:58.204 UTC`."""
    utc = at.astimezone(timezone.get_default_timezone())
    return f"{utc.day} {utc:%b %Y, %H:%M:%S}.{utc.microsecond // 1000:03d} UTC"


@register.filter
def when(at: datetime | None, empty: str = "—", seconds: bool = False) -> SafeString | str:
    """How long ago, with the exact time in UTC on hover; `seconds` tells them too."""
    if at is None:
        return empty
    words = (ago if seconds else relative)(at, timezone.now())
    return format_html('<time datetime="{}" title="{}">{}</time>', at.isoformat(), exact(at), words)


@register.filter
def exactly(at: datetime | None, empty: str = "—") -> SafeString | str:
    """The exact time in UTC, and how long ago."""
    if at is None:
        return empty
    return format_html(
        '<time datetime="{}">{}</time> <span class="quiet">({})</span>',
        at.isoformat(), exact(at), relative(at, timezone.now()),
    )  # fmt: skip


@register.filter
def day(at: datetime | None, empty: str = "—") -> SafeString | str:
    """A date, with the exact time on hover."""
    if at is None:
        return empty
    utc = at.astimezone(timezone.get_default_timezone())
    shown = f"{utc.day} {utc:%b %Y}"
    return format_html('<time datetime="{}" title="{}">{}</time>', at.isoformat(), exact(at), shown)


@register.filter
def lately(at: datetime) -> SafeString:
    """A day of the last week as one says it: `today`, `yesterday`, `Fri`; a date, where it is longer ago."""
    zone = timezone.get_default_timezone()
    date = at.astimezone(zone).date()
    days = (timezone.now().astimezone(zone).date() - date).days
    named = ("today", "yesterday")[days] if days in (0, 1) else f"{date:%a}" if 0 < days < 7 else ""
    full = f"{date.day} {date:%b %Y}"
    return format_html('<time datetime="{}" title="{}">{}</time>', date.isoformat(), full, named or full)


@register.filter
def clock(at: datetime) -> SafeString:
    """`at 10:04:07 UTC`, with the date where it is not today's; the exact time on hover."""
    utc, today = at.astimezone(timezone.get_default_timezone()), timezone.now()
    date = "" if utc.date() == today.date() else f"on {utc.day} {utc:%b %Y} "
    return format_html(
        '<time datetime="{}" title="{}">{}at {} UTC</time>', at.isoformat(), exact(at), date, f"{utc:%H:%M:%S}"
    )


@register.filter
def moment(at: datetime) -> str:
    """The exact time in UTC, as text."""
    return exact(at)


@register.filter
def format_number(number: int) -> str:
    """`81,204`."""
    return f"{number:,}"


@register.filter
def pluralize_text(counted: str) -> str:
    """The plural's ending for a number in words (`1`, `12`, `99+`)."""
    return "" if counted == "1" else "s"


@register.filter
def member(thing: object, name: str) -> object:
    """An attribute whose name is in a variable; only those that the template's own code names."""
    return getattr(thing, name, "")


@register.simple_tag
def copy(value: object, shown: str = "", what: str = "") -> SafeString | str:
    """An id in fixed-width type with a button that copies the whole of it: `{% copy record.id %}`. `shown` is a
    shorter form to show (the whole is on hover), `what` names it to screen readers (`record id`)."""
    whole = "" if value is None else str(value)
    if not whole:
        return "—"
    return format_html(
        '<span class="copyable"><span class="mono" title="{}">{}</span> <button type="button" class="copy-button"'
        ' data-copy="{}">Copy<span class="unseen"> {}</span></button></span>',
        whole, shown or whole, whole, what or shown or whole,
    )  # fmt: skip


@register.simple_tag
def reason(code: str | None) -> SafeString | str:
    """A reason code in plain words, with what it means and what would help on hover; leads to the page that says
    more: `{% reason record.reason %}`."""
    if not code:
        return "—"
    known = REASONS.get(code)
    if known is None or code == "granted":
        return known.title if known else code
    means = f"{known.sentence} {HELP[code].staff}".removesuffix(f" {NOTHING}")
    return format_html('<a href="{}#{}" title="{}">{}</a>', reverse("admin:reasons"), code, means, known.title)


@register.filter
def spans(text: str) -> SafeString:
    """A text of ours whose `code spans` are in fixed-width type."""
    parts = text.split("`")
    return format_html_join(
        "",
        "{}",
        ((part,) if number % 2 == 0 else (format_html('<span class="mono">{}</span>', part),)
         for number, part in enumerate(parts)),
    )  # fmt: skip
