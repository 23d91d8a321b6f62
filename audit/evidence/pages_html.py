"""The pages of an evidence pack, for somebody who does not read code: plain HTML with one style sheet in it, no script,
nothing from elsewhere; all that comes from records is escaped by the templates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.template.loader import render_to_string

from audit.evidence.controls import Control, Framework
from audit.evidence.files import Files
from audit.evidence.parts import NEWEST, Part

FEW = 12  # rows of a table of figures that a page shows


@dataclass(frozen=True, slots=True)
class Counted:
    """A table of figures as a page shows it: its first rows, and how many more there are."""

    title: str
    rows: Sequence[tuple[str, int]]
    more: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A control with the parts that answer it. `records`: how many records of the period those have; of what is counted
    alone, how many were counted."""

    control: Control
    framework: Framework
    parts: Sequence[Part]

    @property
    def page(self) -> str:
        """Its file."""
        return f"controls/{self.framework.slug}-{self.control.slug}.html"

    @property
    def records(self) -> int:
        """Records and rows, and what is counted alone."""
        return sum(part.records or _counted(part) for part in self.parts)

    @property
    def summary(self) -> str:
        """Its parts with their numbers, those without a record left out."""
        numbers = [(part.title, part.records or _counted(part)) for part in self.parts]
        return "; ".join(f"{title}: {number:,}" for title, number in numbers if number)


def _counted(part: Part) -> int:
    return sum(part.figures.get("Records", {}).values()) if part.counts_only else 0


def tables(part: Part) -> list[Counted]:
    """The figures of a part, for a page."""
    return [
        Counted(title, list(rows.items())[:FEW], max(0, len(rows) - FEW))
        for title, rows in part.figures.items()
        if rows
    ]


def write(files: Files, manifest: Mapping[str, Any], frameworks: Sequence[Framework], parts: Sequence[Part]) -> None:
    """Write the index, and a page for each control."""
    by_slug = {part.slug: part for part in parts}
    answers = [
        (framework, [Answer(one, framework, [by_slug[slug] for slug in one.sections]) for one in framework.controls])
        for framework in frameworks
    ]
    shared = {"manifest": manifest, "since": _clock(manifest["since"]), "until": _clock(manifest["until"]),
              "made_at": _clock(manifest["made_at"]), "newest": NEWEST}  # fmt: skip
    told = [(part, tables(part)) for part in parts]
    index = render_to_string("evidence/index.html", shared | {"frameworks": answers, "parts": told, "root": ""})
    files.document("index.html", index.encode("utf-8", "replace"))
    for _, controls in answers:
        for answer in controls:
            own = {"answer": answer, "parts": [(part, tables(part)) for part in answer.parts], "root": "../"}
            page = render_to_string("evidence/control.html", shared | own)
            files.document(answer.page, page.encode("utf-8", "replace"))


def _clock(text: str) -> str:
    """`2026-11-01 00:00 UTC`, with seconds where there are any."""
    day, _, time = text.removesuffix("Z").partition("T")
    hours, _, seconds = time.rpartition(":")
    return f"{day} {hours if float(seconds) == 0 else time.partition('.')[0]} UTC"
