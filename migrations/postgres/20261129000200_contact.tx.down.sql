DROP TRIGGER contact_of_deleted_user ON users;
DROP TRIGGER contact_challenge_of_user ON users;
DROP TABLE contact_undo;
DROP TABLE contact_challenge;
DROP TABLE contact;
DROP FUNCTION contact_end_challenges_of_user;
DROP FUNCTION contact_end_challenges_of_contact;
DROP FUNCTION contact_forget_user;
