ALTER TABLE outbox_held_key DROP COLUMN asked_ms;
