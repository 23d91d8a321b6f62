"""The marks and the routes of backends are policy: what is recorded of them, and the rows that a snapshot reads."""

from importlib import import_module

from django.db import migrations

from audit.policy_sql import Columns, policy_rows, watch

NEW = {
    "tools_backendmark": Columns(("id", "backend_id", "mark")),
    "tools_route": Columns(("id", "backend_id", "path", "methods", "tools")),
}
TABLES = import_module("governance.migrations.0002_pinned_scopes").TABLES | NEW


class Migration(migrations.Migration):
    dependencies = [("governance", "0004_roles"), ("tools", "0004_marks_and_routes")]
    operations = [
        migrations.RunSQL("".join(watch(table, columns) for table, columns in NEW.items())),
        migrations.RunSQL(policy_rows(TABLES)),
    ]
