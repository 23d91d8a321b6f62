"""The columns of an export: how each is read from the log, and what is made of it afterwards."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import msgspec
from msgspec import Struct

from audit import details, record_words, records_csv, search
from audit.models import Record
from audit.protection import KeyRing
from audit.search_pages import Row
from muniment import statements

COLUMNS = (*records_csv.COLUMNS, "statement")
"""What everybody who may read records can export."""
DEFAULT = records_csv.COLUMNS
PERSONAL = ("sub", "email", "ip", "user_agent", "request_id", "trace_id", "session_id", "resource")
"""What only those can who may see personal data."""
OUTCOME = ("outcome", "items touched", "milliseconds")

TEXT, NUMBER, TRUTH, TIME = "text", "number", "truth", "time"
KINDS = {"index": NUMBER, "items touched": NUMBER, "milliseconds": NUMBER, "flagged": TRUTH, "time": TIME}
"""What a column holds, where that is not text."""
CLOCK = """to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
MICROSECONDS = "(extract(epoch FROM at) * 1000000)::bigint"
KNOWN_BY = "CASE {} WHEN type IN ({}) THEN 'token' END".format(
    " ".join(
        f"WHEN subject IS NULL THEN NULL WHEN type = '{kind}' THEN '{words}'"
        for kind, words in record_words.UNVERIFIED.items()
    ),
    ", ".join(f"'{kind}'" for kind in records_csv.BY_TOKEN),
)
SQL = {
    "record": "id::text", "kind": "type", "reason": "reason", "flagged": "flagged", "user": "subject",
    "client": "client", "tool": "tool", "backend": "backend", "tenant": "tenant", "agent mode": "mode",
    "scopes needed": "scopes", "user known by": KNOWN_BY, "statement": "statement",
}  # fmt: skip
PROTECTED = ("holder", "disclosures", "leaf", "statement")

Column = Sequence[Any]


class _Result(Struct):
    """What an outcome says."""

    status: Any = None
    count: Any = None
    duration_ms: Any = None


class _Outcome(Struct):
    outcome: _Result | None = None


_outcome = msgspec.json.Decoder(_Outcome)


class _Beside(NamedTuple):
    """What `audit.details` reads of a record."""

    holder: str | None
    disclosures: bytes | None
    leaf: bytes
    statement: bytes


class Columns:
    """Some columns, in the order in which they were asked for. `as_text`: times as ISO 8601, else as microseconds since
    1970. Raises ValueError for a column that there is not."""

    def __init__(self, names: Sequence[str], as_text: bool = True) -> None:
        if unknown := [name for name in names if name not in COLUMNS and name not in PERSONAL]:
            raise ValueError(f"not a column: {', '.join(unknown)}")
        self.names = tuple(names)
        self.personal = any(name in PERSONAL for name in names)
        self._sql = {"time": CLOCK if as_text else MICROSECONDS, **SQL}
        wanted = [self._sql[name] for name in names if name in self._sql]
        wanted += ["id"] if any(name in OUTCOME for name in names) else []
        wanted += PROTECTED if self.personal else ()
        self.sql = tuple(dict.fromkeys(wanted))

    def table(self, rows: Sequence[Row], sealed: int) -> list[Column]:
        """The columns of some rows that `audit.search.pages` read with `sql`. Outcomes are those below index `sealed`.
        What is protected is opened as far as its key is there: who was erased is not named."""
        got = list(zip(*rows, strict=True)) or [()] * (2 + len(self.sql))
        read = {"index": got[0], "decision": got[1], **dict(zip(self.sql, got[2:], strict=True))}
        found: dict[str, Column] = {name: read[self._sql.get(name, name)] for name in self.names if self._reads(name)}
        if "statement" in found:
            found["statement"] = [text_of(data) for data in found["statement"]]
        if "id" in read:
            found |= _outcomes(read["id"], got[1], sealed)
        if self.personal:
            found |= _opened([_Beside(*beside) for beside in zip(*(read[name] for name in PROTECTED), strict=True)])
        return [found[name] for name in self.names]

    def _reads(self, name: str) -> bool:
        return name in self._sql or name in ("index", "decision")


def text_of(statement: bytes) -> str:
    """A statement's own text; of one that was changed into what is no text, what can be written of it."""
    return bytes(statement).decode("utf-8", "backslashreplace")


def _outcomes(ids: Column, decisions: Column, sealed: int) -> dict[str, Column]:
    """What happened after calls that were allowed, as far as it was reported and is sealed."""
    allowed = [record for record, decision in zip(ids, decisions, strict=True) if decision == "allow"]
    said: dict[Any, _Result] = {}
    for parent, statement in search.outcome_statements(allowed, sealed) if allowed else ():
        try:
            said[parent] = _outcome.decode(statement).outcome or _Result()
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeError):
            continue  # what is no statement any more says nothing
    nothing = _Result()
    found = [said.get(record, nothing) for record in ids]
    return {
        "outcome": [one.status if type(one.status) is str else None for one in found],
        "items touched": [_number(one.count) for one in found],
        "milliseconds": [_number(one.duration_ms) for one in found],
    }


def _number(value: Any) -> int | None:
    return value if type(value) is int and abs(value) <= statements.MAX_INTEGER else None


def _opened(rows: Sequence[_Beside]) -> dict[str, Column]:
    """The personal columns. Keys are asked for again with each page, so that who was erased meanwhile is not named."""
    ring = KeyRing.of(row.holder for row in rows if row.holder is not None)
    shown = [_members(row, ring) for row in rows]
    return {name: [one.get(name) for one in shown] for name in PERSONAL}


def _members(row: _Beside, ring: KeyRing) -> dict[str, str]:
    try:
        said = statements.load(row.statement)
    except statements.StatementError:
        return {}
    if not isinstance(said, dict):
        return {}
    members = details.opened(cast(Record, row), said, ring).members
    return {name: details.words(members[name]) for name in PERSONAL if members.get(name) is not None}
