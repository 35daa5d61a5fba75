-- What has ended and could still be accepted by somebody who verifies tokens alone, for
-- /oauth2/revocations. Triggers write the rows, so that no way of ending can be missed: neither
-- one of the release before, which runs on beside this one, nor a statement of an operator.
-- Owner: modules/auth/internal/feed.

CREATE TABLE revocation (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- in no order that means anything
    -- Which transaction wrote it: by that a reader knows what it could not see when it last looked.
    xid           xid8 NOT NULL DEFAULT pg_current_xact_id(),
    type          text NOT NULL CHECK (type IN ('session', 'account', 'key')),
    user_id       uuid,            -- of a session and an account
    sid           uuid,            -- of a session
    session_epoch bigint,          -- of an account: what was issued under a lower one is over,
    kept_sid      uuid,            -- but for this session
    kid           text,            -- of a key
    expires_ms    bigint NOT NULL  -- nobody can accept what it ends after that; ms since 1970
);
CREATE INDEX revocation_xid ON revocation (xid);
CREATE INDEX revocation_expires_ms ON revocation (expires_ms);

-- When the last access token that was issued up to now has expired, whichever server issued it,
-- with five minutes for clocks that differ and for requests under way. Where no key signs, the
-- shared secret does, and of its tokens only the longest life that the settings allow is known.
CREATE FUNCTION revocation_until_ms() RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint + 1000 * (300 + coalesce(
        (SELECT max(token_ttl) FROM signing_key WHERE status IN ('active', 'retiring') HAVING bool_or(status = 'active')), 86400))
$$;

-- They run as their owner: who ends sessions can neither write facts of its own nor take one back,
-- and needs no right that it did not have before.
CREATE FUNCTION revocation_of_session() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO revocation (type, user_id, sid, expires_ms) VALUES ('session', NEW.user_id, NEW.sid, revocation_until_ms());
    RETURN NULL;
END $$;

CREATE FUNCTION revocation_of_account() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO revocation (type, user_id, session_epoch, expires_ms)
            VALUES ('account', OLD.id, OLD.session_epoch + 1, revocation_until_ms());
    ELSE
        INSERT INTO revocation (type, user_id, session_epoch, kept_sid, expires_ms)
            VALUES ('account', NEW.id, NEW.session_epoch, NEW.kept_sid, revocation_until_ms());
    END IF;
    RETURN NULL;
END $$;

-- Who has stolen a key makes tokens of any age: the fact outlives every key set that is kept.
CREATE FUNCTION revocation_of_key() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO revocation (type, kid, expires_ms)
        VALUES ('key', NEW.kid, (extract(epoch FROM clock_timestamp()) * 1000)::bigint + 2592000000);
    RETURN NULL;
END $$;

-- As their owner they must look nowhere else than here.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['revocation_of_session', 'revocation_of_account', 'revocation_of_key'] LOOP
        EXECUTE format('ALTER FUNCTION %I() SET search_path = %I, pg_temp', name, current_schema());
    END LOOP;
END $$;

-- In the order in which transactions lock these tables. From here on nobody can end anything
-- without a fact, and what was ended before is there to be read below.
CREATE TRIGGER revocation_of_account_ended AFTER UPDATE OF session_epoch ON users
    FOR EACH ROW WHEN (NEW.session_epoch > OLD.session_epoch) EXECUTE FUNCTION revocation_of_account();
CREATE TRIGGER revocation_of_account_deleted AFTER DELETE ON users FOR EACH ROW EXECUTE FUNCTION revocation_of_account();
CREATE TRIGGER revocation_of_session AFTER INSERT ON revoked_session FOR EACH ROW EXECUTE FUNCTION revocation_of_session();
CREATE TRIGGER revocation_of_key AFTER UPDATE OF status ON signing_key
    FOR EACH ROW WHEN (NEW.status IN ('retired', 'revoked') AND NEW.status <> OLD.status) EXECUTE FUNCTION revocation_of_key();

INSERT INTO revocation (type, user_id, session_epoch, kept_sid, expires_ms)
    SELECT 'account', id, session_epoch, kept_sid, revocation_until_ms() FROM users WHERE sessions_ended_at > now() - interval '1 day';
INSERT INTO revocation (type, user_id, sid, expires_ms)
    SELECT 'session', user_id, sid, revocation_until_ms() FROM revoked_session WHERE revoked_at > now() - interval '1 day';
INSERT INTO revocation (type, kid, expires_ms)
    SELECT 'key', kid, (extract(epoch FROM clock_timestamp()) * 1000)::bigint + 2592000000 FROM signing_key WHERE status = 'revoked';
