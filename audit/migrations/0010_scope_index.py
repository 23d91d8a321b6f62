"""A search by scope steps from one combination of needed scopes to the next, and then follows each."""

from django.db import migrations

INDEX = """
    CREATE INDEX audit_record_scopes ON audit_record (scopes, at DESC) WHERE scopes IS NOT NULL;  -- search by scope
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0009_blocked_subjects")]
    operations = [migrations.RunSQL(INDEX)]
