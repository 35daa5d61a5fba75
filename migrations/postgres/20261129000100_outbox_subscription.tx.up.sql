-- Targets besides the log, such as webhooks and mail. The package comment of modules/outbox explains
-- the tables. Times in *_ms are milliseconds since 1970 by the database's clock.

-- In the order in which writers lock: with the table first they hold none of what follows.
LOCK TABLE outbox_event IN SHARE ROW EXCLUSIVE MODE;

-- The row of a removed target stays, so that its id is never used again.
CREATE TABLE outbox_subscription (
    id         smallint PRIMARY KEY,
    name       text NOT NULL,
    kind       text NOT NULL CHECK (kind IN ('webhook', 'mail')),
    state      text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'removed')),
    types      text NOT NULL DEFAULT '[]', -- JSON: patterns such as auth.Session*; none: only events for it alone
    url        text NOT NULL DEFAULT '',
    secrets    text NOT NULL DEFAULT '[]', -- JSON: sealed
    created_ms bigint NOT NULL,
    since_ms   bigint NOT NULL,            -- of the state
    reason     text NOT NULL DEFAULT ''    -- why it is paused
);
CREATE UNIQUE INDEX outbox_subscription_name ON outbox_subscription (name) WHERE state <> 'removed';
INSERT INTO outbox_subscription (id, name, kind, created_ms, since_ms)
    SELECT 1, 'mail', 'mail', now, now FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now) n;

-- Whether a target wants events of the log. Writers read it in any case, and may not read the targets.
ALTER TABLE outbox_setting ADD COLUMN deliver boolean NOT NULL DEFAULT false;

-- Events for one target alone. They are in no log, and gone once they are delivered.
CREATE TABLE outbox_message (
    id         bigint PRIMARY KEY,
    created_ms bigint NOT NULL,
    event_id   uuid NOT NULL,
    type       text NOT NULL,
    key        text NOT NULL,
    subject    text NOT NULL,
    source     text NOT NULL,
    dataschema text NOT NULL,
    time       text NOT NULL,
    data       text NOT NULL
);

-- The to-do list of these targets: a row is an event that the target has not taken.
CREATE TABLE outbox_delivery (
    id      bigint NOT NULL,
    target  smallint NOT NULL,
    shard   smallint NOT NULL,
    segment smallint NOT NULL,              -- of the event; -1: it is a message
    replay  boolean NOT NULL DEFAULT false,
    held    boolean NOT NULL DEFAULT false, -- it waits with its key, which outbox_held_key has
    key     text NOT NULL,
    PRIMARY KEY (id, target)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_delay = 0);
CREATE INDEX outbox_delivery_ready ON outbox_delivery (target, shard, id) WHERE NOT held;
CREATE INDEX outbox_delivery_held ON outbox_delivery (target, key, id) WHERE held;

-- Keys whose first event was not taken: it is tried again later, or the key is parked.
CREATE TABLE outbox_held_key (
    target    smallint NOT NULL,
    key       text NOT NULL,
    shard     smallint NOT NULL,
    event     bigint NOT NULL,  -- the one that was tried last
    attempts  integer NOT NULL, -- to deliver it; 0: it comes next
    since_ms  bigint,           -- when it first failed
    next_ms   bigint NOT NULL,  -- not before then
    parked_ms bigint,           -- since when a person must decide
    error     text NOT NULL,
    PRIMARY KEY (target, key)
) WITH (fillfactor = 70);
CREATE INDEX outbox_held_key_next ON outbox_held_key (target, shard, next_ms) WHERE parked_ms IS NULL;

