-- The longest lifetime, in seconds, that a server gave to tokens it signed with the key: until
-- they have expired the key must not be retired, whatever the settings of the process that does.
-- Servers from before do not write it. The default is the longest that the settings allow.
ALTER TABLE signing_key ADD COLUMN token_ttl integer NOT NULL DEFAULT 86400;
