"""What the serving role may do in the database: a speed bump for a stolen web process; the log is the proof."""

from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import sql

# Tables of the log that the serving role may only add to, and read.
APPEND_ONLY = ["audit_batch"]
# The parts of the head that recording moves. The policy version is moved by triggers alone.
HEAD_COLUMNS = ["next", "at", "batch", "drained"]
SUBJECT_COLUMNS = ["email", "email_key", "blocked_at", "signed_out_at", "deactivated_at"]
# They run as the owner, for triggers alone.
DEFINERS = ["muniment_policy_change", "muniment_number_changes", "muniment_subject_change", "muniment_keeping_change"]
OUTBOX_COLUMNS = ["record_index", "private"]
# Of a hold only its release: what it covers cannot be narrowed.
HOLD_COLUMNS = [
    "release_asked_by", "release_asked_at", "release_reason", "released_by", "released_at",
]  # fmt: skip


def _append_only(connection: BaseDatabaseWrapper) -> list[str]:
    """The tables and, of the partitioned one, every partition: rights on a parent say nothing of them."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT relid::regclass::text FROM pg_partition_tree('audit_record')")
        return [*APPEND_ONLY, *(name for (name,) in cursor.fetchall())]


def grant(using: str) -> None:
    """Grant the serving role its rights. `using` is the database alias of the owner; nothing to do when the
    serving role is the owner itself."""
    connection = connections[using]
    if connection.settings_dict["USER"] == settings.MUNIMENT_SERVING_ROLE:
        return
    role = sql.Identifier(settings.MUNIMENT_SERVING_ROLE)
    database = sql.Identifier(connection.settings_dict["NAME"]).as_string()
    statements = [
        "GRANT USAGE ON SCHEMA public TO {role}",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}",
        "REVOKE ALL ON FUNCTION muniment_make_partition(date) FROM PUBLIC",
        *(f"REVOKE UPDATE, DELETE ON {table} FROM {{role}}" for table in _append_only(connection)),
        "REVOKE INSERT, UPDATE, DELETE ON audit_head FROM {role}",
        f"GRANT UPDATE ({', '.join(HEAD_COLUMNS)}) ON audit_head TO {{role}}",
        "REVOKE UPDATE, DELETE ON audit_outbox FROM {role}",
        f"GRANT UPDATE ({', '.join(OUTBOX_COLUMNS)}) ON audit_outbox TO {{role}}",
        "REVOKE DELETE ON audit_subject, audit_datakey, audit_publishedkey FROM {role}",
        "REVOKE UPDATE ON audit_datakey, audit_subject, audit_publishedkey FROM {role}",
        f"GRANT UPDATE ({', '.join(SUBJECT_COLUMNS)}) ON audit_subject TO {{role}}",
        "GRANT UPDATE (not_after) ON audit_publishedkey TO {role}",
        "REVOKE UPDATE, DELETE ON audit_checkpoint, audit_anchoring FROM {role}",
        "REVOKE UPDATE, DELETE ON audit_tile, audit_log, audit_alert, audit_verification FROM {role}",
        "GRANT UPDATE (hashes) ON audit_tile TO {role}",
        "GRANT UPDATE (closed_at) ON audit_log TO {role}",
        "GRANT UPDATE (words, seen_at, cleared_at) ON audit_alert TO {role}",
        "GRANT UPDATE (ended_at, records, size, findings, count) ON audit_verification TO {role}",
        "REVOKE INSERT, DELETE ON audit_guard FROM {role}",
        "REVOKE UPDATE, DELETE ON audit_hold FROM {role}",
        f"GRANT UPDATE ({', '.join(HOLD_COLUMNS)}) ON audit_hold TO {{role}}",
        "REVOKE UPDATE, DELETE ON audit_erasure FROM {role}",
        "REVOKE INSERT, UPDATE, DELETE ON audit_retentionrun, audit_retentionstep FROM {role}",
        *(f"REVOKE ALL ON FUNCTION {name}() FROM PUBLIC" for name in DEFINERS),
        # A temporary table could pass for another to a function that runs as the owner.
        f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC",
        "REVOKE INSERT, UPDATE, DELETE ON django_migrations FROM {role}",
    ]
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(sql.SQL(statement).format(role=role).as_string())
