"""Changing how long records are kept: rules and floors, by those who may, with a reason, each change a record. What
deletes looks at the rules again before it does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, transaction
from django.utils import timezone

from audit.models import RetentionFloor, RetentionRule
from audit.retention import floors
from audit.retention import words as retention_words
from audit.retention.deciding import rule_of
from audit.retention.floors import Preset
from audit.retention.rules import CALLS, MOST_DAYS, SELECTORS, TYPES, Rule
from audit.staff_log import tell

PERMISSION = "audit.change_retentionrule"
MOST_RULES = 200
LONGEST = {"backend": 64, "client": 64, "tenant": 255}


class RuleError(Exception):
    """The rule cannot be; the message is for the person who asked. `field` is what is wrong."""

    def __init__(self, words: str, field: str | None = None) -> None:
        super().__init__(words)
        self.field = field


class BelowFloor(Exception):
    """The rule is shorter than floors that warn: it is saved once that is confirmed."""

    def __init__(self, presets: list[Preset]) -> None:
        super().__init__(" ".join(asks(preset) for preset in presets))
        self.presets = presets


@dataclass(frozen=True, slots=True)
class Change:
    """Who changes something, and why."""

    actor: str
    name: str
    reason: str


def by(user: Any, reason: str) -> Change:
    """From a signed-in user. Raises PermissionDenied; RuleError for a reason that is none."""
    if not (user.is_active and user.is_staff and user.has_perm(PERMISSION)):
        raise PermissionDenied
    if not reason.strip():
        raise RuleError("This is required.", "reason")
    return Change(f"staff:{user.pk}", (user.get_full_name() or user.get_username())[:150], reason.strip())


def asks(preset: Preset) -> str:
    """What a floor asks for, and where it says so."""
    return f"{preset.title} asks for at least {retention_words.long(preset.days)}. {preset.source}"


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a rule names and for how many days, as columns. Raises RuleError."""
    named = {name: given.get(name) if name == "sensitive" else given.get(name) or None for name in SELECTORS}
    if named["type"] is not None and named["type"] not in TYPES:
        raise RuleError("No rule is for records of this type: they are kept.", "type")
    if named["sensitive"] is not None and named["type"] not in (None, *CALLS):
        raise RuleError("Only calls, questions and token checks are of sensitive tools or of others.", "sensitive")
    for name, longest in LONGEST.items():
        if (value := named[name]) is not None and (len(value) > longest or not value.isprintable()):
            raise RuleError("That is no name that a record can have.", name)
    days = given.get("days")
    if type(days) is not int or not 1 <= days <= MOST_DAYS:
        raise RuleError(f"From 1 to {MOST_DAYS:,} days.", "days")
    return {**named, "days": days}


def save_rule(
    user: Any, number: int | None, given: Mapping[str, Any], basis: str, reason: str, confirmed: bool = False
) -> RetentionRule:
    """Add a rule (`number` None), or change one. Raises PermissionDenied, RuleError, BelowFloor unless confirmed."""
    change, columns = by(user, reason), checked(given)
    if not basis.strip():
        raise RuleError("This is required.", "basis")
    try:
        with transaction.atomic():
            row = RetentionRule() if number is None else _rule(number)
            if number is None and RetentionRule.objects.count() >= MOST_RULES:
                raise RuleError(f"There are {MOST_RULES} rules already.")
            old = None if number is None else _columns(row)
            _floors(Rule(row.pk or 0, **{name: columns[name] for name in (*SELECTORS, "days")}), confirmed)
            for name, value in columns.items():
                setattr(row, name, value)
            row.basis, row.changed_by, row.changed_at = basis.strip(), change.actor, timezone.now()
            row.save()
            _tell(change, "rule.added" if old is None else "rule.changed", row, old, _columns(row))
    except IntegrityError:
        raise RuleError("There is a rule for exactly this already: change that one.") from None
    return row


def remove_rule(user: Any, number: int, reason: str) -> None:
    """Take a rule away: what it was for goes by the next one that fits, or is kept. Raises PermissionDenied,
    RuleError."""
    change = by(user, reason)
    with transaction.atomic():
        row = _rule(number)
        _tell(change, "rule.removed", row, _columns(row), None)
        row.delete()


def set_floors(user: Any, wanted: Mapping[str, str], reason: str) -> int:
    """Say what each floor does: preset -> mode; how many changed. Raises PermissionDenied, RuleError."""
    change, changed = by(user, reason), 0
    with transaction.atomic():
        known = modes()
        for key, mode in wanted.items():
            if key not in floors.BY_KEY or mode not in RetentionFloor.MODES:
                raise RuleError("There is no such floor.", key)
            if (old := known.get(key, floors.OFF)) == mode:
                continue
            RetentionFloor.objects.update_or_create(preset=key, defaults={"mode": mode})
            tell(change.actor, change.name, "floor.set", {"reason": change.reason}, kind="retention",
                 preset=key, days=floors.BY_KEY[key].days, old=old, new=mode)  # fmt: skip
            changed += 1
    return changed


def modes() -> dict[str, str]:
    """What each floor does; one that is not here is off."""
    return dict(RetentionFloor.objects.values_list("preset", "mode"))


def _floors(rule: Rule, confirmed: bool) -> None:
    known = modes()
    if refusing := floors.below(rule, known, floors.REFUSE):
        raise RuleError(asks(refusing[0]), "days")
    if not confirmed and (warning := floors.below(rule, known, floors.WARN)):
        raise BelowFloor(warning)


def _rule(number: int) -> RetentionRule:
    row = RetentionRule.objects.select_for_update().filter(pk=number).first()
    if row is None:
        raise RuleError("There is no such rule any more.")
    return row


def _columns(row: RetentionRule) -> dict[str, Any]:
    """What the log says of a rule."""
    rule = rule_of(row)
    return {name: value for name in (*SELECTORS, "days") if (value := getattr(rule, name)) is not None}


def _tell(change: Change, action: str, row: RetentionRule, old: Any, new: Any) -> None:
    private = {"reason": change.reason, "basis": row.basis}
    tell(change.actor, change.name, action, private, kind="retention", rule=row.pk, old=old, new=new)
