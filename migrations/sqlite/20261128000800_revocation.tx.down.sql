DROP TRIGGER revocation_of_key;
DROP TRIGGER revocation_of_session;
DROP TRIGGER revocation_of_account_deleted;
DROP TRIGGER revocation_of_account_ended;
DROP VIEW revocation_until;
DROP TABLE revocation;
