"""A search by scope steps from one combination of needed scopes to the next, and then follows each. Rows of the rollups
are updated again and again while their span lasts: with room on their page, no index has to be. One in twenty is a
denial."""

from django.db import migrations

INDEX = """
    CREATE INDEX audit_record_scopes ON audit_record (scopes, at DESC) WHERE scopes IS NOT NULL;  -- search by scope
"""
ROOM = """
    ALTER TABLE audit_rollup SET (fillfactor = 60);
    CREATE INDEX rollup_denied ON audit_rollup (cut, span, at) WHERE decision = 'deny';  -- charts and sums of denials
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0009_blocked_subjects")]
    operations = [migrations.RunSQL(sql) for sql in (INDEX, ROOM)]
