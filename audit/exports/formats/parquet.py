"""Apache Parquet, zstd, a row group for about twenty thousand records. Needs pyarrow, which only a run of one loads."""

from collections.abc import Sequence
from typing import IO, Any

import pyarrow
from pyarrow import parquet

from audit.exports.columns import KINDS, NUMBER, TEXT, TIME, TRUTH, Columns
from audit.search_pages import Row

GROUP = 20_000
TYPES = {
    TEXT: pyarrow.string(), NUMBER: pyarrow.int64(), TRUTH: pyarrow.bool_(), TIME: pyarrow.timestamp("us", tz="UTC"),
}  # fmt: skip


class Writer:
    """A file of some columns, called as in JSON Lines; `close` finishes it."""

    def __init__(self, file: IO[bytes], names: Sequence[str]) -> None:
        self.columns = Columns(names, as_text=False)
        self._types = [TYPES[KINDS.get(name, TEXT)] for name in names]
        fields = [(name.replace(" ", "_"), kind) for name, kind in zip(names, self._types, strict=True)]
        self._writer = parquet.ParquetWriter(file, pyarrow.schema(fields), compression="zstd")
        self._pages: list[Any] = []
        self._waiting = 0

    def page(self, rows: Sequence[Row], sealed: int) -> None:
        """Add some rows; those of a row group go to the file together."""
        table = self.columns.table(rows, sealed)
        arrays = [pyarrow.array(column, kind) for column, kind in zip(table, self._types, strict=True)]
        self._pages.append(pyarrow.RecordBatch.from_arrays(arrays, schema=self._writer.schema))
        self._waiting += len(rows)
        if self._waiting >= GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            whole = pyarrow.Table.from_batches(self._pages).combine_chunks()
            self._writer.write_table(whole, row_group_size=GROUP * 2)
        self._pages, self._waiting = [], 0

    def close(self) -> None:
        """Write what waits, and the end of the file."""
        self._flush()
        self._writer.close()

    def abort(self) -> None:
        """Let go of the file, as it is."""
        self._pages = []
        self._writer.close()
