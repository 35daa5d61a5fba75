DROP TRIGGER outbox_event_is_idle;
DROP TRIGGER outbox_deliver;
DROP TABLE outbox_delivery_lease;
DROP TABLE outbox_deliverer;
DROP TABLE outbox_held_key;
DROP TABLE outbox_delivery;
DROP TABLE outbox_message;
DROP TABLE outbox_subscription;
