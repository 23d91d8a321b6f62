"""CSV (RFC 4180) as the audit search gives it: UTF-8 with a byte order mark, every cell quoted, and none that a
spreadsheet would run."""

from collections.abc import Iterable, Sequence
from typing import Any

from audit import records_csv
from audit.exports.columns import Columns
from audit.search_pages import Row

# Digits, and differing in every record: nothing of them is neutralised or looked up.
PLAIN = frozenset({"time", "index", "record"})
BOM = b"\xef\xbb\xbf"


class _Cells(dict[Any, str]):
    """What each value of one column is written as: in a page few values are many cells."""

    def __missing__(self, value: Any) -> str:
        self[value] = found = records_csv.cell(value).replace('"', '""')
        return found


class Writer:
    """Rows of some columns."""

    def __init__(self, names: Sequence[str]) -> None:
        self.columns = Columns(names)
        self.head = BOM + _rows([names])

    def page(self, rows: Sequence[Row], sealed: int) -> bytes:
        """The lines of some rows."""
        table = zip(self.columns.names, self.columns.table(rows, sealed), strict=True)
        # A dictionary for each column: to one of all, True would be 1.
        cells = [map(str if name in PLAIN else _Cells().__getitem__, column) for name, column in table]
        return _rows(zip(*cells, strict=True))


def _rows(rows: Iterable[Iterable[str]]) -> bytes:
    """Cells, in which quotes are doubled already, between quotes."""
    joined = '"\r\n"'.join(map('","'.join, rows))
    return f'"{joined}"\r\n'.encode("utf-8", "replace") if joined else b""
