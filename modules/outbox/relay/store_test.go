package relay

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// read returns the pending events of all shards.
func read(t *testing.T, s *store, limit, bytes int) []Record {
	t.Helper()
	var shards []int
	for id := range 96 {
		shards = append(shards, id)
	}
	records, err := s.pendingOf(t.Context(), server(t, s.db), shards, make([]int64, 96), limit, bytes)
	if err != nil {
		t.Fatal(err)
	}
	return records
}

func server(t *testing.T, db *database.DB) (name string) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), "SELECT "+schema.ThisServer(db)).Scan(&name); err != nil {
		t.Fatal(err)
	}
	return name
}

func ids(records []Record) string {
	var list []int64
	for _, r := range records {
		list = append(list, r.ID)
	}
	return fmt.Sprint(list)
}

func opened(t *testing.T, db *database.DB) *store {
	t.Helper()
	s, err := openStore(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

func TestPendingEventsAreReadAsTheyWereAdded(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := opened(t, db)
		outboxtest.AddKeys(t, db, "a", "b", "a")
		got := read(t, s, 10, 1<<20)
		if len(got) != 3 {
			t.Fatalf("%d events, want 3", len(got))
		}
		for _, r := range got {
			var want Record
			err := db.QueryRowContext(t.Context(),
				`SELECT id, key_seq, created_ms, event_id, key, subject, time, type, source, dataschema, data, generation, traceparent
				FROM outbox_event WHERE id = ?`, r.ID).
				Scan(&want.ID, &want.Seq, &want.CreatedMS, &want.EventID, &want.Key, &want.Subject, &want.Time,
					&want.Type,
					&want.Source, &want.DataSchema, &want.Data, &want.Generation, &want.TraceParent)
			if err != nil {
				t.Fatal(err)
			}
			want.shard, want.at = r.shard, r.at
			if r.shard != outbox.Partition(r.Key, 96) || fmt.Sprint(r) != fmt.Sprint(want) {
				t.Errorf("got  %v\nwant %v", r, want)
			}
		}
	})
}

// The limits of events and bytes hold for each shard. The event that exceeds the bytes is the last.
func TestReadingIsLimitedForEachShard(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := opened(t, db)
		outboxtest.AddKeys(t, db, "a", "a", "a", "a", "b", "b")
		size := read(t, s, 1, 1)[0].Bytes()
		for _, c := range []struct{ limit, bytes, want int }{
			{10, 1 << 20, 6}, {1, 1 << 20, 2}, {3, 1 << 20, 5}, {10, 1, 2}, {10, size, 2}, {10, size + 1, 4},
			{10, 2*size + 1, 5},
		} {
			if got := read(t, s, c.limit, c.bytes); len(got) != c.want {
				t.Errorf("at most %d events and %d bytes of a shard: got %d events of two shards, want %d", c.limit,
					c.bytes,
					len(got), c.want)
			}
		}
	})
}

// Rows are deleted where they were read. A row that has moved since is deleted too, but not the row
// that has taken its place.
func TestDoneIsWhatWasSentAndNothingElse(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		meanwhile []string // of pending events 1, 2 and 3, of which 1 and 2 were sent
		want      string
	}{
		"nothing":         {nil, "[3]"},
		"moved":           {[]string{`UPDATE outbox_pending SET bytes = bytes`}, "[3]"},
		"done by another": {[]string{`DELETE FROM outbox_pending WHERE id IN (1, 2)`}, "[3]"},
		"another relay takes over": {[]string{`DELETE FROM outbox_pending WHERE id IN (1, 2)`,
			`VACUUM outbox_pending`, `add`}, "[3 4 5]"},
		"marked for replay": {[]string{`UPDATE outbox_pending SET replay = true WHERE id = 2`}, "[2 3]"},
		"replayed": {[]string{`DELETE FROM outbox_pending WHERE id = 2`, `VACUUM outbox_pending`,
			`INSERT INTO outbox_pending SELECT shard, segment, bytes, 2, true FROM outbox_pending WHERE id = 1`}, "[2 3]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := dbtest.Postgres(t)
			s := opened(t, db)
			outboxtest.AddKeys(t, db, "a", "a", "a")
			sent := read(t, s, 2, 1<<20)
			if ids(sent) != "[1 2]" {
				t.Fatalf("read %v", ids(sent))
			}
			for _, what := range c.meanwhile {
				if what == "add" {
					outboxtest.AddKeys(t, db, "a", "a")
				} else if _, err := db.ExecContext(t.Context(), what); err != nil {
					t.Fatal(err)
				}
			}
			if name == "another takes over" { // otherwise the test shows nothing
				now := read(t, s, 10, 1<<20)
				if now[1].at != sent[0].at || now[2].at != sent[1].at {
					t.Fatalf("the new rows are at %v and %v, not where the old ones were, %v and %v", now[1].at,
						now[2].at, sent[0].at,
						sent[1].at)
				}
			}
			if err := s.published(t.Context(), server(t, db), sent); err != nil {
				t.Fatal(err)
			}
			if left := read(t, s, 10, 1<<20); ids(left) != c.want {
				t.Errorf("left %v, want %v", ids(left), c.want)
			}
		})
	}
}

