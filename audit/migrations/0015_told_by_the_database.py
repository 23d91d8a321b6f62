"""Holds, retention rules and floors that were changed past the application, by psql for one, are on record as well:
with a record less each change could let records go that had to stay, and the log would say that it went by rule."""

from django.db import migrations

TABLES = {
    "audit_hold": "id subject client tool backend tenant since until release_asked_by released_by released_at",
    "audit_retentionrule": "id type backend client tenant sensitive days",
    "audit_retentionfloor": "preset mode",
}

FUNCTION = """
    CREATE FUNCTION muniment_keeping_change() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET timezone = 'UTC' AS $$
    DECLARE
        told text := CASE TG_TABLE_NAME WHEN 'audit_hold' THEN 'hold' ELSE 'retention' END;
        plain text[] := string_to_array(TG_ARGV[0], ' ');
        o jsonb; n jsonb;
    BEGIN
        IF TG_TABLE_SCHEMA <> 'public' THEN RAISE EXCEPTION '% is no table of ours', TG_RELID::regclass; END IF;
        IF TG_OP <> 'INSERT' THEN o := muniment_project(to_jsonb(OLD), plain, '{}'); END IF;
        IF TG_OP <> 'DELETE' THEN n := muniment_project(to_jsonb(NEW), plain, '{}'); END IF;
        -- Whoever changes one with a record of their own, does so in the same transaction, with who and why.
        IF o IS NOT DISTINCT FROM n OR EXISTS (SELECT FROM audit_outbox
            WHERE xact = pg_current_xact_id()::text AND version IS NULL AND kind = told) THEN
            RETURN NULL;
        END IF;
        INSERT INTO audit_outbox (kind, xact, at, members, actor)
            VALUES (told, pg_current_xact_id()::text, clock_timestamp(),
                    jsonb_build_object('action', 'row.' || lower(TG_OP), 'table', TG_TABLE_NAME, 'old', o, 'new', n),
                    'database:' || session_user);
        RETURN NULL;
    END $$;
"""
REFUSE = """
    CREATE TRIGGER muniment_no_truncate BEFORE TRUNCATE ON {table}
        FOR EACH STATEMENT EXECUTE FUNCTION muniment_refuse_change();
"""
TRIGGER = """
    CREATE CONSTRAINT TRIGGER muniment_keeping_change AFTER INSERT OR UPDATE OR DELETE ON {table}
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION muniment_keeping_change('{columns}');
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0014_erasure")]
    operations = [
        migrations.RunSQL(FUNCTION),
        *(
            migrations.RunSQL(TRIGGER.format(table=table, columns=columns) + REFUSE.format(table=table))
            for table, columns in TABLES.items()
        ),
    ]
