-- An event keeps the trace of the request that wrote it, and the generation of the installation.

-- In the order in which writers lock: with the table first they hold none of what follows.
LOCK TABLE outbox_event IN ACCESS EXCLUSIVE MODE;

-- How often the database was set back to an older state: authctl restore fence raises it. Writers read
-- the row in any case.
ALTER TABLE outbox_setting ADD COLUMN generation bigint NOT NULL DEFAULT 0;

ALTER TABLE outbox_event
    ADD COLUMN generation bigint NOT NULL DEFAULT 0,  -- of outbox_setting when it was written
    ADD COLUMN traceparent text NOT NULL DEFAULT ''; -- W3C Trace Context; '': of no trace
ALTER TABLE outbox_message ADD COLUMN traceparent text NOT NULL DEFAULT '';

-- One event, in the caller's transaction. The comments are those of the migrations before this one.
CREATE FUNCTION outbox_add_traced(p_hash integer, p_bytes integer, p_event_id uuid, p_type text, p_key text,
    p_subject text, p_source text, p_dataschema text, p_time text, p_data text, p_traceparent text) RETURNS void
LANGUAGE plpgsql AS $$
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
    INSERT INTO outbox_event (id, segment, created_ms, key_seq, event_id, type, key, subject, source, dataschema, time, data,
            generation, traceparent)
        VALUES (i, ring, now_ms, n, p_event_id, p_type, p_key, p_subject, p_source, p_dataschema, p_time, p_data,
            o.generation, p_traceparent);
    INSERT INTO outbox_pending (shard, segment, bytes, id) VALUES (p_hash % o.shards, ring, p_bytes, i);
    IF o.deliver THEN
        PERFORM outbox_deliver(i, ring, p_hash, p_type, p_key);
    END IF;
END $$;

-- An event for one target alone. Messages of a key come one after another, as events do.
CREATE FUNCTION outbox_add_message_traced(p_target text, p_hash integer, p_event_id uuid, p_type text, p_key text,
    p_subject text, p_source text, p_dataschema text, p_time text, p_data text, p_traceparent text) RETURNS boolean
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
    INSERT INTO outbox_message (id, created_ms, event_id, type, key, subject, source, dataschema, time, data, traceparent)
        VALUES (i, extract(epoch FROM clock_timestamp()) * 1000, p_event_id, p_type, p_key, p_subject, p_source,
            p_dataschema, p_time, p_data, p_traceparent);
    INSERT INTO outbox_delivery (id, target, shard, segment, key) VALUES (i, t, p_hash % 16, -1, p_key);
    RETURN true;
END $$;
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION outbox_add_message_traced SET search_path = %I, pg_temp', current_schema());
END $$;

-- What the releases before this one call. Their events belong to no trace, but to the generation.
CREATE OR REPLACE FUNCTION outbox_add(p_hash integer, p_bytes integer, p_event_id uuid, p_type text, p_key text,
    p_subject text, p_source text, p_dataschema text, p_time text, p_data text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM outbox_add_traced(p_hash, p_bytes, p_event_id, p_type, p_key, p_subject, p_source, p_dataschema, p_time, p_data, '');
END $$;
