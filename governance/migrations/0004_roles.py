"""The roles of staff, as groups with their permissions."""

from typing import Any

from django.apps import apps as live
from django.contrib.auth.management import create_permissions
from django.db import migrations

from governance import roles

APPS = ("governance", "clients", "tools", "audit", "auth", "django_celery_beat")


def make(apps: Any, schema_editor: Any) -> None:
    """Permissions are made after all migrations, too late for this one: so they are made first."""
    using = schema_editor.connection.alias
    for label in APPS:
        create_permissions(live.get_app_config(label), verbosity=0, using=using)
    roles.make(apps, using)


class Migration(migrations.Migration):
    dependencies = [
        ("governance", "0003_staff"),
        ("audit", "0007_record_search"),
        ("clients", "0002_requests_and_reviews"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
        ("django_celery_beat", "0019_alter_periodictasks_options"),
    ]
    operations = [migrations.RunPython(make, migrations.RunPython.noop)]
