-- What authctl restore fence has begun and done after the database was set back to an older state. A
-- row without done_ms is a fence that was interrupted: until it is finished no server starts.
-- Owner: modules/auth.

CREATE TABLE restore_fence (
    generation integer PRIMARY KEY, -- of the events that are written afterwards
    epoch      integer NOT NULL,    -- no account has a lower session_epoch afterwards
    began_ms   integer NOT NULL,    -- ms since 1970
    done_ms    integer
);
