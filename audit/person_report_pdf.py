"""The report on one person as a PDF: from the gathered report to bytes, with the bundled fonts (DejaVu Sans), which
have Latin, Greek, Cyrillic and more. A character that they lack is shown as its code point, and the report says so."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from reportlab.lib.colors import HexColor
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, Paragraph, SimpleDocTemplate, Spacer

from audit.person_report import Line, Report

FONTS = Path(__file__).with_name("fonts")
PLAIN, BOLD = "DejaVuSans", "DejaVuSans-Bold"
MARGIN = 18 * mm
PADDING = 6  # points: a frame's own
QUIET_WEB = "#5b6472"
INK, QUIET = HexColor("#1b2330"), HexColor(QUIET_WEB)
TITLE = "Everything the AI did with one person's data"
LACKING = (
    "Some characters of this report are not in its font. Each is shown as its code point, such as [U+4E2D]; the page of"
    " the report shows them as they are."
)
BACKWARDS = (
    "Some words of this report are written from right to left. Here their letters stand unjoined and in the order in"
    " which they are stored; the page of the report shows them as they are written."
)


def _style(name: str, size: float, **more: Any) -> ParagraphStyle:
    usual = {"fontName": PLAIN, "leading": size * 1.4, "textColor": INK, "splitLongWords": 1}
    return ParagraphStyle(name, fontSize=size, **{**usual, **more})


STYLES = {
    "title": _style("title", 17, fontName=BOLD, spaceAfter=4 * mm, leading=22),
    "heading": _style("heading", 11.5, fontName=BOLD, spaceBefore=6 * mm, spaceAfter=2 * mm, keepWithNext=1),
    "day": _style("day", 9, fontName=BOLD, textColor=QUIET, spaceBefore=3 * mm, spaceAfter=1 * mm, keepWithNext=1),
    "text": _style("text", 9.5, spaceAfter=1.5 * mm),
    # A time and a sentence, and below them, set in, the details; a page does not end between.
    "call": _style("call", 9, leading=11.5, spaceBefore=1.4 * mm, leftIndent=17 * mm, firstLineIndent=-17 * mm,
                   allowOrphans=0),
}  # fmt: skip


@cache
def _glyphs() -> frozenset[int]:
    """The characters that both fonts have; registers them."""
    fonts = [TTFont(name, FONTS / f"{name}.ttf") for name in (PLAIN, BOLD)]
    for font in fonts:
        pdfmetrics.registerFont(font)
    return frozenset.intersection(*(frozenset(font.face.charToGlyph) for font in fonts))


@dataclass
class Writer:
    """Makes text drawable, and remembers what it could not draw as it is."""

    lacking: bool = False
    backwards: bool = False
    glyphs: frozenset[int] = field(default_factory=lambda: _glyphs())

    def drawable(self, text: str) -> str:
        """The text in composed form (NFC), with every character that cannot be drawn as its code point."""
        return "".join(map(self._one, unicodedata.normalize("NFC", text)))

    def _one(self, character: str) -> str:
        if character in " \n":
            return character
        # Control characters, and those that only steer others: to draw nothing would be to hide them.
        if ord(character) not in self.glyphs or unicodedata.category(character).startswith("C"):
            self.lacking = True
            return f"[U+{ord(character):04X}]"
        self.backwards = self.backwards or unicodedata.bidirectional(character) in ("R", "AL")
        return character

    def paragraph(self, style: str, text: str, bold: str = "", below: str = "") -> Paragraph:
        """Text in a style, after some in bold and over some that is quiet."""
        before = f'<font name="{BOLD}">{_marked(self.drawable(bold))}</font> ' if bold else ""
        after = f'<br/><font size="8" color="{QUIET_WEB}">{_marked(self.drawable(below))}</font>' if below else ""
        return Paragraph(before + _marked(self.drawable(text)) + after, STYLES[style])


def _marked(text: str) -> str:
    """The text as reportlab's markup says it."""
    return escape(text).replace("\n", "<br/>")


