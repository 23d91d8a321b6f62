"""What is new about callers is policy: what is recorded of it, and the rows that a snapshot reads. The roles once more,
and the tenants that staff are confined to."""

from importlib import import_module

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

from audit.policy_sql import Columns, policy_rows, watch

NEW = {
    "clients_claimmapping": Columns(
        ("id", "issuer_id", "subject_claim", "email_claim", "scope_claims", "client_id_claims")
    ),
    "clients_introspection": Columns(
        ("id", "issuer_id", "endpoint", "method", "client_id", "secret_set_at", "signed", "cache_seconds")
    ),
    "clients_issuerbinding": Columns(("id", "issuer_id", "require", "dpop_nonce")),
    "clients_limit": Columns(
        ("id", "per", "count", "period", "burst", "client_id", "tool_id", "tenant", "modes", "on_outage")
    ),
    "clients_signalstream": Columns(
        (
            "id",
            "name",
            "issuer_id",
            "transmitter",
            "audience",
            "jwks_uri",
            "delivery",
            "poll_endpoint",
            "token_set_at",
            "enabled",
        )
    ),
    "clients_scimconnection": Columns(("id", "name", "issuer_id", "subject_attribute", "token_set_at", "enabled")),
}
TABLES = import_module("governance.migrations.0005_marks_and_routes").TABLES | NEW
make = import_module("governance.migrations.0004_roles").make

# The log may not carry what is made of a secret, so a change of one would be silent: the time of it must change too.
SECRETS_TOLD = """
    CREATE FUNCTION muniment_secret_told() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
    DECLARE
        name text;
    BEGIN
        FOREACH name IN ARRAY string_to_array(TG_ARGV[0], ',') LOOP
            IF to_jsonb(OLD)->>name IS DISTINCT FROM to_jsonb(NEW)->>name
               AND OLD.{at} IS NOT DISTINCT FROM NEW.{at} THEN
                RAISE EXCEPTION 'a secret changes together with the time at which it was set'
                    USING ERRCODE = 'insufficient_privilege';
            END IF;
        END LOOP;
        RETURN NEW;
    END $$;
"""


def _told(at: str, columns: dict[str, str]) -> str:
    function = SECRETS_TOLD.format(at=at).replace("muniment_secret_told", f"muniment_{at}_told")
    triggers = [
        f"CREATE TRIGGER muniment_secret_told BEFORE UPDATE ON {table} FOR EACH ROW"
        f" EXECUTE FUNCTION muniment_{at}_told('{names}');"
        for table, names in columns.items()
    ]
    return function + "".join(triggers)


class Migration(migrations.Migration):
    dependencies = [
        ("governance", "0007_notifications"),
        ("audit", "0016_ends_of_access"),
        ("clients", "0003_identity"),
        ("tools", "0005_plain_routes"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]
    operations = [
        migrations.CreateModel(
            name="StaffTenant",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("tenant", models.CharField(max_length=255)),
                (
                    "user",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="tenants",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "verbose_name": "tenant of a member of staff",
                "default_permissions": (),
                "constraints": [
                    models.UniqueConstraint(fields=("user", "tenant"), name="staff_tenant_once"),
                    models.CheckConstraint(
                        condition=models.Q(("tenant", ""), _negated=True), name="staff_tenant_not_empty"
                    ),
                ],
            },
        ),
        migrations.AddField(
            model_name="notification",
            name="tenant",
            field=models.CharField(
                help_text="of which it is; of none, none who is confined sees", max_length=255, null=True
            ),
        ),
        migrations.RunSQL("".join(watch(table, columns) for table, columns in NEW.items())),
        migrations.RunSQL(policy_rows(TABLES)),
        migrations.RunSQL(_told("secret_set_at", {"clients_introspection": "secret"})),
        migrations.RunSQL(
            _told("token_set_at", {"clients_signalstream": "digest,token", "clients_scimconnection": "digest"})
        ),
        migrations.RunPython(make, migrations.RunPython.noop),
    ]
