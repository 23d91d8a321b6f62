-- The two roles of Muniment, and its database. Run once as a superuser; running it again changes nothing.
--
--     psql -X -v ON_ERROR_STOP=1 -f deploy/restricted_roles.sql postgres
--
-- Then give each role a password of its own (\password muniment, \password muniment_owner), let pg_hba.conf admit them
-- by scram-sha-256 and TLS alone, and let `manage.py migrate --database owner` make the tables and grant the rights.
-- Other names: -v owner=... -v serving=... -v database=...
\if :{?owner} \else \set owner muniment_owner \endif
\if :{?serving} \else \set serving muniment \endif
\if :{?database} \else \set database muniment \endif

-- Owns the tables: migrations, partitions, retention, erasure. For the worker and for manage.py, never for web.
SELECT format('CREATE ROLE %I', :'owner') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'owner') \gexec
-- Serves: it adds to the log and cannot change or delete what is there.
SELECT format('CREATE ROLE %I', :'serving') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'serving') \gexec
ALTER ROLE :"owner" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
ALTER ROLE :"serving" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
-- Neither is a member of the other, or of anything: rights would come along.
SELECT format('REVOKE %I FROM %I', granted.rolname, member.rolname)
    FROM pg_auth_members JOIN pg_roles granted ON granted.oid = roleid JOIN pg_roles member ON member.oid = pg_auth_members.member
    WHERE member.rolname IN (:'owner', :'serving') AND granted.rolname <> 'pg_read_all_stats' \gexec
-- Sees how old other roles' transactions are, for muniment_backend_xmin_age_seconds; reads no data by it.
GRANT pg_read_all_stats TO :"serving";

SELECT format('CREATE DATABASE %I OWNER %I ENCODING ''UTF8'' TEMPLATE template0', :'database', :'owner')
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') \gexec
ALTER DATABASE :"database" OWNER TO :"owner";
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"database" TO :"serving";
-- A transaction that does nothing for a minute is nobody's: it would hold a snapshot, and slow down every call.
ALTER ROLE :"serving" IN DATABASE :"database" SET idle_in_transaction_session_timeout = '60s';

\connect :database
-- Nobody but the owner makes objects that other roles' queries would meet.
REVOKE ALL ON SCHEMA public FROM PUBLIC;
ALTER SCHEMA public OWNER TO :"owner";
GRANT USAGE ON SCHEMA public TO :"serving";
