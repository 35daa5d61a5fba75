package relay

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// These tests hold a transaction at one point of outbox_add_traced while others go on, because the
// stable watermark relies on what holds between two statements.

// stoppable adds stops before, between and after the statements of the function, and returns their
// number. [stopped] holds a transaction at one of them.
func stoppable(t *testing.T, db *database.DB) int {
	t.Helper()
	var text string
	if err := db.QueryRowContext(t.Context(),
		`SELECT pg_get_functiondef('outbox_add_traced'::regproc)`).Scan(&text); err != nil {
		t.Fatal(err)
	}
	head, body, found := strings.Cut(text, "\nBEGIN\n")
	if !found {
		t.Fatalf("outbox_add_traced has changed:\n%s", text)
	}
	stops := 0
	var out strings.Builder
	stop := func() {
		fmt.Fprintf(&out,
			"IF current_setting('outbox.stop_at', true) = '%d' THEN PERFORM pg_advisory_xact_lock(1); END IF;\n", stops)
		stops++
	}
	out.WriteString(head + "\nBEGIN\n")
	stop()
	for line := range strings.Lines(body) {
		out.WriteString(line)
		if strings.HasSuffix(line, ";\n") {
			stop()
		}
	}
	// A target besides the log, so that the code that adds events for targets runs.
	if _, err := outbox.Subscribe(t.Context(), db,
		outbox.Subscription{Name: "hook", Kind: "webhook", Types: []string{"*"},
			URL: "https://hook.test"}); err != nil {
		t.Fatal(err)
	}
	if stops < 5 {
		t.Fatalf("only %d stops in:\n%s", stops, out.String())
	}
	if _, err := db.ExecContext(t.Context(), out.String()); err != nil {
		t.Fatal(err)
	}
	return stops
}

