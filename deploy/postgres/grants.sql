-- What authctl_serve and authctl_relay (roles.sql) may do with each table. Run it after every
-- authctl migrate up, as authctl_migrate, before the new release serves:
--
--   psql -v ON_ERROR_STOP=1 -d authctl -U authctl_migrate -f deploy/postgres/grants.sql
--
-- It takes back what they had and grants what is below, at once: running servers notice nothing.

BEGIN;

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC, authctl_serve, authctl_relay;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM PUBLIC, authctl_serve, authctl_relay;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC, authctl_serve, authctl_relay;

-- Both refuse a schema that is behind.
GRANT SELECT ON bun_migrations TO authctl_serve, authctl_relay;

GRANT SELECT, INSERT, UPDATE, DELETE ON users, begun_session, revoked_session, session TO authctl_serve;
GRANT SELECT, INSERT ON user_origin TO authctl_serve; -- deleted with its user
GRANT SELECT, INSERT, UPDATE ON signing_key TO authctl_serve;

-- Who adds an event can neither read one nor take one back.
GRANT EXECUTE ON FUNCTION outbox_add TO authctl_serve;
GRANT SELECT ON outbox_setting TO authctl_serve;
GRANT SELECT, INSERT, UPDATE ON outbox_key, outbox_finished_key TO authctl_serve;
GRANT USAGE ON SEQUENCE outbox_event_id TO authctl_serve;
GRANT INSERT ON outbox_event, outbox_pending TO authctl_serve;

-- Who sends events can neither make nor change one, and sees nothing of accounts. TRUNCATE
-- empties the segments whose time is over.
GRANT SELECT ON SEQUENCE outbox_event_id TO authctl_relay;
GRANT SELECT, TRUNCATE ON outbox_event TO authctl_relay;
DO $$
DECLARE
    segment regclass;
BEGIN
    FOR segment IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'outbox_event'::regclass LOOP
        EXECUTE format('GRANT SELECT, TRUNCATE ON %s TO authctl_relay', segment);
    END LOOP;
END $$;
GRANT SELECT, UPDATE ON outbox_setting TO authctl_relay;
GRANT SELECT, DELETE ON outbox_key TO authctl_relay;
GRANT SELECT, UPDATE, DELETE ON outbox_finished_key TO authctl_relay;
GRANT SELECT, INSERT, DELETE ON outbox_pending TO authctl_relay;
GRANT SELECT, INSERT, UPDATE ON outbox_target TO authctl_relay;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_relay, outbox_shard, outbox_parked_key, outbox_dead, outbox_trouble TO authctl_relay;

COMMIT;
