DROP TRIGGER outbox_target_is_known ON outbox_target;
DROP FUNCTION outbox_target_is_known;
DROP INDEX outbox_target_active;
DELETE FROM outbox_target WHERE partitions IS NULL;
ALTER TABLE outbox_target
    DROP COLUMN state,
    DROP COLUMN identity,
    DROP COLUMN since_ms,
    ALTER COLUMN partitions SET NOT NULL;
