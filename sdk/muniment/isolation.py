"""Row-level security by verified caller: PostgreSQL shows a transaction the rows of one user, and none of anybody else.

`as_caller` sets `muniment.uid` for one transaction (`SET LOCAL`), so that it is safe with poolers that hand a
connection to the next transaction; `policy_sql` makes the policies that compare it; `assert_protected` refuses a role
that they do not bind. No caller means no rows. What is not covered: functions that run as a role that they do not bind
(SECURITY DEFINER), and whoever may send SQL of their own over the same connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from muniment.calls import current_caller
from muniment.errors import Misconfigured, MunimentError

if TYPE_CHECKING:
    import psycopg

SETTING: Final = "muniment.uid"
# An empty setting is nobody's, and so is one that was never made; NULL equals nothing.
UID_SQL: Final = f"nullif(current_setting('{SETTING}', true), '')"
_SET: Final = f"SELECT set_config('{SETTING}', %s, true)"
_GET: Final = f"SELECT coalesce(current_setting('{SETTING}', true), '')"
# Our own policy as the database writes it: any other condition, however it begins, is not ours.
_POLICY: Final = (
    r"^\((?:[a-z_][a-z0-9_$]*|\(\w+\)::text|\(?\"[^\"]+\"\)?(?:::text)?) ="
    rf" NULLIF\(current_setting\('{SETTING}'::text, true\), ''::text\)\)$"
)
# A table, and each part of it that the role can reach by itself: a partition is read past its parent's policies.
_PROTECTED: Final = """
WITH RECURSIVE parts(oid, whole) AS (
  SELECT to_regclass(%s)::oid, true
  UNION SELECT i.inhrelid, false FROM pg_inherits i JOIN parts p ON i.inhparent = p.oid
)
SELECT c.oid::regclass::text, c.relrowsecurity AND c.relforcerowsecurity AND EXISTS (
  SELECT 1 FROM pg_policy p
  WHERE p.polrelid = c.oid AND p.polcmd = '*' AND p.polroles = '{0}' AND NOT p.polpermissive
    AND pg_get_expr(p.polqual, c.oid) ~ %s AND pg_get_expr(p.polwithcheck, c.oid) = pg_get_expr(p.polqual, c.oid))
FROM parts JOIN pg_class c USING (oid)
WHERE parts.whole OR has_table_privilege(c.oid, 'SELECT, INSERT, UPDATE, DELETE')
"""
# With the roles that it can change into (SET ROLE), and the one that it can change back into (RESET ROLE).
_UNBOUND: Final = """
SELECT count(*) FROM pg_roles r WHERE (r.rolsuper OR r.rolbypassrls)
  AND (pg_has_role(current_user, r.oid, 'MEMBER') OR pg_has_role(session_user, r.oid, 'MEMBER'))
"""


class OtherCaller(MunimentError):
    """The connection has a transaction open as another caller: to go on in it would mix two users' work."""


class HasUid(Protocol):
    """A verified user: a `Caller`, or the `AssertedCaller` of an assertion."""

    @property
    def uid(self) -> str:
        """The user's id at the platform."""


class AsCaller:
    """`as_caller`, for `with` and, with an asynchronous connection, for `async with`; each entry is a transaction."""

    def __init__(self, connection: Any, uid: str) -> None:
        if "\x00" in uid:
            raise ValueError("a uid has no NUL")
        self._connection, self._uid = connection, uid
        self._entered: list[Any] = []

    def __enter__(self) -> Any:
        kind = _kind(self._connection)
        if kind == "async":
            raise Misconfigured("This connection is asynchronous: async with as_caller(...).")
        made = (_in_django if kind == "django" else _in_psycopg)(self._connection, self._uid)
        entered = made.__enter__()
        self._entered.append(made)
        return entered

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        result: bool | None = self._entered.pop().__exit__(kind, error, trace)
        return result

    async def __aenter__(self) -> Any:
        if _kind(self._connection) != "async":
            raise Misconfigured("This connection is not asynchronous: with as_caller(...).")
        made = _in_async(self._connection, self._uid)
        entered = await made.__aenter__()
        self._entered.append(made)
        return entered

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        result: bool | None = await self._entered.pop().__aexit__(kind, error, trace)
        return result


def as_caller(connection: Any, caller: HasUid | EllipsisType | None = ...) -> AsCaller:
    """A transaction in which row-level security sees the caller (default: the verified one of the tool that runs), and
    nobody where there is none; None, as a denial has it, is nobody too. `connection`: psycopg 3, sync (`with`) or async
    (`async with`), or Django's.

    Committed at the end, rolled back by an error. Within another `as_caller` of the same caller it is a savepoint; as
    another caller it raises OtherCaller. Raises psycopg's errors, and Misconfigured for another kind of connection.
    """
    caller = current_caller() if isinstance(caller, EllipsisType) else caller
    return AsCaller(connection, caller.uid if caller else "")


def _kind(connection: Any) -> Literal["sync", "async", "django"]:
    if getattr(connection, "vendor", None) == "postgresql":
        return "django"
    try:
        import psycopg
    except ImportError:  # then it is none of its connections
        pass
    else:
        if isinstance(connection, psycopg.Connection):
            return "sync"
        if isinstance(connection, psycopg.AsyncConnection):
            return "async"
    raise Misconfigured("A connection of psycopg 3, or Django's to PostgreSQL, is needed.")


