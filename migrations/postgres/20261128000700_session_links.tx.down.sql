DROP INDEX session_links;
ALTER TABLE session DROP COLUMN marks;
ALTER TABLE session DROP COLUMN links;
ALTER TABLE session DROP COLUMN linked;
