-- Accounts, what ended of their sessions, and the keys that sign their tokens. Owner: modules/auth.

CREATE TABLE users (
    id                  text PRIMARY KEY,
    username            text NOT NULL,        -- as typed, for display
    username_canonical  text NOT NULL,        -- what is compared
    password_hash       text NOT NULL,
    status              text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled')),
    -- Every session begun under a lower epoch is over, but for kept_sid, which asked for it.
    session_epoch       integer NOT NULL DEFAULT 0,
    kept_sid            text,
    sessions_ended_at   timestamp,    -- when the epoch was last raised
    created_at          timestamp NOT NULL,
    updated_at          timestamp NOT NULL,
    password_changed_at timestamp NOT NULL
);
CREATE UNIQUE INDEX users_username_canonical ON users (username_canonical);

CREATE TABLE revoked_session (
    sid        text PRIMARY KEY,
    user_id    text NOT NULL,
    reason     text NOT NULL,
    revoked_at timestamp NOT NULL,
    expires_at timestamp NOT NULL           -- no token of the session can live longer
);
CREATE INDEX revoked_session_expires_at ON revoked_session (expires_at);

CREATE TABLE signing_key (
    kid        text PRIMARY KEY,
    algorithm  text NOT NULL,
    status     text NOT NULL CHECK (status IN ('staged', 'active', 'retiring', 'retired', 'revoked')),
    public_jwk text NOT NULL,
    sealed     blob NOT NULL,                -- the private key, under a key derived from the secret
    staged_at  timestamp NOT NULL,          -- in JWKS since
    active_at  timestamp,                   -- signing since
    retired_at timestamp                    -- no longer signing since
);
CREATE UNIQUE INDEX signing_key_one_active ON signing_key (status) WHERE status = 'active';
