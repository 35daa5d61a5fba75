-- Events on their way out. Owner: modules/outbox; its package comment explains the tables.
-- Times in *_ms are milliseconds since 1970 by the database's clock.

-- One row: what every writer must agree on.
CREATE TABLE outbox_setting (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    shards     integer NOT NULL CHECK (shards > 0),
    segment_ms bigint NOT NULL CHECK (segment_ms > 0) -- how long events go to one segment
);
INSERT INTO outbox_setting (shards, segment_ms) VALUES (96, 43200000);

-- CACHE 1: with more, a session would hold back low ids while others commit high ones.
CREATE SEQUENCE outbox_event_id AS bigint CACHE 1;

-- Append-only. The segments are a ring in time: all of them exist from the start, so that
-- a writer can never miss one, and each is emptied with TRUNCATE, for which a relay needs
-- no ownership of the table and waits for no one who reads or writes another segment.
CREATE TABLE outbox_event (
    id         bigint NOT NULL,
    created_ms bigint NOT NULL,
    key_seq    bigint NOT NULL,
    event_id   uuid NOT NULL,
    segment    smallint NOT NULL,
    type       text NOT NULL,
    key        text NOT NULL,
    subject    text NOT NULL,
    source     text NOT NULL,
    dataschema text NOT NULL,
    time       text NOT NULL, -- RFC 3339, as it is sent
    data       text NOT NULL, -- compact JSON, as it is sent
    PRIMARY KEY (id, segment)
) PARTITION BY LIST (segment);
CREATE TABLE outbox_event_00 PARTITION OF outbox_event FOR VALUES IN (0);
CREATE TABLE outbox_event_01 PARTITION OF outbox_event FOR VALUES IN (1);
CREATE TABLE outbox_event_02 PARTITION OF outbox_event FOR VALUES IN (2);
CREATE TABLE outbox_event_03 PARTITION OF outbox_event FOR VALUES IN (3);
CREATE TABLE outbox_event_04 PARTITION OF outbox_event FOR VALUES IN (4);
CREATE TABLE outbox_event_05 PARTITION OF outbox_event FOR VALUES IN (5);
CREATE TABLE outbox_event_06 PARTITION OF outbox_event FOR VALUES IN (6);
CREATE TABLE outbox_event_07 PARTITION OF outbox_event FOR VALUES IN (7);
CREATE TABLE outbox_event_08 PARTITION OF outbox_event FOR VALUES IN (8);
CREATE TABLE outbox_event_09 PARTITION OF outbox_event FOR VALUES IN (9);
CREATE TABLE outbox_event_10 PARTITION OF outbox_event FOR VALUES IN (10);
CREATE TABLE outbox_event_11 PARTITION OF outbox_event FOR VALUES IN (11);
CREATE TABLE outbox_event_12 PARTITION OF outbox_event FOR VALUES IN (12);
CREATE TABLE outbox_event_13 PARTITION OF outbox_event FOR VALUES IN (13);
CREATE TABLE outbox_event_14 PARTITION OF outbox_event FOR VALUES IN (14);
CREATE TABLE outbox_event_15 PARTITION OF outbox_event FOR VALUES IN (15);

-- The to-do list: a row is an event that the sink has not acknowledged. The order of the
-- columns leaves no padding.
CREATE TABLE outbox_pending (
    shard   smallint NOT NULL,
    segment smallint NOT NULL,
    bytes   integer NOT NULL,
    id      bigint NOT NULL,
    replay  boolean NOT NULL DEFAULT false,
    PRIMARY KEY (shard, id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_delay = 0);

-- The last sequence number given out for a key. Its row lock orders the writers of the key.
CREATE TABLE outbox_key (
    key text PRIMARY KEY,
    seq bigint NOT NULL
) WITH (fillfactor = 70);

CREATE TABLE outbox_relay (
    id         uuid PRIMARY KEY,
    name       text NOT NULL,   -- host and process, for people
    started_ms bigint NOT NULL,
    until_ms   bigint NOT NULL, -- counted as living until then
    rate       double precision NOT NULL DEFAULT 0 -- events a second, lately
) WITH (fillfactor = 50);

CREATE TABLE outbox_shard (
    shard    smallint PRIMARY KEY,
    owner    uuid,
    epoch    bigint NOT NULL DEFAULT 0, -- + 1 whenever what an owner remembers is void
    until_ms bigint NOT NULL DEFAULT 0, -- the lease
    low      bigint NOT NULL DEFAULT 0  -- no pending id of the shard is, or can come, at or below
) WITH (fillfactor = 50);
INSERT INTO outbox_shard (shard) SELECT generate_series(0, 95);

-- How many partitions the order of keys relies on, for each place events went to.
CREATE TABLE outbox_target (
    name       text PRIMARY KEY,
    partitions integer NOT NULL CHECK (partitions > 0)
);

-- A key one of whose events was refused for good. Nothing of the key is sent meanwhile.
CREATE TABLE outbox_parked_key (
    key       text PRIMARY KEY,
    shard     smallint NOT NULL,
    event     bigint NOT NULL, -- the id that was refused
    error     text NOT NULL,
    parked_ms bigint NOT NULL
);

-- The events that wait with their key: the refused one and all later ones.
CREATE TABLE outbox_dead (
    id      bigint PRIMARY KEY,
    key     text NOT NULL,
    segment smallint NOT NULL,
    bytes   integer NOT NULL,
    replay  boolean NOT NULL
);
CREATE INDEX outbox_dead_key ON outbox_dead (key);

-- One event, in the caller's transaction. A function because its plans are kept for the
-- session: as one statement of text the same work costs writers three times as much.
CREATE FUNCTION outbox_add(p_hash integer, p_bytes integer, p_event_id uuid, p_type text, p_key text,
    p_subject text, p_source text, p_dataschema text, p_time text, p_data text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    o outbox_setting;
    n bigint;
    i bigint;
    now_ms bigint;
    ring smallint;
BEGIN
    SELECT * INTO STRICT o FROM outbox_setting;
    INSERT INTO outbox_key AS k (key, seq) VALUES (p_key, 1)
        ON CONFLICT (key) DO UPDATE SET seq = k.seq + 1 RETURNING seq INTO n;
    -- Only now, with the key locked: of two writers of a key the one that commits first
    -- has the lower id.
    i := nextval('outbox_event_id');
    now_ms := extract(epoch FROM clock_timestamp()) * 1000;
    ring := now_ms / o.segment_ms % 16;
    INSERT INTO outbox_event (id, segment, created_ms, key_seq, event_id, type, key, subject, source, dataschema, time, data)
        VALUES (i, ring, now_ms, n, p_event_id, p_type, p_key, p_subject, p_source, p_dataschema, p_time, p_data);
    INSERT INTO outbox_pending (shard, segment, bytes, id) VALUES (p_hash % o.shards, ring, p_bytes, i);
END $$;
