-- What has ended and could still be accepted by somebody who verifies tokens alone, for
-- /oauth2/revocations. Triggers write the rows, so that no way of ending can be missed: neither
-- one of the release before, which runs on beside this one, nor a statement of an operator.
-- Owner: modules/auth/internal/feed.

CREATE TABLE revocation (
    id            integer PRIMARY KEY AUTOINCREMENT, -- in the order of commits: there is one writer
    type          text NOT NULL CHECK (type IN ('session', 'account', 'key')),
    user_id       text,             -- of a session and an account
    sid           text,             -- of a session
    session_epoch integer,          -- of an account: what was issued under a lower one is over,
    kept_sid      text,             -- but for this session
    kid           text,             -- of a key
    expires_ms    integer NOT NULL  -- nobody can accept what it ends after that; ms since 1970
);
CREATE INDEX revocation_expires_ms ON revocation (expires_ms);

-- When the last access token that was issued up to now has expired, whichever server issued it,
-- with five minutes for clocks that differ and for requests under way. Where no key signs, the
-- shared secret does, and of its tokens only the longest life that the settings allow is known.
CREATE VIEW revocation_until (ms) AS
    SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS integer) + 1000 * (300 + coalesce(
        (SELECT CASE WHEN sum(status = 'active') > 0 THEN max(token_ttl) END FROM signing_key WHERE status IN ('active', 'retiring')), 86400));

CREATE TRIGGER revocation_of_account_ended AFTER UPDATE OF session_epoch ON users WHEN NEW.session_epoch > OLD.session_epoch
BEGIN
    INSERT INTO revocation (type, user_id, session_epoch, kept_sid, expires_ms)
        VALUES ('account', NEW.id, NEW.session_epoch, NEW.kept_sid, (SELECT ms FROM revocation_until));
END;
CREATE TRIGGER revocation_of_account_deleted AFTER DELETE ON users
BEGIN
    INSERT INTO revocation (type, user_id, session_epoch, expires_ms)
        VALUES ('account', OLD.id, OLD.session_epoch + 1, (SELECT ms FROM revocation_until));
END;
CREATE TRIGGER revocation_of_session AFTER INSERT ON revoked_session
BEGIN
    INSERT INTO revocation (type, user_id, sid, expires_ms) VALUES ('session', NEW.user_id, NEW.sid, (SELECT ms FROM revocation_until));
END;
-- Who has stolen a key makes tokens of any age: the fact outlives every key set that is kept.
CREATE TRIGGER revocation_of_key AFTER UPDATE OF status ON signing_key
WHEN NEW.status IN ('retired', 'revoked') AND NEW.status <> OLD.status
BEGIN
    INSERT INTO revocation (type, kid, expires_ms)
        VALUES ('key', NEW.kid, CAST((julianday('now') - 2440587.5) * 86400000 AS integer) + 2592000000);
END;

INSERT INTO revocation (type, user_id, session_epoch, kept_sid, expires_ms)
    SELECT 'account', id, session_epoch, kept_sid, ms FROM users, revocation_until
    WHERE julianday(sessions_ended_at) > julianday('now') - 1;
INSERT INTO revocation (type, user_id, sid, expires_ms)
    SELECT 'session', user_id, sid, ms FROM revoked_session, revocation_until WHERE julianday(revoked_at) > julianday('now') - 1;
INSERT INTO revocation (type, kid, expires_ms)
    SELECT 'key', kid, CAST((julianday('now') - 2440587.5) * 86400000 AS integer) + 2592000000 FROM signing_key WHERE status = 'revoked';
