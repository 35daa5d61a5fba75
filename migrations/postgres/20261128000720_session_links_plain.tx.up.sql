-- What is sealed does not compress, and a session that is refreshed all the time would try each time.
ALTER TABLE session ALTER COLUMN links SET STORAGE EXTERNAL;
