package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

func subscribe(t *testing.T, db *database.DB, name string, types ...string) outbox.Subscription {
	t.Helper()
	s, err := outbox.Subscribe(t.Context(), db, outbox.Subscription{
		Name: name, Kind: outbox.KindWebhook, Types: types, URL: "https://receiver.example/" + name,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// waiting lists the events that wait for a target, as key/id.
func waiting(t *testing.T, db *database.DB, target int) string {
	t.Helper()
	list, err := database.Collect(t.Context(), db, "list deliveries", database.Value[string],
		`SELECT key || '/' || id FROM outbox_delivery WHERE target = ? ORDER BY id`, target)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(list, " ")
}

func TestATargetGetsTheEventsThatItWants(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		of := func(kind, key string) outbox.Event {
			e := outboxtest.Event(key)
			e.Type = kind
			return e
		}
		outboxtest.Add(t, db, of("auth.SessionEnded.v1", "before"))
		sessions := subscribe(t, db, "sessions", "auth.Session*", "auth.UserDeleted.v1")
		all := subscribe(t, db, "all", "*")
		odd := subscribe(t, db, "odd", "auth.User_eleted.v1", "*.SessionEnded.v2")
		outboxtest.Add(t, db,
			of("auth.SessionEnded.v1", "a"), of("auth.UserDeleted.v1", "b"), of("auth.UserDeleted.v2",
				"c"), of("auth.session.v1", "d"))
		err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
			return errors.Join(outbox.Add(ctx, tx, outboxtest.Event("aborted")), errors.New("abort"))
		})
		if err == nil {
			t.Fatal("it committed")
		}
		for _, want := range []struct {
			of   outbox.Subscription
			keys string
		}{{sessions, "a b"}, {all, "a b c d"}, {odd, ""}} {
			var keys []string
			for part := range strings.FieldsSeq(waiting(t, db, want.of.ID)) {
				keys = append(keys, strings.Split(part, "/")[0])
			}
			if got := strings.Join(keys, " "); got != want.keys {
				t.Errorf("%s gets %q, want %q", want.of.Name, got, want.keys)
			}
		}
	})
}

func TestATargetIsAddedOnlyIfItCanWork(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		ok := outbox.Subscription{Name: "first", Kind: outbox.KindWebhook, Types: []string{"auth.*"}}
		for _, c := range []struct {
			change func(*outbox.Subscription)
			want   error
		}{
			{func(s *outbox.Subscription) {}, nil},
			{func(s *outbox.Subscription) {}, outbox.ErrTargetExists},
			{func(s *outbox.Subscription) { s.Name = "mail" }, outbox.ErrTargetExists},
			{func(s *outbox.Subscription) { s.Name = "Second" }, outbox.ErrInvalidTarget},
			{func(s *outbox.Subscription) { s.Name = "log" }, outbox.ErrInvalidTarget},
			{func(s *outbox.Subscription) { s.Name, s.Kind = "second", outbox.KindMail }, outbox.ErrInvalidTarget},
			{func(s *outbox.Subscription) { s.Name, s.Types = "second", nil }, outbox.ErrInvalidTarget},
			{func(s *outbox.Subscription) {
				s.Name, s.Types = "second", []string{"auth.[a]"}
			}, outbox.ErrInvalidTarget},
			{func(s *outbox.Subscription) { s.Name, s.Types = "second", []string{"auth%"} }, outbox.ErrInvalidTarget},
		} {
			s := ok
			c.change(&s)
			if _, err := outbox.Subscribe(t.Context(), db, s); !errors.Is(err, c.want) {
				t.Errorf("%s %s %v: %v, want %v", s.Kind, s.Name, s.Types, err, c.want)
			}
		}
		for range outbox.MaxWebhooks - 1 {
			subscribe(t, db, "", "*")
		}
		if _, err := outbox.Subscribe(t.Context(), db,
			outbox.Subscription{Kind: outbox.KindWebhook,
				Types: []string{"*"}}); !errors.Is(err, outbox.ErrTooManyTargets) {
			t.Errorf("one more: %v", err)
		}
		if _, err := outbox.RemoveTarget(t.Context(), db, "first", testenv.Patience); err != nil {
			t.Fatal(err)
		}
		if s := subscribe(t, db, "first", "*"); s.ID != outbox.MaxWebhooks+2 {
			t.Errorf("the id of the new target is %d: an id was reused", s.ID)
		}
	})
}

