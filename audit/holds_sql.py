"""Legal holds as SQL: what a hold covers is asked in the statement that deletes, not before it."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Protocol


class Holding(Protocol):
    """What a hold names; None for what it leaves open (`audit.models.Hold`)."""

    subject: Any
    client: Any
    tool: Any
    backend: Any
    tenant: Any
    since: Any
    until: Any


NAMED = ("subject", "client", "tool", "backend", "tenant")


def covered_sql(holds: Iterable[Holding]) -> tuple[str, list[Any]]:
    """A boolean expression over the columns of audit_record, with its parameters: whether one of these holds covers
    the record. `false` for none.

    It can be NULL where a record has no value for what a hold names: that is not covered. To ask for what is not
    covered say `(...) IS NOT TRUE`; asked for as it is, it can use the indexes. A hold that names nothing, which the
    database refuses, covers every record."""
    parts, params = [], list[Any]()
    for hold in holds:
        terms, given = _terms(hold)
        parts.append(f"({' AND '.join(terms) or 'true'})")
        params += given
    return (f"({' OR '.join(parts)})", params) if parts else ("false", [])


def covers_backend_day(holds: Iterable[Holding], backend: str, begin: datetime, end: datetime) -> bool:
    """Whether a hold may cover a record of an unestablished caller of this backend in [begin, end): one that names a
    user covers none of them; what it names of client, tool and tenant is not looked at, which is the careful way."""
    return any(
        hold.subject is None
        and hold.backend in (None, backend)
        and (hold.since is None or hold.since < end)
        and (hold.until is None or hold.until > begin)
        for hold in holds
    )


def _terms(hold: Holding) -> tuple[list[str], list[Any]]:
    terms, params = [], list[Any]()
    for name in NAMED:
        if (value := getattr(hold, name)) is not None:
            terms.append(f"{name} = %s")
            params.append(value)
    if hold.since is not None:
        terms.append("at >= %s")
        params.append(hold.since)
    if hold.until is not None:
        terms.append("at < %s")
        params.append(hold.until)
    return terms, params
