ALTER TABLE signing_key DROP COLUMN token_ttl;
