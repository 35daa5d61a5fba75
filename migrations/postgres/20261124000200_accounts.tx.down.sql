DROP TABLE signing_key;
DROP TABLE revoked_session;
DROP TABLE users;
