"""Reading an exported file as a verifier does: line by line, in bounded memory, believing nothing of it. What is looked
for: how many records it has and with which decision, that they rise, that they are of the range, and that the columns
say what the statement beside them says."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import TextIOWrapper
from typing import IO, Any

import msgspec

from muniment import statements
from muniment.bundle import text_of, time_of

MAX_LINE = 1 << 20  # bytes; of CSV, characters of a row, however many lines it takes
MOST_FAULTS = 20
MOST_DECISIONS = 100  # different ones; there are three
_LINE = msgspec.json.Decoder(dict[str, Any])
# A column, and the member of the statement that it repeats.
REPEATED = {
    "record": "id", "kind": "type", "decision": "decision", "reason": "reason", "user": "subject", "client": "client",
    "tool": "tool", "backend": "backend", "tenant": "tenant",
}  # fmt: skip


class Unreadable(Exception):
    """The file is not of the format that its manifest says."""


@dataclass(slots=True)
class Seen:
    """What a file holds, and what it is to be of: times in microseconds, first and last index, columns. `decided`: it
    says of each record how it was decided."""

    since: int
    until: int
    first: int | None
    last: int | None
    columns: Sequence[str] = ()
    records: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    decided: bool = False
    statements: int = 0
    faults: list[tuple[str, int | None]] = field(default_factory=list)
    _before: int = -1

    def add(self, index: object, decision: str | None, at: object) -> None:
        """One record; what a file does not have is None."""
        self.records += 1
        name = decision or "none"
        # What cannot be right is counted all the same, so that the sum is; and kept within bounds.
        self.counts[name if name in self.counts or len(self.counts) < MOST_DECISIONS else "others"] += 1
        if index is not None:
            number = _number(index)
            if number is None or number <= self._before:
                self.fault("the records do not rise by their index", number)
            elif self.first is None or self.last is None or not self.first <= number <= self.last:
                self.fault("a record is outside of the range of the manifest", number)
            self._before = max(self._before, -1 if number is None else number)
        if at is not None:
            with suppress(ValueError):
                if self.since <= time_of(str(at)) < self.until:
                    return
            self.fault("a record's time is outside of the range of the manifest", None)

    def has(self, names: Sequence[str]) -> None:
        """The names of the columns that it has, with `_` or with spaces."""
        if [name.replace("_", " ") for name in names] != [name.replace("_", " ") for name in self.columns]:
            self.fault("the file has other columns than the manifest says", None)

    def fault(self, words: str, index: int | None) -> None:
        """Keep what is wrong; enough is enough."""
        if len(self.faults) < MOST_FAULTS:
            self.faults.append((words, index))


def _number(value: object) -> int | None:
    if type(value) is int:
        return value
    return int(value) if type(value) is str and value.isascii() and value.isdecimal() and len(value) < 19 else None


Reader = Callable[[IO[bytes], Seen], None]


def reader_of(kind: str) -> Reader | None:
    """How a format is read; None for one that cannot be: Parquet where pyarrow is not installed."""
    found: dict[str, Reader] = {"jsonl": read_jsonl, "csv": read_csv, "ocsf": read_ocsf}
    if kind == "parquet":  # only then: it is large
        with suppress(ImportError):
            import pyarrow.parquet  # noqa: F401

            return read_parquet
    return found.get(kind)


def _lines(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE or not line.endswith(b"\n"):
            raise Unreadable("a line of the file is too long, or cut off")
        try:
            yield _LINE.decode(line)
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeError, RecursionError):
            raise Unreadable("a line of the file is not a JSON object") from None


def read_jsonl(file: IO[bytes], seen: Seen) -> None:
    """JSON Lines: an object for each record, by the names of the columns with `_` for spaces."""
    names: list[str] | None = None
    for found in _lines(file):
        if list(found) != names:
            seen.has(names := list(found))
        seen.decided = seen.decided or "decision" in found
        decision = found.get("decision")
        seen.add(found.get("index"), decision if type(decision) is str else None, found.get("time"))
        if type(stated := found.get("statement")) is str:
            seen.statements += 1
            _compare(found, stated, seen)


def _compare(found: Mapping[str, Any], stated: str, seen: Seen) -> None:
    """The columns of a line against the statement in it."""
    index = _number(found.get("index"))
    try:
        said = statements.decode(stated.encode())
        at = text_of(said["at"]) if type(said.get("at")) is int else None  # type: ignore[arg-type]
    except (ValueError, UnicodeError, OverflowError):
        seen.fault("a statement in the file is none", index)
        return
    for column, member in REPEATED.items():
        if column in found and found[column] != said.get(member):
            seen.fault(f"the column {column} of a record is not what its statement says", index)
    if "time" in found and (at is None or time_of(at) != _time(found["time"])):
        seen.fault("the column time of a record is not what its statement says", index)


def _time(value: object) -> int | None:
    with suppress(ValueError):
        return time_of(str(value))
    return None


class _Rows:
    """The lines of a CSV file, of which a row may take several: MAX_LINE characters until `taken` is reset."""

    def __init__(self, text: TextIOWrapper) -> None:
        self._text, self.taken = text, 0

    def __iter__(self) -> Iterator[str]:
        while line := self._text.readline(MAX_LINE + 1):
            self.taken += len(line)
            if self.taken > MAX_LINE:
                raise Unreadable("a row of the file is too long")
            yield line


def read_csv(file: IO[bytes], seen: Seen) -> None:
    """CSV (RFC 4180), UTF-8 with a byte order mark, the columns' names first."""
    text = TextIOWrapper(file, "utf-8-sig", newline="")
    lines = _Rows(text)
    before, csv_limit = None, csv.field_size_limit(MAX_LINE)
    try:
        rows = csv.reader(lines, strict=True)
        names = next(rows, [])
        seen.has(names)
        places = {name: place for place, name in enumerate(names)}
        seen.decided = "decision" in places
        for row in rows:
            if len(row) != len(names):
                raise Unreadable("a row of the file has more or fewer cells than columns")
            index, decision, at = (
                row[places[name]] if name in places else None for name in ("index", "decision", "time")
            )
            seen.add(index, decision, at)
            before, lines.taken = row, 0
    except (csv.Error, UnicodeError):
        raise Unreadable("the file is not CSV in UTF-8") from None
    finally:
        csv.field_size_limit(csv_limit)
        text.detach()
    if not names and before is None:
        raise Unreadable("the file has no columns")


