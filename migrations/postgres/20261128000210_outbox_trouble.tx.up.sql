-- What keeps relays from publishing, for those who look from elsewhere. A relay writes its row
-- when it begins and a few times a minute while it lasts, and removes it when it is over.
CREATE TABLE outbox_trouble (
    relay    uuid NOT NULL,
    target   text NOT NULL,   -- a name in outbox_target
    name     text NOT NULL,   -- of the relay, for people
    kind     text NOT NULL,
    error    text NOT NULL,
    since_ms bigint NOT NULL,
    until_ms bigint NOT NULL, -- it lasts until then, unless the relay says so again
    PRIMARY KEY (relay, target)
);