// stopped begins a transaction that adds an event of the key, and returns once it is held at the
// stop. The returned function lets it commit.
func stopped(t *testing.T, db *database.DB, at int, key string) (goOn func()) {
	t.Helper()
	gate, open := dbtest.Begin(t, db)
	if _, err := gate.ExecContext(t.Context(), `SELECT pg_advisory_xact_lock(1)`); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
			if _, err := tx.ExecContext(ctx, fmt.Sprintf(`SET LOCAL outbox.stop_at = '%d'`, at)); err != nil {
				return err
			}
			addOne(t, ctx, tx, key)
			return nil
		})
	}()
	waiting(t, db, "advisory", 1)
	return func() {
		t.Helper()
		if err := open(false); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// waiting returns once n transactions wait for a lock of a kind: advisory, relation, transactionid.
func waiting(t *testing.T, db *database.DB, kind string, want int) {
	t.Helper()
	for deadline := time.Now().Add(testenv.Patience); ; time.Sleep(5 * time.Millisecond) {
		var n int
		err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = ?`, kind).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		if n == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after a minute %d wait for a lock of kind %s, want %d", n, kind, want)
		}
	}
}

func eventID(t *testing.T, db *database.DB, key string) (id int64) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), `SELECT id FROM outbox_event WHERE key = ?`, key).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

// eachStop runs a test at each stop of outbox_add_traced, each in its own database.
func eachStop(t *testing.T, test func(t *testing.T, db *database.DB, at int)) {
	t.Helper()
	t.Parallel()
	for at := range stoppable(t, dbtest.Postgres(t)) {
		t.Run(fmt.Sprint("stop ", at), func(t *testing.T) {
			t.Parallel()
			db := dbtest.Postgres(t)
			stoppable(t, db)
			test(t, db, at)
		})
	}
}

func TestTheStableWatermarkWaitsForATransactionThatHasDrawnAnID(t *testing.T) {
	eachStop(t, func(t *testing.T, db *database.DB, at int) {
		outboxtest.AddKeys(t, db, "first")
		goOn := stopped(t, db, at, "slow")
		s := schema.StableWatermark{DB: db}
		for range 5 {
			outboxtest.AddKeys(t, db, "quick")
			if _, err := s.Advance(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
		}
		goOn()
		if id := eventID(t, db, "slow"); id <= s.ID {
			t.Errorf("the event %d was committed when the watermark was at %d", id, s.ID)
		}
	})
}

func TestTheShardOfAnEventIsOneOfThoseInUse(t *testing.T) {
	eachStop(t, func(t *testing.T, db *database.DB, at int) {
		goOn := stopped(t, db, at, "slow")
		r := &Relay{db: db, cfg: Config{Shards: 7}.withDefaults()}
		err := r.adopt(t.Context()) // the change may give up, because writers come first
		goOn()
		var shard, shards int
		if err := db.QueryRowContext(t.Context(),
			`SELECT p.shard, s.shards FROM outbox_pending p, outbox_setting s`).Scan(&shard, &shards); err != nil {
			t.Fatal(err)
		}
		if (err == nil) != (shards == 7) || shard != outbox.Partition("slow", shards) {
			t.Errorf("the event is in shard %d of %d, want %d; the change of the number: %v", shard, shards,
				outbox.Partition("slow", shards), err)
		}
	})
}

// CREATE INDEX and similar statements lock the table until they end. A transaction that starts
// meanwhile draws no id, so each key keeps its order.
func TestTheStableWatermarkWaitsForALockedTable(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	outboxtest.AddKeys(t, db, "first")
	locked, unlock := dbtest.Begin(t, db)
	if _, err := locked.ExecContext(t.Context(), `LOCK TABLE outbox_event IN SHARE MODE`); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 3 {
		all.Go(func() { outboxtest.AddKeys(t, db, fmt.Sprint("k", i)) })
	}
	waiting(t, db, "relation", 3)
	s := schema.StableWatermark{DB: db}
	for range 5 {
		if _, err := s.Advance(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := unlock(true); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	for i := range 3 {
		if id := eventID(t, db, fmt.Sprint("k", i)); id <= s.ID {
			t.Errorf("the event %d was committed when the watermark was at %d", id, s.ID)
		}
	}
}

// The stable watermark of one database server says nothing about another server, which may lack
// some events.
func TestTheStableWatermarkIsOfOneServer(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	outboxtest.AddKeys(t, db, "a", "b")
	r, err := New(db, &counting{partitions: 4}, Config{}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	other, this := "another server", server(t, db)
	r.server.Store(this)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	all.Go(func() { r.trackStable(ctx) })
	reaches := func(want int64) {
		t.Helper()
		for deadline := time.Now().Add(testenv.Patience); r.stable.Load() != want; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("after a minute the watermark is at %d, want %d", r.stable.Load(), want)
			}
		}
	}
	reaches(2)
	r.server.Store(other)
	reaches(0)
	select {
	case <-r.leases:
	case <-time.After(testenv.Patience):
		t.Fatal("the leases are not checked")
	}
	r.server.Store(this)
	reaches(2)
}

// A connection to a pooler stays when the server behind it is another one.
func TestNothingIsDoneToAnotherServerBehindAPooler(t *testing.T) {
	t.Parallel()
	engine := outboxtest.StartPostgres(t, "fsync = off")
	direct := dbtest.Open(t, engine.URL)
	if _, err := migrations.Up(t.Context(), direct); err != nil {
		t.Fatal(err)
	}
	// PgBouncer wants a password, which the server does not ask for.
	db := dbtest.Open(t, dbtest.PgBouncer(t, strings.Replace(engine.URL, "postgres@", "postgres:x@", 1)))
	s := opened(t, db)
	outboxtest.AddKeys(t, direct, "a", "a", "a")
	before, sent := server(t, db), read(t, s, 10, 1<<20)
	stable := schema.StableWatermark{DB: db}
	if _, err := stable.Advance(t.Context(), before); err != nil || stable.ID != 3 || stable.Server != before {
		t.Errorf("the watermark is %d of %s, %v", stable.ID, stable.Server, err)
	}
	// The connection that has been used is kept, and others take what fails while the server is away.
	engine.Crash(t)
	engine.Start(t)
	testenv.Eventually(t, "the database", func() bool { return direct.PingContext(t.Context()) == nil })
	if err := s.published(t.Context(), before, sent); !errors.Is(err, errOtherServer) {
		t.Errorf("marked done: %v", err)
	}
	_, err := s.pendingOf(t.Context(), before, []int{sent[0].shard}, []int64{0}, 10, 1<<20)
	if !errors.Is(err, errOtherServer) {
		t.Errorf("read: %v", err)
	}
	if _, err := stable.Advance(t.Context(), before); err != nil || stable.Server == before {
		t.Errorf("the watermark is %d of the server of before, %v", stable.ID, err)
	}
	if left := read(t, s, 10, 1<<20); ids(left) != "[1 2 3]" {
		t.Errorf("left %v", ids(left))
	}
	if err := s.published(t.Context(), server(t, db), read(t, s, 10, 1<<20)); err != nil {
		t.Errorf("on the right one: %v", err)
	}
}

// Behind a pooler an acknowledgement is a transaction. A relay that stops in it, with its machine, holds up for a moment
// alone what the next owner of its shards acknowledges.
func TestARelayThatStopsBehindAPoolerHoldsNothingUp(t *testing.T) {
	t.Parallel()
	url := dbtest.PostgresURL(t)
	direct, db := dbtest.Open(t, url), dbtest.Open(t, dbtest.PgBouncer(t, url))
	outboxtest.AddKeys(t, direct, "a")
	s := opened(t, direct)
	sent := read(t, s, 10, 1<<20)
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
	defer cancel()
	err := schema.OnServer(ctx, db, "", func(conn *pgx.Conn, server string) error {
		if _, err := conn.Exec(ctx, "DELETE FROM outbox_pending"); err != nil {
			t.Error(err)
		}
		if err := s.published(ctx, server, sent); err != nil { // it stops here
			t.Errorf("the next owner: %v", err)
		}
		return nil
	})
	if err == nil {
		t.Error("it goes on as if nothing had happened")
	}
}

// On another server the ids of a batch may belong to other events.
func TestNothingIsDoneToAnotherServerThanTheOneReadFrom(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	s := opened(t, db)
	outboxtest.AddKeys(t, db, "a", "a", "a")
	if _, err := db.ExecContext(t.Context(),
		`UPDATE outbox_shard SET owner = '00000000-0000-0000-0000-000000000001'`); err != nil {
		t.Fatal(err)
	}
	sent := read(t, s, 10, 1<<20)
	if err := s.published(t.Context(), "another server", sent); !errors.Is(err, errOtherServer) {
		t.Errorf("marked done: %v", err)
	}
	_, err := s.pendingOf(t.Context(), "another server", []int{sent[0].shard}, []int64{0}, 10, 1<<20)
	if !errors.Is(err, errOtherServer) {
		t.Errorf("read: %v", err)
	}
	by := ownership{"another server", "00000000-0000-0000-0000-000000000001", 0}
	if parked, owned, err := s.park(t.Context(), sent[0], by, "no"); parked || owned || err != nil {
		t.Errorf("parked: %v, owned: %v, %v", parked, owned, err)
	}
	if moved, err := s.setAside(t.Context(), &shard{id: sent[0].shard}, by, []int64{1}); moved != 0 || err != nil {
		t.Errorf("set aside: %d, %v", moved, err)
	}
	if left := read(t, s, 10, 1<<20); ids(left) != "[1 2 3]" {
		t.Errorf("left %v", ids(left))
	}
	by.server = server(t, db)
	if parked, owned, err := s.park(t.Context(), sent[0], by, "no"); !parked || !owned || err != nil {
		t.Errorf("on the right one: parked: %v, owned: %v, %v", parked, owned, err)
	}
}
