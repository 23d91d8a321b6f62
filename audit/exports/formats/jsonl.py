"""JSON Lines: an object for each record, its members called as the columns are, with `_` for spaces."""

from collections.abc import Sequence
from typing import Any

import msgspec

from audit.exports.columns import Columns
from audit.search_pages import Row


class Writer:
    """Lines of some columns, UTF-8."""

    head = b""

    def __init__(self, names: Sequence[str]) -> None:
        self.columns = Columns(names)
        # Made by position and written by C, which is what makes it fast.
        members = [(name.replace(" ", "_"), Any) for name in names]
        self._line = msgspec.defstruct("Line", members, gc=False)
        self._encode = msgspec.json.Encoder().encode_lines

    def page(self, rows: Sequence[Row], sealed: int) -> bytes:
        """The lines of some rows."""
        return self._encode(list(map(self._line, *self.columns.table(rows, sealed))))