CREATE TABLE outbox_deliverer (
    id         uuid PRIMARY KEY,
    name       text NOT NULL,   -- host and process, for people
    kinds      text NOT NULL,   -- JSON: of targets that it delivers to
    started_ms bigint NOT NULL,
    until_ms   bigint NOT NULL, -- counted as living until then
    lease_ms   bigint NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE outbox_delivery_lease (
    target   smallint NOT NULL,
    shard    smallint NOT NULL,
    owner    uuid,
    epoch    bigint NOT NULL DEFAULT 0, -- + 1 with each owner
    until_ms bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (target, shard)
) WITH (fillfactor = 50);

-- One row for each target that wants the event, in the event's transaction. Writers may read neither
-- the targets nor what waits for them, so it runs as its owner.
CREATE FUNCTION outbox_deliver(p_id bigint, p_segment smallint, p_hash integer, p_type text, p_key text)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO outbox_delivery (id, target, shard, segment, key)
        SELECT p_id, s.id, p_hash % 16, p_segment, p_key FROM outbox_subscription s
        WHERE s.state <> 'removed' AND EXISTS (SELECT 1 FROM json_array_elements_text(s.types::json) t (pattern)
            WHERE p_type LIKE replace(replace(pattern, '_', '\_'), '*', '%'));
END $$;

-- An event for one target alone. Messages of a key come one after another, as events do.
CREATE FUNCTION outbox_add_message(p_target text, p_hash integer, p_event_id uuid, p_type text, p_key text,
    p_subject text, p_source text, p_dataschema text, p_time text, p_data text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    t smallint;
    i bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('outbox_message ' || p_key, 0));
    SELECT s.id INTO t FROM outbox_subscription s WHERE s.name = p_target AND s.state <> 'removed' AND s.types = '[]';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    i := nextval('outbox_event_id');
    INSERT INTO outbox_message (id, created_ms, event_id, type, key, subject, source, dataschema, time, data)
        VALUES (i, extract(epoch FROM clock_timestamp()) * 1000, p_event_id, p_type, p_key, p_subject, p_source,
            p_dataschema, p_time, p_data);
    INSERT INTO outbox_delivery (id, target, shard, segment, key) VALUES (i, t, p_hash % 16, -1, p_key);
    RETURN true;
END $$;

-- A release without these targets must not drop what waits for one of them.
CREATE FUNCTION outbox_segment_is_idle() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM outbox_delivery WHERE segment = TG_ARGV[0]::smallint) THEN
        RAISE EXCEPTION 'events of segment % wait for a target: see authctl outbox target list', TG_ARGV[0];
    END IF;
    RETURN NULL;
END $$;

-- As their owner they must look nowhere else than here.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION outbox_deliver SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION outbox_add_message SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION outbox_segment_is_idle SET search_path = %I, pg_temp', current_schema());
    FOR n IN 0..15 LOOP
        EXECUTE format('CREATE TRIGGER outbox_segment_is_idle BEFORE TRUNCATE ON %I '
            'FOR EACH STATEMENT EXECUTE FUNCTION outbox_segment_is_idle(%s)', 'outbox_event_' || lpad(n::text, 2, '0'), n);
    END LOOP;
END $$;

-- The arguments are those of the former one: the releases before this one call it as well, and their
-- events reach the new targets too.
CREATE OR REPLACE FUNCTION outbox_add(p_hash integer, p_bytes integer, p_event_id uuid, p_type text, p_key text,
    p_subject text, p_source text, p_dataschema text, p_time text, p_data text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    o outbox_setting;
    n bigint;
    i bigint;
    now_ms bigint;
    ring smallint;
BEGIN
    -- First of all, and kept until the transaction ends. Whoever changes the number of shards
    -- waits for it too, so the settings read below it stay as they are.
    LOCK TABLE ONLY outbox_event IN ROW EXCLUSIVE MODE;
    INSERT INTO outbox_key AS k (key, seq) VALUES (p_key, 1)
        ON CONFLICT (key) DO UPDATE SET seq = k.seq + 1 RETURNING seq INTO n;
    -- Only now, with the key locked: of two writers of a key the one that commits first
    -- has the lower id. The clock is read here for the same reason: nothing is waited for
    -- between it and the choice of the segment. And so are the settings and the targets: a target
    -- that gets an event of a key gets all later ones.
    SELECT * INTO STRICT o FROM outbox_setting;
    i := nextval('outbox_event_id');
    now_ms := extract(epoch FROM clock_timestamp()) * 1000;
    ring := now_ms / o.segment_ms % 16;
    INSERT INTO outbox_event (id, segment, created_ms, key_seq, event_id, type, key, subject, source, dataschema, time, data)
        VALUES (i, ring, now_ms, n, p_event_id, p_type, p_key, p_subject, p_source, p_dataschema, p_time, p_data);
    INSERT INTO outbox_pending (shard, segment, bytes, id) VALUES (p_hash % o.shards, ring, p_bytes, i);
    IF o.deliver THEN
        PERFORM outbox_deliver(i, ring, p_hash, p_type, p_key);
    END IF;
END $$;
