package delivery

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// A pause takes effect, and a new target gets its first event, however long the leases are.
func TestTargetsAreReadSoonWithAnyLease(t *testing.T) {
	t.Parallel()
	for length, want := range map[time.Duration]time.Duration{ // both ends of outbox.lease, and its default
		time.Second: time.Second / 3, 5 * time.Second: 5 * time.Second / 3, time.Minute: noticeWithin,
	} {
		if got := renewEvery(length); got != want {
			t.Errorf("leases of %v are renewed every %v, want %v", length, got, want)
		}
	}
}

// A target wants none of a thousand events a second. The deliverer looks ten times a second, and at
// once after a pause.
func TestLooksThatFindNothingAreSpaced(t *testing.T) {
	t.Parallel()
	var l lull
	now := time.Now()
	looks := func(found bool) (n int) {
		for range 1000 {
			now = now.Add(time.Millisecond)
			if l.due(now) {
				n++
				l.done(now, found)
			}
		}
		return n
	}
	if n := looks(false); n < 10 || n > 20 {
		t.Errorf("%d looks in the first second", n)
	}
	if n := looks(false); n < 9 || n > 10 {
		t.Errorf("%d looks in the second one", n)
	}
	l.due(now)
	if left, put := l.left(now); !put || left <= 0 || left > longestLull {
		t.Errorf("a delayed look waits %v, %v", left, put)
	}
	now = now.Add(time.Second)
	if left, _ := l.left(now); left != 0 || !l.due(now) {
		t.Errorf("after a pause it waits %v", left)
	}
	if _, put := l.left(now); put {
		t.Error("a look that was due is delayed")
	}
	if n := looks(true); n != 1000 {
		t.Errorf("%d of 1000 looks that find something", n)
	}
}

// A fail-over takes every lease, and is told as such. A lease that is lost otherwise went to another deliverer.
func TestAFailOverIsNoLossOfLeases(t *testing.T) {
	t.Parallel()
	logged, logs := observer.New(zap.WarnLevel)
	d, err := New(dbtest.SQLite(t), nil, Config{Lease: time.Minute}, Options{Log: zap.New(logged)})
	if err != nil {
		t.Fatal(err)
	}
	at := place{target: 1, shard: 2}
	for i, want := range []struct{ server, line string }{
		{"one", "deliverer_shards_lost"}, {"two", "deliverer_database_changed"}, {"two", "deliverer_shards_lost"},
	} {
		held := map[place]*lease{at: {place: at, epoch: int64(i)}}
		d.apply(time.Now(), held, tickResult{server: want.server, epochs: map[place]int64{at: int64(i + 1)}})
		if lines := logs.TakeAll(); len(lines) != 1 || lines[0].Message != want.line {
			t.Errorf("on server %s the log has %v, want %s", want.server, lines, want.line)
		}
	}
}

// Many keys may be parked when a process that delivers starts. With hundreds of thousands at once it would not be done
// in the time that it has, and begin with that again before it delivers anything.
func TestParkedKeysComeAgainSomeAtATime(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		d, err := New(db, nil, Config{Lease: time.Second}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		server, err := database.Value[string](db.QueryRowContext(t.Context(), "SELECT "+schema.ThisServer(db)))
		if err != nil {
			t.Fatal(err)
		}
		_, err = db.ExecContext(t.Context(), `INSERT INTO outbox_held_key
				(target, key, shard, event, attempts, next_ms, parked_ms, error)
			WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?)
			SELECT 1, 'key ' || n, 0, n, 1, 0, 1, 'refused' FROM n`, keysAtOnce+1)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []int{1, 0} {
			if err := d.unparkPointless(t.Context(), server, 1, []int{0}, 0, keysAtOnce); err != nil {
				t.Fatal(err)
			}
			parked, err := database.Value[int](db.QueryRowContext(t.Context(),
				"SELECT count(*) FROM outbox_held_key WHERE parked_ms IS NOT NULL"))
			if err != nil || parked != want {
				t.Errorf("%d keys are parked, %v, want %d", parked, err, want)
			}
		}
	})
}

