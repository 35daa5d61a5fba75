-- Processes of one client may share a name, as the replicas of a deployment do: each has a row of its
-- own. The instance is what the process says that it is, else the address that it asked from.

CREATE TABLE verifier_next (
    client   text NOT NULL,    -- of auth.clients
    name     text NOT NULL,    -- the follower's own
    instance text NOT NULL,
    version  text NOT NULL,
    keys     text,             -- key ids with commas between them; NULL where it does not tell
    seen_ms  integer NOT NULL, -- ms since 1970 by the database's clock
    lag_ms   integer NOT NULL, -- how old what it was told was then
    PRIMARY KEY (client, name, instance)
) WITHOUT ROWID;
INSERT INTO verifier_next (client, name, instance, version, keys, seen_ms, lag_ms)
SELECT client, name, '', version, keys, seen_ms, lag_ms FROM verifier;
DROP TABLE verifier;
ALTER TABLE verifier_next RENAME TO verifier;
