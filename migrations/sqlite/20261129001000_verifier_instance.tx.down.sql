-- Followers come again within seconds.
DROP TABLE verifier;
CREATE TABLE verifier (
    client   text NOT NULL,    -- of auth.clients
    name     text NOT NULL,    -- the follower's own
    version  text NOT NULL,
    keys     text,             -- key ids with commas between them; NULL where it does not tell
    seen_ms  integer NOT NULL, -- ms since 1970 by the database's clock
    lag_ms   integer NOT NULL, -- how old what it was told was then
    PRIMARY KEY (client, name)
) WITHOUT ROWID;
