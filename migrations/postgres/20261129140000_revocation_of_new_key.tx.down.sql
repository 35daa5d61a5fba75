CREATE OR REPLACE FUNCTION revocation_until_ms() RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint + 1000 * (300 + coalesce(
        (SELECT max(token_ttl) FROM signing_key WHERE status IN ('active', 'retiring') HAVING bool_or(status = 'active')), 86400))
$$;
