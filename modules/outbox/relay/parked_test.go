package relay_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/modules/outbox/relay"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// tired counts its refusals.
type tired struct {
	*picky
	times atomic.Int64
}

func (s *tired) Publish(ctx context.Context, b *relay.Batch) error {
	err := s.picky.Publish(ctx, b)
	if _, ok := errors.AsType[*relay.Refused](err); ok {
		s.times.Add(1)
	}
	return err
}

// sequence returns the published sequence numbers of a key, in order.
func sequence(t testing.TB, path, key string) string {
	t.Helper()
	return strings.Join(slices.DeleteFunc(lines(t, path), func(s string) bool {
		return !strings.HasPrefix(s, key+"/")
	}),
		" ")
}

// A key is parked, and a replay of its earlier events meets another refused event. The key then
// waits from that event on. Nothing is tried again and again, and no other key waits.
func TestAReplayParksAKeyFromItsLowestRefusedEvent(t *testing.T) {
	t.Parallel()
	for _, vague := range []bool{false, true} {
		t.Run(fmt.Sprintf("vague=%v", vague), func(t *testing.T) {
			t.Parallel()
			dbtest.Each(t, func(t *testing.T, db *database.DB) {
				real, path := file(t)
				refuse := func(sequences ...int64) func(relay.Record) bool {
					return func(r relay.Record) bool { return r.Key == "bad" && slices.Contains(sequences, r.Seq) }
				}
				s := &tired{picky: &picky{Sink: real, vague: vague, refuses: refuse(4)}}
				for range 6 {
					outboxtest.AddKeys(t, db, "bad", "good")
				}
				startRelay(t, db, s, relay.Config{}, relay.Options{})
				drained(t, db)
				waits := func(from int64, events int) {
					t.Helper()
					keys, err := outbox.Parked(t.Context(), db)
					if err != nil || len(keys) != 1 || keys[0].Events != events {
						t.Fatalf("parked %+v, %v; want one key with %d events", keys, err, events)
					}
					list, err := outbox.ParkedEvents(t.Context(), db, "bad")
					if err != nil || list[0].Seq != from || list[0].ID != keys[0].ID {
						t.Fatalf("parked %+v, first %+v, %v; want it from %d on", keys, list, err, from)
					}
				}
				waits(4, 3)

				s.set(refuse(2, 4))
				s.times.Store(0)
				if res, err := outbox.Replay(t.Context(), db, outbox.Selection{Key: "bad"}, false, nil); err != nil ||
					res.Enqueued != 3 {
					t.Fatalf("replay: %+v, %v", res, err)
				}
				outboxtest.AddKeys(t, db, "good", "bad")
				drained(t, db)
				waits(2, 6) // 2 and 3 as replays, 4 to 7
				if n := s.times.Load(); n > 5 {
					t.Errorf("%d refusals for one refused event", n)
				}
				if got, want := sequence(t, path, "bad"), "bad/1 bad/2 bad/3 bad/1*"; got != want {
					t.Errorf("published %s, want %s", got, want)
				}
				if got := sequence(t, path, "good"); !strings.HasSuffix(got, "good/6 good/7") {
					t.Errorf("published %s", got)
				}

				// A replay of events that wait with their key changes nothing.
				if res, err := outbox.Replay(t.Context(), db, outbox.Selection{Key: "bad"}, false, nil); err != nil ||
					res.Enqueued != 1 {
					t.Fatalf("replay: %+v, %v", res, err)
				}
				drained(t, db)
				waits(2, 6)

				// It is retried in vain; then the first reason is removed, and then the second.
				if n, err := outbox.RetryParked(t.Context(), db, "bad"); err != nil || n != 6 {
					t.Fatalf("retry: %d, %v", n, err)
				}
				drained(t, db)
				waits(2, 6)
				s.set(refuse(4))
				if n, err := outbox.RetryParked(t.Context(), db, "bad"); err != nil || n != 6 {
					t.Fatalf("retry: %d, %v", n, err)
				}
				drained(t, db)
				waits(4, 4)
				if n, err := outbox.DiscardParked(t.Context(), db, "bad", 0); err != nil || n != 3 {
					t.Fatalf("discard: %d, %v", n, err)
				}
				drained(t, db)
				if got, want := sequence(t, path, "bad"),
					"bad/1 bad/2 bad/3 bad/1* bad/1* bad/2* bad/3* bad/5 bad/6 bad/7"; got != want {
					t.Errorf("published %s, want %s", got, want)
				}
			})
		})
	}
}

