"""Row-level security by verified caller: PostgreSQL shows a transaction the rows of one user, and none of anybody else.

`as_caller` sets `muniment.uid` for one transaction (`SET LOCAL`), so that it is safe with poolers that hand a
connection to the next transaction; `policy_sql` makes the policies that compare it; `assert_protected` refuses a role
that they do not bind. No caller means no rows. What is not covered: functions that run as their owner (SECURITY
DEFINER), and whoever may send SQL of their own over the same connection.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from muniment.calls import Caller, current_caller
from muniment.errors import Misconfigured, MunimentError

SETTING = "muniment.uid"
# An empty setting is nobody's, and so is one that was never made; NULL equals nothing.
UID_SQL = f"nullif(current_setting('{SETTING}', true), '')"
_SET = f"SELECT set_config('{SETTING}', %s, true)"
_GET = f"SELECT coalesce(current_setting('{SETTING}', true), '')"
_PROTECTED = """
SELECT c.relrowsecurity AND c.relforcerowsecurity
    AND EXISTS (SELECT 1 FROM pg_policy p WHERE p.polrelid = c.oid AND p.polname = 'muniment_caller'),
  r.rolsuper OR r.rolbypassrls
FROM pg_class c, pg_roles r WHERE c.oid = to_regclass(%s) AND r.rolname = current_user
"""


class OtherCaller(MunimentError):
    """The connection has a transaction open as another caller: to go on in it would mix two users' work."""


class AsCaller:
    """`as_caller`, for `with` and, with an asynchronous connection, for `async with`."""

    def __init__(self, connection: Any, uid: str) -> None:
        if "\x00" in uid:
            raise ValueError("a uid has no NUL")
        self._connection, self._uid, self._before = connection, uid, ""
        self._transaction: Any = None

    def __enter__(self) -> Any:
        self._transaction = _transaction(self._connection)
        entered = self._transaction.__enter__()
        try:
            self._begin(_is_nested(entered), _row(self._connection, _GET))
            _row(self._connection, _SET, self._uid)
        except BaseException as error:
            self._transaction.__exit__(type(error), error, error.__traceback__)
            raise
        return self._connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if error is None:  # a rollback takes the setting back by itself; within a transaction, a commit does not
            _row(self._connection, _SET, self._before)
        result: bool | None = self._transaction.__exit__(kind, error, trace)
        return result

    async def __aenter__(self) -> Any:
        self._transaction = self._connection.transaction()
        entered = await self._transaction.__aenter__()
        try:
            cursor = await self._connection.execute(_GET)
            self._begin(_is_nested(entered), (await cursor.fetchone())[0])
            await self._connection.execute(_SET, (self._uid,))
        except BaseException as error:
            await self._transaction.__aexit__(type(error), error, error.__traceback__)
            raise
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if error is None:
            await self._connection.execute(_SET, (self._before,))
        result: bool | None = await self._transaction.__aexit__(kind, error, trace)
        return result

    def _begin(self, nested: bool, before: str) -> None:
        """Within a transaction of ours, only as the same caller. What a session set for itself counts for nothing."""
        if nested and before not in ("", self._uid):
            raise OtherCaller("The connection has a transaction open as another caller.")
        self._before = before if nested else ""


def as_caller(connection: Any, caller: Caller | None = None) -> AsCaller:
    """A transaction in which row-level security sees the caller (default: the verified one of the tool that runs), and
    nobody where there is none. `connection`: psycopg 3, sync (`with`) or async (`async with`), or Django's.

    Committed at the end, rolled back by an error. Within another `as_caller` of the same caller it is a savepoint; as
    another caller it raises OtherCaller. Raises psycopg's errors.
    """
    caller = caller or current_caller()
    return AsCaller(connection, caller.uid if caller else "")


def _transaction(connection: Any) -> Any:
    if hasattr(connection, "transaction"):
        return connection.transaction()
    from django.db import transaction  # Django's wrapper: its own atomic, so that its hooks know of it

    nested = connection.in_atomic_block
    return _Atomic(transaction.atomic(using=connection.alias), nested)


class _Atomic:
    """Django's `atomic`, entered as something that knows whether it is within another."""

    def __init__(self, atomic: Any, nested: bool) -> None:
        self._atomic, self.nested = atomic, nested

    def __enter__(self) -> _Atomic:
        self._atomic.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._atomic.__exit__(*error)


def _is_nested(entered: Any) -> bool:
    """Whether a transaction is a savepoint in another."""
    return entered.nested if isinstance(entered, _Atomic) else bool(entered.savepoint_name)


def _row(connection: Any, statement: str, *values: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        found: str = cursor.fetchone()[0]
        return found


def policy_sql(table: str, column: str = "uid") -> list[str]:
    """Statements, for the table's owner, that let each caller see and write their own rows only. `column` holds the
    owner's uid (text), and has the caller's by default. Row-level security is forced, so that it binds the owner too;
    the second policy binds even where somebody adds one that is more generous. They may be run again."""
    name, owner = _quoted(table), _quoted(column)
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


def _quoted(name: str) -> str:
    """An identifier, or several joined by dots, as SQL. Raises ValueError for what can be none."""
    parts = name.split(".")
    if not all(parts) or "\x00" in name or len(parts) > 3:
        raise ValueError("not the name of a table or a column")
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def assert_protected(connection: Any, *tables: str) -> None:
    """Raises Misconfigured where a table is not protected by `policy_sql`, or the connection's role is not bound by it
    (a superuser, or one that bypasses row-level security). For the start of a service; psycopg's sync connections."""
    for table in tables:
        row = connection.execute(_PROTECTED, (_quoted(table),)).fetchone()
        if row is None or not row[0]:
            raise Misconfigured(f"Row-level security is not on for {table}: see muniment.isolation.policy_sql.")
        if row[1]:
            raise Misconfigured("The database role bypasses row-level security: connect as one that is bound by it.")
