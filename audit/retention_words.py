"""Retention in words: rules, days, months, and what a preview says."""

from datetime import date, timedelta

from audit.retention_rules import Rule

KINDS = {
    "decision": "calls, with their outcomes", "evaluation": "questions", "introspection": "token checks",
    "denials": "calls turned away", "ungoverned": "ungoverned calls", "request": "requests",
    "review": "access reviews", "staff": "staff actions", "signal": "signals",
}  # fmt: skip
YEAR = 365


def about(rule: Rule) -> str:
    """What a rule is for: `calls, with their outcomes, of sensitive tools, backend inner, tenant acme`."""
    words = KINDS.get(rule.type, rule.type) if rule.type else "all records"
    if rule.sensitive is not None:
        words = "calls" if rule.type is None else words
        words += " of sensitive tools" if rule.sensitive else " of tools that are not sensitive"
    named = [f"{name} {value}" for name in ("backend", "client", "tenant") if (value := getattr(rule, name))]
    return ", ".join([words, *named])


def long(days: int) -> str:
    """`30 days`, `365 days (a year)`, `2,192 days (six years)`."""
    years, rest = divmod(days, YEAR)
    # Leap days: six years have 2,190 to 2,192 days.
    whole = years > 0 and rest <= (years + 3) // 4
    said = f" ({'a year' if years == 1 else f'{years} years'})" if whole else ""
    return f"{days:,} day{'' if days == 1 else 's'}{said}"


def month(first: date) -> str:
    """`January 2026`."""
    return f"{first:%B %Y}"


def day(on: date) -> str:
    """`1 March 2026`."""
    return f"{on.day} {on:%B %Y}"


def last_day(end: date, days: int) -> date:
    """The day on which the newest record of a month whose next begins at `end` is old enough."""
    return end + timedelta(days=days)