func TestTheLimitOfWebhooksHoldsForCommandsAtTheSameTime(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		for range outbox.MaxWebhooks - 2 {
			subscribe(t, db, "", "*")
		}
		const commands = 6
		ended := make(chan error, commands)
		for n := range commands {
			go func() {
				_, err := outbox.Subscribe(t.Context(), db, outbox.Subscription{Name: fmt.Sprint("at-once-", n),
					Kind: outbox.KindWebhook, Types: []string{"*"}})
				ended <- err
			}()
		}
		added := 0
		for range commands {
			if err := <-ended; err == nil {
				added++
			} else if !errors.Is(err, outbox.ErrTooManyTargets) {
				t.Error(err)
			}
		}
		if added != 2 {
			t.Errorf("%d were added to %d, want 2", added, outbox.MaxWebhooks-2)
		}
	})
}

// A second command changes nothing: the first reason and its time stay.
func TestATargetIsPausedOnce(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		subscribe(t, db, "hook", "*")
		find := func() outbox.Subscription {
			t.Helper()
			s, err := outbox.FindSubscription(t.Context(), db, "hook")
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		if _, err := outbox.PauseTarget(t.Context(), db, "hook", "it is gone"); err != nil {
			t.Fatal(err)
		}
		first := find()
		if _, err := outbox.PauseTarget(t.Context(), db, "hook", "an operator paused it"); err != nil {
			t.Fatal(err)
		}
		if again := find(); again.Active() || again.Reason != "it is gone" || !again.Since.Equal(first.Since) {
			t.Errorf("paused again: %+v", again)
		}
		for range 2 {
			if _, err := outbox.ResumeTarget(t.Context(), db, "hook"); err != nil {
				t.Fatal(err)
			}
			if s := find(); !s.Active() || s.Reason != "" {
				t.Errorf("resumed: %+v", s)
			}
		}
	})
}

// A writer may wait for the key while the target is added. Its event comes after an event that the
// target gets, so the target must get it too.
func TestATargetThatGetsAnEventOfAKeyGetsAllLaterOnes(t *testing.T) {
	t.Parallel()
	if got := addedMeanwhile(t, dbtest.Postgres(t)); got != "k/2 k/3" {
		t.Errorf("the target gets %s, want the second and third event", got)
	}
}

// The test above finds a function that reads the targets before it holds the key.
func TestTargetsReadTooEarlyAreFound(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	var text string
	if err := db.QueryRowContext(t.Context(),
		`SELECT pg_get_functiondef('outbox_add_traced'::regproc)`).Scan(&text); err != nil {
		t.Fatal(err)
	}
	const read, before = "    SELECT * INTO STRICT o FROM outbox_setting;\n", "    INSERT INTO outbox_key AS k"
	early := strings.Replace(strings.Replace(text, read, "", 1), before, read+before, 1)
	if early == text || strings.Count(early, read) != 1 {
		t.Fatalf("outbox_add_traced has changed:\n%s", text)
	}
	if _, err := db.ExecContext(t.Context(), early); err != nil {
		t.Fatal(err)
	}
	if got := addedMeanwhile(t, db); got != "k/2" {
		t.Errorf("the target gets %s: the mistake was not found", got)
	}
}

// addedMeanwhile adds a target while one writer holds a key and another waits for it, and returns
// what the target gets.
func addedMeanwhile(t *testing.T, db *database.DB) string {
	t.Helper()
	first, end := dbtest.Begin(t, db)
	if err := outbox.Add(t.Context(), first, outboxtest.Event("k")); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
			return outbox.Add(ctx, tx, outboxtest.Event("k"))
		})
	}()
	testenv.Eventually(t, "the second writer waits for the key", func() bool {
		var n int
		err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n)
		return err == nil && n == 1
	})
	s := subscribe(t, db, "late", "*")
	if err := outbox.Add(t.Context(), first, outboxtest.Event("k")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(end(true), <-done); err != nil {
		t.Fatal(err)
	}
	return waiting(t, db, s.ID)
}

