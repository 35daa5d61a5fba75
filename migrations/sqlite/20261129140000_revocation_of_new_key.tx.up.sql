-- A key that has signed nothing yet has no token_ttl. As long as no server has stored one, a token
-- that is being signed with it may live as long as the settings allow.
DROP VIEW revocation_until;
CREATE VIEW revocation_until (ms) AS
    SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS integer) + 1000 * (300 + coalesce(
        (SELECT CASE WHEN sum(status = 'active') > 0 THEN max(CASE token_ttl WHEN 0 THEN 86400 ELSE token_ttl END) END FROM signing_key WHERE status IN ('active', 'retiring')), 86400));
