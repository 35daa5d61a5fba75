-- Creates the three database roles of authctl:
--
--   authctl_migrate  owns the tables: authctl migrate
--   authctl_serve    accounts, sessions, keys, and adding events: authctl serve, user, session, key, token
--   authctl_relay    reading events and marking them sent: authctl relay, outbox
--
-- Run this once, in the service's database, as a role that may create roles and grant on both:
--
--   psql -v ON_ERROR_STOP=1 -d authctl -f deploy/postgres/roles.sql
--
-- Then give each role a password (\password authctl_serve …); without one nobody can sign in as
-- that role. After every  authctl migrate up  run grants.sql in this folder. A serve that also
-- relays (outbox.relay: inline) needs both roles:  GRANT authctl_relay TO authctl_serve;
-- Running it again changes nothing.
--
-- The database may be shared: this only grants rights to the three roles, and revokes nobody's.
-- The tables go to the first schema of search_path. To give them their own schema:
--
--   psql -d shared -c 'CREATE SCHEMA authctl'
--   PGOPTIONS='-c search_path=authctl' psql -v ON_ERROR_STOP=1 -d shared -f deploy/postgres/roles.sql
--
-- and use the same PGOPTIONS for grants.sql. If the database belongs to authctl alone, dedicated.sql
-- locks everybody else out.

DO $$
DECLARE
    name text;
    home text := current_schema();
BEGIN
    IF home IS NULL THEN
        RAISE 'search_path names no existing schema: %', current_setting('search_path');
    END IF;
    FOREACH name IN ARRAY ARRAY['authctl_migrate', 'authctl_serve', 'authctl_relay'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS', name);
        EXCEPTION
            -- It exists, or another session is creating it at this moment.
            WHEN duplicate_object OR unique_violation THEN NULL;
        END;
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), name);
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', home, name);
        IF home <> 'public' THEN
            EXECUTE format('ALTER ROLE %I IN DATABASE %I SET search_path = %I', name, current_database(), home);
        END IF;
    END LOOP;
    EXECUTE format('GRANT CREATE ON SCHEMA %I TO authctl_migrate', home);
    IF has_schema_privilege('public', home, 'CREATE') THEN
        RAISE WARNING 'everybody may create tables in the schema %: REVOKE CREATE ON SCHEMA % FROM PUBLIC, or use a separate schema', home, home;
    END IF;
END $$;
