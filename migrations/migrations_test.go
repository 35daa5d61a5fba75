package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

func TestBothDialectsHaveTheSameMigrationsBothWays(t *testing.T) {
	t.Parallel()
	names := map[string][]string{}
	for _, dialect := range []string{"postgres", "sqlite"} {
		entries, err := os.ReadDir(dialect)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names[dialect] = append(names[dialect], e.Name())
			way := ".tx.up.sql"
			if strings.HasSuffix(e.Name(), way) {
				way = ".tx.down.sql"
			}
			stem, _, found := strings.Cut(e.Name(), ".tx.")
			if !found { // only those with .tx run in a transaction
				t.Errorf("%s/%s is not named NAME.tx.up.sql or NAME.tx.down.sql", dialect, e.Name())
			}
			if _, err := os.Stat(filepath.Join(dialect, stem+way)); err != nil {
				t.Errorf("%s/%s has no counterpart: %v", dialect, e.Name(), err)
			}
		}
	}
	if !slices.Equal(names["postgres"], names["sqlite"]) {
		t.Errorf("postgres has %v, sqlite has %v", names["postgres"], names["sqlite"])
	}
}

func TestDownUndoesWhatUpDid(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		if err := migrations.Check(t.Context(), db); err != nil {
			t.Fatalf("a migrated database: %v", err)
		}
		before := applied(t, db)
		undone, err := migrations.Down(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		if len(undone) != len(before) { // all migrations ran as one group
			t.Errorf("undone %d of %d", len(undone), len(before))
		}
		if err := migrations.Check(t.Context(), db); err == nil || !strings.Contains(err.Error(), "behind by") {
			t.Errorf("a database without a schema: %v", err)
		}
		if left := applied(t, db); len(left) != 0 {
			t.Errorf("still applied: %v", left)
		}
		if again, err := migrations.Up(t.Context(), db); err != nil || len(again) != len(before) {
			t.Errorf("once more: %d, %v", len(again), err)
		}
		if none, err := migrations.Up(t.Context(), db); err != nil || len(none) != 0 {
			t.Errorf("with nothing to do: %d, %v", len(none), err)
		}
	})
}

func TestTriggersThatDoNotRunAreNoticed(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	for _, c := range []struct{ off, on, says string }{
		{"ALTER TABLE users DISABLE TRIGGER ALL", "ALTER TABLE users ENABLE TRIGGER ALL",
			"ALTER TABLE users ENABLE TRIGGER revocation_of_account_ended"},
		{"ALTER TABLE revoked_session ENABLE REPLICA TRIGGER revocation_of_session",
			"ALTER TABLE revoked_session ENABLE ALWAYS TRIGGER revocation_of_session", "revocation_of_session"},
	} {
		if _, err := db.ExecContext(t.Context(), c.off); err != nil {
			t.Fatal(err)
		}
		if err := migrations.Check(t.Context(), db); !errors.Is(err, migrations.ErrTriggersOff) ||
			!strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.off, err)
		}
		if _, err := db.ExecContext(t.Context(), c.on); err != nil {
			t.Fatal(err)
		}
		if err := migrations.Check(t.Context(), db); err != nil {
			t.Errorf("%s: %v", c.on, err)
		}
	}
}

func TestWhatANewerReleaseMigratedIsShownAndNothingBelowItUndone(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		const name = "29991231000000"
		if _, err := db.ExecContext(t.Context(), `INSERT INTO bun_migrations (name, group_id, migrated_at)
			SELECT ?, max(group_id) + 1, max(migrated_at) FROM bun_migrations`, name); err != nil {
			t.Fatal(err)
		}
		if err := migrations.Check(t.Context(), db); err != nil {
			t.Errorf("an older release must work: %v", err)
		}
		list, err := migrations.Status(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		if last := list[len(list)-1]; last.Name != name || !last.Newer || !last.Applied() {
			t.Errorf("the status ends with %+v", last)
		}
		if _, _, err := migrations.Preview(t.Context(), db); !errors.Is(err, migrations.ErrNewer) {
			t.Errorf("a preview: %v", err)
		}
		if undone, err := migrations.Down(t.Context(), db); !errors.Is(err, migrations.ErrNewer) || len(undone) > 0 {
			t.Errorf("undone %v: %v", undone, err)
		}
		if err := migrations.Check(t.Context(), db); err != nil {
			t.Errorf("the schema has changed: %v", err)
		}
	})
}

