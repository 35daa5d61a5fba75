ALTER TABLE outbox_relay DROP COLUMN lease_ms;