func TestRemovingATargetRemovesWhatWaitsForItAndNothingElse(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		gone, stays := subscribe(t, db, "gone", "*"), subscribe(t, db, "stays", "*")
		outboxtest.AddKeys(t, db, "a", "b")
		outboxtest.Add(t, db, message("mail:x"))
		res := make(chan outbox.Removal, 1)
		remove := func() {
			r, err := outbox.RemoveTarget(t.Context(), db, "gone", testenv.Patience)
			if err != nil {
				t.Error(err)
			}
			res <- r
		}
		want := 2
		if db.IsPostgres() { // a transaction that has read the targets is still open
			open, end := dbtest.Begin(t, db)
			if err := outbox.Add(t.Context(), open, outboxtest.Event("raced")); err != nil {
				t.Fatal(err)
			}
			go remove()
			testenv.Eventually(t, "only that is waited for", func() bool {
				return waiting(t, db, gone.ID) == "" && !existsTarget(t, db, "gone")
			})
			if err := end(true); err != nil {
				t.Fatal(err)
			}
			want++
		} else {
			go remove()
		}
		if r := <-res; r.Deleted != int64(want) || r.Left {
			t.Errorf("deleted %d, left %v; want %d", r.Deleted, r.Left, want)
		}
		outboxtest.AddKeys(t, db, "later")
		if got := waiting(t, db, gone.ID); got != "" {
			t.Errorf("left: %s", got)
		}
		if got := len(strings.Fields(waiting(t, db, stays.ID))); got != want+1 {
			t.Errorf("%d wait for the other target, want %d", got, want+1)
		}
		var messages, deliver int
		err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM outbox_message`).Scan(&messages)
		if err != nil || messages != 1 {
			t.Errorf("%d messages, %v", messages, err)
		}
		if _, err := outbox.RemoveTarget(t.Context(), db, "mail",
			testenv.Patience); !errors.Is(err, outbox.ErrBuiltIn) {
			t.Errorf("mail was removed: %v", err)
		}
		if _, err := outbox.RemoveTarget(t.Context(), db, "stays", testenv.Patience); err != nil {
			t.Fatal(err)
		}
		if db.IsPostgres() {
			err := db.QueryRowContext(t.Context(), `SELECT deliver::integer FROM outbox_setting`).Scan(&deliver)
			if err != nil || deliver != 0 {
				t.Errorf("without targets writers still read them: %v, %v", deliver, err)
			}
		}
	})
}

// removeAll removes a target that has rows in every table, and returns how many remain.
func removeAll(t *testing.T, db *database.DB) (left int) {
	t.Helper()
	gone := subscribe(t, db, "gone", "*")
	outboxtest.AddKeys(t, db, "a", "b")
	for _, q := range []string{
		`UPDATE outbox_delivery SET held = true WHERE key = 'b'`,
		`INSERT INTO outbox_held_key (target, key, shard, event, attempts, next_ms, error)
			SELECT target, key, shard, id, 1, 0, '' FROM outbox_delivery WHERE held`,
		`INSERT INTO outbox_delivery_lease (target, shard) SELECT id, 0 FROM outbox_subscription WHERE name = 'gone'`,
	} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := outbox.RemoveTarget(t.Context(), db, "gone", testenv.Patience); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"outbox_delivery", "outbox_held_key", "outbox_delivery_lease"} {
		var n int
		err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM `+table+` WHERE target = ?`, gone.ID).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		left += n
	}
	return left
}

func TestARemovalLeavesNoRows(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		if left := removeAll(t, db); left != 0 {
			t.Errorf("%d rows remain", left)
		}
	})
}

// The test above finds a removal that leaves out any of the tables.
func TestARemovalThatLeavesRowsIsFound(t *testing.T) {
	t.Parallel()
	for _, table := range []string{"outbox_delivery", "outbox_held_key", "outbox_delivery_lease"} {
		db := dbtest.Postgres(t)
		_, err := db.ExecContext(t.Context(),
			`CREATE FUNCTION forgotten() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
			CREATE TRIGGER forgotten BEFORE DELETE ON `+table+` FOR EACH ROW EXECUTE FUNCTION forgotten()`)
		if err != nil {
			t.Fatal(err)
		}
		if removeAll(t, db) == 0 {
			t.Errorf("%s is left out, but the test finds nothing", table)
		}
	}
}

// Rows of a transaction that is open for longer than the command waits are deleted by deliverers.
func TestWhatCameTooLateForARemovedTargetIsDeletedLater(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	gone := subscribe(t, db, "gone", "*")
	open, end := dbtest.Begin(t, db)
	if err := outbox.Add(t.Context(), open, outboxtest.Event("raced")); err != nil {
		t.Fatal(err)
	}
	if r, err := outbox.RemoveTarget(t.Context(), db, "gone", time.Millisecond); err != nil || !r.Left {
		t.Errorf("left: %v, %v", r.Left, err)
	}
	if err := end(true); err != nil {
		t.Fatal(err)
	}
	if waiting(t, db, gone.ID) == "" {
		t.Fatal("the transaction added nothing, so this test shows nothing")
	}
	if err := outbox.SweepRemoved(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	if got := waiting(t, db, gone.ID); got != "" {
		t.Errorf("left: %s", got)
	}
}

func existsTarget(t *testing.T, db *database.DB, name string) bool {
	t.Helper()
	_, err := outbox.FindSubscription(t.Context(), db, name)
	return !errors.Is(err, outbox.ErrNoTarget)
}

func message(key string) outbox.Event {
	e := outboxtest.Event(key)
	e.Target = "mail"
	return e
}

func TestAnEventForOneTargetIsInNoLog(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		hook := subscribe(t, db, "all", "*")
		outboxtest.Add(t, db, message("mail:a"), outboxtest.Event("a"), message("mail:a"))
		n := map[string]int{}
		for name, query := range map[string]string{
			"events": `SELECT count(*) FROM outbox_event`, "pending": `SELECT count(*) FROM outbox_pending`,
			"keys": `SELECT count(*) FROM outbox_key`, "messages": `SELECT count(*) FROM outbox_message`,
			"for mail":    `SELECT count(*) FROM outbox_delivery WHERE target = 1`,
			"for webhook": fmt.Sprintf(`SELECT count(*) FROM outbox_delivery WHERE target = %d`, hook.ID),
		} {
			var rows int
			if err := db.QueryRowContext(t.Context(), query).Scan(&rows); err != nil {
				t.Fatal(err)
			}
			n[name] = rows
		}
		want := map[string]int{"events": 1, "pending": 1, "keys": 1, "messages": 2, "for mail": 2, "for webhook": 1}
		if fmt.Sprint(n) != fmt.Sprint(want) {
			t.Errorf("there are %v, want %v", n, want)
		}
		for _, name := range []string{"nobody", "all"} { // targets that get events of the log cannot be named
			e := message("mail:a")
			e.Target = name
			err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error { return outbox.Add(ctx, tx, e) })
			if !errors.Is(err, outbox.ErrNoTarget) {
				t.Errorf("for %s: %v", name, err)
			}
		}
	})
}