func TestOfManyWhoMigrateAtOnceOneDoes(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		if _, err := migrations.Down(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		ran := 0
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				did, err := migrations.Up(t.Context(), db)
				if err != nil {
					t.Errorf("up: %v", err)
				}
				mu.Lock()
				defer mu.Unlock()
				if len(did) > 0 {
					ran++
				}
			})
		}
		all.Wait()
		if ran != 1 {
			t.Errorf("%d of them migrated", ran)
		}
	})
}

func TestAMigrationThatFailsIsNotMarkedApplied(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		if _, err := migrations.Down(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		// The second migration meets a table that is in its way.
		if _, err := db.Write(t.Context(), "CREATE TABLE users (id text)"); err != nil {
			t.Fatal(err)
		}
		if _, err := migrations.Up(t.Context(), db); err == nil {
			t.Fatal("it did not fail")
		}
		if got := applied(t, db); slices.ContainsFunc(got, func(name string) bool {
			return strings.HasSuffix(name, "0200")
		}) {
			t.Errorf("applied: %v", got)
		}
		if _, err := db.Write(t.Context(), "DROP TABLE users"); err != nil {
			t.Fatal(err)
		}
		if _, err := migrations.Up(t.Context(), db); err != nil {
			t.Errorf("once the way is free: %v", err)
		}
	})
}

func TestTablesOfAnotherProgramAreSaid(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		if _, err := migrations.Down(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		err := migrations.Check(t.Context(), db)
		if !errors.Is(err, migrations.ErrBehind) || strings.Contains(err.Error(), "another program") {
			t.Errorf("of an empty database: %v", err)
		}
		if _, err := db.Write(t.Context(), "CREATE TABLE users (id text)"); err != nil {
			t.Fatal(err)
		}
		err = migrations.Check(t.Context(), db)
		if !errors.Is(err, migrations.ErrBehind) || !errors.Is(err, migrations.ErrForeign) || !strings.Contains(err.Error(),
			"none has run, and it has tables (1), so it may be another program's database") {
			t.Errorf("beside a table of somebody else: %v", err)
		}
		record := "INSERT INTO bun_migrations (name, group_id) VALUES ('20200101000000', 1)"
		if _, err := db.Write(t.Context(), record); err != nil {
			t.Fatal(err)
		}
		if err := migrations.Check(t.Context(), db); !errors.Is(err, migrations.ErrForeign) {
			t.Errorf("of somebody else whose migrations Bun runs, too: %v", err)
		}
		if undone, err := migrations.Down(t.Context(), db); err != nil || len(undone) > 0 {
			t.Errorf("there is nothing of ours to undo: %v, %v", undone, err)
		}
		_, err = migrations.Up(t.Context(), db)
		tasks := []database.Task{database.OwnTables}
		if !db.IsPostgres() { // serve and user create migrate there
			tasks = append(tasks, database.AnyTask, database.ServeUsers)
		}
		for _, task := range tasks {
			if remedy := database.Remedy(err, task); !strings.Contains(remedy, "name an empty database") {
				t.Errorf("%v: the remedy is %q", err, remedy)
			}
		}
	})
}

func TestOneConnectionIsEnoughToMigrate(t *testing.T) {
	t.Parallel()
	test := func(t *testing.T, db *database.DB) {
		if _, err := migrations.Down(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		if _, err := migrations.Up(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		if err := migrations.Check(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		if _, _, err := migrations.Preview(t.Context(), db); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		test(t, dbtest.OpenLimited(t, "sqlite:"+filepath.Join(t.TempDir(), "x.db"), 1))
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		test(t, dbtest.OpenLimited(t, dbtest.PostgresURL(t), 1))
	})
}

// A second process does not wait silently for a long migration, or for a lock that an older release
// has left in a pooler's connection: it says who holds the lock.
func TestWhoMigratesIsNamed(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	holding, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holding.Close()
	var pid int
	if err := holding.QueryRowContext(t.Context(), "SELECT pg_backend_pid() FROM (SELECT pg_advisory_lock(?)) q",
		0x6175746863746c).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	var told string
	_, err = migrations.Up(t.Context(), db, migrations.Wait(100*time.Millisecond, func(who string) { told = who }))
	if !errors.Is(err, migrations.ErrLocked) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{fmt.Sprintf("process %d", pid), "authctl-test",
		fmt.Sprintf("pg_terminate_backend(%d)", pid)} {
		if !strings.Contains(err.Error(), want) || !strings.Contains(told, want) {
			t.Errorf("%q and %q do not say %q", err, told, want)
		}
	}
	// Who stops did not wait a minute.
	stopped, stop := context.WithCancel(t.Context())
	_, err = migrations.Up(stopped, db, migrations.Wait(time.Minute, func(string) { stop() }))
	if !errors.Is(err, context.Canceled) || errors.Is(err, migrations.ErrLocked) {
		t.Errorf("stopped: %v", err)
	}
	if _, err := holding.ExecContext(t.Context(), "SELECT pg_advisory_unlock_all()"); err != nil {
		t.Fatal(err)
	}
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Errorf("once it is free: %v", err)
	}
}

func TestWhoMigratesSQLiteIsNamed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.db")
	db := dbtest.Open(t, "sqlite:"+path)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	inside, goOn := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- migrations.Locked(context.WithoutCancel(t.Context()), db, func() { close(inside); <-goOn })
	}()
	<-inside
	other := dbtest.Open(t, "sqlite:"+path)
	_, err := migrations.Up(t.Context(), other, migrations.Wait(100*time.Millisecond, nil))
	if !errors.Is(err, migrations.ErrLocked) ||
		!strings.Contains(err.Error(), fmt.Sprintf("process %d, since", os.Getpid())) {
		t.Errorf("got %v", err)
	}
	close(goOn)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if did, err := migrations.Up(t.Context(), other); err != nil || len(did) != 0 {
		t.Errorf("afterwards: %d, %v", len(did), err)
	}
}

