-- Every token that was replaced less than the grace window ago leads to the newest one, not the
-- latest of them alone, whose link stays in previous, last_used_ms, replay_until_ms and sealed.
-- linked is the generation after the latest rotation by a server that knows of this.

ALTER TABLE session ADD COLUMN linked bigint NOT NULL DEFAULT 0;
ALTER TABLE session ADD COLUMN links bytea;   -- of the tokens before previous whose windows are open
ALTER TABLE session ADD COLUMN marks text; -- when tokens whose links were lost were replaced
CREATE INDEX session_links ON session (id) WHERE links IS NOT NULL;
