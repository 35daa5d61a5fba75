-- Grants authctl_serve and authctl_relay (roles.sql) what they may do with each table. Run it after
-- every authctl migrate up, as authctl_migrate, before the new release serves:
--
--   psql -v ON_ERROR_STOP=1 -d authctl -U authctl_migrate -f deploy/postgres/grants.sql
--
-- One transaction revokes the old rights and grants those below, so running servers notice nothing.
-- It changes nothing for other programs in the database. search_path finds the tables.

BEGIN;

DO $$
DECLARE
    statement text;
BEGIN
    -- Revoke what the two roles may do with the tables and sequences of our schema, and what
    -- everybody may do with our functions, which PostgreSQL grants when a function is created.
    FOR statement IN
        SELECT DISTINCT format('REVOKE ALL ON %s %s FROM authctl_serve, authctl_relay',
                CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, pg_class.oid::regclass)
            FROM pg_class CROSS JOIN aclexplode(relacl) granted
            WHERE relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'bun_migrations'::regclass)
                AND relkind IN ('r', 'p', 'S', 'v', 'm') AND pg_has_role(relowner, 'USAGE')
                AND granted.grantee IN ('authctl_serve'::regrole, 'authctl_relay'::regrole)
        UNION ALL
        SELECT format('REVOKE ALL ON FUNCTION %s FROM PUBLIC, authctl_serve, authctl_relay', name::regproc::oid::regprocedure)
            FROM unnest(ARRAY['outbox_add', 'outbox_add_traced', 'outbox_add_message', 'outbox_add_message_traced',
                'outbox_deliver', 'outbox_segment_is_idle', 'outbox_target_is_known',
                'outbox_add_undeliverable',
                'revocation_until_ms', 'revocation_of_session', 'revocation_of_account', 'revocation_of_key',
                'revocation_at_commit',
                'contact_end_challenges_of_user', 'contact_end_challenges_of_contact', 'contact_forget_user']) name
    LOOP
        EXECUTE statement;
    END LOOP;
END $$;

-- Both refuse an older schema, so both read which migrations have run.
GRANT SELECT ON bun_migrations TO authctl_serve, authctl_relay;
-- Neither starts after a backup was restored and its fence was interrupted.
GRANT SELECT ON restore_fence TO authctl_serve, authctl_relay;

GRANT SELECT, INSERT, UPDATE, DELETE ON users, begun_session, revoked_session, session TO authctl_serve;
GRANT SELECT, INSERT ON user_origin TO authctl_serve; -- deleted with its user
GRANT SELECT, INSERT, UPDATE ON signing_key TO authctl_serve;
-- Triggers write what has ended; they run as the owner of their functions.
GRANT SELECT, DELETE ON revocation TO authctl_serve;
GRANT SELECT, INSERT, UPDATE, DELETE ON verifier TO authctl_serve;
-- The counters of failed sign-ins, where there is no Redis.
GRANT SELECT, INSERT, UPDATE, DELETE ON throttle_counter TO authctl_serve;
GRANT SELECT, INSERT, UPDATE, DELETE ON contact, contact_challenge, contact_undo TO authctl_serve;

-- authctl_serve adds events but can neither read nor remove them.
GRANT EXECUTE ON FUNCTION outbox_add, outbox_add_traced, outbox_add_message, outbox_add_message_traced, outbox_deliver
    TO authctl_serve;
GRANT SELECT ON outbox_setting TO authctl_serve;
GRANT SELECT, INSERT, UPDATE ON outbox_key, outbox_finished_key TO authctl_serve;
GRANT USAGE ON SEQUENCE outbox_event_id TO authctl_serve;
GRANT INSERT ON outbox_event, outbox_pending TO authctl_serve;

-- authctl_relay sends events, can change none and add only one kind (see below), and has no access to
-- accounts. It needs TRUNCATE to empty expired segments.
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
-- The targets besides the log, and what waits for them.
GRANT SELECT, INSERT, UPDATE ON outbox_subscription TO authctl_relay;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_delivery, outbox_held_key, outbox_deliverer, outbox_delivery_lease TO authctl_relay;
GRANT SELECT, DELETE ON outbox_message TO authctl_relay;

-- A relay checks whether a message should still be sent. It may add one kind of event, that a message
-- waiting for a target cannot be delivered. The function runs as its owner.
GRANT SELECT (id, state) ON contact_challenge TO authctl_relay;
GRANT EXECUTE ON FUNCTION outbox_add_undeliverable TO authctl_relay;

COMMIT;
