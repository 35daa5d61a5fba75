package outbox_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// A tail of everything does not keep everything in memory, whether it follows new events or not,
// and although a transaction has been open since the middle.
func TestTailRemembersLittle(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		const n = 2000
		write := func(prefix string) {
			t.Helper()
			var keys []string
			for i := range n {
				keys = append(keys, fmt.Sprint(prefix, i))
			}
			outboxtest.AddKeys(t, db, keys...)
		}
		// all tails until it has seen n events, and returns how many ids it remembered at most.
		all := func(want int, follow bool) (most int) {
			t.Helper()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			shown, seen := &outbox.Shown{}, 0
			err := outbox.TailInto(ctx, db, outbox.TailOptions{From: 1, Follow: follow}, shown,
				func(outbox.Entry) error {
					most = max(most, shown.Remembered())
					if seen++; seen == want && follow {
						cancel()
					}
					return nil
				})
			if err != nil || seen != want {
				t.Fatalf("seen %d of %d, %v", seen, want, err)
			}
			return most
		}
		write("a")
		for _, follow := range []bool{false, true} {
			if most := all(n, follow); most != 0 {
				t.Errorf("follow=%v: it remembers %d ids, although all are stable", follow, most)
			}
		}
		if !db.IsPostgres() {
			return
		}
		// A relay has come this far, and then a transaction begins and stays open.
		if _, err := db.ExecContext(t.Context(), `UPDATE outbox_shard SET low = ?`, n); err != nil {
			t.Fatal(err)
		}
		open, _ := dbtest.Begin(t, db)
		if err := outbox.Add(t.Context(), open, outboxtest.Event("slow")); err != nil {
			t.Fatal(err)
		}
		write("b")
		if most := all(2*n, false); most != 0 {
			t.Errorf("without following it remembers %d ids", most)
		}
		if most := all(2*n, true); most < n || most > n+200 {
			t.Errorf("it remembers %d ids, of which %d are not stable", most, n)
		}
	})
}

// Who follows events while the database restarts sees the outage, and each event once.
func TestFollowingGoesOnAfterAnOutage(t *testing.T) {
	t.Parallel()
	server := outboxtest.StartPostgres(t, "fsync = off")
	db := dbtest.Open(t, server.URL)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var seen []string
	outages := 0
	saw := func(what string, n, away int) {
		t.Helper()
		testenv.Eventually(t, what, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(seen) == n && outages == away
		})
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() {
		done <- outbox.Tail(ctx, db, outbox.TailOptions{From: 1, Follow: true, Away: func(error) {
			mu.Lock()
			defer mu.Unlock()
			outages++
		}}, func(e outbox.Entry) error {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, e.Key)
			return nil
		})
	}()
	outboxtest.AddKeys(t, db, "a", "b")
	saw("the events before", 2, 0)
	server.Crash(t)
	saw("the outage", 2, 1)
	server.Start(t)
	testenv.Eventually(t, "the database", func() bool { return db.PingContext(t.Context()) == nil })
	outboxtest.AddKeys(t, db, "c")
	saw("the event after", 3, 1)
	stop()
	if err := <-done; err != nil || fmt.Sprint(seen) != "[a b c]" {
		t.Errorf("seen %v, %v", seen, err)
	}
}

// What is not all that was asked for is an error, unless somebody goes on to follow.
func TestATailThatTheDatabaseCutsOffFails(t *testing.T) {
	t.Parallel()
	server := outboxtest.StartPostgres(t, "fsync = off")
	db := dbtest.Open(t, server.URL)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	for i := range 501 { // more than are read at once
		outboxtest.AddKeys(t, db, fmt.Sprint(i))
	}
	seen := 0
	err := outbox.Tail(t.Context(), db, outbox.TailOptions{From: 1, Away: func(error) {}}, func(outbox.Entry) error {
		if seen++; seen == 500 {
			server.Crash(t)
		}
		return nil
	})
	if err == nil || seen != 500 {
		t.Errorf("it has shown %d events of 501, and ends with %v", seen, err)
	}
}

// A standby that had not received the last events gives their ids to others, before anybody notices. Its clock may be
// behind.
func TestFollowingShowsIDsThatAreGivenAgain(t *testing.T) {
	t.Parallel()
	server := outboxtest.StartPostgres(t, "fsync = off")
	db := dbtest.Open(t, server.URL)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	outboxtest.AddKeys(t, db, "kept", "lost", "lost")
	if _, err := db.ExecContext(t.Context(), `UPDATE outbox_event SET created_ms = created_ms + 3600000`); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), testenv.Patience)
	defer stop()
	seen := map[string]int{}
	promoted := func(error) {
		server.Start(t)
		testenv.Eventually(t, "the database", func() bool { return db.PingContext(t.Context()) == nil })
		for _, statement := range []string{
			`DELETE FROM outbox_pending WHERE id > 1`, `DELETE FROM outbox_event WHERE id > 1`,
			`SELECT setval('outbox_event_id', 1)`,
		} {
			if _, err := db.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		outboxtest.AddKeys(t, db, "new", "new", "new", "last")
	}
	err := outbox.Tail(ctx, db, outbox.TailOptions{From: 1, Follow: true, Away: promoted}, func(e outbox.Entry) error {
		seen[e.Key]++
		switch {
		case seen["lost"] == 2 && len(seen) == 2:
			server.Crash(t)
		case e.Key == "last":
			stop()
		}
		return nil
	})
	if err != nil || fmt.Sprint(seen) != "map[kept:1 last:1 lost:2 new:3]" {
		t.Errorf("seen %v, %v", seen, err)
	}
}

