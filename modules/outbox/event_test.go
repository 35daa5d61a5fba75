package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

func TestAddKeepsWhatWasGiven(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		at := time.Date(2026, 1, 2, 3, 4, 5, 678_901_234, time.FixedZone("", 3600))
		e := outbox.Event{
			ID: uuid.Must(uuid.NewV7()), Type: "t.v1", Key: "O'Brien?0 \\ ключ", Subject: "s", Source: "/x",
			DataSchema: "https://x/y", Time: at,
			Data: json.RawMessage("{\"a\" : [1,\n 2], \"q\": \"it's ? \\\\ \\u0000 ü\"}"),
		}
		outboxtest.Add(t, db, e)
		var id, kind, key, subject, source, schema, when, data string
		var seq, row, created, bytes int64
		var shard int
		err := db.QueryRowContext(t.Context(),
			`SELECT e.id, event_id, type, key, subject, source, dataschema, time, data, key_seq, created_ms, p.shard, p.bytes
			FROM outbox_event e JOIN outbox_pending p ON p.id = e.id`).Scan(&row, &id, &kind, &key, &subject, &source, &schema, &when, &data, &seq, &created, &shard, &bytes)
		if err != nil {
			t.Fatal(err)
		}
		got := []string{id, kind, key, subject, source, schema, when, data}
		want := []string{e.ID.String(), e.Type, e.Key, "s", "/x", e.DataSchema, "2026-01-02T02:04:05.678901234Z",
			`{"a":[1,2],"q":"it's ? \\ \u0000 ü"}`}
		if !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
		if seq != 1 || row != 1 || shard != outbox.Partition(e.Key, 96) || bytes < int64(len(data)) {
			t.Errorf("key_seq %d, id %d, shard %d, bytes %d", seq, row, shard, bytes)
		}
		if off := time.Since(time.UnixMilli(created)).Abs(); off > time.Hour {
			t.Errorf("created_ms is %v off", off)
		}
	})
}

func TestAddMakesTimeOrderedIDs(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	outboxtest.AddKeys(t, db, "k")
	var id string
	if err := db.QueryRowContext(t.Context(), `SELECT event_id FROM outbox_event`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	if v := uuid.MustParse(id).Version(); v != 7 {
		t.Errorf("event id %s has version %d, want 7", id, v)
	}
}

func TestAddLeavesNothingBehindAnAbortedTransaction(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		outboxtest.AddKeys(t, db, "k")
		stop := errors.New("no")
		err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
			if err := outbox.Add(ctx, tx, outboxtest.Event("k"), outboxtest.Event("l")); err != nil {
				t.Error(err)
			}
			return stop
		})
		if !errors.Is(err, stop) {
			t.Fatal(err)
		}
		outboxtest.AddKeys(t, db, "k", "l")
		if got, want := sequences(t, db), "k:1 k:2 l:1"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// Writers add events of the same keys, and some roll back. The rest is without gaps and in the
// order of the ids, and no writer deadlocks although the keys come in any order.
func TestAddCountsEachKeyWithoutGapsUnderConcurrency(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		stop := errors.New("no")
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := range 25 {
					keys := []outbox.Event{outboxtest.Event("a"), outboxtest.Event("b"), outboxtest.Event("c"),
						outboxtest.Event("a")}
					if w%2 == 0 {
						slices.Reverse(keys)
					}
					err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
						if err := outbox.Add(ctx, tx, keys...); err != nil {
							return err
						}
						if i%5 == w%5 {
							return stop
						}
						return nil
					})
					if err != nil && !errors.Is(err, stop) {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		next := map[string]int{}
		for _, item := range strings.Fields(sequences(t, db)) {
			key, _, _ := strings.Cut(item, ":")
			next[key]++
			if want := fmt.Sprintf("%s:%d", key, next[key]); item != want {
				t.Fatalf("in order of ids %s comes where %s should", item, want)
			}
		}
		if next["a"] != 320 || next["b"] != 160 || next["c"] != 160 {
			t.Errorf("counted %v", next)
		}
	})
}

