-- What has not been published is lost with these tables.
DROP FUNCTION outbox_add;
DROP TABLE outbox_dead;
DROP TABLE outbox_parked_key;
DROP TABLE outbox_target;
DROP TABLE outbox_shard;
DROP TABLE outbox_relay;
DROP TABLE outbox_key;
DROP TABLE outbox_pending;
DROP TABLE outbox_event;
DROP TABLE outbox_setting;
DROP SEQUENCE outbox_event_id;
