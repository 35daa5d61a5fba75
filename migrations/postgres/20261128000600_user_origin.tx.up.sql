-- Where imported accounts come from. Owner: modules/auth.

CREATE TABLE user_origin (
    user_id           uuid PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    source            text NOT NULL,      -- the system: keycloak, …
    source_id         text NOT NULL,      -- what it calls the account; empty: its id here
    hash_sha256       bytea NOT NULL,        -- SHA-256 of the password hash as it was imported
    created_at        timestamptz,                 -- when the account was made there; null: it did not say
    address           text NOT NULL,      -- of a mailbox or a telephone; empty: there was none
    address_confirmed boolean,              -- whether its owner had shown to have it; null: it did not say
    not_carried_over  text NOT NULL,      -- kinds of protections it had there and has not here, with commas
    imported_at       timestamptz NOT NULL
);
