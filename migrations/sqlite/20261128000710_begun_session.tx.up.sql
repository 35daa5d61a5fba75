-- The sessions that were announced, written with the event: what is not here has not begun, and
-- nobody is told of its end. A row goes when its session is revoked or no token of it can live.
-- Owner: modules/auth.

CREATE TABLE begun_session (
    sid        text PRIMARY KEY,
    user_id    text NOT NULL,
    epoch      integer NOT NULL,      -- users.session_epoch when it began
    began_at   timestamp NOT NULL,
    expires_at timestamp NOT NULL
);
CREATE INDEX begun_session_expires_at ON begun_session (expires_at);

-- Whether the server that wrote the record also writes begun_session.
ALTER TABLE session ADD COLUMN recorded integer NOT NULL DEFAULT 0;
