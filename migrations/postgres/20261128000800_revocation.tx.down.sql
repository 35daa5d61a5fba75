DROP TRIGGER revocation_of_key ON signing_key;
DROP TRIGGER revocation_of_session ON revoked_session;
DROP TRIGGER revocation_of_account_deleted ON users;
DROP TRIGGER revocation_of_account_ended ON users;
DROP FUNCTION revocation_of_key;
DROP FUNCTION revocation_of_account;
DROP FUNCTION revocation_of_session;
DROP FUNCTION revocation_until_ms;
DROP TABLE revocation;
