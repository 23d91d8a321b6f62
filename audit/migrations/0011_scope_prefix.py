"""The index of the scopes that a call needed holds their first 2,000 characters. An entry of a B-tree has a bound of a
third of a page, and a tool may need fifty scopes of 128 characters: with all of them in the index, a call of such a
tool could not be recorded, nor any call that was written together with it."""

from django.db import migrations

INDEX = """
    DROP INDEX audit_record_scopes;
    CREATE INDEX audit_record_scopes ON audit_record (left(scopes, 2000), at DESC) WHERE scopes IS NOT NULL;
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0010_scope_index")]
    operations = [migrations.RunSQL(INDEX)]