def read_ocsf(file: IO[bytes], seen: Seen) -> None:
    """OCSF events as JSON Lines: the index is `metadata.sequence`, the decision among what is unmapped."""
    seen.decided = True
    for found in _lines(file):
        metadata, unmapped = found.get("metadata"), found.get("unmapped")
        ours = unmapped.get("muniment") if type(unmapped) is dict else None
        decision = ours.get("decision") if type(ours) is dict else None
        index = metadata.get("sequence") if type(metadata) is dict else None
        seen.add(-1 if index is None else index, decision if type(decision) is str else None, None)


def read_parquet(file: IO[bytes], seen: Seen) -> None:
    """Parquet, some rows at a time. For a file that somebody trusted has signed: a few of its bytes can stand for any
    amount of memory, and the library that reads it is large."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        seen.has(table.schema_arrow.names)
        names = [name for name in ("index", "decision", "time") if name in table.schema_arrow.names]
        seen.decided = "decision" in names
        for group in table.iter_batches(10_000, columns=names) if names else ():
            columns = {name: group.column(name).to_pylist() for name in names}
            for place in range(group.num_rows):
                at = columns["time"][place] if "time" in columns else None
                seen.add(
                    columns["index"][place] if "index" in columns else None,
                    columns["decision"][place] if seen.decided else None,
                    None if at is None else at.isoformat(timespec="microseconds"),
                )
        if not names:
            seen.records = table.metadata.num_rows
    except (pyarrow.ArrowException, ValueError, OSError, LookupError, TypeError, AttributeError, ArithmeticError):
        raise Unreadable("the file is not Parquet, or has other columns than an export") from None
