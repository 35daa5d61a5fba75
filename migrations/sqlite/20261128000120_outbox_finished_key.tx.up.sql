-- Keys that will have no more events, because what they stood for is gone: the account was
-- deleted. Once the retention has passed their counters go, unless one has moved after all.
CREATE TABLE outbox_finished_key (
    key         text PRIMARY KEY,
    seq         integer NOT NULL, -- of its last event
    finished_ms integer NOT NULL
);
CREATE INDEX outbox_finished_key_since ON outbox_finished_key (finished_ms);
