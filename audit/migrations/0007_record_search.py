"""What a search can be narrowed by beside the older columns: a call's agent mode and the scopes that it needed. Records
from before get both from their own statements; the statements stay as they are."""

from django.db import migrations

COLUMNS = """
    ALTER TABLE audit_record ADD COLUMN mode varchar(11), ADD COLUMN scopes text;
"""

FILL = """
    -- The bytes of a record that somebody changed may be no JSON any more: then there is nothing to copy.
    CREATE FUNCTION pg_temp.said(statement bytea) RETURNS jsonb LANGUAGE plpgsql AS $$
    BEGIN
        RETURN convert_from(statement, 'UTF8')::jsonb;
    EXCEPTION WHEN OTHERS THEN
        RETURN '{}'::jsonb;
    END $$;
    ALTER TABLE audit_record DISABLE TRIGGER muniment_append_only;
    UPDATE audit_record SET mode = left(s #>> '{agent,mode}', 11),
        scopes = (SELECT nullif(string_agg(x, ' '), '') FROM jsonb_array_elements_text(s->'required') x)
    FROM (SELECT at AS moment, pg_temp.said(statement) AS s FROM audit_record
          WHERE type IN ('decision', 'evaluation')) told
    WHERE audit_record.at = told.moment AND jsonb_typeof(s->'required') = 'array';
    ALTER TABLE audit_record ENABLE TRIGGER muniment_append_only;
"""

INDEXES = """
    CREATE INDEX audit_record_trace ON audit_record (trace_key, at DESC) WHERE trace_key IS NOT NULL;
    CREATE INDEX audit_record_session ON audit_record (session_key, at DESC) WHERE session_key IS NOT NULL;
    CREATE INDEX audit_record_resource ON audit_record (resource_key, at DESC) WHERE resource_key IS NOT NULL;
    CREATE INDEX audit_record_tenant ON audit_record (tenant, at DESC) WHERE tenant IS NOT NULL;
    CREATE INDEX audit_record_backend ON audit_record (backend, at DESC);
    CREATE INDEX audit_record_flagged ON audit_record (at DESC) WHERE flagged;
    CREATE INDEX audit_record_type ON audit_record (type, at DESC) WHERE type NOT IN ('decision', 'outcome');
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0006_admin_pages")]
    operations = [migrations.RunSQL(sql) for sql in (COLUMNS, FILL, INDEXES)]
