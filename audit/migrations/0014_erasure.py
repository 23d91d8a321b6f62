"""Erasing a user: the keyed hashes of their records may be taken away, by the owner of the tables when it says that it
maintains them, of a user who was erased, and nothing else of a record may change with it."""

from django.db import migrations

REFUSE = """
    CREATE OR REPLACE FUNCTION muniment_refuse_change() RETURNS trigger
        LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
    BEGIN
        -- Only the owner of the tables, and only when it says so, moves or drops rows (partitions, retention), and
        -- forgets by which ids an erased user's records are found.
        IF TG_OP IN ('DELETE', 'UPDATE') AND current_setting('muniment.maintenance', true) = 'on'
           AND current_user = (SELECT tableowner FROM pg_tables WHERE schemaname = TG_TABLE_SCHEMA
                               AND tablename = TG_TABLE_NAME) THEN
            IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
            IF EXISTS (SELECT FROM pg_inherits WHERE inhrelid = TG_RELID AND inhparent = 'audit_record'::regclass) THEN
                OLD.request_key := NULL; OLD.trace_key := NULL; OLD.session_key := NULL; OLD.resource_key := NULL;
                IF NEW IS NOT DISTINCT FROM OLD AND EXISTS (
                    SELECT FROM audit_subject WHERE uid = OLD.subject AND erased_at IS NOT NULL) THEN
                    RETURN NEW;
                END IF;
            END IF;
        END IF;
        RAISE EXCEPTION '% of % is refused', TG_OP, TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
    END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0013_keeping_and_handing")]
    operations = [migrations.RunSQL(REFUSE)]
