-- The clock of SQLite is that of the servers.
SELECT 1;
