-- Locks all but the three roles of roles.sql out of a database that belongs to authctl
-- alone. Run it once, after roles.sql, as the database's owner. In a shared database it would lock
-- out the other programs.
--
--   psql -v ON_ERROR_STOP=1 -d authctl -f deploy/postgres/dedicated.sql

DO $$
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('REVOKE ALL ON SCHEMA %I FROM PUBLIC', current_schema());
END $$;
