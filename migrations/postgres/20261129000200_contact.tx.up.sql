-- How the owners of accounts can be reached, the challenges that were sent to them, and what a change
-- can be undone to. Owner: modules/contact.

CREATE TABLE contact (
    id          uuid PRIMARY KEY,
    user_id     uuid NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('email')),
    address     text NOT NULL,      -- where messages are sent
    canonical   text NOT NULL,      -- what is compared
    language    text NOT NULL,      -- BCP 47, that messages to it are in; empty: not known
    verified_at timestamptz,
    verified_by text CHECK (verified_by IN ('challenge', 'admin', 'import', 'undo')),
    created_at  timestamptz NOT NULL
);
CREATE UNIQUE INDEX contact_of_user ON contact (user_id, kind, canonical);
CREATE UNIQUE INDEX contact_verified ON contact (kind, canonical) WHERE verified_at IS NOT NULL;

-- Only digests, under a key of the secret. A row whose account does not exist is of a reset that was
-- asked for in the name of nobody.
CREATE TABLE contact_challenge (
    id          uuid PRIMARY KEY,
    user_id     uuid NOT NULL,
    purpose     text NOT NULL CHECK (purpose IN ('verify', 'reset')),
    contact_id  uuid,                 -- to which it was sent; null: to nobody
    recipient   bytea NOT NULL,       -- digest of the address, which counts what is sent there
    code_digest bytea NOT NULL,
    link_digest bytea NOT NULL,
    tries       integer NOT NULL DEFAULT 0,
    state       text NOT NULL CHECK (state IN ('live', 'used', 'ended')),
    created_ms  bigint NOT NULL,
    expires_ms  bigint NOT NULL
);
CREATE UNIQUE INDEX contact_challenge_live ON contact_challenge (user_id, purpose) WHERE state = 'live';
CREATE INDEX contact_challenge_user ON contact_challenge (user_id, created_ms);
CREATE INDEX contact_challenge_recipient ON contact_challenge (recipient, created_ms);
CREATE INDEX contact_challenge_created ON contact_challenge (created_ms);

CREATE TABLE contact_undo (
    id         uuid PRIMARY KEY,
    user_id    uuid NOT NULL,
    digest     bytea NOT NULL,        -- of the token, under a key of the secret
    contacts   text NOT NULL,         -- JSON: those before the change
    state      text NOT NULL CHECK (state IN ('live', 'used', 'ended')),
    created_ms bigint NOT NULL,
    expires_ms bigint NOT NULL
);
CREATE INDEX contact_undo_user ON contact_undo (user_id, created_ms);
CREATE INDEX contact_undo_created ON contact_undo (created_ms);

-- A change of the password, of the sessions or of a contact ends every challenge in its transaction.
-- Triggers do it, so that no way of changing can be missed: neither one of the release before, which
-- runs on beside this one, nor a statement of an operator. They run as their owner, so that servers
-- whose role has no rights on these tables yet go on.
CREATE FUNCTION contact_end_challenges_of_user() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    UPDATE contact_challenge SET state = 'ended' WHERE user_id = NEW.id AND state = 'live';
    RETURN NULL;
END $$;

CREATE FUNCTION contact_forget_user() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    DELETE FROM contact_undo WHERE user_id = OLD.id;
    DELETE FROM contact_challenge WHERE user_id = OLD.id;
    DELETE FROM contact WHERE user_id = OLD.id;
    RETURN NULL;
END $$;

CREATE FUNCTION contact_end_challenges_of_contact() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        UPDATE contact_challenge SET state = 'ended' WHERE user_id = OLD.user_id AND state = 'live';
    END IF;
    IF TG_OP <> 'DELETE' THEN
        UPDATE contact_challenge SET state = 'ended' WHERE user_id = NEW.user_id AND state = 'live';
    END IF;
    RETURN NULL;
END $$;

-- As their owner they must look nowhere else than here.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['contact_end_challenges_of_user', 'contact_forget_user', 'contact_end_challenges_of_contact'] LOOP
        EXECUTE format('ALTER FUNCTION %I() SET search_path = %I, pg_temp', name, current_schema());
    END LOOP;
END $$;

CREATE TRIGGER contact_challenge_of_user AFTER UPDATE OF session_epoch, password_changed_at, status ON users
    FOR EACH ROW WHEN (NEW.session_epoch <> OLD.session_epoch OR NEW.password_changed_at <> OLD.password_changed_at
        OR NEW.status <> OLD.status)
    EXECUTE FUNCTION contact_end_challenges_of_user();
CREATE TRIGGER contact_of_deleted_user AFTER DELETE ON users FOR EACH ROW EXECUTE FUNCTION contact_forget_user();
CREATE TRIGGER contact_challenge_of_new_contact AFTER INSERT OR DELETE ON contact
    FOR EACH ROW EXECUTE FUNCTION contact_end_challenges_of_contact();
CREATE TRIGGER contact_challenge_of_changed_contact AFTER UPDATE OF user_id, address, canonical, verified_at ON contact
    FOR EACH ROW EXECUTE FUNCTION contact_end_challenges_of_contact();
