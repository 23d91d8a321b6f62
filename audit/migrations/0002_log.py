"""The log's tables and triggers: the partitioned record table, append-only, the outbox and its numbering."""

from django.db import migrations

REFUSE = """
    CREATE FUNCTION muniment_refuse_change() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
    BEGIN
        -- Only the owner of the tables, and only when it says so, moves or drops rows (partitions, retention).
        IF TG_OP = 'DELETE' AND current_setting('muniment.maintenance', true) = 'on'
           AND current_user = (SELECT tableowner FROM pg_tables WHERE schemaname = TG_TABLE_SCHEMA
                               AND tablename = TG_TABLE_NAME) THEN
            RETURN OLD;
        END IF;
        RAISE EXCEPTION '% of % is refused', TG_OP, TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
    END $$;
"""

RECORD = """
    CREATE TABLE audit_record (
        id uuid NOT NULL, index bigint NOT NULL, at timestamptz NOT NULL, type varchar(20) NOT NULL,
        decision varchar(5), reason varchar(40), flagged boolean NOT NULL DEFAULT false,
        backend varchar(64), client varchar(64), subject varchar(40), tenant varchar(255), tool varchar(128),
        parent uuid, request_key bytea, trace_key bytea, session_key bytea, resource_key bytea,
        holder varchar(120), statement bytea NOT NULL, leaf bytea NOT NULL, disclosures bytea,
        PRIMARY KEY (at),                                    -- every window; audit.search pages by it; by id too
        CONSTRAINT audit_record_leaf CHECK (octet_length(leaf) = 32),
        CONSTRAINT audit_record_statement CHECK (octet_length(statement) < 65536)
    ) PARTITION BY RANGE (at);
    CREATE UNIQUE INDEX audit_record_index ON audit_record (index, at);            -- the sealer; density checks
    CREATE INDEX audit_record_client ON audit_record (client, at DESC);            -- search by client
    CREATE INDEX audit_record_tool ON audit_record (tool, at DESC);                -- search by tool
    CREATE INDEX audit_record_subject ON audit_record (subject, at DESC);          -- search by user
    CREATE INDEX audit_record_reason ON audit_record (reason, at DESC);            -- search by reason
    CREATE INDEX audit_record_request ON audit_record (request_key, at DESC) WHERE request_key IS NOT NULL;
    CREATE INDEX audit_record_parent ON audit_record (parent, at) WHERE parent IS NOT NULL;  -- outcome of a call
    CREATE TABLE audit_record_default PARTITION OF audit_record DEFAULT;
    CREATE TRIGGER muniment_append_only BEFORE UPDATE OR DELETE ON audit_record
        FOR EACH ROW EXECUTE FUNCTION muniment_refuse_change();
    CREATE TRIGGER muniment_no_truncate BEFORE TRUNCATE ON audit_record
        FOR EACH STATEMENT EXECUTE FUNCTION muniment_refuse_change();
    CREATE TRIGGER muniment_no_truncate BEFORE TRUNCATE ON audit_record_default
        FOR EACH STATEMENT EXECUTE FUNCTION muniment_refuse_change();
    CREATE TRIGGER muniment_append_only BEFORE UPDATE OR DELETE ON audit_batch
        FOR EACH ROW EXECUTE FUNCTION muniment_refuse_change();
    CREATE TRIGGER muniment_no_truncate BEFORE TRUNCATE ON audit_batch
        FOR EACH STATEMENT EXECUTE FUNCTION muniment_refuse_change();
"""

PARTITIONS = """
    CREATE FUNCTION muniment_make_partition(month date) RETURNS boolean
        LANGUAGE plpgsql SET search_path = public, pg_temp SET timezone = 'UTC' AS $$
    DECLARE
        low timestamptz := date_trunc('month', month::timestamptz);
        high timestamptz := low + interval '1 month';
        name text := 'audit_record_' || to_char(low, 'YYYYMM');
    BEGIN
        IF to_regclass(name) IS NOT NULL THEN RETURN false; END IF;
        EXECUTE format('CREATE TABLE %I (LIKE audit_record INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
        -- Nothing may arrive in the default partition between the move and the attachment.
        LOCK TABLE audit_record_default IN ACCESS EXCLUSIVE MODE;
        IF EXISTS (SELECT 1 FROM audit_record_default WHERE at >= low AND at < high) THEN
            PERFORM set_config('muniment.maintenance', 'on', true);
            EXECUTE format('INSERT INTO %I SELECT * FROM audit_record_default WHERE at >= $1 AND at < $2', name)
                USING low, high;
            DELETE FROM audit_record_default WHERE at >= low AND at < high;
            PERFORM set_config('muniment.maintenance', '', true);
        END IF;
        EXECUTE format('ALTER TABLE audit_record ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, low, high);
        EXECUTE format('CREATE TRIGGER muniment_no_truncate BEFORE TRUNCATE ON %I
            FOR EACH STATEMENT EXECUTE FUNCTION muniment_refuse_change()', name);
        RETURN true;
    END $$;
"""

