"""The policy tables, and which of their columns the log may carry (DESIGN.md section 6: never secrets, digests of
secrets, wrapped keys, look-up hashes or subject identifiers; large or free-form values as digests)."""

from django.db import migrations

from audit.policy_sql import Columns, policy_rows, watch

TABLES = {
    "clients_issuer": Columns(
        (
            "id",
            "issuer",
            "enabled",
            "algorithms",
            "jwks_uri",
            "tenant_claim",
            "roles_claim",
            "leeway",
            "max_lifetime",
            "allowed_networks",
        )
    ),
    "clients_keyset": Columns(("id", "issuer_id"), ("jwks",)),
    "clients_client": Columns(("id", "slug", "kind", "status"), ("name",)),
    "clients_oauthclientid": Columns(("id", "client_id", "issuer_id", "oauth_id")),
    "clients_acceptedissuer": Columns(("id", "backend_id", "issuer_id")),
    "clients_grant": Columns(
        (
            "id",
            "effect",
            "client_id",
            "subject_id",
            "role",
            "tenant",
            "tool_id",
            "modes",
            "starts_at",
            "expires_at",
            "revoked_at",
        )
    ),
    "clients_grant_scopes": Columns(("id", "grant_id", "scope_id")),
    "tools_backend": Columns(
        ("id", "slug", "audiences", "assertion_audiences", "accepts_every_issuer", "enabled"), ("name",)
    ),
    "tools_backendkey": Columns(("id", "backend_id", "key_id", "expires_at", "revoked_at"), ("label",)),
    "tools_scope": Columns(("id", "name", "sensitive"), ("description",)),
    "tools_scope_implies": Columns(("id", "from_scope_id", "to_scope_id")),
    "tools_tool": Columns(
        ("id", "backend_id", "name", "access", "definition", "status"), ("description", "input_schema")
    ),
    "tools_tool_scopes": Columns(("id", "tool_id", "scope_id")),
}

NO_CYCLES = """
    CREATE FUNCTION muniment_scope_no_cycle() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
    BEGIN
        -- Two transactions that each add half of a cycle must not overlook each other.
        PERFORM pg_advisory_xact_lock(hashtext('muniment.scope_implies'));
        IF EXISTS (
            WITH RECURSIVE reached(id) AS (
                SELECT NEW.to_scope_id
                UNION SELECT i.to_scope_id FROM tools_scope_implies i JOIN reached r ON i.from_scope_id = r.id
            ) SELECT 1 FROM reached WHERE id = NEW.from_scope_id
        ) THEN
            RAISE EXCEPTION 'scope implications form a cycle' USING ERRCODE = 'check_violation',
                CONSTRAINT = 'scope_implies_no_cycle';
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER muniment_scope_no_cycle AFTER INSERT OR UPDATE ON tools_scope_implies
        FOR EACH ROW EXECUTE FUNCTION muniment_scope_no_cycle();
"""

SHAPES = """
    ALTER TABLE tools_backendkey ADD CONSTRAINT backend_key_digest CHECK (octet_length(digest) = 32);
    ALTER TABLE clients_keyset ADD CONSTRAINT key_set_is_an_object CHECK (jsonb_typeof(jwks) IN ('object', 'null'));
"""

SECRETS_STAY = """
    -- The log may not carry the digest of a secret, so a change of it would be silent: a new key is a new row.
    CREATE FUNCTION muniment_key_stays() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
    BEGIN
        RAISE EXCEPTION 'the secret of a backend key never changes; make a new key'
            USING ERRCODE = 'insufficient_privilege';
    END $$;
    CREATE TRIGGER muniment_key_stays BEFORE UPDATE ON tools_backendkey FOR EACH ROW
        WHEN (OLD.digest IS DISTINCT FROM NEW.digest OR OLD.key_id IS DISTINCT FROM NEW.key_id
              OR OLD.backend_id IS DISTINCT FROM NEW.backend_id)
        EXECUTE FUNCTION muniment_key_stays();
"""


class Migration(migrations.Migration):
    initial = True
    dependencies = [("audit", "0002_log"), ("clients", "0001_initial"), ("tools", "0001_initial")]
    operations = [
        migrations.RunSQL("".join(watch(table, columns) for table, columns in TABLES.items())),
        migrations.RunSQL(policy_rows(TABLES)),
        migrations.RunSQL(NO_CYCLES),
        migrations.RunSQL(SECRETS_STAY),
        migrations.RunSQL(SHAPES),
    ]
