-- How long the leases of a relay are, so that others can tell one that ends later than it can:
-- the clock was ahead when it was written, or has been set back. NULL: a relay of the release
-- before, which does not say.
ALTER TABLE outbox_relay ADD COLUMN lease_ms bigint;
