"""The formats of exports. What is lines of text can go on after a crash where it was; the others begin again.

`lines` gives what turns pages of rows into bytes; `whole` are those that write their file in one go.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from audit.exports.formats import csv, jsonl, ocsf
from audit.search_pages import Row

EXTENSIONS = {
    "jsonl": "jsonl", "csv": "csv", "ocsf": "ocsf.jsonl", "parquet": "parquet", "bundle": "zip", "evidence": "zip",
}  # fmt: skip
BY_LINES = frozenset({"jsonl", "csv", "ocsf"})
WITH_COLUMNS = frozenset({"jsonl", "csv", "parquet"})


@dataclass(frozen=True, slots=True)
class Lines:
    """A format of lines: what the file begins with, the SQL expressions of a row, and what makes bytes of a page of
    rows, given the sealed size."""

    head: bytes
    sql: Sequence[str]
    page: Callable[[Sequence[Row], int], bytes]


def lines(name: str, columns: Sequence[str]) -> Lines:
    """A format of BY_LINES. Raises ValueError for a column that there is not."""
    if name == "ocsf":
        return Lines(b"", ocsf.SQL, ocsf.page)
    made = (csv if name == "csv" else jsonl).Writer(columns)
    return Lines(made.head, made.columns.sql, made.page)