// Many keys may wait when a target recovers. With hundreds of thousands at once the worker would not be done in the time
// that it has, and begin with that again before it delivers anything.
func TestPausesOfAnOutageEndSomeAtATime(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		d, err := New(db, nil, Config{}, Options{})
		testenv.Must(t, err)
		server, err := database.Value[string](db.QueryRowContext(t.Context(), "SELECT "+schema.ThisServer(db)))
		testenv.Must(t, err)
		d.abandon, d.stop = t.Context(), t.Context()
		d.server.Store(server)
		s, err := outbox.Subscribe(t.Context(), db, outbox.Subscription{Name: "hook", Kind: outbox.KindWebhook,
			Types: []string{"*"}, URL: "https://receiver.example"})
		testenv.Must(t, err)
		_, err = db.Write(t.Context(), `INSERT INTO outbox_delivery_lease (target, shard, owner, epoch, until_ms)
			VALUES (?, 0, ?, 1, 9000000000000)`, s.ID, d.id)
		testenv.Must(t, err)
		// Half of them asked for their pause, which stays.
		_, err = db.ExecContext(t.Context(), `INSERT INTO outbox_held_key
				(target, key, shard, event, attempts, since_ms, next_ms, asked_ms, error)
			WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?2)
			SELECT ?1, 'key ' || n, 0, n, 1, 1, 9000000000000, CASE WHEN n % 2 = 0 THEN 9000000000000 END, 'away' FROM n`,
			s.ID, 2*keysAtOnce+1)
		testenv.Must(t, err)
		w, l := newWorker(d, s), &lease{place: place{s.ID, 0}, epoch: 1}
		w.assign(s, []*lease{l}, 1)
		w.recovery = &recovery{at: time.Now()}
		if !db.IsPostgres() { // a slow database: what is too much fails every time
			_, err = db.Write(t.Context(), `CREATE TABLE changed AS SELECT 0 AS n;
				CREATE TRIGGER refuse AFTER UPDATE ON outbox_held_key BEGIN UPDATE changed SET n = n + 1;
				SELECT raise(ABORT, 'too many') FROM changed WHERE n > 1000; END`)
			testenv.Must(t, err)
			for tries := 1; w.comeAtOnce() != nil; tries++ {
				if tries > 20 {
					t.Fatal("as many are tried again and again")
				}
			}
			_, err = db.ExecContext(t.Context(), `DROP TRIGGER refuse`)
			testenv.Must(t, err)
		}
		for before, rounds := 2*keysAtOnce+1, 1; l.recovery == nil; rounds++ {
			testenv.Eventually(t, "keys come", func() bool { return w.comeAtOnce() == nil })
			wait, err := database.Value[int](db.QueryRowContext(t.Context(),
				"SELECT count(*) FROM outbox_held_key WHERE next_ms = 9000000000000"))
			done := l.recovery != nil
			if err != nil || before-wait > keysAtOnce || done != (wait == keysAtOnce && rounds > 1) {
				t.Fatalf("%d keys wait, after %d, %v; done: %v", wait, before, err, done)
			}
			before = wait
		}
	})
}

// Moving the times of many keys may take longer than half a lease. It would begin with that for ever.
func TestTheClockIsFollowedHoweverManyKeysWait(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	d, err := New(db, nil, Config{Lease: time.Second}, Options{})
	testenv.Must(t, err)
	ticks := func() bool { return d.tick(t.Context()) == nil }
	testenv.Eventually(t, "a tick", ticks)
	_, err = db.ExecContext(t.Context(), `INSERT INTO outbox_delivery_lease (target, shard, owner, epoch, until_ms)
		VALUES (1, 0, ?, 1, 9000000000000)`, d.id)
	testenv.Must(t, err)
	for _, q := range []string{
		`INSERT INTO outbox_held_key (target, key, shard, event, attempts, next_ms, error) VALUES (1, 'a', 0, 1, 1, 1, '')`,
		`CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS
			$$ BEGIN PERFORM pg_sleep(0.75); RETURN new; END $$`,
		`CREATE TRIGGER slowly BEFORE UPDATE ON outbox_held_key FOR EACH ROW EXECUTE FUNCTION slowly()`,
	} {
		_, err := db.ExecContext(t.Context(), q)
		testenv.Must(t, err)
	}
	d.had = map[place]int64{{1, 0}: 1}
	d.clock.Store(&reading{time.Now().UnixMilli() - 2*leastJump.Milliseconds(), d.now()})
	testenv.Eventually(t, "a tick that follows the clock", ticks)
	next, err := database.Value[int64](db.QueryRowContext(t.Context(), "SELECT next_ms FROM outbox_held_key"))
	if err != nil || next < leastJump.Milliseconds() {
		t.Errorf("the key comes at %d, %v", next, err)
	}
}

