-- How the owners of accounts can be reached, the challenges that were sent to them, and what a change
-- can be undone to. Owner: modules/contact.

CREATE TABLE contact (
    id          text PRIMARY KEY,
    user_id     text NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('email')),
    address     text NOT NULL,      -- where messages are sent
    canonical   text NOT NULL,      -- what is compared
    language    text NOT NULL,      -- BCP 47, that messages to it are in; empty: not known
    verified_at timestamp,
    verified_by text CHECK (verified_by IN ('challenge', 'admin', 'import', 'undo')),
    created_at  timestamp NOT NULL
);
CREATE UNIQUE INDEX contact_of_user ON contact (user_id, kind, canonical);
CREATE UNIQUE INDEX contact_verified ON contact (kind, canonical) WHERE verified_at IS NOT NULL;

-- Only digests, under a key of the secret. A row whose account does not exist is of a reset that was
-- asked for in the name of nobody.
CREATE TABLE contact_challenge (
    id          text PRIMARY KEY,
    user_id     text NOT NULL,
    purpose     text NOT NULL CHECK (purpose IN ('verify', 'reset')),
    contact_id  text,                 -- to which it was sent; null: to nobody
    recipient   blob NOT NULL,        -- digest of the address, which counts what is sent there
    code_digest blob NOT NULL,
    link_digest blob NOT NULL,
    tries       integer NOT NULL DEFAULT 0,
    state       text NOT NULL CHECK (state IN ('live', 'used', 'ended')),
    created_ms  integer NOT NULL,
    expires_ms  integer NOT NULL
);
CREATE UNIQUE INDEX contact_challenge_live ON contact_challenge (user_id, purpose) WHERE state = 'live';
CREATE INDEX contact_challenge_user ON contact_challenge (user_id, created_ms);
CREATE INDEX contact_challenge_recipient ON contact_challenge (recipient, created_ms);
CREATE INDEX contact_challenge_created ON contact_challenge (created_ms);

CREATE TABLE contact_undo (
    id         text PRIMARY KEY,
    user_id    text NOT NULL,
    digest     blob NOT NULL,         -- of the token, under a key of the secret
    contacts   text NOT NULL,         -- JSON: those before the change
    state      text NOT NULL CHECK (state IN ('live', 'used', 'ended')),
    created_ms integer NOT NULL,
    expires_ms integer NOT NULL
);
CREATE INDEX contact_undo_user ON contact_undo (user_id, created_ms);
CREATE INDEX contact_undo_created ON contact_undo (created_ms);

-- A change of the password, of the sessions or of a contact ends every challenge in its transaction.
-- Triggers do it, so that no way of changing can be missed: neither one of the release before, which
-- runs on beside this one, nor a statement of an operator.
CREATE TRIGGER contact_challenge_of_user AFTER UPDATE OF session_epoch, password_changed_at, status ON users
WHEN NEW.session_epoch <> OLD.session_epoch OR NEW.password_changed_at <> OLD.password_changed_at OR NEW.status <> OLD.status
BEGIN
    UPDATE contact_challenge SET state = 'ended' WHERE user_id = NEW.id AND state = 'live';
END;
CREATE TRIGGER contact_of_deleted_user AFTER DELETE ON users
BEGIN
    DELETE FROM contact_undo WHERE user_id = OLD.id;
    DELETE FROM contact_challenge WHERE user_id = OLD.id;
    DELETE FROM contact WHERE user_id = OLD.id;
END;
CREATE TRIGGER contact_challenge_of_new_contact AFTER INSERT ON contact
BEGIN
    UPDATE contact_challenge SET state = 'ended' WHERE user_id = NEW.user_id AND state = 'live';
END;
CREATE TRIGGER contact_challenge_of_changed_contact AFTER UPDATE OF user_id, address, canonical, verified_at ON contact
BEGIN
    UPDATE contact_challenge SET state = 'ended' WHERE user_id IN (OLD.user_id, NEW.user_id) AND state = 'live';
END;
CREATE TRIGGER contact_challenge_of_removed_contact AFTER DELETE ON contact
BEGIN
    UPDATE contact_challenge SET state = 'ended' WHERE user_id = OLD.user_id AND state = 'live';
END;