func TestWhatWaitsForATargetIsKept(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := subscribe(t, db, "slow", "test.*")
		outboxtest.AddKeys(t, db, "a")
		other := outboxtest.Event("b")
		other.Type = "other.Happened.v1"
		outboxtest.Add(t, db, other)
		for _, q := range []string{`DELETE FROM outbox_pending`, `UPDATE outbox_event SET created_ms = 0`} {
			if _, err := db.ExecContext(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		kept := func() (n int) {
			t.Helper()
			if err := outbox.Retain(t.Context(), db, time.Hour); err != nil {
				t.Fatal(err)
			}
			if err := db.QueryRowContext(t.Context(),
				`SELECT count(*) FROM outbox_event WHERE key = 'a'`).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		if kept() != 1 {
			t.Error("an event that a target has not taken was dropped")
		}
		// Releases without these targets do not check.
		drop := `DELETE FROM outbox_event WHERE key = 'a'`
		if db.IsPostgres() {
			drop = `TRUNCATE ONLY ` + segmentOf(t, db, "a")
		}
		if _, err := db.ExecContext(t.Context(), drop); db.IsPostgres() && err == nil {
			t.Error("its segment could be emptied")
		}
		if kept() != 1 {
			t.Error("an event that a target has not taken could be dropped")
		}
		if _, err := db.ExecContext(t.Context(), `DELETE FROM outbox_delivery WHERE target = ?`, s.ID); err != nil {
			t.Fatal(err)
		}
		if kept() != 0 {
			t.Error("the event stays after it was delivered")
		}
	})
}

func segmentOf(t *testing.T, db *database.DB, key string) (table string) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), `SELECT tableoid::regclass::text FROM outbox_event WHERE key = ?`,
		key).Scan(&table); err != nil {
		t.Fatal(err)
	}
	return table
}

// An event that a target gets again was written long before. It waits only since the target has not taken it.
func TestAReplayToATargetIsNoBacklog(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		outboxtest.AddKeys(t, db, "a", "b")
		s := subscribe(t, db, "hook", "*")
		change := func(statement string, args ...any) {
			t.Helper()
			if _, err := db.ExecContext(t.Context(), statement, args...); err != nil {
				t.Fatal(err)
			}
		}
		oldest := func() time.Duration {
			t.Helper()
			list, err := outbox.Deliveries(t.Context(), db)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range list {
				if d.ID == s.ID {
					return d.OldestAge
				}
			}
			t.Fatal("the target is gone")
			return 0
		}
		change(`UPDATE outbox_event SET created_ms = created_ms - 86400000`)
		if res, err := outbox.ReplayTo(t.Context(), db, s, outbox.Selection{}, false, nil); err != nil || res.Enqueued != 2 {
			t.Fatalf("%+v, %v", res, err)
		}
		if age := oldest(); age >= time.Hour {
			t.Errorf("events that are sent again make a backlog of %s", age)
		}
		// One of them fails since ten minutes.
		change(`UPDATE outbox_delivery SET held = true WHERE key = 'a'`)
		change(`INSERT INTO outbox_held_key (target, key, shard, event, attempts, since_ms, next_ms, error)
			SELECT target, key, shard, id, 1, ?, 0, '' FROM outbox_delivery WHERE held`, time.Now().UnixMilli()-600_000)
		if age := oldest(); age < 9*time.Minute || age >= time.Hour {
			t.Errorf("an event that fails since ten minutes makes a backlog of %s", age)
		}
		change(`UPDATE outbox_delivery SET replay = false WHERE held`)
		if age := oldest(); age < 24*time.Hour {
			t.Errorf("an event of yesterday that the target never took makes a backlog of %s", age)
		}
	})
}
