-- What strangers ask for does not use up what the owner of an account may ask for, and a request is
-- answered alike whether there is an account or not. The defaults are for a release that does not
-- know these columns.
ALTER TABLE contact_challenge
    ADD COLUMN owner boolean NOT NULL DEFAULT false, -- asked for on a device that the account knows
    ADD COLUMN asked bytea NOT NULL DEFAULT '',      -- digest of what was asked for: a username or an address
    ADD COLUMN network bytea NOT NULL DEFAULT '';    -- digest of the network it was asked from; empty: not known
CREATE INDEX contact_challenge_asked ON contact_challenge (asked, created_ms);

-- Whoever delivers messages may say that one cannot be delivered, and add no other event. So it runs as
-- its owner.
CREATE FUNCTION outbox_add_undeliverable(p_message bigint, p_hash integer, p_bytes integer, p_event_id uuid, p_type text,
    p_key text, p_subject text, p_source text, p_dataschema text, p_time text, p_data text, p_trace text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF p_type NOT LIKE '%.Undeliverable.v_' OR NOT EXISTS (SELECT 1 FROM outbox_message WHERE id = p_message) THEN
        RETURN false;
    END IF;
    PERFORM outbox_add_traced(p_hash, p_bytes, p_event_id, p_type, p_key, p_subject, p_source, p_dataschema, p_time, p_data, p_trace);
    RETURN true;
END $$;

-- As its owner it must look nowhere else than here.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION outbox_add_undeliverable SET search_path = %I, pg_temp', current_schema());
END $$;
