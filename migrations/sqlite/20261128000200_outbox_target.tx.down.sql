DROP TRIGGER outbox_target_is_known;
CREATE TABLE outbox_target_new (
    name       text PRIMARY KEY,
    partitions integer NOT NULL CHECK (partitions > 0)
);
INSERT INTO outbox_target_new (name, partitions) SELECT name, partitions FROM outbox_target WHERE partitions IS NOT NULL;
DROP TABLE outbox_target;
ALTER TABLE outbox_target_new RENAME TO outbox_target;
