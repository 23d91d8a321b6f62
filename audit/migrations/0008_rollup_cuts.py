from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("audit", "0007_record_search"),
    ]

    operations = [
        migrations.AddField(
            model_name="rollup",
            name="cut",
            field=models.CharField(
                default="all", help_text="which dimensions are told apart: audit.rollups.CUTS", max_length=3
            ),
        ),
        migrations.AddIndex(
            model_name="rollup",
            index=models.Index(fields=["cut", "span", "at"], name="rollup_cut"),
        ),
        migrations.AddIndex(
            model_name="rollup",
            index=models.Index(
                condition=models.Q(("cut__in", ["ct", "cr"])),
                fields=["client", "cut", "span", "at"],
                name="rollup_client",
            ),
        ),
        migrations.AddIndex(
            model_name="rollup",
            index=models.Index(
                condition=models.Q(("cut__in", ["t", "ct", "tr"])),
                fields=["tool", "cut", "span", "at"],
                name="rollup_tool",
            ),
        ),
        migrations.AddIndex(
            model_name="rollup",
            index=models.Index(
                condition=models.Q(("tenant", ""), _negated=True),
                fields=["tenant", "cut", "span", "at"],
                name="rollup_tenant",
            ),
        ),
    ]
