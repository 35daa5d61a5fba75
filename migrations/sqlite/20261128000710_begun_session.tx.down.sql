ALTER TABLE session DROP COLUMN recorded;
DROP TABLE begun_session;
