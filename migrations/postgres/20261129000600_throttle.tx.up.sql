-- The counters of failed sign-ins that all servers share where there is no Redis: see
-- modules/auth/internal/throttle. Owner: modules/auth/internal/throttle.
--
-- It is logged, though writers do not wait for the disk: a crash forgets less than a second, and a standby
-- that is promoted knows what it had received. An unlogged table would be empty after either.
CREATE TABLE throttle_counter (
    id           bytea PRIMARY KEY, -- a keyed hash of what is counted
    failed       bigint NOT NULL,
    pending      bigint NOT NULL,
    at_ms        bigint NOT NULL,   -- when it was written; all times are ms since 1970 by the database's clock
    until_ms     bigint NOT NULL,
    mark_ms      bigint NOT NULL,
    owner        bytea,             -- the id of another counter
    counted      bigint NOT NULL,
    -- Hours since 1970 after which the row may be deleted. It changes seldom, so most updates of a row
    -- change no index and stay on its page.
    expires_hour integer NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX throttle_counter_expires ON throttle_counter (expires_hour);
