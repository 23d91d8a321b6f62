"""SQL that makes a table part of the policy. Used by migrations, hence frozen: add a new function rather than
change what an old migration relied on.

Every change of a policy table, psql included, leaves its allow-listed columns in the outbox; at commit a deferred
constraint trigger gives all changes of the transaction one new policy version (DESIGN.md section 5).
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a policy table the log may carry: `plain` as they are, `digests` as SHA-256 only."""

    plain: tuple[str, ...]
    digests: tuple[str, ...] = ()


def _array(names: tuple[str, ...]) -> str:
    return "ARRAY[" + ", ".join(f"'{name}'" for name in names) + "]::text[]"


def watch(table: str, columns: Columns) -> str:
    """SQL: changes of `table` reach the outbox, and TRUNCATE of it is refused."""
    plain, digests = ",".join(columns.plain), ",".join(columns.digests)
    return f"""
        CREATE OR REPLACE TRIGGER muniment_policy_change AFTER INSERT OR UPDATE OR DELETE ON {table}
            FOR EACH ROW EXECUTE FUNCTION muniment_policy_change('{plain}', '{digests}');
        CREATE OR REPLACE TRIGGER muniment_no_truncate BEFORE TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION muniment_refuse_change();
    """


def policy_rows(tables: Mapping[str, Columns]) -> str:
    """SQL: the function muniment_policy_rows() returns every policy row as the log would carry it.

    It is the same projection as the triggers', so that the digest of a snapshot can be explained by replaying
    the policy records.
    """
    selects = " UNION ALL ".join(
        f"SELECT '{table}', t.id, muniment_project(to_jsonb(t), {_array(c.plain)}, {_array(c.digests)}) FROM {table} t"  # noqa: S608 - names are ours
        for table, c in sorted(tables.items())
    )
    return f"""
        CREATE OR REPLACE FUNCTION muniment_policy_rows()
            RETURNS TABLE (table_name text, row_key bigint, content jsonb)
            LANGUAGE sql STABLE SET timezone = 'UTC' SET search_path = public, pg_temp
            AS $$ {selects} ORDER BY 1, 2 $$;
    """
