"""CSV (RFC 4180) as the audit search gives it: UTF-8 with a byte order mark, every cell quoted, and none that a
spreadsheet would run."""

import csv
from collections.abc import Sequence
from io import StringIO
from typing import Any

from audit import records_csv
from audit.export_columns import Columns
from audit.search_pages import Row


class _Cells(dict[Any, str]):
    """What each value is written as; in a page few values are many cells."""

    def __missing__(self, value: Any) -> str:
        self[value] = found = records_csv.cell(value)
        return found


class Writer:
    """Rows of some columns."""

    def __init__(self, names: Sequence[str]) -> None:
        self.columns = Columns(names)
        self.head = b"\xef\xbb\xbf" + _rows([list(names)])

    def page(self, rows: Sequence[Row], sealed: int) -> bytes:
        """The lines of some rows."""
        table = self.columns.table(rows, sealed)
        # One for each column: to a dictionary True is 1.
        columns = [map(_Cells().__getitem__, column) for column in table]
        return _rows(zip(*columns, strict=True))


def _rows(rows: Any) -> bytes:
    into = StringIO()
    csv.writer(into, quoting=csv.QUOTE_ALL).writerows(rows)
    return into.getvalue().encode("utf-8", "replace")
