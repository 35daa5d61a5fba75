-- Followers see a fact when its transaction commits, and until then servers may issue tokens that
-- it ends. If the transaction stays open for long, such as an operator's, the fact would expire
-- before the last of these tokens. So the expiry counts from the commit.

CREATE FUNCTION revocation_at_commit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    until_ms bigint := revocation_until_ms();
BEGIN
    IF NEW.expires_ms < until_ms - 10000 THEN
        UPDATE revocation SET expires_ms = until_ms WHERE id = NEW.id;
    END IF;
    RETURN NULL;
END $$;

-- As its owner it must use no other schema than this one.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION revocation_at_commit() SET search_path = %I, pg_temp', current_schema());
END $$;

CREATE CONSTRAINT TRIGGER revocation_at_commit AFTER INSERT ON revocation DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.type <> 'key') EXECUTE FUNCTION revocation_at_commit();
