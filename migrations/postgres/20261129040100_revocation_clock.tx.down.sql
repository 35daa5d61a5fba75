CREATE OR REPLACE FUNCTION revocation_of_session() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO revocation (type, user_id, sid, expires_ms) VALUES ('session', NEW.user_id, NEW.sid, revocation_until_ms());
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION revocation_of_account() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
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

-- As their owner they must use no other schema than this one.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['revocation_of_session', 'revocation_of_account'] LOOP
        EXECUTE format('ALTER FUNCTION %I() SET search_path = %I, pg_temp', name, current_schema());
    END LOOP;
END $$;
