-- The sessions that were announced, written with the event: what is not here has not begun, and
-- nobody is told of its end. A row goes when its session is revoked or no token of it can live.
-- Owner: modules/auth.

CREATE TABLE begun_session (
    sid        uuid PRIMARY KEY,
    user_id    uuid NOT NULL,
    epoch      bigint NOT NULL,      -- users.session_epoch when it began
    began_at   timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX begun_session_expires_at ON begun_session (expires_at);

-- Whether the server that wrote the record also writes begun_session.
ALTER TABLE session ADD COLUMN recorded boolean NOT NULL DEFAULT false;
