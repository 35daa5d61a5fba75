-- A key that has signed nothing yet has no token_ttl. As long as no server has stored one, a token
-- that is being signed with it may live as long as the settings allow.
CREATE OR REPLACE FUNCTION revocation_until_ms() RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint + 1000 * (300 + coalesce(
        (SELECT max(CASE token_ttl WHEN 0 THEN 86400 ELSE token_ttl END) FROM signing_key WHERE status IN ('active', 'retiring') HAVING bool_or(status = 'active')), 86400))
$$;