OUTBOX = """
    INSERT INTO audit_head (id, policy, next, at, batch, drained)
        VALUES (1, 0, 0, 'epoch', decode(repeat('00', 32), 'hex'), 0);

    CREATE FUNCTION muniment_actor() RETURNS text LANGUAGE sql STABLE AS $$
        SELECT coalesce(nullif(current_setting('muniment.actor', true), ''), 'database:' || session_user)
    $$;
    CREATE FUNCTION muniment_private(subject_reason text) RETURNS jsonb LANGUAGE sql STABLE AS $$
        SELECT jsonb_strip_nulls(jsonb_build_object(
            'actor_name', nullif(current_setting('muniment.actor_name', true), ''),
            'reason', coalesce(nullif(current_setting('muniment.reason', true), ''), nullif(subject_reason, ''))))
    $$;
    CREATE FUNCTION muniment_project(r jsonb, plain text[], digests text[]) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
        SELECT coalesce((SELECT jsonb_object_agg(c, r->c) FROM unnest(plain) c), '{}'::jsonb)
            || coalesce((SELECT jsonb_object_agg(c || '_sha256', CASE WHEN jsonb_typeof(r->c) = 'null' THEN NULL
                ELSE encode(sha256(convert_to((r->c)::text, 'UTF8')), 'hex') END) FROM unnest(digests) c), '{}'::jsonb)
    $$;
    CREATE FUNCTION muniment_policy_change() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET timezone = 'UTC' AS $$
    DECLARE
        plain text[] := string_to_array(TG_ARGV[0], ',');
        digests text[] := string_to_array(TG_ARGV[1], ',');
        o jsonb; n jsonb;
    BEGIN
        -- A table of one's own, of the same name, is no policy.
        IF TG_TABLE_SCHEMA <> 'public' THEN RAISE EXCEPTION '% is no policy table', TG_RELID::regclass; END IF;
        IF TG_OP <> 'INSERT' THEN o := muniment_project(to_jsonb(OLD), plain, digests); END IF;
        IF TG_OP <> 'DELETE' THEN n := muniment_project(to_jsonb(NEW), plain, digests); END IF;
        IF o IS NOT DISTINCT FROM n THEN RETURN NULL; END IF;
        INSERT INTO audit_outbox (kind, xact, at, table_name, operation, row_key, old, new, actor, private)
            VALUES ('policy', pg_current_xact_id()::text, clock_timestamp(), TG_TABLE_NAME, lower(TG_OP),
                    coalesce(n, o)->>'id', o, n, muniment_actor(),
                    muniment_private(CASE WHEN TG_OP = 'INSERT' THEN to_jsonb(NEW)->>'reason' END));
        RETURN NULL;
    END $$;
    CREATE FUNCTION muniment_number_changes() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    DECLARE v bigint; done bigint;
    BEGIN
        -- By the primary key alone: asked once for each row, anything that searches makes a large change quadratic.
        SELECT version INTO done FROM audit_outbox WHERE id = NEW.id;
        IF done IS NULL THEN
            UPDATE audit_head SET policy = policy + 1 RETURNING policy INTO STRICT v;
            UPDATE audit_outbox SET version = v WHERE xact = NEW.xact AND kind = 'policy' AND version IS NULL;
        END IF;
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER muniment_number_changes AFTER INSERT ON audit_outbox
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.kind = 'policy')
        EXECUTE FUNCTION muniment_number_changes();
    -- A policy change is what a trigger saw, and nothing else: the serving role may not make one up, nor number it.
    CREATE FUNCTION muniment_outbox_entry() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
    BEGIN
        IF NEW.version IS NOT NULL OR NEW.record_index IS NOT NULL OR (NEW.kind = 'policy' AND current_user <>
            (SELECT tableowner FROM pg_tables WHERE schemaname = 'public' AND tablename = 'audit_outbox')) THEN
            RAISE EXCEPTION 'this entry is not for % to make', current_user USING ERRCODE = 'insufficient_privilege';
        END IF;
        IF jsonb_typeof(NEW.members) <> 'object' OR jsonb_typeof(NEW.private) <> 'object' THEN
            RAISE EXCEPTION 'members and private are objects' USING ERRCODE = 'check_violation';
        END IF;
        NEW.xact := pg_current_xact_id()::text;
        NEW.role := session_user;
        RETURN NEW;
    END $$;
    CREATE TRIGGER muniment_outbox_entry BEFORE INSERT ON audit_outbox
        FOR EACH ROW EXECUTE FUNCTION muniment_outbox_entry();
    CREATE TRIGGER muniment_no_truncate BEFORE TRUNCATE ON audit_outbox
        FOR EACH STATEMENT EXECUTE FUNCTION muniment_refuse_change();

    -- What ends one user's access raises no version (the recording transaction reads it), but is recorded.
    CREATE FUNCTION muniment_subject_change() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET timezone = 'UTC' AS $$
    DECLARE action text;
    BEGIN
        IF TG_TABLE_SCHEMA <> 'public' THEN RAISE EXCEPTION '% is no policy table', TG_RELID::regclass; END IF;
        FOREACH action IN ARRAY array_remove(ARRAY[
            CASE WHEN OLD.blocked_at IS NULL AND NEW.blocked_at IS NOT NULL THEN 'subject.block'
                 WHEN OLD.blocked_at IS NOT NULL AND NEW.blocked_at IS NULL THEN 'subject.unblock' END,
            CASE WHEN OLD.signed_out_at IS DISTINCT FROM NEW.signed_out_at THEN 'subject.sign_out' END], NULL)
        LOOP
            INSERT INTO audit_outbox (kind, xact, at, members, actor, private)
                VALUES ('staff', pg_current_xact_id()::text, clock_timestamp(),
                        jsonb_build_object('action', action, 'subject', NEW.uid), muniment_actor(),
                        muniment_private(NULL));
        END LOOP;
        RETURN NULL;
    END $$;
    CREATE TRIGGER muniment_subject_change AFTER UPDATE ON audit_subject
        FOR EACH ROW EXECUTE FUNCTION muniment_subject_change();
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0001_initial")]
    operations = [migrations.RunSQL(sql) for sql in (REFUSE, RECORD, PARTITIONS, OUTBOX)]