// Through a pooler that hands over its connections after each transaction, no lock of ours is left.
func TestMigrationsThroughAPooler(t *testing.T) {
	t.Parallel()
	dsn := dbtest.PostgresURL(t)
	pooled := dbtest.PgBouncer(t, dsn)
	for range 3 {
		if _, err := migrations.Down(t.Context(), dbtest.Open(t, pooled)); err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				if _, err := migrations.Up(t.Context(), dbtest.Open(t, pooled)); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	var locks int
	if err := dbtest.Open(t, dsn).QueryRowContext(t.Context(),
		`SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&locks); err != nil || locks != 0 {
		t.Errorf("%d locks remain, %v", locks, err)
	}
}

func TestWhatARollbackWouldDestroyIsCounted(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		user := "INSERT INTO users (id, username, username_canonical, password_hash, created_at, updated_at, password_changed_at) VALUES (?, ?, ?, 'x', ?, ?, ?)"
		for n := range 3 {
			now := time.Now()
			if _, err := db.Write(t.Context(), user, uuid.New(), fmt.Sprint("u", n), fmt.Sprint("u", n), now, now,
				now); err != nil {
				t.Fatal(err)
			}
		}
		undone, lost, err := migrations.Preview(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		if len(undone) != len(applied(t, db)) {
			t.Errorf("it would undo %v", undone)
		}
		if !slices.Contains(lost, migrations.Loss{Table: "users", Rows: 3}) ||
			!slices.ContainsFunc(lost, func(l migrations.Loss) bool {
				return l.Table == "outbox_shard" && l.Rows > 1
			}) {
			t.Errorf("it would destroy %v", lost)
		}
		var n int
		if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM users").Scan(&n); err != nil || n != 3 {
			t.Errorf("afterwards there are %d, %v", n, err)
		}
		if err := migrations.Check(t.Context(), db); err != nil {
			t.Error(err)
		}
	})
}

// Removing a column destroys its contents.
func TestAColumnThatGoesIsCounted(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		// As if the latest migration had been run alone.
		var last string
		if err := db.QueryRowContext(t.Context(),
			"SELECT max(name) FROM bun_migrations WHERE name = '20261128000700'").Scan(&last); err != nil {
			t.Fatal(err)
		}
		for _, statement := range []string{
			"UPDATE bun_migrations SET group_id = 2 WHERE name = '20261128000700'",
			`INSERT INTO session (id, user_id, epoch, generation, hash, previous, replay_until_ms, device_name, user_agent, ip,
				auth_ms, created_ms, last_used_ms, expires_ms, idle_expires_ms, links) VALUES
				('01890a5d-ac96-774b-bcce-b302099a8057', '01890a5d-ac96-774b-bcce-b302099a8057', 0, 1, '', '', 0, '', '', '', 0, 0, 0, 0, 0, 'x')`,
		} {
			if _, err := db.Write(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		undone, lost, err := migrations.Preview(t.Context(), db)
		if err != nil || len(undone) != 1 {
			t.Fatalf("%v, %v", undone, err)
		}
		if !slices.Contains(lost, migrations.Loss{Table: "session", Column: "links", Rows: 1}) {
			t.Errorf("it would destroy %v", lost)
		}
	})
}

// Two operators may be asked at the same time: the second answer is not about what was applied before.
func TestOnlyWhatSomebodyWasToldIsUndone(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		if _, err := db.Write(t.Context(), `UPDATE bun_migrations SET group_id = group_id + 1
			WHERE name = (SELECT max(name) FROM bun_migrations)`); err != nil {
			t.Fatal(err)
		}
		told, _, err := migrations.Preview(t.Context(), db)
		if err != nil || len(told) != 1 {
			t.Fatalf("%v, %v", told, err)
		}
		if undone, err := migrations.Down(t.Context(), db, migrations.Only(told)); err != nil || len(undone) != 1 {
			t.Fatalf("the first: %v, %v", undone, err)
		}
		before := applied(t, db)
		undone, err := migrations.Down(t.Context(), db, migrations.Only(told))
		if !errors.Is(err, migrations.ErrChanged) || len(undone) > 0 || !slices.Equal(applied(t, db), before) {
			t.Errorf("the second: %v, %v", undone, err)
		}
		// And one who was told that there is nothing.
		if _, err := migrations.Down(t.Context(), db, migrations.Only(nil)); !errors.Is(err, migrations.ErrChanged) {
			t.Errorf("without anything: %v", err)
		}
	})
}

func TestWhatIsInUseIsNotUndone(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		path := "sqlite:" + filepath.Join(t.TempDir(), "x.db")
		db := dbtest.OpenLimited(t, path, 1)
		if _, err := migrations.Up(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		other := dbtest.Open(t, path)
		if _, err := other.ExecContext(t.Context(), "SELECT count(*) FROM users"); err != nil {
			t.Fatal(err)
		}
		if _, err := migrations.Down(t.Context(), db, migrations.Alone()); !errors.Is(err, migrations.ErrInUse) {
			t.Errorf("got %v", err)
		}
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
		if undone, err := migrations.Down(t.Context(), db, migrations.Alone()); err != nil || len(undone) == 0 {
			t.Errorf("alone: %v, %v", undone, err)
		}
		var mode string
		if err := db.QueryRowContext(t.Context(), "PRAGMA journal_mode").Scan(&mode); err != nil || mode != "wal" {
			t.Errorf("the log is %q, %v", mode, err)
		}
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		dsn := dbtest.PostgresURL(t)
		db := dbtest.OpenLimited(t, dsn, 1)
		for name, program := range map[string]string{"ours": "authctl-other", "a role that may read": "reports"} {
			user := dsn
			if name != "ours" {
				user = dbtest.AsReader(t, dsn, "bun_migrations")
			}
			separator := "?"
			if strings.Contains(user, "?") {
				separator = "&"
			}
			other := dbtest.Open(t, user+separator+"application_name="+program)
			// A role that owns the tables need not see everything about other roles.
			owner := dbtest.OpenLimited(t, dbtest.AsReader(t, dsn, "bun_migrations"), 1)
			if err := migrations.Unused(t.Context(), owner); !errors.Is(err, migrations.ErrInUse) ||
				!strings.Contains(err.Error(), program) {
				t.Errorf("%s, looked for by a role: %v", name, err)
			}
			if err := owner.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := migrations.Down(t.Context(), db,
				migrations.Alone()); !errors.Is(err, migrations.ErrInUse) || !strings.Contains(err.Error(), program) {
				t.Errorf("%s: %v", name, err)
			}
			if err := other.Close(); err != nil {
				t.Fatal(err)
			}
		}
		// A program that does not use the tables does not count. Sessions end a moment after they
		// are closed.
		_ = dbtest.Open(t, dsn+"&application_name=psql")
		testenv.Eventually(t, "the database is free", func() bool {
			undone, err := migrations.Down(t.Context(), db, migrations.Alone())
			if err != nil && !errors.Is(err, migrations.ErrInUse) {
				t.Fatal(err)
			}
			return err == nil && len(undone) > 0
		})
	})
}

func applied(t *testing.T, db *database.DB) (names []string) {
	t.Helper()
	list, err := migrations.Status(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.Applied() {
			names = append(names, s.Name)
		}
	}
	return names
}

// Everybody waits for the tables. Whoever migrates from a laptop may close it.
func TestAMigrationThatStopsInTheMiddleIsEnded(t *testing.T) {
	t.Parallel()
	if bounds := boundsOfAMigration(t, "idle_in_transaction_session_timeout"); !slices.Equal(bounds, []string{"10s"}) {
		t.Errorf("it would be ended after %q", bounds)
	}
}

// The bounds of a role are meant for requests.
func TestAMigrationMayTakeLongerThanARequest(t *testing.T) {
	t.Parallel()
	for _, setting := range []string{"statement_timeout", "transaction_timeout"} {
		for _, bound := range boundsOfAMigration(t, setting) { // none if the server has no such setting
			if bound != "0" {
				t.Errorf("%s is %s", setting, bound)
			}
		}
	}
}

// boundsOfAMigration returns the values of a setting while tables are made, in a database that sets it to 10 minutes.
func boundsOfAMigration(t *testing.T, setting string) []string {
	t.Helper()
	dsn := dbtest.EmptyURL(t, "").Reveal()
	db := dbtest.Open(t, dsn)
	for _, statement := range []string{"CREATE TABLE seen (bound text)",
		`CREATE FUNCTION look() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
			INSERT INTO seen SELECT current_setting(name) FROM pg_settings WHERE name = '` + setting + `'; END $$`,
		"CREATE EVENT TRIGGER look ON ddl_command_end EXECUTE FUNCTION look()",
		`DO $$ BEGIN IF EXISTS (SELECT FROM pg_settings WHERE name = '` + setting + `') THEN
			EXECUTE format('ALTER DATABASE %I SET ` + setting + ` = 600000', current_database()); END IF; END $$`} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := migrations.Up(t.Context(), dbtest.Open(t, dsn)); err != nil {
		t.Fatal(err)
	}
	bounds, err := database.Collect(t.Context(), db, "what was seen", database.Value[string],
		"SELECT DISTINCT bound FROM seen")
	if err != nil {
		t.Fatal(err)
	}
	return bounds
}

func TestNewWritesAllFourFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, dialect := range []string{"postgres", "sqlite"} {
		if err := os.Mkdir(filepath.Join(dir, dialect), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	at := time.Date(2026, 12, 24, 18, 0, 0, 0, time.UTC)
	made, err := migrations.New(dir, "add_last_sign_in", at)
	if err != nil || len(made) != 4 {
		t.Fatalf("%v %v", made, err)
	}
	for _, path := range made {
		if !strings.Contains(path, "20261224180000_add_last_sign_in.tx.") {
			t.Errorf("made %s", path)
		}
		if text, err := os.ReadFile(path); err != nil || len(text) == 0 {
			t.Errorf("%s: %q %v", path, text, err)
		}
	}
	if _, err := migrations.New(dir, "add_last_sign_in", at); err == nil {
		t.Error("it overwrites an existing file")
	}
	for _, name := range []string{"", "Add", "add-it", "../x"} {
		if _, err := migrations.New(dir, name, at); err == nil {
			t.Errorf("takes the name %q", name)
		}
	}
}

func TestEverySequenceOfACopyIsLookedAt(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	do := func(statement string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	late := func() []string {
		t.Helper()
		raise, err := migrations.LateSequences(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		return raise
	}
	sequences, err := database.Collect(t.Context(), db, "list the sequences", func(r database.Row) (s string, err error) {
		err = r.Scan(&s)
		return s, err
	}, "SELECT sequencename FROM pg_sequences WHERE schemaname = current_schema()")
	if err != nil {
		t.Fatal(err)
	}
	if list := late(); len(list) > 0 {
		t.Errorf("new: %q", list)
	}
	do("INSERT INTO bun_migration_locks (table_name) VALUES ('any')")
	do("INSERT INTO revocation (type, kid, expires_ms) VALUES ('key', 'any', 0)")
	do(`SELECT outbox_add(0, 2, gen_random_uuid(), 'test.Happened.v1', 'key', '', 'test', '', '', '{}')`)
	for _, events := range []string{"are kept", "were removed", "are messages"} {
		switch events {
		case "were removed":
			do("UPDATE outbox_shard SET low = 1")
			do("DELETE FROM outbox_event")
		case "are messages":
			do("UPDATE outbox_shard SET low = 0")
			do("INSERT INTO outbox_message SELECT 1, 0, gen_random_uuid(), '', '', '', '', '', '', ''")
		}
		for _, s := range sequences {
			do("SELECT setval('" + s + "', 1, false)")
		}
		raise := late()
		if len(raise) != len(sequences) {
			t.Errorf("events %s: there are %q, and late are %q", events, sequences, raise)
		}
		for _, statement := range raise {
			do(statement)
		}
		if list := late(); len(list) > 0 {
			t.Errorf("events %s, raised: %q", events, list)
		}
	}
}

// A release that may be older than the schema asks only for what it uses itself.
func TestAnOverloadedFunctionHidesNoRights(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	if _, err := db.ExecContext(t.Context(), `CREATE FUNCTION outbox_deliver(one text, two text, three text, four text)
		RETURNS void LANGUAGE sql AS ''`); err != nil {
		t.Fatal(err)
	}
	if missing, err := migrations.MissingRights(t.Context(), db, "authctl_serve"); err != nil || len(missing) > 0 {
		t.Errorf("%q, %v", missing, err)
	}
}
