"""Back to an empty database. Django's flush cannot: TRUNCATE of what is evidence is refused by trigger."""

import shutil

import psycopg
from django.apps import apps
from django.conf import settings
from django.db import connections

from audit import inbox, journal_watch, recording, subjects
from audit.erasure import erasing
from clients import impatient, introspected, limits, replays
from clients.scim import tokens as scim_tokens
from governance import idempotency, limiting, process, sign_in_throttle
from governance.backend_api import changes
from governance.budgets import budgets
from governance.failed_sign_ins import failures
from governance.snapshot import snapshots
from tools import credentials

OURS = ("governance", "clients", "tools", "audit", "auth", "sessions", "django_celery_beat", "admin")

# In this process a test looks when it wants to: an alert at some moment of its own would be a record more.
journal_watch.EVERY = 3600.0
# And it waits for what the outbox has more often than for anything else.
recording.DRAIN_EVERY = 0.05
# On a machine that is busy the recorder may hold the head for longer than an erasure waits for it.
erasing.LOCK = "20s"
# Nor is a Redis away there that takes more than a quarter of a second.
impatient.TIMEOUT = 2.0  # type: ignore[misc]

# Set where the server is ours: a superuser passes by the triggers, and then rows are deleted in a few milliseconds.
superuser_url: str | None = None
_superuser: psycopg.Connection | None = None
EMPTY = """
    DO $$ DECLARE name text; BEGIN
        SET LOCAL session_replication_role = replica;
        FOR name IN SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
            AND relname NOT IN ('audit_head', 'audit_guard', 'auth_permission', 'auth_group', 'auth_group_permissions',
                            'django_content_type', 'django_migrations')
        LOOP EXECUTE format('DELETE FROM %I', name); END LOOP;
        FOR name IN SELECT sequencename FROM pg_sequences WHERE schemaname = 'public' AND last_value IS NOT NULL
            AND sequencename !~ '^(auth_permission|auth_group|django_content_type|django_migrations)'
        LOOP PERFORM setval(quote_ident(name)::regclass, 1, false); END LOOP;
    END $$;
"""
HEAD = """UPDATE audit_head SET policy = 0, next = 0, at = 'epoch', drained = 0,
    batch = decode(repeat('00', 32), 'hex')"""


def reset() -> None:
    """Empty every table, start the head anew, and forget what this process remembers."""
    process.stop_recorder()
    shutil.rmtree(settings.MUNIMENT_VAR / "batches", ignore_errors=True)  # what it remembers will be gone
    _as_new()
    if superuser_url:
        try:
            _empty_as_superuser()
        except psycopg.OperationalError:  # a test ended all connections
            close()
            _empty_as_superuser()
    else:
        _empty_as_owner()
    _forget()


def close() -> None:
    """End the superuser's connection, which is kept from test to test."""
    global _superuser
    if _superuser is not None:
        _superuser.close()
    _superuser = None


def _as_new() -> None:
    """This thread's connection, without what a test did to it. To open another would cost more than most tests do: the
    server would read its catalogue again."""
    ours = connections["default"]
    if ours.connection is None:
        return
    try:
        ours.connection.execute("DISCARD ALL")  # fails within a transaction
        ours.ensure_timezone()
    except psycopg.Error:
        ours.close()


def _empty_as_superuser() -> None:
    global _superuser
    assert superuser_url
    _superuser = _superuser or psycopg.connect(superuser_url, autocommit=True)
    with _superuser.transaction():
        _superuser.execute(EMPTY)
        _superuser.execute(HEAD)


def _empty_as_owner() -> None:
    tables = [m._meta.db_table for m in apps.get_models(include_auto_created=True) if m._meta.app_label in OURS]
    kept = ("auth_permission", "auth_group", "auth_group_permissions", "audit_head", "audit_guard")
    tables = [t for t in tables if t not in kept]
    with connections["owner"].cursor() as cursor:
        cursor.execute("SELECT relid::regclass::text FROM pg_partition_tree('audit_record')")
        tables += [name for (name,) in cursor.fetchall()]
        for table in tables:
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        cursor.execute(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY CASCADE")
        for table in tables:
            cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")
        cursor.execute(HEAD)
    connections["owner"].close()


def _forget() -> None:
    snapshots.clear()
    subjects.clear()
    inbox._counts.clear()
    budgets._levels.clear()
    budgets._turned_away.clear()
    changes._levels.clear()
    failures.clear()
    sign_in_throttle.clear()
    credentials._touched.clear()
    introspected.desk.clear()
    scim_tokens.forget()
    process.signer.cache_clear()
    idempotency._away_until = replays._away_until = 0.0
    limits.counter.forget()
    limiting.outage.clear()
    idempotency.store().flushdb()
