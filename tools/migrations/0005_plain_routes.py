"""Methods and tools of a route are plain lists: PostgreSQL's arrays may have lists in them, whatever they are declared
as, and a check that they hold nothing else does not see that."""

from django.db import migrations


def _plain(column: str) -> str:
    return f"coalesce(array_ndims({column}), 1) = 1 AND array_position({column}, NULL) IS NULL"


class Migration(migrations.Migration):
    dependencies = [("tools", "0004_marks_and_routes")]
    operations = [
        migrations.RunSQL(
            f"ALTER TABLE tools_route ADD CONSTRAINT route_plain CHECK ({_plain('methods')} AND {_plain('tools')})",
            "ALTER TABLE tools_route DROP CONSTRAINT route_plain",
        )
    ]
