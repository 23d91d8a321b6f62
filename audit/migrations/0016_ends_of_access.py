"""A user may be deactivated by their identity provider, which is another thing than being blocked by staff, and belongs
to tenants."""

import datetime

from django.db import migrations, models

# What a transmitter of events or an identity provider did is of the type `signal`, what people did `staff`.
TOLD = """
    CREATE OR REPLACE FUNCTION muniment_subject_change() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET timezone = 'UTC' AS $$
    DECLARE action text;
    BEGIN
        IF TG_TABLE_SCHEMA <> 'public' THEN RAISE EXCEPTION '% is no policy table', TG_RELID::regclass; END IF;
        FOREACH action IN ARRAY array_remove(ARRAY[
            CASE WHEN OLD.blocked_at IS NULL AND NEW.blocked_at IS NOT NULL THEN 'subject.block'
                 WHEN OLD.blocked_at IS NOT NULL AND NEW.blocked_at IS NULL THEN 'subject.unblock' END,
            CASE WHEN OLD.deactivated_at IS NULL AND NEW.deactivated_at IS NOT NULL THEN 'subject.deactivate'
                 WHEN OLD.deactivated_at IS NOT NULL AND NEW.deactivated_at IS NULL THEN 'subject.reactivate' END,
            CASE WHEN OLD.signed_out_at IS DISTINCT FROM NEW.signed_out_at THEN 'subject.sign_out' END], NULL)
        LOOP
            INSERT INTO audit_outbox (kind, xact, at, members, actor, private)
                VALUES (CASE WHEN split_part(muniment_actor(), ':', 1) IN ('signals', 'scim', 'issuer')
                             THEN 'signal' ELSE 'staff' END,
                        pg_current_xact_id()::text, clock_timestamp(),
                        jsonb_build_object('action', action, 'subject', NEW.uid), muniment_actor(),
                        muniment_private(NULL));
        END LOOP;
        RETURN NULL;
    END $$;
"""

# Of whom the log knows so far: a user of whom a tenant is missing could be changed by staff of another alone.
SEEN = """
    INSERT INTO audit_subjecttenant (subject, tenant, first_seen)
        SELECT DISTINCT subject, tenant, now() FROM audit_record
        WHERE type = 'decision' AND subject IS NOT NULL AND tenant IS NOT NULL
    ON CONFLICT DO NOTHING;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("audit", "0015_told_by_the_database"),
    ]

    operations = [
        migrations.CreateModel(
            name="SubjectTenant",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("subject", models.CharField(help_text="uid", max_length=40)),
                ("tenant", models.CharField(max_length=255)),
                ("first_seen", models.DateTimeField(auto_now_add=True)),
            ],
            options={
                "verbose_name": "tenant of a user",
                "default_permissions": (),
            },
        ),
        migrations.AddField(
            model_name="subject",
            name="deactivated_at",
            field=models.DateTimeField(
                blank=True, help_text="by the identity provider; it alone takes that back", null=True
            ),
        ),
        migrations.AddConstraint(
            model_name="subject",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("deactivated_at", None),
                    (
                        "deactivated_at__range",
                        (
                            datetime.datetime(1970, 1, 1, 0, 0, tzinfo=datetime.UTC),
                            datetime.datetime(9999, 1, 1, 0, 0, tzinfo=datetime.UTC),
                        ),
                    ),
                    _connector="OR",
                ),
                name="subject_deactivated_at",
            ),
        ),
        migrations.AddIndex(
            model_name="subject",
            index=models.Index(
                condition=models.Q(("deactivated_at__isnull", False)),
                fields=["deactivated_at"],
                name="subject_deactivated",
            ),
        ),
        migrations.AddIndex(
            model_name="subject",
            index=models.Index(
                condition=models.Q(("signed_out_at__isnull", False)), fields=["first_seen"], name="subject_signed_out"
            ),
        ),
        migrations.AddIndex(
            model_name="subjecttenant",
            index=models.Index(fields=["tenant", "subject"], name="subject_by_tenant"),
        ),
        migrations.AddConstraint(
            model_name="subjecttenant",
            constraint=models.UniqueConstraint(fields=("subject", "tenant"), name="subject_tenant_once"),
        ),
        migrations.RunSQL(TOLD),
        migrations.RunSQL(SEEN, migrations.RunSQL.noop),
    ]
