DROP TRIGGER contact_of_deleted_user;
DROP TRIGGER contact_challenge_of_user;
DROP TABLE contact_undo;
DROP TABLE contact_challenge;
DROP TABLE contact;