// A plan that reads all pending events at each step would become slower with a longer backlog.
func TestHotStatementsDoNotReadWholeTables(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	for _, q := range []string{
		`INSERT INTO outbox_pending (shard, segment, bytes, id) SELECT g % 96, 0, 100, g FROM generate_series(1, 50000) g`,
		`INSERT INTO outbox_event SELECT g, 0, 1, gen_random_uuid(), 0, '', '', '', '', '', '', '{}', 0, '' FROM generate_series(1, 50000) g`,
		`ANALYZE`,
	} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	const many = `(SELECT array_agg(g::%s) FROM generate_series(1, 2000) g)`
	array := func(kind string) string {
		var text string
		if err := db.QueryRowContext(t.Context(),
			fmt.Sprintf(`SELECT quote_literal(`+many+`::text)`, kind)).Scan(&text); err != nil {
			t.Fatal(err)
		}
		return text
	}
	places := `(SELECT quote_literal(array_agg(ctid)::text) FROM outbox_pending WHERE id <= 2000)`
	var tids string
	if err := db.QueryRowContext(t.Context(), `SELECT `+places).Scan(&tids); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, query, args, want string }{
		{"fetch", fetchPostgres, array("integer") + ", " + array("bigint") + ", 100", "outbox_pending_pkey"},
		{"read", fmt.Sprintf(segmentPostgres, 0), array("bigint"), "outbox_event_00_pkey"},
		{"ack", ackPostgres, tids + ", " + array("bigint") + ", false", "Tid Scan"},
		{"ack of moved rows", ackMovedPostgres, array("integer") + ", " + array("bigint") + ", false",
			"outbox_pending_pkey"},
	} {
		for _, mode := range []string{"generic", "custom"} {
			err := db.Postgres(t.Context(), func(conn *pgx.Conn) error {
				for _, q := range []string{"SET plan_cache_mode = force_" + mode + "_plan", "PREPARE p AS " + c.query} {
					if _, err := conn.Exec(t.Context(), q); err != nil {
						return err
					}
				}
				rows, err := conn.Query(t.Context(), "EXPLAIN EXECUTE p("+c.args+")")
				if err != nil {
					return err
				}
				lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
				if err != nil {
					return err
				}
				plan := strings.Join(lines, "\n")
				if strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Hash Join") ||
					!strings.Contains(plan, c.want) {
					t.Errorf("%s, %s plan:\n%s", c.name, mode, plan)
				}
				_, err = conn.Exec(t.Context(), "DEALLOCATE p; RESET plan_cache_mode")
				return err
			})
			if err != nil {
				t.Fatal(c.name, err)
			}
		}
	}
}

// The watermark of a shard passes deleted events, but never an event that is pending or may still
// appear.
func TestTheWatermarkPassesOnlyWhatIsPublished(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		stable int64
		parked map[string]int64
		replay bool // an operator puts events back while the batch is in flight
		want   int64
	}{
		"all stable":          {stable: 100, want: 12},
		"some may still come": {stable: 11, want: 11},
		// 10 has appeared before
		"one waits with its key":  {stable: 100, parked: map[string]int64{"waits": 5}, want: 9},
		"something was put back":  {stable: 100, replay: true, want: 3},
		"nothing is stable yet":   {stable: 0, want: 0},
		"another key is parked":   {stable: 100, parked: map[string]int64{"other": 5}, want: 12},
		"the key is parked later": {stable: 100, parked: map[string]int64{"waits": 13}, want: 12},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sh := &shard{id: 5, epoch: 1, parked: c.parked}
			r := &Relay{cfg: Config{}.withDefaults(), partitions: 4, workers: make([]partitionWorker, 4),
				held: map[int]*shard{5: sh}, now: time.Now}
			requests, _ := r.fetchRequests([]bool{true, true, true, true}, func(int) bool { return true })
			records := []Record{{Record: outbox.Record{ID: 10, Key: "waits"}, shard: 5},
				{Record: outbox.Record{ID: 11, Key: "k"}, shard: 5}, {Record: outbox.Record{ID: 12, Key: "k"},
					shard: 5}}
			batches := r.dispatch(requests, records, c.stable)
			if len(batches) != 1 || !sh.busy {
				t.Fatalf("%d batches, busy: %v", len(batches), sh.busy)
			}
			if c.replay {
				sh.epoch, sh.watermark = 2, 3
			}
			r.advance(batches[0])
			if sh.watermark != c.want {
				t.Errorf("the watermark is at %d, want %d", sh.watermark, c.want)
			}
		})
	}
}

// PostgreSQL used to plan each fetch in a backlog by its values, which took longer than the fetch
// itself.
func TestPendingEventsAreReadByAPlanThatIsMadeOnce(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	for _, q := range []string{
		`INSERT INTO outbox_event SELECT g, 0, 1, gen_random_uuid(), 0, '', '', '', '', '', '', '{}' FROM generate_series(1, 20000) g`,
		`INSERT INTO outbox_pending (shard, segment, bytes, id) SELECT g % 48 * 2, 0, 100, g FROM generate_series(1, 20000) g`,
		`ANALYZE`,
	} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	err := db.Postgres(t.Context(), func(conn *pgx.Conn) error {
		const fetches = 12 // more than the executions that PostgreSQL always plans by their values
		for range fetches {
			shards, watermarks := []int{1, 2, 3, 4}, []int64{0, 100, 0, 100}
			rows, err := pendingRows(t.Context(), asking(conn, db.Prepared()), shards, watermarks, 7, 1<<20)
			if err != nil || len(rows) != 14 {
				t.Errorf("%d rows, want seven of each of two shards: %v", len(rows), err)
			}
			if _, err = complete(t.Context(), asking(conn, db.Prepared()), rows[:1], nil); err != nil {
				return err
			}
		}
		var known, once int
		err := conn.QueryRow(t.Context(),
			`SELECT count(*), count(*) FILTER (WHERE generic_plans > 0) FROM pg_prepared_statements
			WHERE statement LIKE '%outbox_pending%' OR statement LIKE '%outbox_event_%'`).Scan(&known, &once)
		if err == nil && (known != 2 || once != known) {
			t.Errorf("%d of %d statements are planned once", once, known)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
