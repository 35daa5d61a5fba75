LOCK TABLE outbox_event IN ACCESS EXCLUSIVE MODE;

-- The body of outbox_add before the traces.
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
DROP FUNCTION outbox_add_traced;
DROP FUNCTION outbox_add_message_traced;
ALTER TABLE outbox_message DROP COLUMN traceparent;
ALTER TABLE outbox_event
    DROP COLUMN traceparent,
    DROP COLUMN generation;
ALTER TABLE outbox_setting DROP COLUMN generation;