// A standby that had received none of the events that there are: those that it gets are the first, whatever its clock
// says.
func TestFollowingShowsTheFirstEventsOfAnEmptyStandby(t *testing.T) {
	t.Parallel()
	server := outboxtest.StartPostgres(t, "fsync = off")
	db := dbtest.Open(t, server.URL)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	outboxtest.AddKeys(t, db, "lost", "lost")
	ctx, stop := context.WithTimeout(t.Context(), testenv.Patience)
	defer stop()
	seen := map[string]int{}
	promoted := func(error) {
		server.Start(t)
		testenv.Eventually(t, "the database", func() bool { return db.PingContext(t.Context()) == nil })
		do := func(statement string) {
			if _, err := db.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		do(`DELETE FROM outbox_pending`)
		do(`DELETE FROM outbox_event`)
		do(`SELECT setval('outbox_event_id', 1, false)`)
		outboxtest.AddKeys(t, db, "first", "second", "last")
		do(`UPDATE outbox_event SET created_ms = created_ms - 3600000`)
	}
	err := outbox.Tail(ctx, db, outbox.TailOptions{Follow: true, From: 1, Away: promoted}, func(e outbox.Entry) error {
		seen[e.Key]++
		switch {
		case seen["lost"] == 2 && len(seen) == 1:
			server.Crash(t)
		case e.Key == "last":
			stop()
		}
		return nil
	})
	if err != nil || fmt.Sprint(seen) != "map[first:1 last:1 lost:2 second:1]" {
		t.Errorf("seen %v, %v", seen, err)
	}
}

// Who shows events may take his time. What comes after a page may then be of another server, although no read has
// failed: the connections that are gone were replaced by others who use them.
func TestFollowingLooksAtTheServerOfEachPage(t *testing.T) {
	t.Parallel()
	server := outboxtest.StartPostgres(t, "fsync = off")
	db := dbtest.Open(t, server.URL)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	const page, kept = 500, 450
	for i := range page + 1 {
		outboxtest.AddKeys(t, db, fmt.Sprint(i))
	}
	ctx, stop := context.WithTimeout(t.Context(), testenv.Patience)
	defer stop()
	var seen []string
	err := outbox.Tail(ctx, db, outbox.TailOptions{From: 1, Follow: true, Away: func(err error) {
		t.Errorf("a read has failed: %v", err)
	}}, func(e outbox.Entry) error {
		switch seen = append(seen, e.Key); {
		case len(seen) == page:
			server.Crash(t)
			server.Start(t)
			testenv.Eventually(t, "the database", func() bool { return db.PingContext(t.Context()) == nil })
			for _, statement := range []string{
				fmt.Sprintf(`DELETE FROM outbox_pending WHERE id > %d`, kept),
				fmt.Sprintf(`DELETE FROM outbox_event WHERE id > %d`, kept),
				fmt.Sprintf(`SELECT setval('outbox_event_id', %d)`, kept),
			} {
				if _, err := db.ExecContext(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
			for i := range page + 1 - kept {
				outboxtest.AddKeys(t, db, fmt.Sprint("new ", i))
			}
		case e.Key == fmt.Sprint("new ", page-kept):
			stop()
		}
		return nil
	})
	if err != nil || len(seen) != page+page+1-kept || seen[page] != "new 0" {
		t.Errorf("seen %d events, %v: %q", len(seen), err, seen[min(page, len(seen)):])
	}
}

// An event may be written after the tail has asked for the highest id and before it reads. It is shown once, also if
// the next thing to happen is an outage.
func TestFollowingShowsNothingTwiceAfterAnOutage(t *testing.T) {
	t.Parallel()
	server := outboxtest.StartPostgres(t, "fsync = off")
	db := dbtest.Open(t, server.URL)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	for i := range 500 { // as many as are read at once
		outboxtest.AddKeys(t, db, fmt.Sprint(i))
	}
	ctx, stop := context.WithTimeout(t.Context(), testenv.Patience)
	defer stop()
	seen := map[string]int{}
	back := func(error) {
		server.Start(t)
		testenv.Eventually(t, "the database", func() bool { return db.PingContext(t.Context()) == nil })
		outboxtest.AddKeys(t, db, "after")
	}
	err := outbox.Tail(ctx, db, outbox.TailOptions{From: 1, Follow: true, Away: back}, func(e outbox.Entry) error {
		seen[e.Key]++
		switch {
		case len(seen) == 500:
			outboxtest.AddKeys(t, db, "late")
		case e.Key == "late" && seen["late"] == 1:
			server.Crash(t)
		case e.Key == "after":
			stop()
		}
		return nil
	})
	if err != nil || seen["late"] != 1 || seen["after"] != 1 || len(seen) != 502 {
		t.Errorf("%d events, the one before the outage %d times, %v", len(seen), seen["late"], err)
	}
}

// Who follows the events of an SQLite file that was moved away hears of it, and sees each once when it is back.
func TestFollowingGoesOnWhenTheFileIsBack(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	db, err := database.Open(t.Context(), database.Config{}, database.Options{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	away := make(chan error, 1)
	seen := make(chan string, 10)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() {
		done <- outbox.Tail(ctx, db, outbox.TailOptions{From: 1, Follow: true, Away: func(err error) { away <- err }},
			func(e outbox.Entry) error {
				seen <- e.Key
				return nil
			})
	}()
	outboxtest.AddKeys(t, db, "a")
	if key := <-seen; key != "a" {
		t.Errorf("seen %s", key)
	}
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	<-away
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	outboxtest.AddKeys(t, db, "b")
	if key := <-seen; key != "b" {
		t.Errorf("after the outage it shows %s", key)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
