"""What the demo has of keeping and handing over: rules of retention, a floor, a legal hold, and an export that runs
each day. Made as staff would make it, by the same code and as the logins of its roles; nothing of the demo's past is
deleted by it."""

from typing import Any

from django.contrib.auth import get_user_model

from audit import holds
from audit.exports import definitions
from audit.exports.definitions import Definition
from audit.retention import changes

PRIVACY, AUDITOR = "privacy-officer", "auditor"
COLUMNS = (
    "time", "index", "record", "kind", "decision", "reason", "flagged", "user", "client", "tool", "backend",
    "statement",
)  # fmt: skip
# What a rule names, its days, and why so long and no longer.
RULES: tuple[tuple[dict[str, Any], int, str], ...] = (
    ({}, 1095, "Three years: the time in which a claim about an access can be brought."),
    ({"type": "evaluation"}, 400, "Questions that were asked without a token: a year, and a month to look back on it."),
)


def make() -> None:
    """All of it, once: the caller says when. Logins that are not there make nothing."""
    users = {user.get_username(): user for user in get_user_model().objects.filter(username__in=[PRIVACY, AUDITOR])}
    if officer := users.get(PRIVACY):
        changes.set_floors(officer, {"soc-2": "warn"}, "We are audited once a year.")
        for named, days, basis in RULES:
            changes.save_rule(officer, None, {**named, "days": days}, basis, "First rules of this log.")
        holds.place(
            officer, "M-2026-014", "A complaint about what an agent wrote down at night.",
            client="inner-ios", tool="memory.capture", backend="inner",
        )  # fmt: skip
    if auditor := users.get(AUDITOR):
        made = definitions.make(auditor, Definition(
            "Refused calls of the day", "jsonl", "decision=deny&window=24h", columns=COLUMNS, schedule="daily",
        ))  # fmt: skip
        definitions.ask(auditor, made)
