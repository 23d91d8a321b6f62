"""Retention in words: rules, days, months, and what a preview says."""

from collections.abc import Mapping
from datetime import date
from typing import Any

from audit.retention import floors
from audit.retention.rules import SELECTORS, Rule

KINDS = {
    "decision": "calls", "evaluation": "questions", "introspection": "token checks",
    "denials": "calls turned away", "ungoverned": "ungoverned calls", "request": "requests",
    "review": "access reviews", "staff": "staff actions", "signal": "signals",
}  # fmt: skip
YEAR = 365


def about(rule: Rule) -> str:
    """What a rule is for: `calls of sensitive tools with their outcomes, backend inner, tenant acme`."""
    words = KINDS.get(rule.type, rule.type) if rule.type else "all records" if rule.sensitive is None else "calls"
    if rule.sensitive is not None:
        words += " of sensitive tools" if rule.sensitive else " of tools that are not sensitive"
    words += " with their outcomes" if rule.type == "decision" else ""
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


def record(said: Mapping[str, Any], actor: str) -> str:
    """A retention record in one sentence, whatever its statement holds; `actor` in words."""
    match said.get("action"):
        case "deleted":
            return f"Muniment set out to delete {_many(_size(said.get('ranges')), 'record')}{_of(said.get('month'))}"
        case "keys.destroyed":
            keys = _many(said.get("count"), "daily key")
            return f"Muniment set out to destroy {keys} of callers that could not be established"
        case "rule.added":
            return f"{actor} added the retention rule for {_rule(said.get('new'))}"
        case "rule.changed":
            return f"{actor} changed the retention rule for {_rule(said.get('old'))}, to {_rule(said.get('new'))}"
        case "rule.removed":
            return f"{actor} removed the retention rule for {_rule(said.get('old'))}"
        case "floor.set":
            preset = floors.BY_KEY.get(str(said.get("preset")))
            called = preset.title if preset else said.get("preset")
            return f"{actor} set the floor {called} from {said.get('old')} to {said.get('new')}"
    return f"Retention: {said.get('action')}"


def _size(ranges: object) -> int:
    """How many records these ranges have; what is none counts nothing."""
    found = ranges if isinstance(ranges, list) else []
    return sum(one[1] for one in found if isinstance(one, list) and len(one) == 2 and type(one[1]) is int)


def _many(number: object, noun: str) -> str:
    count = number if type(number) is int else 0
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _of(text: object) -> str:
    try:
        return f" of {month(date.fromisoformat(f'{text}-01'))}"
    except ValueError:
        return ""


def _rule(columns: object) -> str:
    found = columns if isinstance(columns, dict) else {}
    named = {name: found.get(name) if name == "sensitive" else str(found.get(name) or "") or None for name in SELECTORS}
    sensitive = named.pop("sensitive")
    given = found.get("days")
    days = given if isinstance(given, int) else 0
    return f"{about(Rule(0, days, sensitive=sensitive if type(sensitive) is bool else None, **named))}: {long(days)}"
