DROP FUNCTION outbox_add_undeliverable;
DROP INDEX contact_challenge_asked;
ALTER TABLE contact_challenge DROP COLUMN owner, DROP COLUMN asked, DROP COLUMN network;
