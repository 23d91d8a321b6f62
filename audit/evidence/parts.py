"""The parts of an evidence pack as they are written: rows and records stream into files, figures are counted beside
them, and the newest few lines are kept for the pages."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.conf import settings
from django.urls import reverse

from audit import record_words
from audit.evidence.files import Files, Rows, Sink, aside, record_line, take
from audit.evidence.policy import Grants
from audit.evidence.reading import Found, Reader, Span
from audit.evidence.sections import DONE, Line, Section, Tally
from audit.evidence.tables import Table, time_text

NEWEST = 50  # lines of a part that its pages show
MOST_ROWS = 1_000  # of one table of figures: what names a caller chose could be any number
OTHERS = "all others"
LONGEST = 400  # characters of a text on a page; the file has all of it
COLUMNS = (
    "time", "index", "record", "leaf", "kind", "done", "what", "by", "name", "about", "reason", "user", "client",
    "tool", "backend", "tenant", "link",
)  # fmt: skip
UNSOUND = "This record does not hold: its bytes do not give its leaf. Verify the log."


@dataclass(slots=True)
class Figures:
    """Tables of counts: the rows that are expected first, at 0 where nothing was counted, then others as they came."""

    tables: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, tallies: Iterable[Tally]) -> None:
        """Count. Beyond a thousand rows of one table the rest is counted together."""
        for table, row, number in tallies:
            rows = self.tables.setdefault(table, {})
            name = row if row in rows or len(rows) < MOST_ROWS else OTHERS
            rows[name] = rows.get(name, 0) + number

    def expect(self, names: Iterable[tuple[str, str]]) -> None:
        """Have these rows, at 0 to begin with."""
        for table, row in names:
            self.tables.setdefault(table, {}).setdefault(row, 0)

    def sorted(self) -> dict[str, dict[str, int]]:
        """The largest first, the rest that was counted together at the end: the same whatever order they came in."""
        return {
            table: dict(sorted(rows.items(), key=lambda one: (one[0] == OTHERS, -one[1], one[0])))
            for table, rows in self.tables.items()
        }


@dataclass(frozen=True, slots=True)
class Shown:
    """A line as a page shows it; `url` leads to its record in the admin."""

    at: str
    index: int
    url: str
    done: str
    what: str
    by: str
    reason: str


@dataclass(slots=True)
class Part:
    """A section or a table of the pack, written. `records`: how many records (of a table, rows) it has; `lines` how
    many things they tell, `newest` the last of them."""

    slug: str
    title: str
    about: str
    query: str
    url: str
    figures: Mapping[str, Mapping[str, int]]
    records: int = 0
    lines: int = 0
    newest: Sequence[Shown] = ()
    files: tuple[str, ...] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    counts_only: bool = False


def absolute(name: str, *args: Any, **query: str) -> str:
    """The address of a page of the admin."""
    url = f"{settings.MUNIMENT_URL.rstrip('/')}{reverse(name, args=args)}"
    return f"{url}?{urlencode(query)}" if query else url


def section(made: Section, reader: Reader, grants: Grants, files: Files, tick: Callable[[], None]) -> Part:
    """Write a section: its rows and its records."""
    span, figures = reader.span, Figures()
    figures.expect((DONE, row) for row in made.expected)
    newest: deque[Shown] = deque(maxlen=NEWEST)
    part = Part(made.slug, made.title, made.about, made.query, search_url(span, made.filters), {})
    part.files = (f"records/{made.slug}.csv", f"records/{made.slug}.jsonl")
    with aside() as waiting:
        with files.stream(part.files[0]) as into:
            rows = Rows(into, COLUMNS)
            for found, lines in _picked(made, reader, grants, tick):
                part.records, part.lines = part.records + 1, part.lines + len(lines)
                waiting.write(record_line(found))
                figures.add(made.tallies(found, lines))
                for line in lines:
                    rows.add(_row(found, line))
                    newest.append(_shown(found, line))
        with files.stream(part.files[1]) as into:
            take(waiting, into)
    figures.add(made.closing(grants, span))
    part.figures, part.newest = figures.sorted(), tuple(reversed(newest))
    return part


def _picked(
    made: Section, reader: Reader, grants: Grants, tick: Callable[[], None]
) -> Iterator[tuple[Found, list[Line]]]:
    """The records of a section, in the order of the log within each type, with their lines. `grants` follows."""
    for kind in made.types:
        for page in reader.refused() if kind == "decision" else reader.of_type(kind):
            for found in page:
                if made.slug == "grants":
                    grants.take(found.statement)
                if made.picks(found.statement):
                    yield found, made.lines(found, grants) or [Line("changed", "What changed is not told.")]
            tick()


def _row(found: Found, line: Line) -> tuple[Any, ...]:
    record, said = found.record, found.opened.said
    return (
        time_text(record.at), record.index, record.id, bytes(record.leaf).hex(), record.type, line.done,
        _what(found, line), _by(found), said.get("actor_name"), said.get("about_name"), reason_of(found, line),
        record.subject, record.client, record.tool, record.backend, record.tenant, record_url(record.id),
    )  # fmt: skip


def _shown(found: Found, line: Line) -> Shown:
    record, name = found.record, found.opened.said.get("actor_name")
    by = f"{_cut(str(name))} ({_by(found)})" if name else _by(found)
    return Shown(
        f"{time_text(record.at)[:19].replace('T', ' ')}", record.index, record_url(record.id), line.done,
        _cut(_what(found, line)), by, _cut(reason_of(found, line)),
    )  # fmt: skip


def _what(found: Found, line: Line) -> str:
    return line.what if found.sound else f"{line.what} {UNSOUND}"


def _by(found: Found) -> str:
    actor = found.statement.get("actor")
    if found.record.type == "decision":
        return found.record.client or "a client that was not established"
    return record_words.actor_words(actor) if isinstance(actor, str) else ""


def reason_of(found: Found, line: Line) -> str:
    """Why, in the words of whoever did it: the reason of this very row where there are several; of a call, which rule
    refused it; else why there is none to read. Empty where none was given."""
    if found.opened.fault:
        return found.opened.fault
    if found.record.type == "decision":
        return record_words.why(found.statement, {})
    said = found.opened.said
    reasons, notes = said.get("reasons"), said.get("notes")
    own = reasons.get(line.row) if isinstance(reasons, dict) and line.row else said.get("reason")
    if isinstance(notes, dict) and line.row:
        own = notes.get(line.row)
    told = [own, said.get("answer"), said.get("note")]
    told += [f"{name}: {said[name]}" for name in ("matter", "reference") if said.get(name)]
    return "; ".join(str(text) for text in told if text)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def record_url(record: UUID) -> str:
    """The page of a record."""
    return absolute("admin:record", record)


def search_url(span: Span, filters: Mapping[str, str]) -> str:
    """The audit search for these filters and the period."""
    return absolute("admin:records", **filters, since=time_text(span.since), until=time_text(span.until))


def table(made: Table, span: Span, files: Files, tick: Callable[[], None]) -> Part:
    """Write a table; one without columns is figures alone."""
    figures = Figures()
    figures.expect(made.expected)
    is_search = made.page == "admin:records"
    url = search_url(span, made.filters) if is_search else absolute(made.page)
    part = Part(made.slug, made.title, made.about, made.query, url, {}, columns=made.columns)
    newest: deque[Sequence[Any]] = deque(maxlen=NEWEST)
    if made.columns:
        part.files = (f"records/{made.slug}.csv",)
        with files.stream(part.files[0]) as into:
            _table_rows(made, span, tick, figures, part, newest, into)
    else:
        part.counts_only = True
        for _, tallies in made.read(span, tick):
            figures.add(tallies)
    part.lines, part.figures = part.records, figures.sorted()
    part.rows = tuple(reversed(newest))
    return part


def _table_rows(
    made: Table, span: Span, tick: Callable[[], None], figures: Figures, part: Part, newest: deque[Sequence[Any]],
    into: Sink,
) -> None:  # fmt: skip
    rows = Rows(into, made.columns)
    for row, tallies in made.read(span, tick):
        figures.add(tallies)
        if row is not None:
            part.records += 1
            rows.add(row)
            newest.append([_cut(str(value)) for value in row])