// An answer that was slow says little about the time: after it, nothing seems to have been before what it came after.
func TestASlowAnswerMovesNoClock(t *testing.T) {
	t.Parallel()
	start := time.Unix(1000, 0)
	after := func(ms int64) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	first := &reading{ms: 5000, at: after(10)}
	for name, test := range map[string]struct {
		asked, answered, ms int64
		want                bool
	}{
		"as quick":                      {1000, 1010, 5990, true},
		"slow":                          {1000, 3000, 5991, true},
		"quicker: the first one lagged": {1000, 1001, 6001, false},
		"set back":                      {1000, 1010, 5989, false},
	} {
		if got := first.agrees(after(test.asked), reading{test.ms, after(test.answered)}); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	var none *reading
	if none.agrees(start, *first) {
		t.Error("no reading agrees with one")
	}
}

// An outage of the database that lasts and a role without rights have different names in the log, since
// the second waits for a person. Each is logged once, and its end tells how long it lasted.
func TestAnOutageOfTheDatabaseIsLogged(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	for name, test := range map[string]struct {
		err  error
		wait time.Duration
	}{
		"deliverer_database_away": {errors.New("refused"), 2 * time.Second},
		"deliverer_stalled":       {&pgconn.PgError{Code: "42501"}, 0},
	} {
		core, logs := observer.New(zap.InfoLevel)
		now := time.Unix(1000, 0)
		d := &Deliverer{db: db, log: zap.New(core), now: func() time.Time { return now }, failing: map[*worker]failure{}}
		d.failed(nil, errors.New("a connection that was idle"))
		d.worked(nil)
		d.failed(nil, test.err)
		now = now.Add(test.wait)
		d.failed(nil, test.err)
		d.failed(nil, test.err)
		now = now.Add(time.Minute)
		rights := name == "deliverer_stalled"
		if d.outage(rights) != test.wait+time.Minute || d.outage(!rights) != 0 {
			t.Errorf("%s: the metric says %v, and %v of the other kind", name, d.outage(rights), d.outage(!rights))
		}
		later := &worker{} // meets the same outage when the others have met it for long
		d.failed(later, test.err)
		d.worked(nil)
		d.worked(later)
		if d.outage(rights) != 0 {
			t.Errorf("%s: the metric does not end", name)
		}
		d.worked(nil)
		lines := logs.All()
		if len(lines) != 2 || lines[0].Message != name || lines[1].Message != "deliverer_outage_ended" {
			t.Fatalf("%s: %v", name, lines)
		}
		if lasted := lines[1].ContextMap()["lasted"]; lasted != test.wait+time.Minute {
			t.Errorf("%s: it lasted %v", name, lasted)
		}
	}
}

// A deliverer whose machine was suspended for longer than a lease says that it has lost its places.
func TestADelivererThatWasSuspendedSaysSo(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	s, err := outbox.Subscribe(t.Context(), db, outbox.Subscription{Name: "hook", Kind: outbox.KindWebhook,
		Types: []string{"*"}, URL: "https://receiver.example"})
	testenv.Must(t, err)
	logged, logs := observer.New(zap.WarnLevel)
	d, err := New(db, nil, Config{Lease: time.Minute}, Options{Log: zap.New(logged)})
	testenv.Must(t, err)
	d.abandon, d.stop = t.Context(), t.Context()
	w := newWorker(d, s)
	w.assign(s, []*lease{{place: place{s.ID, 0}, epoch: 1}}, 1)
	d.workers[s.ID] = w
	testenv.Must(t, d.tick(t.Context()))
	if lines := logs.FilterMessage("deliverer_shards_lost").All(); len(lines) != 1 {
		t.Errorf("the log has %v", logs.All())
	}
}

// A deliverer that was silent for a whole lease renews its leases right after another one has looked for who lives.
func TestALeaseThatIsRenewedLateIsKept(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		d, err := New(db, nil, Config{}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		const id, ends = "00000000-0000-0000-0000-000000000001", 9000000000000
		if _, err := db.Write(t.Context(), `INSERT INTO outbox_delivery_lease (target, shard, owner, epoch, until_ms)
			VALUES (1, 0, ?, 1, ?)`, id, ends); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			seen int64
			want int
		}{{ends - 1, 0}, {ends, 1}} {
			epochs, mine := map[place]int64{}, map[place]bool{{1, 0}: true}
			err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
				_, err := d.take(ctx, tx, mine, epochs, map[string]int64{id: c.seen}, schema.Now(tx), 5000)
				return err
			})
			if err != nil || len(epochs) != c.want {
				t.Errorf("it takes %d leases, %v, want %d", len(epochs), err, c.want)
			}
		}
	})
}

