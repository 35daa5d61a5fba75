-- What strangers ask for does not use up what the owner of an account may ask for, and a request is
-- answered alike whether there is an account or not. The defaults are for a release that does not
-- know these columns.

-- Asked for on a device that the account knows.
ALTER TABLE contact_challenge ADD COLUMN owner boolean NOT NULL DEFAULT false;
-- Digest of what was asked for: a username or an address.
ALTER TABLE contact_challenge ADD COLUMN asked blob NOT NULL DEFAULT x'';
-- Digest of the network it was asked from; empty: not known.
ALTER TABLE contact_challenge ADD COLUMN network blob NOT NULL DEFAULT x'';
CREATE INDEX contact_challenge_asked ON contact_challenge (asked, created_ms);
