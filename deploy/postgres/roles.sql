-- The three database roles of authctl, each with what it needs and no more:
--
--   authctl_migrate  owns the tables: authctl migrate
--   authctl_serve    accounts, sessions, keys, and adding events: authctl serve, user, session, key, token
--   authctl_relay    reading events and marking them sent: authctl relay, outbox
--
-- Run this once, in the service's database, as a role that may create roles and grant on both:
--
--   psql -v ON_ERROR_STOP=1 -d authctl -f deploy/postgres/roles.sql
--
-- then give each its password (\password authctl_serve …): without one nobody can sign in as
-- it. After every  authctl migrate up  run grants.sql, which lies beside this file. A serve
-- that relays by itself (outbox.relay: inline) needs both:  GRANT authctl_relay TO authctl_serve;
-- Running it again changes nothing.
--
-- A database may be shared: only the three roles are granted something here, and nobody else
-- loses anything. The tables go to the first schema of search_path. For one of their own:
--
--   psql -d shared -c 'CREATE SCHEMA authctl'
--   PGOPTIONS='-c search_path=authctl' psql -v ON_ERROR_STOP=1 -d shared -f deploy/postgres/roles.sql
--
-- and the same PGOPTIONS for grants.sql. Where the database is authctl's alone, dedicated.sql
-- keeps everybody else out.

DO $$
DECLARE
    name text;
    home text := current_schema();
BEGIN
    IF home IS NULL THEN
        RAISE 'search_path names no schema that is there: %', current_setting('search_path');
    END IF;
    FOREACH name IN ARRAY ARRAY['authctl_migrate', 'authctl_serve', 'authctl_relay'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS', name);
        EXCEPTION
            -- It is there, or somebody makes it at this moment.
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
        RAISE WARNING 'everybody may make tables in the schema %: REVOKE CREATE ON SCHEMA % FROM PUBLIC, or use a schema of its own', home, home;
    END IF;
END $$;
