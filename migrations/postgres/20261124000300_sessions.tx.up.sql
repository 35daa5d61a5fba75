-- Device sessions, where no Redis keeps them. Owner: modules/auth/internal/session, whose
-- package comment draws the states. Times in *_ms are milliseconds since 1970 by the
-- database's clock.

CREATE TABLE session (
    id                 uuid PRIMARY KEY,
    user_id            uuid NOT NULL,
    epoch              bigint NOT NULL, -- users.session_epoch when it began
    generation         bigint NOT NULL, -- of the current refresh token
    hash               bytea NOT NULL,  -- of its secret
    previous           bytea NOT NULL,  -- hash of the one before; empty at first
    replay_until_ms    bigint NOT NULL, -- until then the one before still yields the current one
    sealed             bytea,           -- the current one, under a key made of the one before
    device_name        text NOT NULL,
    user_agent         text NOT NULL,
    ip                 text NOT NULL,
    auth_ms            bigint NOT NULL,
    created_ms         bigint NOT NULL,
    last_used_ms       bigint NOT NULL,
    expires_ms         bigint NOT NULL,
    idle_expires_ms    bigint NOT NULL CHECK (idle_expires_ms <= expires_ms),
    stopped_ms         bigint,          -- a token was used again; the revocation is to be committed
    stopped_generation bigint,          -- which token
    stopped_user_agent text,
    stopped_ip         text
);
CREATE INDEX session_user_id ON session (user_id);
CREATE INDEX session_idle_expires ON session (idle_expires_ms) WHERE stopped_ms IS NULL;
CREATE INDEX session_sealed ON session (replay_until_ms) WHERE sealed IS NOT NULL;
CREATE INDEX session_stopped ON session (stopped_ms) WHERE stopped_ms IS NOT NULL;
