"""The inbox of unknown clients and tools: counted in memory, added to the table about once a second, bounded, so
that a caller with made-up names can neither slow a call nor fill the database."""

import time
from datetime import UTC, datetime
from threading import Lock

from django.db import connection

MAX_NAMES = 1_000  # kept between two flushes
MAX_ROWS = 10_000
MAX_OF_SOURCE = 2_000  # one backend that makes up names leaves room for all others
FLUSH_EVERY = 1.0  # seconds

UPSERT = """
    WITH held AS (SELECT kind, source, count(*) AS names FROM audit_sighting GROUP BY kind, source)
    INSERT INTO audit_sighting (kind, source, name, count, first_seen, last_seen)
    SELECT k, s, n, c, %(now)s, %(now)s FROM unnest(
        %(kinds)s::text[], %(sources)s::text[], %(names)s::text[], %(counts)s::bigint[]) AS x(k, s, n, c)
    WHERE (coalesce((SELECT sum(names) FROM held), 0) < %(most)s
           AND coalesce((SELECT h.names FROM held h WHERE h.kind = k AND h.source = s), 0) < %(of_source)s)
       OR EXISTS (SELECT 1 FROM audit_sighting a WHERE a.kind = k AND a.source = s AND a.name = n)
    ORDER BY k, s, n
    ON CONFLICT (kind, source, name)
    DO UPDATE SET count = audit_sighting.count + excluded.count, last_seen = excluded.last_seen
"""

_counts: dict[tuple[str, str, str], int] = {}
_lock = Lock()
_flushed_at = 0.0


def note(kind: str, source: str, name: str) -> None:
    """Count one call that named an unknown client (source: its issuer) or tool (source: the backend)."""
    with _lock:
        key = (kind, source, name)
        if key in _counts or len(_counts) < MAX_NAMES:
            _counts[key] = _counts.get(key, 0) + 1


def flush(last: bool = False) -> None:
    """Add what was counted to the table, at most once a second (or now, for the last time); the recorder's thread
    calls it."""
    global _flushed_at
    now = time.monotonic()
    if not _counts or (now - _flushed_at < FLUSH_EVERY and not last):
        return
    _flushed_at = now
    with _lock:
        counted = dict(_counts)
        _counts.clear()
    kinds, sources, names = zip(*counted, strict=True)
    with connection.cursor() as cursor:
        cursor.execute(
            UPSERT,
            {
                "now": datetime.now(UTC), "kinds": list(kinds), "sources": list(sources), "names": list(names),
                "counts": list(counted.values()), "most": MAX_ROWS, "of_source": MAX_OF_SOURCE,
            },
        )  # fmt: skip
