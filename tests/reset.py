"""Back to an empty database. Django's flush cannot: TRUNCATE of what is evidence is refused by trigger."""

from django.apps import apps
from django.db import connections

from audit import inbox, subjects
from governance import idempotency, process
from governance.backend_api import changes
from governance.budgets import budgets
from governance.snapshot import snapshots
from tools import credentials

OURS = ("clients", "tools", "audit", "auth", "sessions", "django_celery_beat", "admin")


def reset() -> None:
    """Empty every table as its owner, start the head anew, and forget what this process remembers."""
    process.stop_recorder()
    connections["default"].close()
    tables = [m._meta.db_table for m in apps.get_models(include_auto_created=True) if m._meta.app_label in OURS]
    tables = [t for t in tables if t not in ("auth_permission", "audit_head")]
    with connections["owner"].cursor() as cursor:
        cursor.execute("SELECT relid::regclass::text FROM pg_partition_tree('audit_record')")
        tables += [name for (name,) in cursor.fetchall()]
        for table in tables:
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        cursor.execute(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY CASCADE")
        for table in tables:
            cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")
        cursor.execute(
            "UPDATE audit_head SET policy = 0, next = 0, at = 'epoch', drained = 0,"
            " batch = decode(repeat('00', 32), 'hex')"
        )
    connections["owner"].close()
    snapshots.clear()
    subjects.clear()
    inbox._counts.clear()
    budgets._levels.clear()
    budgets._turned_away.clear()
    changes._levels.clear()
    credentials._touched.clear()
    process.signer.cache_clear()
    idempotency._away_until = 0.0
    idempotency.store().flushdb()
