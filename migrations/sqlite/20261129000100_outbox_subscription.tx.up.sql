-- Targets besides the log, such as webhooks and mail. The package comment of modules/outbox explains
-- the tables. Times in *_ms are milliseconds since 1970 by the database's clock.

-- The row of a removed target stays, so that its id is never used again.
CREATE TABLE outbox_subscription (
    id         integer PRIMARY KEY,
    name       text NOT NULL,
    kind       text NOT NULL CHECK (kind IN ('webhook', 'mail')),
    state      text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'removed')),
    types      text NOT NULL DEFAULT '[]', -- JSON: patterns such as auth.Session*; none: only events for it alone
    url        text NOT NULL DEFAULT '',
    secrets    text NOT NULL DEFAULT '[]', -- JSON: sealed
    created_ms integer NOT NULL,
    since_ms   integer NOT NULL,           -- of the state
    reason     text NOT NULL DEFAULT ''    -- why it is paused
);
CREATE UNIQUE INDEX outbox_subscription_name ON outbox_subscription (name) WHERE state <> 'removed';
INSERT INTO outbox_subscription (id, name, kind, created_ms, since_ms)
    SELECT 1, 'mail', 'mail', now, now FROM (SELECT CAST(unixepoch('subsec') * 1000 AS integer) AS now);

-- Events for one target alone. They are in no log, and gone once they are delivered.
CREATE TABLE outbox_message (
    id         integer PRIMARY KEY AUTOINCREMENT,
    created_ms integer NOT NULL,
    event_id   text NOT NULL,
    type       text NOT NULL,
    key        text NOT NULL,
    subject    text NOT NULL,
    source     text NOT NULL,
    dataschema text NOT NULL,
    time       text NOT NULL,
    data       text NOT NULL
);

-- The to-do list of these targets: a row is an event that the target has not taken. The ids of
-- messages are counted separately; no target gets both.
CREATE TABLE outbox_delivery (
    id      integer NOT NULL,
    target  integer NOT NULL,
    shard   integer NOT NULL DEFAULT 0,     -- always 0: all writers share one file
    segment integer NOT NULL DEFAULT 0,     -- -1: it is a message
    replay  boolean NOT NULL DEFAULT false,
    held    boolean NOT NULL DEFAULT false, -- it waits with its key, which outbox_held_key has
    key     text NOT NULL,
    PRIMARY KEY (id, target)
) WITHOUT ROWID;
CREATE INDEX outbox_delivery_ready ON outbox_delivery (target, shard, id) WHERE NOT held;
CREATE INDEX outbox_delivery_held ON outbox_delivery (target, key, id) WHERE held;

-- Keys whose first event was not taken: it is tried again later, or the key is parked.
CREATE TABLE outbox_held_key (
    target    integer NOT NULL,
    key       text NOT NULL,
    shard     integer NOT NULL,
    event     integer NOT NULL, -- the one that was tried last
    attempts  integer NOT NULL, -- to deliver it; 0: it comes next
    since_ms  integer,          -- when it first failed
    next_ms   integer NOT NULL, -- not before then
    parked_ms integer,          -- since when a person must decide
    error     text NOT NULL,
    PRIMARY KEY (target, key)
) WITHOUT ROWID;
CREATE INDEX outbox_held_key_next ON outbox_held_key (target, shard, next_ms) WHERE parked_ms IS NULL;

CREATE TABLE outbox_deliverer (
    id         text PRIMARY KEY,
    name       text NOT NULL,    -- host and process, for people
    kinds      text NOT NULL,    -- JSON: of targets that it delivers to
    started_ms integer NOT NULL,
    until_ms   integer NOT NULL, -- counted as living until then
    lease_ms   integer NOT NULL
);

CREATE TABLE outbox_delivery_lease (
    target   integer NOT NULL,
    shard    integer NOT NULL,
    owner    text,
    epoch    integer NOT NULL DEFAULT 0, -- + 1 with each owner
    until_ms integer NOT NULL DEFAULT 0,
    PRIMARY KEY (target, shard)
) WITHOUT ROWID;

-- One row for each target that wants the event, in the event's transaction, whichever release writes
-- the event.
CREATE TRIGGER outbox_deliver AFTER INSERT ON outbox_event
WHEN EXISTS (SELECT 1 FROM outbox_subscription WHERE state <> 'removed' AND types <> '[]')
BEGIN
    INSERT INTO outbox_delivery (id, target, key) SELECT NEW.id, s.id, NEW.key FROM outbox_subscription s
        WHERE s.state <> 'removed' AND EXISTS (SELECT 1 FROM json_each(s.types) t WHERE NEW.type GLOB t.value);
END;

-- A release without these targets must not drop what waits for one of them.
CREATE TRIGGER outbox_event_is_idle BEFORE DELETE ON outbox_event
WHEN EXISTS (SELECT 1 FROM outbox_delivery d WHERE d.id = OLD.id AND d.segment <> -1)
BEGIN
    SELECT RAISE(IGNORE);
END;
