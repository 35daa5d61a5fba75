package relay_test

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// The rights in the package comment are enough: for writers of events, for a relay with all its
// occasional work, and for an operator.
const (
	writerRights = `
		GRANT SELECT ON outbox_setting TO ROLE;
		GRANT SELECT, INSERT, UPDATE ON outbox_key, outbox_finished_key TO ROLE;
		GRANT INSERT ON outbox_event, outbox_pending TO ROLE;
		GRANT USAGE ON SEQUENCE outbox_event_id TO ROLE`
	relayRights = `
		GRANT SELECT, UPDATE ON outbox_setting TO ROLE;
		GRANT SELECT, DELETE ON outbox_key TO ROLE;
		GRANT SELECT, UPDATE, DELETE ON outbox_finished_key TO ROLE;
		GRANT SELECT, TRUNCATE ON outbox_event, SEGMENTS TO ROLE;
		GRANT SELECT, DELETE ON outbox_pending TO ROLE;
		GRANT SELECT, INSERT ON outbox_dead TO ROLE;
		GRANT SELECT, INSERT, UPDATE ON outbox_parked_key TO ROLE;
		GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_relay, outbox_shard, outbox_trouble TO ROLE;
		GRANT SELECT, INSERT, UPDATE ON outbox_target TO ROLE;
		GRANT SELECT ON outbox_delivery TO ROLE;
		GRANT SELECT ON SEQUENCE outbox_event_id TO ROLE`
	operatorRights = `
		GRANT SELECT ON outbox_event, outbox_trouble TO ROLE;
		GRANT SELECT, UPDATE ON outbox_relay TO ROLE;
		GRANT SELECT, UPDATE ON outbox_setting, outbox_shard TO ROLE;
		GRANT SELECT, INSERT ON outbox_pending TO ROLE;
		GRANT SELECT, UPDATE, DELETE ON outbox_dead, outbox_parked_key TO ROLE;
		GRANT SELECT, INSERT, UPDATE ON outbox_target TO ROLE;
		GRANT SELECT ON SEQUENCE outbox_event_id TO ROLE`
)

func TestEachRoleNeedsOnlyItsRights(t *testing.T) {
	t.Parallel()
	server := dbtest.PostgresURL(t)
	admin := dbtest.Open(t, server)
	as := func(rights string) string {
		t.Helper()
		role := "r_" + strings.ReplaceAll(uuid.NewString(), "-", "")
		var parts []string
		for i := range 16 {
			parts = append(parts, fmt.Sprintf("outbox_event_%02d", i))
		}
		rights = strings.NewReplacer("ROLE", role, "SEGMENTS", strings.Join(parts, ", ")).Replace(rights)
		create := fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'x'; %s", role, rights)
		if _, err := admin.ExecContext(t.Context(), create); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			drop := fmt.Sprintf("DROP OWNED BY %s; DROP ROLE %s", role, role)
			if _, err := admin.ExecContext(context.Background(), drop); err != nil {
				t.Error(err)
			}
		})
		u, err := url.Parse(server)
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword(role, "x")
		return u.String()
	}
	writer, relaying := dbtest.Open(t, as(writerRights)), dbtest.Open(t, as(relayRights))
	operator := dbtest.Open(t, as(operatorRights))

	outboxtest.AddKeys(t, writer, "good", "bad", "bad")
	real, path := file(t)
	s := &picky{Sink: real, refuses: func(r relay.Record) bool { return r.Key == "bad" && r.Seq == 1 }}
	stop := startRelay(t, relaying, s, relay.Config{}, relay.Options{})
	testenv.Eventually(t, "an event and a parked key", func() bool {
		st, err := outbox.Status(t.Context(), operator)
		return err == nil && st.Pending == 0 && st.ParkedEvents == 2
	})
	if _, err := outbox.DiscardParked(t.Context(), operator, "bad", 0); err != nil {
		t.Error(err)
	}
	if _, err := outbox.Replay(t.Context(), operator, outbox.Selection{Key: "good"}, false, nil); err != nil {
		t.Error(err)
	}
	err := outbox.Tail(t.Context(), operator, outbox.TailOptions{Last: 3}, func(outbox.Entry) error { return nil })
	if err != nil {
		t.Error(err)
	}
	drained(t, operator)
	if got := strings.Join(lines(t, path), " "); got != "good/1 bad/2 good/1*" && got != "good/1 good/1* bad/2" {
		t.Errorf("published %s", got)
	}
	stop()
	if _, err := admin.ExecContext(t.Context(), `UPDATE outbox_target SET partitions = 2`); err != nil {
		t.Fatal(err)
	}
	if err := outbox.AcceptPartitions(t.Context(), operator, s.Name(), new(""), 1); err != nil {
		t.Error(err)
	}
	other := outbox.Target{Name: "file:/elsewhere", Partitions: 1}
	if _, err := outbox.SetTarget(t.Context(), operator, other, 96); err != nil {
		t.Error(err)
	}
	if _, err := outbox.SetTarget(t.Context(), operator, outbox.Target{Name: s.Name(), Partitions: 1}, 96); err != nil {
		t.Error(err)
	}
	err = writer.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
		return outbox.Finish(ctx, tx, "bad")
	})
	if err != nil {
		t.Error(err)
	}
	for _, q := range []string{`UPDATE outbox_event SET created_ms = 0`,
		`UPDATE outbox_finished_key SET finished_ms = 0`} {
		if _, err := admin.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if err := outbox.Retain(t.Context(), relaying, time.Hour); err != nil {
		t.Error(err)
	}
	startRelay(t, relaying, s, relay.Config{Shards: 8}, relay.Options{})() // another number of shards

	// The roles have no other rights.
	err = writer.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
		_, err := tx.ExecContext(ctx, `SELECT data FROM outbox_event`)
		return err
	})
	if err == nil {
		t.Error("writers of events can read them")
	}
	err = relaying.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
		return outbox.Add(ctx, tx, outboxtest.Event("x"))
	})
	if err == nil {
		t.Error("a relay can write events")
	}
}
