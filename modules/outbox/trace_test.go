package outbox_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/tracing/tracingtest"
)

const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// addWithin commits events within the span of a traceparent.
func addWithin(t *testing.T, db *database.DB, traceparent string, events ...outbox.Event) {
	t.Helper()
	err := db.Tx(tracingtest.Within(t.Context(), traceparent), func(ctx context.Context, tx database.Tx) error {
		return outbox.Add(ctx, tx, events...)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func raiseGeneration(t *testing.T, db *database.DB, to int) {
	t.Helper()
	if _, err := db.Write(t.Context(), `UPDATE outbox_setting SET generation = ?`, to); err != nil {
		t.Fatal(err)
	}
}

// traced formats the trace and the generation of an event.
func traced(r outbox.Record) string {
	return strings.TrimSpace(fmt.Sprintf("%s/%d %d %s", r.Key, r.Seq, r.Generation, r.TraceParent))
}

// An event keeps its original trace and generation, whoever reads it and whatever happens later.
// Older releases, which do not know generations, write the generation too.
func TestAnEventKeepsItsTraceAndItsGeneration(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		hook := subscribe(t, db, "hook", "*")
		outboxtest.AddKeys(t, db, "none")
		notRecorded := traceparent[:len(traceparent)-1] + "0"
		addWithin(t, db, traceparent, outboxtest.Event("one"))
		raiseGeneration(t, db, 3)
		addWithin(t, db, notRecorded, outboxtest.Event("some"), outboxtest.Event("some"), message("mail:a"))
		raiseGeneration(t, db, 4)
		asBefore := `INSERT INTO outbox_event (created_ms, key_seq, event_id, type, key, subject, source, dataschema, time, data)
			VALUES (1, 1, ?, 't', 'former', 's', '/', '', '2026-01-02T03:04:05Z', '{}')`
		if db.IsPostgres() {
			asBefore = `SELECT outbox_add(1, 100, ?, 't', 'former', 's', '/', '', '2026-01-02T03:04:05Z', '{}')`
		}
		if _, err := db.Write(t.Context(), asBefore, uuid.NewString()); err != nil {
			t.Fatal(err)
		}
		raiseGeneration(t, db, 5)

		want := []string{
			"none/1 0", "one/1 0 " + traceparent, "some/1 3 " + notRecorded, "some/2 3 " + notRecorded, "former/1 4",
		}
		var tail []string
		err := outbox.Tail(t.Context(), db, outbox.TailOptions{Last: 10}, func(e outbox.Entry) error {
			tail = append(tail, traced(e.Record))
			return nil
		})
		if err != nil || strings.Join(tail, ", ") != strings.Join(want, ", ") {
			t.Errorf("tail shows %q, want %q, %v", tail, want, err)
		}

		park := func(table, rows string) {
			t.Helper()
			if _, err := db.Write(t.Context(), `INSERT INTO `+table+` `+rows); err != nil {
				t.Fatal(err)
			}
		}
		segment, column := "", ""
		if db.IsPostgres() {
			segment, column = "segment, ", "segment, "
		}
		park("outbox_parked_key",
			`(key, shard, event, error, parked_ms) SELECT key, 0, id, 'no', 0 FROM outbox_event WHERE key = 'one'`)
		park("outbox_dead", `(id, key, `+segment+`bytes, replay) SELECT id, key, `+column+
			`0, false FROM outbox_event WHERE key = 'one'`)
		list, err := outbox.ParkedEvents(t.Context(), db, "one")
		if err != nil || len(list) != 1 || traced(list[0]) != want[1] {
			t.Errorf("parked is %v, %v", list, err)
		}
		for _, of := range []struct {
			target outbox.Subscription
			key    string
			want   string
		}{{hook, "some", want[2]}, {outbox.Subscription{ID: 1, Name: "mail"}, "mail:a", "mail:a/0 0 " + notRecorded}} {
			park("outbox_held_key",
				fmt.Sprintf(`(target, key, shard, event, attempts, next_ms, error) VALUES (%d, '%s', 0, 1, 1, 0, 'no')`,
					of.target.ID, of.key))
			list, err := outbox.HeldEvents(t.Context(), db, of.target, of.key)
			if err != nil || len(list) == 0 || traced(list[0]) != of.want {
				t.Errorf("held of %s is %v, %v", of.target.Name, list, err)
			}
		}
	})
}
