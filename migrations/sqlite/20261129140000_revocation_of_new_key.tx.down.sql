DROP VIEW revocation_until;
CREATE VIEW revocation_until (ms) AS
    SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS integer) + 1000 * (300 + coalesce(
        (SELECT CASE WHEN sum(status = 'active') > 0 THEN max(token_ttl) END FROM signing_key WHERE status IN ('active', 'retiring')), 86400));
