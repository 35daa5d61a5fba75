-- An event keeps the trace of the request that wrote it, and the generation of the installation.

-- How often the database was set back to an older state: authctl restore fence raises it.
ALTER TABLE outbox_setting ADD COLUMN generation integer NOT NULL DEFAULT 0;

ALTER TABLE outbox_event ADD COLUMN generation integer NOT NULL DEFAULT 0; -- of outbox_setting when it was written
ALTER TABLE outbox_event ADD COLUMN traceparent text NOT NULL DEFAULT '';  -- W3C Trace Context; '': of no trace
ALTER TABLE outbox_message ADD COLUMN traceparent text NOT NULL DEFAULT '';

-- In the event's transaction, whichever release writes the event.
CREATE TRIGGER outbox_generation AFTER INSERT ON outbox_event
WHEN NEW.generation <> (SELECT generation FROM outbox_setting)
BEGIN
    UPDATE outbox_event SET generation = (SELECT generation FROM outbox_setting) WHERE id = NEW.id;
END;