// The lower of two refused events is discarded. The other one is still refused, and parks the key
// again.
func TestDiscardingTheLowerRefusedEventKeepsTheOther(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		real, path := file(t)
		s := &picky{Sink: real, refuses: func(r relay.Record) bool { return r.Seq == 3 }}
		outboxtest.AddKeys(t, db, "bad", "bad", "bad", "bad")
		startRelay(t, db, s, relay.Config{}, relay.Options{})
		drained(t, db)
		s.set(func(r relay.Record) bool { return r.Seq == 1 || r.Seq == 3 })
		if _, err := outbox.Replay(t.Context(), db, outbox.Selection{FromID: 1, ToID: 1}, false, nil); err != nil {
			t.Fatal(err)
		}
		drained(t, db)
		if n, err := outbox.DiscardParked(t.Context(), db, "bad", 0); err != nil || n != 2 {
			t.Fatalf("discard: %d, %v", n, err)
		}
		drained(t, db)
		if list, err := outbox.ParkedEvents(t.Context(), db, "bad"); err != nil || len(list) != 2 || list[0].Seq != 3 {
			t.Fatalf("waiting %+v, %v", list, err)
		}
		if got, want := sequence(t, path, "bad"), "bad/1 bad/2"; got != want {
			t.Errorf("published %s, want %s", got, want)
		}
	})
}

// An event that waits with its key and is pending too, as a replay during the parking could leave
// it, holds up nothing.
func TestAnEventThatWaitsTwiceHoldsUpNothing(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		real, path := file(t)
		s := &picky{Sink: real, refuses: func(r relay.Record) bool { return r.Key == "bad" }}
		outboxtest.AddKeys(t, db, "bad", "bad")
		startRelay(t, db, s, relay.Config{}, relay.Options{})
		drained(t, db)
		segment := ""
		if db.IsPostgres() {
			segment = "segment, "
		}
		shard := outbox.Partition("bad", 96)
		err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
			for _, q := range []string{
				fmt.Sprintf(`INSERT INTO outbox_pending (shard, id, %[1]sbytes, replay) SELECT %[2]d, id, %[1]sbytes, true FROM outbox_dead`,
					segment, shard),
				// As a replay does: the relay may have passed these events.
				fmt.Sprintf(`UPDATE outbox_shard SET epoch = epoch + 1, low = 0 WHERE shard = %d`, shard),
			} {
				if _, err := tx.ExecContext(ctx, q); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		drained(t, db)
		s.set(func(relay.Record) bool { return false })
		if n, err := outbox.RetryParked(t.Context(), db, "bad"); err != nil || n != 2 {
			t.Fatalf("retry: %d, %v", n, err)
		}
		drained(t, db)
		if got, want := sequence(t, path, "bad"), "bad/1 bad/2"; got != want {
			t.Errorf("published %s, want %s", got, want)
		}
	})
}

// The relay cannot park, because it does not know that the epoch has risen. It finds out at once,
// instead of sending the event until its next renewal.
func TestARefusedEventIsNotSentAgainAndAgain(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		real, _ := file(t)
		s := &tired{picky: &picky{Sink: real, refuses: func(r relay.Record) bool { return r.Key == "bad" }}}
		startRelay(t, db, s, relay.Config{Lease: time.Minute}, relay.Options{})
		outboxtest.AddKeys(t, db, "good")
		drained(t, db)
		if _, err := db.Write(t.Context(), `UPDATE outbox_shard SET epoch = epoch + 1`); err != nil {
			t.Fatal(err)
		}
		outboxtest.AddKeys(t, db, "bad")
		drained(t, db)
		if n := s.times.Load(); n > 10 {
			t.Errorf("refused %d times", n)
		}
	})
}
