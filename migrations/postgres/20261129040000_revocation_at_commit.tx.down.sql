DROP TRIGGER revocation_at_commit ON revocation;
DROP FUNCTION revocation_at_commit();
