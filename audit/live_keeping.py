"""Whether legal holds, retention rules and floors are what the log tells of them: by these it is decided what may be
deleted, and one that was changed past the log would let records go as if by rule."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import connection

from audit.holds import CRITERIA
from audit.retention.rules import SELECTORS
from muniment import statements
from muniment.findings import Finding

# All of it at one moment: a change and what tells of it are one transaction. What retention tells of its deletions is
# large, and not asked for: statements are canonical JSON, in which these bytes stand as a member or not at all.
READ = """
    SELECT 1 AS place, type AS kind, index AS number, statement AS content FROM audit_record
        WHERE type IN ('hold', 'retention') AND position('"action":"deleted"'::bytea IN statement) = 0
    UNION ALL SELECT 2, kind, id, convert_to(members::text, 'UTF8') FROM audit_outbox
        WHERE record_index IS NULL AND kind IN ('hold', 'retention')
    UNION ALL SELECT 3, 'hold', id, convert_to(to_jsonb(h)::text, 'UTF8') FROM audit_hold h
    UNION ALL SELECT 3, 'rule', id, convert_to(to_jsonb(r)::text, 'UTF8') FROM audit_retentionrule r
    UNION ALL SELECT 3, 'floor', 0, convert_to(to_jsonb(f)::text, 'UTF8') FROM audit_retentionfloor f
    ORDER BY place, number"""
RULE = (*SELECTORS, "days")
TIMES = ("since", "until")
Row = tuple[int, str, int, Any]


@dataclass(slots=True)
class Kept:
    """Holds by number: what each covers, and whether it was released; rules by number; floors by name, those that are
    off left out."""

    holds: dict[int, tuple[dict[str, Any], bool]] = field(default_factory=dict)
    rules: dict[int, dict[str, Any]] = field(default_factory=dict)
    floors: dict[str, str] = field(default_factory=dict)

    def hold(self, number: Any, row: Any, released: bool) -> None:
        """A hold as it is from now on; None: there is none any more."""
        if type(number) is int:  # what is none names nothing, and is told of by the examination
            _put(self.holds, number, (_some(row, CRITERIA), released) if isinstance(row, Mapping) else None)

    def rule(self, number: Any, row: Any) -> None:
        """A rule as it is from now on."""
        if type(number) is int:
            _put(self.rules, number, _some(row, RULE) if isinstance(row, Mapping) else None)

    def floor(self, preset: Any, mode: Any) -> None:
        """What a floor does from now on."""
        if isinstance(preset, str):
            _put(self.floors, preset, mode if isinstance(mode, str) and mode != "off" else None)

    def row(self, table: Any, old: Any, new: Any) -> None:
        """A row that was changed past the pages: by its table."""
        one = new if isinstance(new, Mapping) else old if isinstance(old, Mapping) else {}
        match table:
            case "audit_hold":
                self.hold(one.get("id"), new, one.get("released_at") is not None)
            case "audit_retentionrule":
                self.rule(one.get("id"), new)
            case "audit_retentionfloor":
                self.floor(one.get("preset"), new.get("mode") if isinstance(new, Mapping) else None)


def findings() -> list[Finding]:
    """What of the tables the log does not tell so."""
    with connection.cursor() as cursor:
        cursor.execute(READ)
        rows = cursor.fetchall()
    told, there = Kept(), Kept()
    for place, kind, number, content in rows:
        said = _said(content)
        if place < 3:
            _hear(told, kind, said)
        elif kind == "hold":
            there.hold(number, said, said.get("released_at") is not None)
        elif kind == "rule":
            there.rule(number, said)
        else:
            there.floor(said.get("preset"), said.get("mode"))
    return [Finding("keeping-unexplained", words) for words in _differing(told, there)]


def _hear(told: Kept, kind: str, said: Mapping[str, Any]) -> None:
    """One record, or one that is on its way."""
    action, number = said.get("action"), said.get("hold")
    match kind, action:
        case "hold", "placed":
            told.hold(number, said, False)
        case "hold", "released" if type(number) is int and number in told.holds:
            told.holds[number] = (told.holds[number][0], True)
        case "retention", "rule.added" | "rule.changed" | "rule.removed":
            told.rule(said.get("rule"), said.get("new"))
        case "retention", "floor.set":
            told.floor(said.get("preset"), said.get("new"))
        case _, "row.insert" | "row.update" | "row.delete":
            told.row(said.get("table"), said.get("old"), said.get("new"))


def _differing(told: Kept, there: Kept) -> Iterator[str]:
    for number in _all(told.holds, there.holds):
        if (a := told.holds.get(number)) != (b := there.holds.get(number)):
            if b is None:
                yield f"legal hold {number} is gone, and the log does not tell why"
            elif a is not None and a[0] == b[0]:
                yield f"legal hold {number} is {'' if b[1] else 'not '}released, and the log tells otherwise"
            else:
                yield f"legal hold {number} does not cover what the log tells"
    for number in _all(told.rules, there.rules):
        if told.rules.get(number) != there.rules.get(number):
            yield f"retention rule {number} is not what the log tells of it"
    for preset in _all(told.floors, there.floors):
        if told.floors.get(preset) != there.floors.get(preset):
            yield f"the floor {preset[:30]!a} does not do what the log tells of it"


def _all(one: Iterable[Any], other: Iterable[Any]) -> list[Any]:
    return sorted({*one, *other})


def _put(where: dict[Any, Any], key: Any, value: Any) -> None:
    where.pop(key, None)
    if value is not None:
        where[key] = value


def _some(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those columns that say something, times as such."""
    return {name: _time(row[name]) if name in TIMES else row[name] for name in names if row.get(name) is not None}


def _time(text: Any) -> Any:
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return text


def _said(content: Any) -> dict[str, Any]:
    """A statement, or a row as JSON; empty for what is none, which the examination tells of."""
    try:
        found = statements.load(bytes(content))
    except statements.StatementError:
        return {}
    return found if isinstance(found, dict) else {}
