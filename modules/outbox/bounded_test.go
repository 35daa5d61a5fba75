package outbox_test

import (
	"context"
	"slices"
	"testing"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// An operator may suspend a command in the middle of a transaction, or close a laptop. Relays and deliverers wait for
// its locks, and cannot renew their leases meanwhile.
func TestNoCommandHoldsUpRelaysForLong(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	do := func(statement string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	outboxtest.AddKeys(t, db, "a", "b")
	hook := subscribe(t, db, "hook", "*")
	outboxtest.AddKeys(t, db, "a")
	do(`INSERT INTO outbox_held_key (target, key, shard, event, attempts, next_ms, parked_ms, error)
		SELECT target, key, shard, id, 1, 0, 1, 'x' FROM outbox_delivery`)
	do(`INSERT INTO outbox_delivery_lease (target, shard) SELECT target, shard FROM outbox_delivery`)
	do(`CREATE TABLE seen AS SELECT ''::text AS name, ''::text AS bound WHERE false`)
	do(`CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO seen VALUES (TG_TABLE_NAME, current_setting('idle_in_transaction_session_timeout')); RETURN NULL; END $$`)
	for _, table := range []string{"outbox_shard", "outbox_held_key", "outbox_delivery", "outbox_subscription",
		"outbox_target"} {
		do(`CREATE TRIGGER look AFTER INSERT OR UPDATE ON ` + table + ` FOR EACH STATEMENT EXECUTE FUNCTION look()`)
	}
	for _, command := range []struct {
		changes string
		run     func(ctx context.Context) error
	}{
		{"outbox_shard", func(ctx context.Context) error {
			_, err := outbox.Replay(ctx, db, outbox.Selection{FromID: 1}, false, nil)
			return err
		}},
		{"outbox_shard", func(ctx context.Context) error {
			do(`WITH e AS (DELETE FROM outbox_pending p USING outbox_event e WHERE e.id = p.id AND e.key = 'a'
					RETURNING e.id, e.key, p.shard, p.segment, p.bytes),
				d AS (INSERT INTO outbox_dead SELECT id, key, segment, bytes, false FROM e)
				INSERT INTO outbox_parked_key (key, shard, event, error, parked_ms)
					SELECT key, shard, min(id), 'x', 1 FROM e GROUP BY key, shard`)
			_, err := outbox.RetryParked(ctx, db, "a")
			return err
		}},
		{"outbox_delivery", func(ctx context.Context) error {
			_, err := outbox.ReplayTo(ctx, db, hook, outbox.Selection{FromID: 1}, false, nil)
			return err
		}},
		{"outbox_held_key", func(ctx context.Context) error { _, err := outbox.RetryAllHeld(ctx, db, hook); return err }},
		{"outbox_held_key", func(ctx context.Context) error { _, err := outbox.RetryHeld(ctx, db, hook, "a"); return err }},
		{"outbox_subscription", func(ctx context.Context) error {
			_, err := outbox.PauseTarget(ctx, db, "hook", "x")
			return err
		}},
		{"outbox_subscription", func(context.Context) error { subscribe(t, db, "other", "*"); return nil }},
		{"outbox_target", func(ctx context.Context) error {
			identity := "x"
			_, err := outbox.AdmitTarget(ctx, db, "kafka:events at x", &identity)
			return err
		}},
		{"outbox_target", func(ctx context.Context) error {
			_, err := outbox.SetTarget(ctx, db, outbox.Target{Name: "file:/x", Identity: "y", Partitions: 1}, 96)
			return err
		}},
		{"outbox_target", func(ctx context.Context) error {
			identity := "y"
			return outbox.AcceptPartitions(ctx, db, "file:/x", &identity, 2)
		}},
	} {
		do(`DELETE FROM seen`)
		if err := command.run(t.Context()); err != nil {
			t.Errorf("%s: %v", command.changes, err)
		}
		bounds, err := database.Collect(t.Context(), db, "what was seen", database.Value[string],
			`SELECT DISTINCT bound FROM seen WHERE name = ?`, command.changes)
		if err != nil || !slices.Equal(bounds, []string{"5s"}) {
			t.Errorf("a command that changes %s and stops would be ended after %q, %v", command.changes, bounds, err)
		}
	}
}
