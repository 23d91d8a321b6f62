"""Users who are blocked are found without reading all users: every page of the admin says who is."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audit", "0008_rollup_cuts")]
    operations = [
        migrations.AddIndex(
            model_name="subject",
            index=models.Index(
                fields=["blocked_at"], name="subject_blocked", condition=models.Q(("blocked_at__isnull", False))
            ),
        ),
    ]
