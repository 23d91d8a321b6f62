"""The fenced blocks of a Markdown document (CommonMark 0.31, section 4.5)."""

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>[^\n]*)$")


@dataclass(frozen=True)
class Block:
    """One block: its language, what else stands behind the fence, its text, and the line of the fence."""

    language: str
    more: str
    text: str
    line: int


class NotReadable(ValueError):
    """A document in which it is not clear what is code; the text says where."""


def blocks(document: str) -> list[Block]:
    """All fenced blocks. Raises NotReadable for a fence that is not closed, and for code without one (section 4.4)."""
    found, lines, number = [], document.splitlines(), 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        if opening is None:
            if re.match(r" {4,}\S", lines[number]) and (number == 0 or not lines[number - 1].strip()):
                raise NotReadable(f"line {number + 1}: code without a fence")
            if re.search(r"`{3}|~{3}|<pre", lines[number]):  # in a quotation, behind the sign of a list
                raise NotReadable(f"line {number + 1}: code where nobody looks for it")
            number += 1
            continue
        end = _closing(lines, number, opening["fence"])
        language, _, more = opening["info"].strip().partition(" ")
        text = dedent("\n".join([*lines[number + 1 : end], ""]))
        found.append(Block(language, more.strip(), text, number + 1))
        number = end + 1
    return found


def _closing(lines: list[str], opening: int, fence: str) -> int:
    for number in range(opening + 1, len(lines)):
        line = lines[number].strip()
        if len(line) >= len(fence) and set(line) == {fence[0]}:
            return number
    raise NotReadable(f"line {opening + 1}: a fence that is not closed")


def shown(document: str, language: str) -> list[str]:
    """The blocks of one language in a document, by its path below `docs`."""
    return [block.text for block in blocks((ROOT / "docs" / document).read_text()) if block.language == language]
