-- The body of outbox_add before the targets.
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
    SELECT * INTO STRICT o FROM outbox_setting;
    INSERT INTO outbox_key AS k (key, seq) VALUES (p_key, 1)
        ON CONFLICT (key) DO UPDATE SET seq = k.seq + 1 RETURNING seq INTO n;
    -- Only now, with the key locked: of two writers of a key the one that commits first
    -- has the lower id. The clock is read here for the same reason: nothing is waited for
    -- between it and the choice of the segment.
    i := nextval('outbox_event_id');
    now_ms := extract(epoch FROM clock_timestamp()) * 1000;
    ring := now_ms / o.segment_ms % 16;
    INSERT INTO outbox_event (id, segment, created_ms, key_seq, event_id, type, key, subject, source, dataschema, time, data)
        VALUES (i, ring, now_ms, n, p_event_id, p_type, p_key, p_subject, p_source, p_dataschema, p_time, p_data);
    INSERT INTO outbox_pending (shard, segment, bytes, id) VALUES (p_hash % o.shards, ring, p_bytes, i);
END $$;
DO $$
BEGIN
    FOR n IN 0..15 LOOP
        EXECUTE format('DROP TRIGGER outbox_segment_is_idle ON %I', 'outbox_event_' || lpad(n::text, 2, '0'));
    END LOOP;
END $$;
DROP FUNCTION outbox_segment_is_idle;
DROP FUNCTION outbox_add_message;
DROP FUNCTION outbox_deliver;
ALTER TABLE outbox_setting DROP COLUMN deliver;
DROP TABLE outbox_delivery_lease;
DROP TABLE outbox_deliverer;
DROP TABLE outbox_held_key;
DROP TABLE outbox_delivery;
DROP TABLE outbox_message;
DROP TABLE outbox_subscription;