// sequences lists key:key_seq of all events by key, in the order of ids.
func sequences(t *testing.T, db *database.DB) string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT key, key_seq FROM outbox_event ORDER BY key, id`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var key string
		var seq int
		if err := rows.Scan(&key, &seq); err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s:%d", key, seq))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

func TestAddNotesTheKeysOfWhatItWrites(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		add := func(keys ...string) []string {
			t.Helper()
			ctx, noted := outbox.WithKeys(t.Context())
			err := db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
				for _, key := range keys { // not all at once
					if err := outbox.Add(ctx, tx, outboxtest.Event(key), outboxtest.Event("each")); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return slices.Sorted(slices.Values(noted.List()))
		}
		if got := add("a", "b", "a"); !slices.Equal(got, []string{"a", "b", "each"}) {
			t.Errorf("keys %v", got)
		}
		if got := add(); len(got) > 0 {
			t.Errorf("keys %v without an event", got)
		}
		many := make([]string, 16)
		for i := range many {
			many[i] = fmt.Sprint(i)
		}
		if got := add(many[1:]...); len(got) != len(many) {
			t.Errorf("%d keys, want %d", len(got), len(many))
		}
		if got := add(many...); len(got) > 0 {
			t.Errorf("keys %v, and there are more", got)
		}
	})
}

func TestAddRefusesWhatCouldNeverBePublished(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	for name, spoil := range map[string]func(*outbox.Event){
		"no type":             func(e *outbox.Event) { e.Type = "" },
		"no key":              func(e *outbox.Event) { e.Key = "" },
		"no source":           func(e *outbox.Event) { e.Source = "" },
		"long key":            func(e *outbox.Event) { e.Key = strings.Repeat("k", 256) },
		"key not UTF-8":       func(e *outbox.Event) { e.Key = "\xff" },
		"NUL in the key":      func(e *outbox.Event) { e.Key = "a\x00b" },
		"newline in the type": func(e *outbox.Event) { e.Type = "a\nb" },
		"no data":             func(e *outbox.Event) { e.Data = nil },
		"data not JSON":       func(e *outbox.Event) { e.Data = json.RawMessage(`{`) },
		"data not an object":  func(e *outbox.Event) { e.Data = json.RawMessage(` [1]`) },
		"data not UTF-8":      func(e *outbox.Event) { e.Data = json.RawMessage("{\"a\":\"\xff\"}") },
		"a member twice":      func(e *outbox.Event) { e.Data = json.RawMessage(`{"a":1,"\u0061":2}`) },
		"twice further down":  func(e *outbox.Event) { e.Data = json.RawMessage(`{"a":[{"b":1,"b":1}]}`) },
		"half a surrogate":    func(e *outbox.Event) { e.Data = json.RawMessage(`{"a":"\ud800"}`) },
		"something after it":  func(e *outbox.Event) { e.Data = json.RawMessage(`{} {}`) },
		"too large": func(e *outbox.Event) {
			e.Data = json.RawMessage(`{"a":"` + strings.Repeat("x", outbox.MaxEventBytes-100) + `"}`)
		},
		"year 10000": func(e *outbox.Event) { e.Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		e := outboxtest.Event("k")
		spoil(&e)
		err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error { return outbox.Add(ctx, tx, e) })
		if !errors.Is(err, outbox.ErrInvalidEvent) {
			t.Errorf("%s: got %v, want ErrInvalidEvent", name, err)
		}
	}
	if err := outbox.Add(t.Context(), db, outboxtest.Event("k")); err == nil {
		t.Error("an event outside a transaction was accepted")
	}
}

// Numbers and texts stay as they were written.
func TestAddKeepsTheTextOfData(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	e := outboxtest.Event("k")
	e.Data = json.RawMessage(`{ "z": 1e400, "a": 9007199254740993, "b": "\u0000\/\u00e9<>\u2028",	"c": [ -0.0 ] }`)
	outboxtest.Add(t, db, e)
	var kept string
	if err := db.QueryRowContext(t.Context(), "SELECT data FROM outbox_event").Scan(&kept); err != nil {
		t.Fatal(err)
	}
	if want := `{"z":1e400,"a":9007199254740993,"b":"\u0000\/\u00e9<>\u2028","c":[-0.0]}`; kept != want {
		t.Errorf("kept %s, want %s", kept, want)
	}
}

func TestAddTakesManyEventsAtOnceInTheirOrder(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		var events []outbox.Event
		for i := range 257 {
			e := outboxtest.Event("k")
			e.Subject = fmt.Sprint(i + 1)
			events = append(events, e)
		}
		outboxtest.Add(t, db, events...)
		outboxtest.Add(t, db) // none
		var n, wrong int
		err := db.QueryRowContext(t.Context(),
			`SELECT count(*), count(CASE WHEN subject <> CAST(key_seq AS text) OR key_seq <> id THEN 1 END) FROM outbox_event`).Scan(&n, &wrong)
		if err != nil || n != 257 || wrong != 0 {
			t.Errorf("%d events, %d out of order, %v", n, wrong, err)
		}
	})
}

// An event of exactly the maximum size fits.
func TestAddTakesTheLargestEvent(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		e := outboxtest.Event("k")
		e.Data = json.RawMessage(`{"a":"` + strings.Repeat("x", outbox.MaxEventBytes-1024) + `"}`)
		outboxtest.Add(t, db, e)
	})
}

// The vectors of org.apache.kafka.common.utils.UtilsTest, without the sign bit.
func TestPartitionIsThatOfTheJavaClient(t *testing.T) {
	t.Parallel()
	const n = 1 << 30
	for key, murmur := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "abc": 479470107, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
	} {
		if got, want := outbox.Partition(key, n), int(murmur&0x7fffffff)%n; got != want {
			t.Errorf("%q: got %d, want %d", key, got, want)
		}
	}
}

// Two transactions each read before they write. On SQLite, Add relies on the write lock at the
// start of a transaction, which keeps a key from being counted twice.
func TestAddNeedsNoRetryOnSQLite(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
					var n int
					if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM outbox_key`).Scan(&n); err != nil {
						return err
					}
					return outbox.Add(ctx, tx, outboxtest.Event("k"))
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var seq int
	if err := db.QueryRowContext(t.Context(), `SELECT seq FROM outbox_key WHERE key = 'k'`).Scan(&seq); err != nil ||
		seq != 160 {
		t.Errorf("counted %d, %v; want 160", seq, err)
	}
}
