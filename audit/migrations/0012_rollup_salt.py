"""The keys of rollups are made with a salt that nobody outside the database knows: with names of their choice, two of
which had one key, callers could have hidden one behind the other. Rows from before keep their keys; sums are as they
were."""

from django.contrib.postgres.functions import RandomUUID
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audit", "0011_scope_prefix")]
    operations = [
        migrations.AddField(
            model_name="rollupstate",
            name="salt",
            field=models.UUIDField(db_default=RandomUUID(), help_text="of the rollups' keys"),
        ),
    ]
