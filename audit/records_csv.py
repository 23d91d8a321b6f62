"""A page of the audit search as a file for a spreadsheet: no personal data, no cell that would run as a formula."""

import csv
from collections.abc import Iterable
from datetime import UTC
from io import StringIO
from typing import Any

from audit import record_page, record_words, search
from audit.models import Record

COLUMNS = (
    "time", "index", "record", "kind", "decision", "reason", "flagged", "user", "client", "tool", "backend", "tenant",
    "agent mode", "scopes needed", "outcome", "items touched", "milliseconds",
    "user known by",
)  # fmt: skip
BY_TOKEN = ("decision", "introspection", "outcome")
# What a spreadsheet takes for the beginning of a formula (OWASP, CSV Injection), and what it may take for the end of a
# cell before it. In front of either may be what it drops: blanks of any script, and what cannot be seen.
FORMULA = frozenset("=+-@＝＋－＠")
ENDS = frozenset("\t\r\n")


def cell(value: Any) -> str:
    """A value as text that no spreadsheet runs; None is empty."""
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"'{text}" if _runs(text) else text


def _runs(text: str) -> bool:
    for character in text:
        if character in FORMULA or character in ENDS:
            return True
        if character.isprintable() and not character.isspace():
            return False
    return False


def write(records: list[Record]) -> bytes:
    """UTF-8 with a byte order mark, so that a spreadsheet reads names right; RFC 4180. Times are UTC, ISO 8601."""
    into = StringIO()
    writer = csv.writer(into, quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    outcomes = search.outcomes_of(records)
    writer.writerows(map(cell, _row(record, outcomes.get(record.id))) for record in records)
    return b"\xef\xbb\xbf" + into.getvalue().encode("utf-8", "replace")


def _row(record: Record, outcome: Record | None) -> Iterable[Any]:
    said = (record_page.read(outcome).get("outcome") or {}) if outcome else {}
    said = said if isinstance(said, dict) else {}
    at = record.at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return (
        at, record.index, record.id, record.type, record.decision, record.reason, record.flagged, record.subject,
        record.client, record.tool, record.backend, record.tenant, record.mode, record.scopes, said.get("status"),
        said.get("count"), said.get("duration_ms"), _known_by(record),
    )  # fmt: skip


def _known_by(record: Record) -> str:
    """On whose word it is the user: a verified token's, or the backend's. Empty where there is none, or none called."""
    if not record.subject or record.type not in (*record_words.UNVERIFIED, *BY_TOKEN):
        return ""
    return record_words.UNVERIFIED.get(record.type, "token")
