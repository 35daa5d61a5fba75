-- Followers come again within seconds.
DELETE FROM verifier;
ALTER TABLE verifier DROP CONSTRAINT verifier_pkey, ADD PRIMARY KEY (client, name);
ALTER TABLE verifier DROP COLUMN instance;