@contextmanager
def _in_psycopg(connection: psycopg.Connection[Any], uid: str) -> Iterator[Any]:
    with connection.transaction() as transaction:
        # What the transaction itself says, not what was looked up before it: another thread may have begun one since.
        before = _own(fetched(connection, _GET), uid) if transaction.savepoint_name else None
        fetched(connection, _SET, uid)
        yield connection
        # A commit ends the setting, and a rollback takes it back; what a savepoint sets stays when it is released.
        # Where a statement failed and nobody said so, this raises, so that a rollback does not pass for a commit.
        if before is not None or _failed(connection):
            fetched(connection, _SET, before or "")


@asynccontextmanager
async def _in_async(connection: psycopg.AsyncConnection[Any], uid: str) -> AsyncIterator[Any]:
    """`_in_psycopg`, for an event loop."""
    async with connection.transaction() as transaction:
        before = _own(await _arows(connection, _GET), uid) if transaction.savepoint_name else None
        await _arows(connection, _SET, uid)
        yield connection
        if before is not None or _failed(connection):
            await _arows(connection, _SET, before or "")


@contextmanager
def _in_django(connection: Any, uid: str) -> Iterator[Any]:
    from django.db import transaction  # its own, so that its hooks know of it

    nested = connection.in_atomic_block or not connection.get_autocommit()
    with transaction.atomic(using=connection.alias):
        before = _own(fetched(connection, _GET), uid) if nested else ""
        fetched(connection, _SET, uid)
        yield connection
        if not connection.needs_rollback:
            fetched(connection, _SET, before)


def _own(rows: Sequence[Sequence[Any]], uid: str) -> str:
    """The uid that a transaction has already. Raises OtherCaller where it is another one."""
    before: str = rows[0][0]
    if before not in ("", uid):
        raise OtherCaller("The connection has a transaction open as another caller.")
    return before


def _failed(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    return connection.info.transaction_status.name == "INERROR"


def fetched(connection: Any, statement: str, *values: str | bytes) -> list[Any]:
    """The rows of a statement as tuples, whatever kind of cursor and of rows a connection makes (psycopg's, sync, or
    Django's); nothing is prepared on the server."""
    if _kind(connection) == "django":
        with connection.cursor() as cursor:
            cursor.execute(statement, values)
            return list(cursor.fetchall())
    import psycopg
    from psycopg.rows import tuple_row

    with psycopg.Cursor(connection, row_factory=tuple_row) as own:
        return own.execute(statement.encode(), values, prepare=False).fetchall()


async def _arows(connection: psycopg.AsyncConnection[Any], statement: str, *values: str) -> list[Any]:
    import psycopg
    from psycopg.rows import tuple_row

    async with psycopg.AsyncCursor(connection, row_factory=tuple_row) as own:
        await own.execute(statement.encode(), values, prepare=False)
        return await own.fetchall()


def policy_sql(table: str, column: str = "uid") -> list[str]:
    """Statements, for the table's owner, that let each caller see and write their own rows only. `column` holds the
    owner's uid (text), and has the caller's by default. Row-level security is forced, so that it binds the owner too;
    the second policy binds even where somebody adds one that is more generous. Names are taken as they are written,
    capitals included; a dot stands between schema and table. They may be run again, in one transaction; each partition
    that can be read by itself needs its own. Raises ValueError for what is no name."""
    name, owner = quoted(table), quoted(column)
    own = f"({owner} = {UID_SQL})"
    return [
        f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY",
        f"DROP POLICY IF EXISTS muniment_caller ON {name}",
        f"CREATE POLICY muniment_caller ON {name} USING {own} WITH CHECK {own}",
        f"DROP POLICY IF EXISTS muniment_only_caller ON {name}",
        f"CREATE POLICY muniment_only_caller ON {name} AS RESTRICTIVE USING {own} WITH CHECK {own}",
        f"ALTER TABLE {name} ALTER COLUMN {owner} SET DEFAULT {UID_SQL}",
    ]


def quoted(name: str) -> str:
    """An identifier, or several joined by dots, as SQL. Raises ValueError for what can be none."""
    parts = name.split(".")
    if not all(parts) or "\x00" in name or len(parts) > 3:
        raise ValueError("not the name of a table or a column")
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def assert_protected(connection: Any, *tables: str) -> None:
    """Raises Misconfigured where a table, or a partition of it that the role can reach, is not protected as by
    `policy_sql`, or where the role is not bound by that: a superuser, one that bypasses row-level security, or one that
    can change into such a role. For the start of a service; psycopg's sync connections, or Django's."""
    for table in tables:
        rows = fetched(connection, _PROTECTED, quoted(table), _POLICY)
        open_ones = [name for name, protected in rows if not protected]
        if open_ones or not rows:
            raise Misconfigured(
                f"Row-level security is not on for {', '.join(open_ones) or table}: see muniment.isolation.policy_sql."
            )
    if fetched(connection, _UNBOUND)[0][0]:
        raise Misconfigured("The database role bypasses row-level security: connect as one that is bound by it.")
