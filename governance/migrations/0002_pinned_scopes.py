"""Pinned scopes are policy: what is recorded of them, and the rows that a snapshot reads."""

from importlib import import_module

from django.db import migrations

from audit.policy_sql import Columns, policy_rows, watch

PINNED = {"tools_pinnedscope": Columns(("id", "scope_id"))}
TABLES = import_module("governance.migrations.0001_policy").TABLES | PINNED


class Migration(migrations.Migration):
    dependencies = [("governance", "0001_policy"), ("tools", "0002_approval")]
    operations = [
        migrations.RunSQL("".join(watch(table, columns) for table, columns in PINNED.items())),
        migrations.RunSQL(policy_rows(TABLES)),
    ]
