-- The three database roles of authctl, each with what it needs and no more:
--
--   authctl_migrate  owns the tables: authctl migrate
--   authctl_serve    accounts, sessions, keys, and adding events: authctl serve, user, session, key, token
--   authctl_relay    reading events and marking them sent: authctl relay, outbox
--
-- Run this once, in the service's database, as a role that may create roles:
--
--   psql -v ON_ERROR_STOP=1 -d authctl -f deploy/postgres/roles.sql
--
-- then give each its password (\password authctl_serve …): without one nobody can sign in as
-- it. After every  authctl migrate up  run grants.sql, which lies beside this file. A serve
-- that relays by itself (outbox.relay: inline) needs both:  GRANT authctl_relay TO authctl_serve;
-- Running it again changes nothing.

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['authctl_migrate', 'authctl_serve', 'authctl_relay'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS', name);
        EXCEPTION
            -- It is there, or somebody makes it at this moment.
            WHEN duplicate_object OR unique_violation THEN NULL;
        END;
    END LOOP;
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO authctl_migrate, authctl_serve, authctl_relay', current_database());
END $$;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO authctl_migrate;
GRANT USAGE ON SCHEMA public TO authctl_serve, authctl_relay;
