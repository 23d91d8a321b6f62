"""What the sealer wrote only grows: checkpoints and anchorings are added, tiles get longer, nothing is deleted.

A speed bump, like the rest of the database's rules: the tree is the proof."""

from django.db import migrations

GROWS = """
    CREATE FUNCTION muniment_tile_grows() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
    BEGIN
        IF (NEW.log, NEW.level, NEW.index) IS DISTINCT FROM (OLD.log, OLD.level, OLD.index)
           OR substring(NEW.hashes FROM 1 FOR octet_length(OLD.hashes)) IS DISTINCT FROM OLD.hashes THEN
            RAISE EXCEPTION 'a tile only gets longer' USING ERRCODE = 'insufficient_privilege';
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER muniment_tile_grows BEFORE UPDATE ON audit_tile
        FOR EACH ROW EXECUTE FUNCTION muniment_tile_grows();
    CREATE TRIGGER muniment_append_only BEFORE DELETE ON audit_tile
        FOR EACH ROW EXECUTE FUNCTION muniment_refuse_change();
    ALTER TABLE audit_tile ADD CONSTRAINT audit_tile_hashes
        CHECK (octet_length(hashes) BETWEEN 32 AND 8192 AND octet_length(hashes) % 32 = 0);
    ALTER TABLE audit_checkpoint ADD CONSTRAINT audit_checkpoint_root CHECK (octet_length(root) = 32);
"""

APPEND_ONLY = """
    CREATE TRIGGER muniment_append_only BEFORE UPDATE OR DELETE ON {0}
        FOR EACH ROW EXECUTE FUNCTION muniment_refuse_change();
"""

NO_TRUNCATE = """
    CREATE TRIGGER muniment_no_truncate BEFORE TRUNCATE ON {0}
        FOR EACH STATEMENT EXECUTE FUNCTION muniment_refuse_change();
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0003_sealing")]
    operations = [
        migrations.RunSQL(sql)
        for sql in (
            GROWS,
            *(APPEND_ONLY.format(table) for table in ("audit_checkpoint", "audit_anchoring")),
            *(
                NO_TRUNCATE.format(table)
                for table in ("audit_tile", "audit_checkpoint", "audit_anchoring", "audit_log")
            ),
        )
    ]
