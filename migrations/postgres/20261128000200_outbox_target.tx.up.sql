-- Where the outbox publishes is part of what the database knows: the row whose state is
-- active. Relays whose settings name another target are refused; authctl outbox target set
-- changes it.
ALTER TABLE outbox_target
    ALTER COLUMN partitions DROP NOT NULL, -- NULL until a relay has reached it
    ADD COLUMN state text NOT NULL DEFAULT 'former' CHECK (state IN ('active', 'former')),
    ADD COLUMN identity text NOT NULL DEFAULT '', -- tells it from another of the same name; '': not known yet
    ADD COLUMN since_ms bigint NOT NULL DEFAULT 0; -- when it became the target; 0: before this was kept
CREATE UNIQUE INDEX outbox_target_active ON outbox_target (state) WHERE state = 'active';

-- With several, the first relay says which: it must be one of them.
UPDATE outbox_target SET state = 'active' WHERE (SELECT count(*) FROM outbox_target) = 1;

-- Relays of the release before this one insert the target that their settings name. They wait
-- and publish nothing while it is another one.
CREATE FUNCTION outbox_target_is_known() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM outbox_target WHERE state = 'active' AND name <> NEW.name) THEN
        RAISE EXCEPTION 'the outbox has another target than %: see authctl outbox target show', NEW.name;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER outbox_target_is_known BEFORE INSERT ON outbox_target FOR EACH ROW EXECUTE FUNCTION outbox_target_is_known();
