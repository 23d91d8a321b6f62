"""What is another between two texts, for people: words side by side, and lines one under the other. Pure; what cannot
be seen (zero width, other direction) is compared as it is and shown as an escape, so that nothing hides in it."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

MOST_LINES = 1_000  # of each side between what both begin and end with: comparing is quadratic at worst
MOST_INDENTED = 200_000  # characters; deep nesting makes a small schema wide
CONTEXT = 3  # lines around a change
WORDS = re.compile(r"\s+|[^\s]+")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text: `changed` if the other side does not have it."""

    text: str
    changed: bool


@dataclass(frozen=True, slots=True)
class Line:
    """One line: `kind` is same, old (gone), new (come), or gap (`text` says how many lines are left out)."""

    kind: str
    text: str


def visible(text: str) -> str:
    """A backend's text with what cannot be seen (zero width, other direction) as escapes: nothing hides in it."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def words(old: str, new: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts as pieces, blanks included, so that a blank that came is marked too."""
    left, right = WORDS.findall(old), WORDS.findall(new)
    sides: tuple[list[Piece], list[Piece]] = ([], [])
    for kind, i, j, k, m in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        for side, part in zip(sides, (left[i:j], right[k:m]), strict=True):
            if part:
                side.append(Piece(visible("".join(part)), kind != "equal"))
    return sides


def pretty(schema: Any) -> list[str]:
    """A schema as lines of JSON, members sorted; in one line where indenting it would be endless. Empty for None."""
    if schema is None:
        return []
    text = json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False)
    if len(text) > MOST_INDENTED:
        text = json.dumps(schema, sort_keys=True, ensure_ascii=False)
    return [visible(line) for line in text.split("\n")]


def lines(old: Any, new: Any) -> list[Line]:
    """Two schemas line by line, with what is the same left out but for a few lines around each change. Where there
    are too many lines to compare, all of the old ones and then all of the new ones between what both share."""
    left, right = pretty(old), pretty(new)
    start = _shared(left, right)
    end = _shared(left[start:][::-1], right[start:][::-1])
    middle = left[start : len(left) - end], right[start : len(right) - end]
    found = [Line("same", text) for text in left[:start]]
    if max(map(len, middle)) > MOST_LINES:
        found += [Line("old", text) for text in middle[0]] + [Line("new", text) for text in middle[1]]
    else:
        found += _compared(*middle)
    found += [Line("same", text) for text in left[len(left) - end :]]
    return list(_shortened(found))


def _shared(left: Sequence[str], right: Sequence[str]) -> int:
    """How many lines both begin with."""
    pairs = zip(left, right, strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _compared(left: list[str], right: list[str]) -> Iterator[Line]:
    for kind, i, j, k, m in SequenceMatcher(None, left, right).get_opcodes():
        if kind == "equal":
            yield from (Line("same", text) for text in left[i:j])
        else:
            yield from (Line("old", text) for text in left[i:j])
            yield from (Line("new", text) for text in right[k:m])


def _shortened(found: list[Line]) -> Iterator[Line]:
    """Without the lines that are far from any change."""
    near = {
        number + offset
        for number, line in enumerate(found)
        if line.kind != "same"
        for offset in range(-CONTEXT, CONTEXT + 1)
    }
    skipped = 0
    for number, line in enumerate(found):
        if number in near:
            if skipped:
                yield _skip(skipped)
            skipped = 0
            yield line
        else:
            skipped += 1
    if skipped:
        yield _skip(skipped)


def _skip(number: int) -> Line:
    return Line("gap", f"{number:,} line{'' if number == 1 else 's'} as before")
