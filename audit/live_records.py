"""Whether the columns of a record say what its statement says: searches believe the columns."""

from datetime import datetime, timedelta
from typing import Any

from audit.entries import call_columns
from audit.models import Record
from muniment import merkle

EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
MICROSECOND = timedelta(microseconds=1)
COPIED = ("type", "decision", "reason", "backend", "client", "subject", "tenant", "tool")


def differing(record: Record, said: dict[str, Any]) -> list[str]:
    """The columns that differ from the statement, by name."""
    found = [name for name in COPIED if getattr(record, name) != said.get(name)]
    if record.flagged != bool(said.get("flagged")):
        found.append("flagged")
    found += [
        name
        for name, value in zip(("mode", "scopes"), call_columns(said), strict=True)
        if getattr(record, name) != value
    ]
    if str(record.id) != said.get("id"):
        found.append("id")
    if (str(record.parent) if record.parent else None) != said.get("parent"):
        found.append("parent")
    at = said.get("at")
    if type(at) is not int or (record.at - EPOCH) // MICROSECOND != at:
        found.append("at")
    if bytes(record.leaf) != merkle.leaf_hash(bytes(record.statement)):
        found.append("leaf")
    return found
