-- Accounts, what ended of their sessions, and the keys that sign their tokens. Owner: modules/auth.

CREATE TABLE users (
    id                  uuid PRIMARY KEY,
    username            text NOT NULL,        -- as typed, for display
    username_canonical  text NOT NULL,        -- what is compared
    password_hash       text NOT NULL,
    status              text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled')),
    -- Every session begun under a lower epoch is over, but for kept_sid, which asked for it.
    session_epoch       bigint NOT NULL DEFAULT 0,
    kept_sid            uuid,
    sessions_ended_at   timestamptz,  -- when the epoch was last raised
    created_at          timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL,
    password_changed_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX users_username_canonical ON users (username_canonical);

CREATE TABLE revoked_session (
    sid        uuid PRIMARY KEY,
    user_id    uuid NOT NULL,
    reason     text NOT NULL,
    revoked_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL           -- no token of the session can live longer
);
CREATE INDEX revoked_session_expires_at ON revoked_session (expires_at);

CREATE TABLE signing_key (
    kid        text PRIMARY KEY,
    algorithm  text NOT NULL,
    status     text NOT NULL CHECK (status IN ('staged', 'active', 'retiring', 'retired', 'revoked')),
    public_jwk text NOT NULL,
    sealed     bytea NOT NULL,                -- the private key, under a key derived from the secret
    staged_at  timestamptz NOT NULL,          -- in JWKS since
    active_at  timestamptz,                   -- signing since
    retired_at timestamptz                    -- no longer signing since
);
CREATE UNIQUE INDEX signing_key_one_active ON signing_key (status) WHERE status = 'active';
