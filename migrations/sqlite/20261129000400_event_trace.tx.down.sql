DROP TRIGGER outbox_generation;
ALTER TABLE outbox_message DROP COLUMN traceparent;
ALTER TABLE outbox_event DROP COLUMN traceparent;
ALTER TABLE outbox_event DROP COLUMN generation;
ALTER TABLE outbox_setting DROP COLUMN generation;
