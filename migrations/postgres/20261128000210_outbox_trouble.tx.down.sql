DROP TABLE outbox_trouble;
