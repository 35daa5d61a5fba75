DROP TABLE outbox_finished_key;
