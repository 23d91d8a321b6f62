"""The roles once more, with what they may do about keeping, forgetting and handing over."""

from importlib import import_module

from django.db import migrations

make = import_module("governance.migrations.0004_roles").make


class Migration(migrations.Migration):
    dependencies = [("governance", "0005_marks_and_routes"), ("audit", "0013_keeping_and_handing")]
    operations = [migrations.RunPython(make, migrations.RunPython.noop)]
