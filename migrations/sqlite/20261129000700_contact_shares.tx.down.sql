DROP INDEX contact_challenge_asked;
ALTER TABLE contact_challenge DROP COLUMN owner;
ALTER TABLE contact_challenge DROP COLUMN asked;
ALTER TABLE contact_challenge DROP COLUMN network;
