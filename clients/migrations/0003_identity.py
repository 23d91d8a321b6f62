"""How tokens are read, asked about and bound; how often something may be called; who else may end access."""

import datetime
import django.contrib.postgres.fields
import django.core.validators
import django.db.models.deletion
import uuid
from django.db import migrations, models

# A user who is erased is managed no longer: what was kept of them goes in the same transaction, whoever erases. Audit,
# which erases, knows no table of clients.
FORGOTTEN = """
    CREATE FUNCTION muniment_scim_forgotten() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
    BEGIN
        DELETE FROM public.clients_scimuser WHERE subject_id = NEW.uid;
        RETURN NULL;
    END $$;
    CREATE TRIGGER muniment_scim_forgotten AFTER UPDATE OF erased_at ON audit_subject FOR EACH ROW
        WHEN (NEW.erased_at IS NOT NULL) EXECUTE FUNCTION muniment_scim_forgotten();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("audit", "0016_ends_of_access"),
        ("clients", "0002_requests_and_reviews"),
        ("tools", "0005_plain_routes"),
    ]

    operations = [
        migrations.CreateModel(
            name="ClientMetadata",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("url", models.CharField(max_length=255, unique=True, verbose_name="client id")),
                ("name", models.CharField(blank=True, max_length=120)),
                ("uri", models.CharField(blank=True, max_length=500, verbose_name="home page")),
                ("logo", models.BinaryField(null=True)),
                ("logo_type", models.CharField(blank=True, max_length=10)),
                ("digest", models.CharField(blank=True, help_text="SHA-256 of what is shown, hex", max_length=64)),
                ("fetched_at", models.DateTimeField(help_text="last success", null=True)),
                ("attempted_at", models.DateTimeField(null=True)),
                ("failures", models.IntegerField(default=0, help_text="since the last success")),
                ("error", models.CharField(blank=True, max_length=250)),
                ("approved_digest", models.CharField(blank=True, max_length=64)),
                ("approved_at", models.DateTimeField(null=True)),
                ("approved_by", models.CharField(blank=True, max_length=150)),
            ],
            options={
                "verbose_name": "published client metadata",
                "default_permissions": (),
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("logo_type__in", ["", "image/png", "image/jpeg", "image/webp", "image/gif"])
                        ),
                        name="client_logo_type",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="ScimConnection",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "name",
                    models.CharField(
                        max_length=63,
                        unique=True,
                        validators=[
                            django.core.validators.RegexValidator(
                                "\\A[a-z0-9][a-z0-9-]{0,62}\\Z", "Lower-case letters, digits and hyphens, at most 63."
                            )
                        ],
                    ),
                ),
                (
                    "subject_attribute",
                    models.CharField(
                        choices=[("externalId", "externalId"), ("userName", "userName")],
                        default="externalId",
                        max_length=10,
                        verbose_name="attribute that is the tokens' sub",
                    ),
                ),
                ("digest", models.BinaryField(help_text="HMAC-SHA-256 of the token under the pepper", null=True)),
                ("token_set_at", models.DateTimeField(null=True)),
                ("enabled", models.BooleanField(default=True)),
                ("last_used", models.DateTimeField(help_text="to the minute", null=True)),
                (
                    "issuer",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="scim_connections",
                        to="clients.issuer",
                    ),
                ),
            ],
            options={
                "verbose_name": "SCIM connection",
                "ordering": ["name"],
                "default_permissions": ("add", "change", "view"),
            },
        ),
        migrations.CreateModel(
            name="ScimUser",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, primary_key=True, serialize=False)),
                ("user_name_key", models.BinaryField()),
                ("external_id_key", models.BinaryField(null=True)),
                ("content", models.BinaryField(help_text="protected: the resource as JSON (RFC 7643)")),
                ("active", models.BooleanField(default=True)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("modified_at", models.DateTimeField()),
                ("version", models.IntegerField(default=1)),
                (
                    "connection",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="users", to="clients.scimconnection"
                    ),
                ),
                (
                    "subject",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="audit.subject",
                        verbose_name="user",
                    ),
                ),
            ],
            options={
                "verbose_name": "SCIM user",
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="SignalStream",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "name",
                    models.CharField(
                        max_length=63,
                        unique=True,
                        validators=[
                            django.core.validators.RegexValidator(
                                "\\A[a-z0-9][a-z0-9-]{0,62}\\Z", "Lower-case letters, digits and hyphens, at most 63."
                            )
                        ],
                    ),
                ),
                ("transmitter", models.CharField(help_text="exactly as in the event tokens' `iss`", max_length=255)),
                ("audience", models.CharField(help_text="what the event tokens' `aud` must name", max_length=255)),
                (
                    "jwks_uri",
                    models.URLField(
                        blank=True,
                        help_text="the transmitter's keys; empty: by its configuration",
                        max_length=500,
                        null=True,
                    ),
                ),
                (
                    "delivery",
                    models.CharField(
                        choices=[("push", "the transmitter pushes"), ("poll", "Muniment polls")],
                        default="push",
                        max_length=4,
                    ),
                ),
                ("poll_endpoint", models.URLField(blank=True, max_length=500, null=True)),
                ("digest", models.BinaryField(help_text="HMAC-SHA-256 of the push token under the pepper", null=True)),
                ("token", models.BinaryField(help_text="protected", null=True)),
                ("token_set_at", models.DateTimeField(null=True)),
                ("enabled", models.BooleanField(default=True)),
                ("jwks", models.JSONField(null=True)),
                ("keys_fetched_at", models.DateTimeField(null=True)),
                ("keys_attempted_at", models.DateTimeField(null=True)),
                ("polled_at", models.DateTimeField(null=True)),
                ("received_at", models.DateTimeField(help_text="the newest event", null=True)),
                (
                    "verified_at",
                    models.DateTimeField(help_text="the newest event that only tests the stream", null=True),
                ),
                ("error", models.CharField(blank=True, max_length=250)),
                (
                    "issuer",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="signal_streams", to="clients.issuer"
                    ),
                ),
            ],
            options={
                "verbose_name": "signal stream",
                "ordering": ["name"],
                "default_permissions": ("add", "change", "view"),
            },
        ),
        migrations.CreateModel(
            name="SignalReceipt",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("jti", models.BinaryField(help_text="SHA-256 of the token's jti")),
                ("at", models.DateTimeField(auto_now_add=True)),
                (
                    "stream",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="+", to="clients.signalstream"
                    ),
                ),
            ],
            options={
                "verbose_name": "receipt of an event",
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="ClaimMapping",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "subject_claim",
                    models.CharField(
                        blank=True,
                        help_text="who the user is; empty: sub. Changing it makes every user a new one",
                        max_length=120,
                    ),
                ),
                ("email_claim", models.CharField(blank=True, help_text="empty: email", max_length=120)),
                (
                    "scope_claims",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=120),
                        blank=True,
                        default=list,
                        help_text="empty: scope, scp and permissions",
                        size=None,
                    ),
                ),
                (
                    "client_id_claims",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=120),
                        blank=True,
                        default=list,
                        help_text="the first that a token has; empty: client_id, azp, cid, appid",
                        size=None,
                    ),
                ),
                (
                    "issuer",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE, related_name="mapping", to="clients.issuer"
                    ),
                ),
            ],
            options={
                "verbose_name": "claim mapping",
                "default_permissions": (),
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("scope_claims__contains", [""]), _negated=True), name="mapping_scope_claims"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("client_id_claims__contains", [""]), _negated=True),
                        name="mapping_client_id_claims",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Introspection",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("endpoint", models.URLField(max_length=500)),
                (
                    "method",
                    models.CharField(
                        choices=[
                            ("client_secret_basic", "in the Authorization header"),
                            ("client_secret_post", "in the form"),
                        ],
                        default="client_secret_basic",
                        max_length=19,
                        verbose_name="sends its secret",
                    ),
                ),
                (
                    "client_id",
                    models.CharField(
                        help_text="under which the issuer knows Muniment", max_length=255, verbose_name="client id"
                    ),
                ),
                ("secret", models.BinaryField(help_text="protected", null=True)),
                ("secret_set_at", models.DateTimeField(null=True)),
                ("signed", models.BooleanField(default=False, help_text="take signed answers only (RFC 9701)")),
                (
                    "cache_seconds",
                    models.IntegerField(
                        default=60,
                        help_text="for how long an answer may be used again, at most; a token that is revoked works as long",
                        validators=[
                            django.core.validators.MinValueValidator(0),
                            django.core.validators.MaxValueValidator(600),
                        ],
                    ),
                ),
                (
                    "error",
                    models.CharField(
                        blank=True, help_text="of the newest question; empty: it was answered", max_length=250
                    ),
                ),
                ("failed_at", models.DateTimeField(null=True)),
                ("answered_at", models.DateTimeField(help_text="to the minute", null=True)),
                (
                    "issuer",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE, related_name="introspection", to="clients.issuer"
                    ),
                ),
            ],
            options={
                "default_permissions": (),
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("method__in", ["client_secret_basic", "client_secret_post"])),
                        name="introspection_method",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("cache_seconds__gte", 0), ("cache_seconds__lte", 600)),
                        name="introspection_cache_seconds",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("secret_set_at", None),
                            (
                                "secret_set_at__range",
                                (
                                    datetime.datetime(1970, 1, 1, 0, 0, tzinfo=datetime.timezone.utc),
                                    datetime.datetime(9999, 1, 1, 0, 0, tzinfo=datetime.timezone.utc),
                                ),
                            ),
                            _connector="OR",
                        ),
                        name="introspection_secret_set_at",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="IssuerBinding",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "require",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("any", "to a key or a certificate"),
                            ("dpop", "to a key (DPoP)"),
                            ("mtls", "to a certificate (mTLS)"),
                            ("", "nothing"),
                        ],
                        default="any",
                        max_length=4,
                        verbose_name="its tokens must be bound",
                    ),
                ),
                (
                    "dpop_nonce",
                    models.BooleanField(
                        default=False,
                        help_text="a proof must hold a nonce that Muniment gave out",
                        verbose_name="nonces (DPoP)",
                    ),
                ),
                (
                    "issuer",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE, related_name="binding", to="clients.issuer"
                    ),
                ),
            ],
            options={
                "verbose_name": "binding of tokens",
                "default_permissions": (),
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("require__in", ["", "any", "dpop", "mtls"])), name="binding_require"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Limit",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "per",
                    models.CharField(
                        choices=[
                            ("subject", "user"),
                            ("subject_client", "user and client"),
                            ("client", "client"),
                            ("tool", "tool"),
                            ("tenant", "tenant"),
                        ],
                        default="subject",
                        max_length=14,
                        verbose_name="counted for each",
                    ),
                ),
                (
                    "count",
                    models.IntegerField(
                        validators=[
                            django.core.validators.MinValueValidator(1),
                            django.core.validators.MaxValueValidator(1000000000),
                        ],
                        verbose_name="calls",
                    ),
                ),
                (
                    "period",
                    models.CharField(
                        choices=[("second", "second"), ("minute", "minute"), ("hour", "hour"), ("day", "day")],
                        default="minute",
                        max_length=6,
                        verbose_name="in a",
                    ),
                ),
                (
                    "burst",
                    models.IntegerField(
                        blank=True,
                        help_text="how many at once, at most; empty: all of them",
                        null=True,
                        validators=[django.core.validators.MinValueValidator(1)],
                    ),
                ),
                ("tenant", models.CharField(blank=True, max_length=255, null=True)),
                (
                    "modes",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=11),
                        blank=True,
                        default=list,
                        help_text="agent modes; empty: every mode",
                        size=None,
                    ),
                ),
                (
                    "on_outage",
                    models.CharField(
                        choices=[
                            ("access", "refuse calls of destructive tools, let others through"),
                            ("deny", "refuse the call"),
                            ("allow", "let the call through"),
                        ],
                        default="access",
                        max_length=6,
                        verbose_name="when calls cannot be counted",
                    ),
                ),
                ("reason", models.CharField(max_length=500)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("created_by", models.CharField(blank=True, editable=False, max_length=150)),
                (
                    "client",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="limits",
                        to="clients.client",
                    ),
                ),
                (
                    "tool",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="limits",
                        to="tools.tool",
                    ),
                ),
            ],
            options={
                "ordering": ["per", "id"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("per", "client", "tool", "tenant", "modes"), name="limit_once", nulls_distinct=False
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("per__in", ["subject", "subject_client", "client", "tool", "tenant"])),
                        name="limit_per",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("count__gte", 1), ("count__lte", 1000000000)), name="limit_count"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("period__in", ["second", "minute", "hour", "day"])), name="limit_period"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("burst", None),
                            models.Q(("burst__gte", 1), ("burst__lte", models.F("count"))),
                            _connector="OR",
                        ),
                        name="limit_burst",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("modes__contained_by", ["interactive", "subagent", "background", "api"])),
                        name="limit_modes",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("on_outage__in", ["access", "deny", "allow"])), name="limit_on_outage"
                    ),
                    models.CheckConstraint(condition=models.Q(("reason", ""), _negated=True), name="limit_has_reason"),
                ],
            },
        ),
        migrations.AddConstraint(
            model_name="scimconnection",
            constraint=models.CheckConstraint(
                condition=models.Q(("name__regex", "^[a-z0-9][a-z0-9-]{0,62}$")), name="scim_connection_name"
            ),
        ),
        migrations.AddConstraint(
            model_name="scimconnection",
            constraint=models.CheckConstraint(
                condition=models.Q(("subject_attribute__in", ["externalId", "userName"])),
                name="scim_connection_attribute",
            ),
        ),
        migrations.AddConstraint(
            model_name="scimconnection",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("token_set_at", None),
                    (
                        "token_set_at__range",
                        (
                            datetime.datetime(1970, 1, 1, 0, 0, tzinfo=datetime.timezone.utc),
                            datetime.datetime(9999, 1, 1, 0, 0, tzinfo=datetime.timezone.utc),
                        ),
                    ),
                    _connector="OR",
                ),
                name="scim_connection_token_set_at",
            ),
        ),
        migrations.AddConstraint(
            model_name="scimuser",
            constraint=models.UniqueConstraint(fields=("connection", "user_name_key"), name="scim_user_name_once"),
        ),
        migrations.AddConstraint(
            model_name="scimuser",
            constraint=models.UniqueConstraint(
                condition=models.Q(("external_id_key__isnull", False)),
                fields=("connection", "external_id_key"),
                name="scim_external_id_once",
            ),
        ),
        migrations.AddConstraint(
            model_name="scimuser",
            constraint=models.UniqueConstraint(fields=("subject",), name="scim_subject_once"),
        ),
        migrations.AddIndex(
            model_name="scimuser",
            index=models.Index(fields=["connection", "created_at", "id"], name="scim_user_page"),
        ),
        migrations.RunSQL(FORGOTTEN),
        migrations.AddConstraint(
            model_name="signalstream",
            constraint=models.CheckConstraint(
                condition=models.Q(("name__regex", "^[a-z0-9][a-z0-9-]{0,62}$")), name="signal_stream_name"
            ),
        ),
        migrations.AddConstraint(
            model_name="signalstream",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("delivery", "push"),
                    models.Q(("delivery", "poll"), ("poll_endpoint__isnull", False)),
                    _connector="OR",
                ),
                name="signal_stream_delivery",
            ),
        ),
        migrations.AddConstraint(
            model_name="signalstream",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("transmitter", ""), _negated=True), models.Q(("audience", ""), _negated=True)
                ),
                name="signal_stream_names",
            ),
        ),
        migrations.AddConstraint(
            model_name="signalstream",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("token_set_at", None),
                    (
                        "token_set_at__range",
                        (
                            datetime.datetime(1970, 1, 1, 0, 0, tzinfo=datetime.timezone.utc),
                            datetime.datetime(9999, 1, 1, 0, 0, tzinfo=datetime.timezone.utc),
                        ),
                    ),
                    _connector="OR",
                ),
                name="signal_stream_token_set_at",
            ),
        ),
        migrations.AddIndex(
            model_name="signalreceipt",
            index=models.Index(fields=["at"], name="signal_receipt_at"),
        ),
        migrations.AddConstraint(
            model_name="signalreceipt",
            constraint=models.UniqueConstraint(fields=("stream", "jti"), name="signal_receipt_once"),
        ),
    ]
