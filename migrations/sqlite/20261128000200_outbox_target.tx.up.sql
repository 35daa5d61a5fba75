-- Where the outbox publishes is part of what the database knows: the row whose state is
-- active. Relays whose settings name another target are refused; authctl outbox target set
-- changes it.
CREATE TABLE outbox_target_new (
    name       text PRIMARY KEY,
    partitions integer CHECK (partitions > 0), -- NULL until a relay has reached it
    state      text NOT NULL DEFAULT 'former' CHECK (state IN ('active', 'former')),
    identity   text NOT NULL DEFAULT '', -- tells it from another of the same name; '': not known yet
    since_ms   integer NOT NULL DEFAULT 0 -- when it became the target; 0: before this was kept
);
-- With several, the first relay says which: it must be one of them.
INSERT INTO outbox_target_new (name, partitions, state)
    SELECT name, partitions, CASE WHEN (SELECT count(*) FROM outbox_target) = 1 THEN 'active' ELSE 'former' END FROM outbox_target;
DROP TABLE outbox_target;
ALTER TABLE outbox_target_new RENAME TO outbox_target;
CREATE UNIQUE INDEX outbox_target_active ON outbox_target (state) WHERE state = 'active';

-- Relays of the release before this one insert the target that their settings name. They wait
-- and publish nothing while it is another one.
CREATE TRIGGER outbox_target_is_known BEFORE INSERT ON outbox_target
WHEN EXISTS (SELECT 1 FROM outbox_target WHERE state = 'active' AND name <> NEW.name)
BEGIN
    SELECT RAISE(ABORT, 'the outbox has another target: see authctl outbox target show');
END;