def render(report: Report) -> bytes:
    """The PDF. Takes about a second for a thousand records."""
    made = BytesIO()
    document = SimpleDocTemplate(
        made, pagesize=A4, leftMargin=MARGIN, rightMargin=MARGIN, topMargin=MARGIN, bottomMargin=MARGIN + 4 * mm,
        title=f"{TITLE}: {report.uid}", author="Muniment", subject=str(report.period), lang="en",
    )  # fmt: skip
    document.build(story(report), canvasmaker=_numbered(report))
    return made.getvalue()


def story(report: Report) -> list[Flowable]:
    """What the PDF tells, from top to bottom."""
    writer = Writer()
    write = writer.paragraph
    told: list[Flowable] = [write("title", TITLE), write("text", str(report.period), "Period:")]
    told += [write("text", _time(report.made), "Made:"), write("heading", "Who is meant")]
    told += [write("text", value, f"{name}:") for name, value in report.who]
    told += [write("text", report.state), write("heading", "In short"), write("text", report.sentence)]
    for heading, counts in report.parts:
        told.append(write("text", ", ".join(f"{words} {number:,}" for words, number in counts), f"{heading}:"))
    told += _dated("What happened", "Nothing.", report.lines, lambda line: line.at, writer, _line)
    told += _dated("Who on the staff looked", report.no_looks, report.looks, lambda look: look[0], writer, _look)
    for heading, sentences in (("What this report cannot say", report.limits), ("How it is proven", report.proof)):
        if sentences:
            told.append(write("heading", heading))
            told += [write("text", sentence) for sentence in sentences]
    notes = [words for said, words in ((writer.lacking, LACKING), (writer.backwards, BACKWARDS)) if said]
    if notes:
        told += [write("heading", "How it is written"), *(write("text", words) for words in notes)]
    return [*told, Spacer(1, 1)]


def _dated(
    heading: str, empty: str, things: Sequence[Any], at: Callable[[Any], datetime], writer: Writer,
    show: Callable[[Writer, Any], list[Flowable]],
) -> list[Flowable]:  # fmt: skip
    """Things by day, newest first, or that there are none."""
    told: list[Flowable] = [writer.paragraph("heading", heading)]
    for day, found in groupby(things, lambda thing: at(thing).astimezone(UTC).date()):
        told.append(writer.paragraph("day", f"{day.day} {day:%B %Y}"))
        told += [flowable for thing in found for flowable in show(writer, thing)]
    return told if things else [*told, writer.paragraph("text", empty)]


def _line(writer: Writer, line: Line) -> list[Flowable]:
    kept = [f"{name}: {value.replace(chr(10), ', ')}" for name, value in line.kept]
    details = "\n".join(text for text in ("; ".join([*line.said, *kept]), line.fault) if text)
    return [writer.paragraph("call", f"{line.sentence}.", f"{line.at.astimezone(UTC):%H:%M:%S}", details)]


def _look(writer: Writer, look: tuple[datetime, str]) -> list[Flowable]:
    at, sentence = look
    return [writer.paragraph("call", f"{sentence}.", f"{at.astimezone(UTC):%H:%M:%S}")]


def _time(at: datetime) -> str:
    utc = at.astimezone(UTC)
    return f"{utc.day} {utc:%B %Y, %H:%M} UTC"


def _numbered(report: Report) -> type[Canvas]:
    """A canvas that writes `page 2 of 7` and whose report it is on each page, once it is known how many there are."""

    class Numbered(Canvas):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            self._pages: list[dict[str, Any]] = []

        def showPage(self) -> None:  # noqa: N802 (reportlab's name)
            self._pages.append(dict(self.__dict__))
            self._startPage()

        def save(self) -> None:
            for number, page in enumerate(self._pages, 1):
                self.__dict__.update(page)
                self.setFont(PLAIN, 7.5)
                self.setFillColor(QUIET)
                self.drawString(MARGIN + PADDING, MARGIN - 4 * mm, f"{report.uid}, {report.period}. Times are UTC.")
                self.drawRightString(A4[0] - MARGIN - PADDING, MARGIN - 4 * mm, f"page {number} of {len(self._pages)}")
                super().showPage()
            super().save()

    return Numbered
