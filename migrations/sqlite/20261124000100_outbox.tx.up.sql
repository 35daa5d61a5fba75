-- Events on their way out. Owner: modules/outbox; its package comment explains the tables.
-- Times in *_ms are milliseconds since 1970 by the database's clock.

-- One row: what every writer must agree on.
CREATE TABLE outbox_setting (
    one    integer PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    shards integer NOT NULL CHECK (shards > 0)
);
INSERT INTO outbox_setting (shards) VALUES (96);

-- Append-only. AUTOINCREMENT: an id is never used twice, also after the newest is deleted.
CREATE TABLE outbox_event (
    id         integer PRIMARY KEY AUTOINCREMENT,
    created_ms integer NOT NULL,
    key_seq    integer NOT NULL,
    event_id   text NOT NULL,
    type       text NOT NULL,
    key        text NOT NULL,
    subject    text NOT NULL,
    source     text NOT NULL,
    dataschema text NOT NULL,
    time       text NOT NULL, -- RFC 3339, as it is sent
    data       text NOT NULL  -- compact JSON, as it is sent
);

-- The to-do list: a row is an event that the sink has not acknowledged.
CREATE TABLE outbox_pending (
    shard  integer NOT NULL,
    id     integer NOT NULL,
    bytes  integer NOT NULL,
    replay boolean NOT NULL DEFAULT false,
    PRIMARY KEY (shard, id)
) WITHOUT ROWID;

-- The last sequence number given out for a key.
CREATE TABLE outbox_key (
    key text PRIMARY KEY,
    seq integer NOT NULL
) WITHOUT ROWID;

CREATE TABLE outbox_relay (
    id         text PRIMARY KEY,
    name       text NOT NULL,    -- host and process, for people
    started_ms integer NOT NULL,
    until_ms   integer NOT NULL, -- counted as living until then
    rate       real NOT NULL DEFAULT 0 -- events a second, lately
);

CREATE TABLE outbox_shard (
    shard    integer PRIMARY KEY,
    owner    text,
    epoch    integer NOT NULL DEFAULT 0, -- + 1 whenever what an owner remembers is void
    until_ms integer NOT NULL DEFAULT 0, -- the lease
    low      integer NOT NULL DEFAULT 0  -- no pending id of the shard is, or can come, at or below
);
INSERT INTO outbox_shard (shard)
    WITH RECURSIVE n(shard) AS (SELECT 0 UNION ALL SELECT shard + 1 FROM n WHERE shard < 95) SELECT shard FROM n;

-- How many partitions the order of keys relies on, for each place events went to.
CREATE TABLE outbox_target (
    name       text PRIMARY KEY,
    partitions integer NOT NULL CHECK (partitions > 0)
);

-- A key one of whose events was refused for good. Nothing of the key is sent meanwhile.
CREATE TABLE outbox_parked_key (
    key       text PRIMARY KEY,
    shard     integer NOT NULL,
    event     integer NOT NULL, -- the id that was refused
    error     text NOT NULL,
    parked_ms integer NOT NULL
);

-- The events that wait with their key: the refused one and all later ones.
CREATE TABLE outbox_dead (
    id     integer PRIMARY KEY,
    key    text NOT NULL,
    bytes  integer NOT NULL,
    replay boolean NOT NULL
);
CREATE INDEX outbox_dead_key ON outbox_dead (key);
