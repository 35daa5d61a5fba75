-- Until when a target asked to be left alone, for the key's first event; NULL: it did not ask. A key whose
-- other reasons to wait are over is not tried before then.
ALTER TABLE outbox_held_key ADD COLUMN asked_ms bigint;
