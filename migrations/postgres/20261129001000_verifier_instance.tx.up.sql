-- Processes of one client may share a name, as the replicas of a deployment do: each has a row of its
-- own. The instance is what the process says that it is, else the address that it asked from.

ALTER TABLE verifier ADD COLUMN instance text NOT NULL DEFAULT '';
ALTER TABLE verifier DROP CONSTRAINT verifier_pkey, ADD PRIMARY KEY (client, name, instance);
ALTER TABLE verifier ALTER COLUMN instance DROP DEFAULT;
