"""Being the only process at something, by a lock of the database's session: a process that is killed lets go of it, and
no transaction is open meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import Error, connections


@contextmanager
def alone(lock: int, about: int | str | None = None, using: str = "default") -> Iterator[bool]:
    """Whether this process alone is at it now; another one is not waited for. `about`: at which of several things, a
    number or a name."""
    key, values = "%s", list[int | str]([lock])
    if about is not None:
        key = "%s, hashtext(%s)" if isinstance(about, str) else "%s, %s"
        values = [lock, about if isinstance(about, str) else about % 2**31]
    with connections[using].cursor() as cursor:
        cursor.execute(f"SELECT pg_try_advisory_lock({key})", values)
        mine = bool(cursor.fetchone()[0])
    try:
        yield mine
    finally:
        if mine:
            _let_go(f"SELECT pg_advisory_unlock({key})", values, using)


def _let_go(query: str, values: list[int | str], using: str) -> None:
    if connections[using].connection is None:
        return  # the lock went with it
    try:
        with connections[using].cursor() as cursor:
            cursor.execute(query, values)
    except Error:  # it ends with the session
        connections[using].close()