// A deliverer lost its lease while it looked for held keys, as when its machine was suspended, and the new owner is
// setting aside an event of a key that the former one wants to free. The event must not be held without its key: then
// nobody would ever try it, and no command would list it.
func TestAFormerOwnerFreesNoKeys(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		ctx := t.Context()
		s, err := outbox.Subscribe(ctx, db, outbox.Subscription{Name: "hook", Kind: outbox.KindWebhook,
			Types: []string{"*"}, URL: "https://receiver.example"})
		if err != nil {
			t.Fatal(err)
		}
		outboxtest.AddKeys(t, db, "a")
		var server string
		var shard int
		err = db.QueryRowContext(ctx, "SELECT "+schema.ThisServer(db)+", (SELECT shard FROM outbox_delivery)").
			Scan(&server, &shard)
		if err != nil {
			t.Fatal(err)
		}
		owner := func(epoch int64) (*Deliverer, *lease) {
			d, err := New(db, nil, Config{}, Options{})
			if err != nil {
				t.Fatal(err)
			}
			d.stop = ctx
			d.server.Store(server)
			return d, &lease{place: place{s.ID, shard}, epoch: epoch}
		}
		former, lost := owner(1)
		present, own := owner(2)
		for _, q := range []struct {
			text string
			args []any
		}{
			// An operator has discarded the event that was refused.
			{`INSERT INTO outbox_held_key (target, key, shard, event, attempts, next_ms, error) VALUES (?, 'a', ?, 0, 0, 0, '')`,
				[]any{s.ID, shard}},
			{`INSERT INTO outbox_delivery_lease (target, shard, owner, epoch, until_ms) VALUES (?, ?, ?, 2, 9000000000000)`,
				[]any{s.ID, shard, present.id}},
		} {
			if _, err := db.Write(ctx, q.text, q.args...); err != nil {
				t.Fatal(err)
			}
		}
		ready, err := present.readyRows(ctx, server, s.ID, []int{shard}, minDepth)
		if err != nil || len(ready) != 1 || !ready[0].held {
			t.Fatalf("the new owner reads %+v, %v", ready, err)
		}
		if _, err := newWorker(former, s).due(ctx, map[int]*lease{shard: lost}, 1); err != nil {
			t.Fatal(err)
		}
		aside := map[*lease][]int64{own: {ready[0].id}}
		if err := whereOwned(ctx, present, s.ID, aside, markHeld); err != nil {
			t.Fatal(err)
		}
		due, err := present.dueKeys(ctx, server, s.ID, []int{shard}, 1)
		if err != nil || len(due) != 1 || due[0].id != ready[0].id {
			t.Errorf("the event is held, and these keys are due: %+v, %v", due, err)
		}
	})
}

// A deliverer that does not reach the database shows no old values. One of paused would hide that others are behind.
func TestWhatCannotBeCountedIsNotShown(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	reg := prometheus.NewRegistry()
	d, err := New(db, nil, Config{}, Options{Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	counts := func(want bool) {
		t.Helper()
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { d.gauge(ctx); close(done) }()
		testenv.Eventually(t, "the metrics", func() bool {
			families, err := reg.Gather()
			shown := false
			for _, f := range families {
				shown = shown || f.GetName() == "authctl_outbox_target_paused"
			}
			return err == nil && shown == want
		})
		stop()
		<-done
	}
	counts(true)
	if _, err := db.ExecContext(t.Context(), `ALTER TABLE outbox_delivery RENAME TO away`); err != nil {
		t.Fatal(err)
	}
	counts(false)
}
