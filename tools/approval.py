"""What staff approved of a tool: kept when they approve it, compared with what its backend declares later.

A tool whose scope is pinned is suspended when its definition changes (tools.declarations); then it waits here until
staff approve it again, keep it suspended or retire it. Nothing is decided from what is kept: calls are decided from the
tool's own row. Whoever calls these functions holds the tool's row locked, in a transaction."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone

from tools.difference import Line, Piece, lines, words
from tools.models import ApprovedDefinition, PinnedScope, Tool

Content = dict[str, Any]
# A part of a definition -> what it is called.
PARTS = {
    "name": "name", "description": "description", "access": "access", "scopes": "scopes",
    "input_schema": "input schema",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Difference:
    """One part of a definition that is another now: its text as it was approved and as it is, or, for a schema, its
    lines."""

    part: str
    old: list[Piece]
    new: list[Piece]
    lines: list[Line]


def content(tool: Tool) -> Content:
    """What staff approve of a tool: name, description, access, scopes by name, input schema."""
    return {
        "name": tool.name,
        "description": tool.description,
        "access": tool.access,
        "scopes": sorted(scope.name for scope in tool.scopes.all()),
        "input_schema": tool.input_schema,
    }


def digest(tool: Tool) -> str:
    """SHA-256, in hex, of all that staff approve of a tool: what is declared, and what staff made of it since."""
    said = content(tool)
    return sha256(_text([tool.definition, *(said[part] for part in PARTS)]).encode()).hexdigest()


def _text(value: Any) -> str:
    # As text, since to Python `True == 1 == 1.0`, and a schema that says another of them says something else.
    return json.dumps(value, sort_keys=True)


def approved(tool: Tool) -> ApprovedDefinition | None:
    """What was approved last; None for a tool that never was, or before definitions were kept."""
    return getattr(tool, "approved", None)


def keep(tool: Tool, by: str) -> None:
    """Staff (by name) approved the tool as it is now."""
    values = {"content": content(tool), "by": by[:150], "at": timezone.now(), "changed_at": None}
    tool.approved, _ = ApprovedDefinition.objects.update_or_create(tool=tool, defaults=values)


def amend(tool: Tool, by: str, parts: Collection[str]) -> None:
    """Staff (by name) changed these parts of an active tool: of them, what they wrote is approved; of the others,
    what was."""
    kept, now = approved(tool), content(tool)
    if kept is None or set(parts) >= set(PARTS):
        keep(tool, by)
        return
    kept.content = kept.content | {part: now[part] for part in parts if part in now}
    kept.by, kept.at = by[:150], timezone.now()
    if not differ(kept.content, now):
        kept.changed_at = None
    kept.save()


def before_change(tool: Tool) -> None:
    """A declaration is about to change the tool. One that was approved before definitions were kept is active: what
    it is until now is what can be compared with."""
    if tool.status == "active" and approved(tool) is None:
        keep(tool, "")


def after_change(tool: Tool) -> None:
    """A declaration has changed the tool: whether there is something to decide. Back to what was approved there is
    not, unless it is suspended."""
    kept = approved(tool)
    if kept is None or tool.status not in ("active", "suspended"):
        return
    waits = tool.status == "suspended" or changed(tool)
    kept.changed_at = timezone.now() if waits else None
    kept.save(update_fields=["changed_at"])


def settle(tool: Tool) -> None:
    """Staff decided what is to become of the tool, and did not approve it."""
    ApprovedDefinition.objects.filter(tool=tool).update(changed_at=None)


def changed(tool: Tool) -> bool:
    """Whether the tool is another than was approved; False where nothing was kept to compare with."""
    kept = approved(tool)
    return kept is not None and bool(differ(kept.content, content(tool)))


def changed_parts(tool: Tool) -> list[str]:
    """The parts of its definition that are another than was approved, in words."""
    kept = approved(tool)
    return [] if kept is None else [PARTS[part] for part in differ(kept.content, content(tool))]


def differ(old: Content, new: Content, parts: Collection[str] = tuple(PARTS)) -> list[str]:
    """The parts in which two definitions differ."""
    return [part for part in parts if _text(old.get(part)) != _text(new.get(part))]


def difference(tool: Tool) -> list[Difference]:
    """What of the tool is another than was approved, part by part."""
    kept = approved(tool)
    if kept is None:
        return []
    old, new = kept.content, content(tool)
    return [_difference(part, old.get(part), new[part]) for part in differ(old, new)]


def _difference(part: str, old: Any, new: Any) -> Difference:
    if part == "input_schema":
        return Difference(PARTS[part], [], [], lines(old, new))
    left, right = words(_words_of(part, old), _words_of(part, new))
    return Difference(PARTS[part], left, right, [])


def _words_of(part: str, value: Any) -> str:
    if part == "scopes":
        return ", ".join(value or []) or "no scope: a grant must name it"
    return value or f"no {PARTS[part]}"


def pins() -> set[str]:
    """The names of the scopes that are marked so that a change of a tool's definition suspends the tool."""
    return set(PinnedScope.objects.values_list("scope__name", flat=True))


def waiting() -> QuerySet[Tool]:
    """Tools that a declaration changed since they were approved and that are suspended until staff decide."""
    return Tool.objects.filter(status="suspended", approved__changed_at__isnull=False)


def drifted() -> QuerySet[Tool]:
    """Tools that a declaration changed since they were approved and that can still be called: no scope of theirs is
    pinned, and neither access nor scopes changed."""
    return Tool.objects.filter(status="active", approved__changed_at__isnull=False)


def change_words(tool: Tool) -> str:
    """`its description and input schema`; `nothing that was kept` where it is as it was approved again."""
    parts = changed_parts(tool)
    if not parts:
        return "nothing that was kept"
    return "its " + (" and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0])
