package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/toppira/authctl/platform/testenv"
)

// insufficientPrivilege is PostgreSQL's code for "permission denied".
const insufficientPrivilege = "42501"

// undefinedFunction is PostgreSQL's code for a function in a schema that the role may not use.
const undefinedFunction = "42883"

// addsEvent adds an event, for a role that may.
const addsEvent = "SELECT outbox_add_traced(0, 0, gen_random_uuid(), '', '', '', '', '', '', '', '')"

// rolesDatabase is a database as docker-compose.yml makes it: roles.sql, dedicated.sql, the
// migrations as authctl_migrate, grants.sql.
type rolesDatabase struct{ admin string }

func newRolesDatabase(t *testing.T) rolesDatabase {
	t.Helper()
	db := emptyDatabase(t)
	db.install(t, "postgres/roles.sql", "postgres/dedicated.sql")
	return db
}

// install runs the files as the administrator, migrates and grants. Running it again changes
// nothing.
func (db rolesDatabase) install(t *testing.T, files ...string) {
	t.Helper()
	for _, file := range append(files, files...) {
		run(t, db.admin, read(t, file))
	}
	db.authctl(t, "authctl_migrate", "", "migrate", "up")
	run(t, db.as("authctl_migrate"), read(t, "postgres/grants.sql"))
	run(t, db.as("authctl_migrate"), read(t, "postgres/grants.sql"))
}

func emptyDatabase(t *testing.T) rolesDatabase {
	t.Helper()
	server := testenv.Postgres(t)
	name := "roles_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	run(t, server, "CREATE DATABASE "+name)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience)
		defer cancel()
		conn, err := pgx.Connect(ctx, server)
		if err != nil {
			t.Logf("drop %s: %v", name, err)
			return
		}
		defer conn.Close(ctx)
		if _, err := conn.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Logf("drop %s: %v", name, err)
		}
	})
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return rolesDatabase{u.String()}
}

// as returns the URL for a session with this role's rights alone, whichever user signs in.
func (db rolesDatabase) as(role string) string {
	u, err := url.Parse(db.admin)
	if err != nil {
		panic(err)
	}
	q := u.Query()
	q.Set("options", "--role="+role)
	u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20")
	return u.String()
}

// within is the database for sessions that use the tables of a schema.
func (db rolesDatabase) within(schema string) rolesDatabase {
	return rolesDatabase{db.admin + "&search_path=" + schema}
}

// run sends statements unchanged, several at once.
func run(t *testing.T, database, sql string) {
	t.Helper()
	if err := try(t.Context(), database, sql); err != nil {
		t.Fatalf("%.60s…: %v", sql, err)
	}
}

func try(ctx context.Context, database, sql string) error {
	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

// command prepares authctl as one of the roles.
func (db rolesDatabase) command(t *testing.T, dir, role string, args ...string) *exec.Cmd {
	t.Helper()
	// The test's own context ends before its clean-up, which must end processes properly.
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), binary(t), args...)
	cmd.Dir = dir
	cmd.Env = []string{
		"HOME=" + dir, "DATABASE_URL=" + db.as(role), "AUTH_TOKEN_SECRET=" + strings.Repeat("s", 48),
		"AUTH_PASSWORD_BCRYPT_COST=4", "OUTBOX_RELAY=off", "APP_OPERATOR_ADDR=off",
	}
	return cmd
}

// authctl runs a command to its end and returns what it printed.
func (db rolesDatabase) authctl(t *testing.T, role, stdin string, args ...string) string {
	t.Helper()
	cmd := db.command(t, t.TempDir(), role, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("authctl %s as %s: %v\n%s", strings.Join(args, " "), role, err, &stderr)
	}
	return strings.TrimSpace(stdout.String())
}

// start runs a command until the test ends. The command must then end well, and must not have been
// denied anything.
func (db rolesDatabase) start(t *testing.T, dir, role string, env []string, args ...string) {
	t.Helper()
	cmd := db.command(t, dir, role, args...)
	cmd.Env = append(cmd.Env, env...)
	var log lockedBuffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(testenv.Patience, func() { _ = cmd.Process.Kill() })
		defer late.Stop()
		err := cmd.Wait()
		if text := log.String(); err != nil || strings.Contains(text, "permission denied") ||
			strings.Contains(text, insufficientPrivilege) {
			t.Errorf("authctl %s as %s: %v\n%s", strings.Join(args, " "), role, err, text)
		}
	})
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestEachDatabaseRoleIsEnoughForItsWork(t *testing.T) {
	t.Parallel()
	db := newRolesDatabase(t)
	api := fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t))
	_, port, _ := net.SplitHostPort(api)
	events := t.TempDir()
	db.start(t, t.TempDir(), "authctl_serve", []string{"APP_HOST=127.0.0.1", "APP_PORT=" + port}, "serve")
	db.start(t, events, "authctl_relay", []string{"OUTBOX_WEBHOOK_ALLOW_PRIVATE=true"}, "relay")
	var delivered atomic.Int32
	hook := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { delivered.Add(1) }))
	t.Cleanup(hook.Close)
	db.authctl(t, "authctl_relay", "", "outbox", "target", "add", "webhook", hook.URL, "--types", "*", "--name", "hook",
		"--set", "outbox.webhook.allow_private=true")
	eventually(t, "the API answers", func() bool {
		res, err := http.Get("http://" + api + "/readyz")
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusOK
	})

	// Everything a person can do.
	person := client{t, "http://" + api + "/api/v1/auth"}
	credentials := map[string]any{"username": "alice", "password": "correct horse battery staple"}
	tokens := person.call("POST", "/register", "", credentials, http.StatusCreated)
	tokens = person.call("POST", "/refresh", "", map[string]any{"refresh_token": tokens["refresh_token"]},
		http.StatusOK)
	person.call("POST", "/login", "", map[string]any{"username": "alice", "password": "wrong"}, http.StatusUnauthorized)
	other := person.call("POST", "/login", "", credentials, http.StatusOK)
	access := tokens["access_token"].(string)
	person.call("GET", "/me", access, nil, http.StatusOK)
	person.call("GET", "/sessions", access, nil, http.StatusOK)
	person.call("DELETE", "/sessions/"+other["session_id"].(string), access, nil, http.StatusNoContent)
	tokens = person.call("POST", "/password", access, map[string]any{
		"current_password": credentials["password"], "new_password": "battery staple horse correct"}, http.StatusOK)
	access = tokens["access_token"].(string)
	person.call("DELETE", "/me", access, map[string]any{"password": "battery staple horse correct"},
		http.StatusNoContent)

	// And everything an operator can do.
	db.authctl(t, "authctl_serve", "correct horse battery staple", "user", "create", "bob", "--password-stdin")
	db.authctl(t, "authctl_serve", "", "user", "list")
	db.authctl(t, "authctl_serve", "", "user", "disable", "bob")
	db.authctl(t, "authctl_serve", "", "user", "enable", "bob")
	person.call("POST", "/login", "", map[string]any{"username": "bob", "password": "correct horse battery staple"},
		http.StatusOK)
	db.authctl(t, "authctl_serve", "", "session", "revoke", "--user", "bob")
	kid := db.authctl(t, "authctl_serve", "", "key", "stage")
	db.authctl(t, "authctl_serve", "", "key", "promote", kid, "--force")

	published := func(what string) bool {
		text, _ := os.ReadFile(filepath.Join(events, "data", "events.ndjson"))
		return strings.Contains(string(text), what)
	}
	eventually(t, "the relay has published alice's end", func() bool { return published("auth.UserDeleted.v1") })
	db.authctl(t, "authctl_relay", "", "outbox", "status")
	db.authctl(t, "authctl_relay", "", "outbox", "tail")
	db.authctl(t, "authctl_relay", "", "outbox", "replay", "--since", "1h", "--yes")
	eventually(t, "the relay has published again", func() bool { return published(`"replay":`) })
	eventually(t, "the webhook has events", func() bool { return delivered.Load() >= 5 })
	db.authctl(t, "authctl_relay", "", "outbox", "replay", "--target", "hook", "--since", "1h", "--yes")
	for _, command := range []string{"list", "show hook", "pause hook", "resume hook", "remove hook --yes"} {
		db.authctl(t, "authctl_relay", "", append([]string{"outbox", "target"}, strings.Fields(command)...)...)
	}
	db.authctl(t, "authctl_relay", "", "outbox", "parked", "list", "--all")
}

// A host that only runs a relay has no secret, no Redis and no right to read accounts, and doctor
// finds nothing wrong with that. A serve that relays needs both roles, and doctor says so.
func TestDoctorKnowsWhatEachRoleIsFor(t *testing.T) {
	t.Parallel()
	db := newRolesDatabase(t)
	doctor := func(role string, env ...string) (string, error) {
		cmd := db.command(t, t.TempDir(), role, "doctor")
		cmd.Env = append(cmd.Env, "APP_PORT=0")
		cmd.Env = append(cmd.Env, env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(out string, lines ...string) {
		t.Helper()
		for _, line := range lines {
			if !regexp.MustCompile("(?m)^" + line).MatchString(out) {
				t.Errorf("no line %q in\n%s", line, out)
			}
		}
	}
	out, err := doctor("authctl_relay", "AUTH_TOKEN_SECRET=", "APP_MODE=prod", "AUTH_PASSWORD_BCRYPT_COST=10",
		"REDIS_URL=redis://127.0.0.1:1", "OUTBOX_RELAY=inline")
	if err != nil {
		t.Errorf("where a relay runs: %v\n%s", err, out)
	}
	must(out, `skip +secret .*relay`, `skip +signing keys `, `skip +redis .*relay`, `ok +outbox `, `ok +targets `)
	out, err = doctor("authctl_serve")
	if err != nil {
		t.Errorf("where serve runs: %v\n%s", err, out)
	}
	must(out, `ok +signing keys `, `skip +outbox `, `skip +targets .*role`)
	out, err = doctor("authctl_serve", "OUTBOX_RELAY=inline")
	if err == nil {
		t.Errorf("a serve that relays without the right:\n%s", out)
	}
	must(out, `fail +outbox .*OUTBOX_RELAY=off.*GRANT authctl_relay TO authctl_serve`)
	out, err = doctor("authctl_serve", "AUTH_TOKEN_SECRET=", "APP_MODE=prod", "AUTH_PASSWORD_BCRYPT_COST=10")
	if err == nil {
		t.Errorf("a serve in prod mode without a secret:\n%s", out)
	}
	must(out, `fail +settings .*AUTH_TOKEN_SECRET`)

	// As after a migration without its grants.
	run(t, db.as("authctl_migrate"), `REVOKE DELETE ON contact FROM authctl_serve;
		REVOKE USAGE ON SEQUENCE outbox_event_id FROM authctl_serve;
		REVOKE EXECUTE ON FUNCTION outbox_add, outbox_deliver FROM authctl_serve;
		REVOKE TRUNCATE ON outbox_event FROM authctl_relay;
		REVOKE DELETE ON outbox_pending FROM authctl_relay;
		REVOKE SELECT (state) ON contact_challenge FROM authctl_relay`)
	for role, lacks := range map[string]string{
		"authctl_serve": "DELETE on contact, EXECUTE on outbox_add, EXECUTE on outbox_deliver and 1 more",
		"authctl_relay": "TRUNCATE on outbox_event, DELETE on outbox_pending, SELECT on contact_challenge",
	} {
		out, err := doctor(role, "OUTBOX_RELAY=off")
		if err == nil {
			t.Errorf("%s without a right:\n%s", role, out)
		}
		must(out, `fail +schema .* lacks rights of `+role+`: `+lacks+` — run authctl migrate grants`)
	}
	both := "both_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	run(t, db.admin, "CREATE ROLE "+both+" IN ROLE authctl_serve, authctl_relay")
	t.Cleanup(func() { _ = try(context.Background(), db.admin, "DROP ROLE "+both) })
	out, err = doctor(both, "OUTBOX_RELAY=inline")
	if err == nil {
		t.Errorf("a serve that relays without a right:\n%s", out)
	}
	must(out, "fail +schema .* authctl_serve: DELETE on contact, ", "fail +schema .* authctl_relay: TRUNCATE on outbox_event, DELETE on outbox_pending — ")
	refused, err := db.command(t, t.TempDir(), "authctl_serve", "serve").CombinedOutput()
	if err == nil {
		t.Error("serve starts without rights")
	}
	must(string(refused), `.*lacks rights of authctl_serve: DELETE on contact, .* and 1 more; run authctl migrate grants`)

	db.authctl(t, "authctl_migrate", "", "migrate", "grants")
	for role, relay := range map[string]string{"authctl_serve": "off", both: "inline"} {
		if out, err := doctor(role, "OUTBOX_RELAY="+relay); err != nil {
			t.Errorf("with the rights again: %v\n%s", err, out)
		}
	}

	// As in a copy by logical replication. The role of serve may not look, but that of the owner.
	run(t, db.as("authctl_migrate"), "SELECT setval('bun_migrations_id_seq', 1, false)")
	refused, err = db.command(t, t.TempDir(), "authctl_migrate", "serve").CombinedOutput()
	if err == nil {
		t.Error("serve starts on a copy without its sequences")
	}
	must(string(refused), `.*copied without its sequences.*SELECT setval\('bun_migrations_id_seq', `)

	run(t, db.admin, "REVOKE USAGE ON SCHEMA public FROM authctl_serve")
	out, err = doctor("authctl_serve", "OUTBOX_RELAY=off")
	if err == nil {
		t.Errorf("without its schema:\n%s", out)
	}
	must(out, `fail +schema .*permission denied for schema public .* — let the role use the schema .*roles.sql`)
}

func TestARelayMayDivideTheWorkAnew(t *testing.T) {
	t.Parallel()
	db := newRolesDatabase(t)
	dir := t.TempDir()
	db.start(t, dir, "authctl_relay", []string{"OUTBOX_SHARDS=24"}, "relay")
	eventually(t, "the relay has divided the work into 24", func() bool {
		return try(t.Context(), db.admin,
			`SELECT 1 / (count(*) = 24)::int FROM outbox_shard WHERE owner IS NOT NULL`) == nil
	})
}

func TestARelayMayEmptyASegment(t *testing.T) {
	t.Parallel()
	db := newRolesDatabase(t)
	run(t, db.as("authctl_relay"),
		`BEGIN; LOCK TABLE ONLY outbox_event_03 IN ACCESS EXCLUSIVE MODE; TRUNCATE ONLY outbox_event_03; COMMIT`)
}

func TestEachDatabaseRoleIsDeniedWhatIsNotItsWork(t *testing.T) {
	t.Parallel()
	db := newRolesDatabase(t)
	for role, statements := range map[string][]string{
		"authctl_serve": {
			"SELECT * FROM outbox_event",
			"DELETE FROM outbox_event",
			"UPDATE outbox_event SET data = ''",
			"TRUNCATE outbox_event",
			"SELECT * FROM outbox_pending",
			"DELETE FROM outbox_pending",
			"UPDATE outbox_shard SET owner = NULL",
			"UPDATE outbox_setting SET shards = 1",
			"SELECT * FROM outbox_subscription",
			"SELECT * FROM outbox_delivery",
			"SELECT * FROM outbox_message",
			"DELETE FROM signing_key",
			"TRUNCATE users",
			"DELETE FROM bun_migrations",
			"DROP TABLE users",
			"ALTER TABLE users ADD COLUMN extra text",
			"CREATE TABLE mine ()",
			"CREATE TEMPORARY TABLE mine ()",
			"CREATE ROLE mine",
			"COPY users TO PROGRAM 'true'",
		},
		"authctl_relay": {
			"SELECT * FROM users",
			"SELECT * FROM session",
			"SELECT * FROM signing_key",
			"SELECT * FROM revoked_session",
			"UPDATE users SET status = 'active'",
			"INSERT INTO outbox_event DEFAULT VALUES",
			"INSERT INTO outbox_event_03 DEFAULT VALUES",
			"UPDATE outbox_event SET data = ''",
			"DELETE FROM outbox_event_03",
			"SELECT nextval('outbox_event_id')",
			"UPDATE outbox_key SET seq = 0",
			"SELECT outbox_add(0, 0, gen_random_uuid(), '', '', '', '', '', '', '')",
			addsEvent,
			"SELECT outbox_add_message('mail', 0, gen_random_uuid(), '', '', '', '', '', '', '')",
			"SELECT outbox_add_message_traced('mail', 0, gen_random_uuid(), '', '', '', '', '', '', '', '')",
			"SELECT outbox_deliver(1, 1::smallint, 0, '', '')",
			"INSERT INTO outbox_message DEFAULT VALUES",
			"DROP TABLE outbox_event",
			"CREATE TABLE mine ()",
		},
		"authctl_migrate": {
			"CREATE ROLE mine",
			"CREATE DATABASE mine",
			"COPY users TO PROGRAM 'true'",
		},
	} {
		for _, sql := range statements {
			t.Run(role+"/"+sql, func(t *testing.T) {
				t.Parallel()
				err := try(t.Context(), db.as(role), sql)
				if denied, ok := errors.AsType[*pgconn.PgError](err); !ok || denied.Code != insufficientPrivilege {
					t.Errorf("%s may %s: %v", role, sql, err)
				}
			})
		}
	}
}

// Other programs in the same database notice nothing of roles.sql and grants.sql, whether they
// share the schema or have their own: their tables, functions and roles stay as they are, and so
// does what they may do through rights granted to everybody.
func TestASharedDatabaseLosesNothing(t *testing.T) {
	t.Parallel()
	for _, schema := range []string{"public", "authctl"} {
		t.Run(schema, func(t *testing.T) {
			t.Parallel()
			db := emptyDatabase(t)
			other := "other_" + strings.ReplaceAll(uuid.NewString(), "-", "")
			run(t, db.admin, "CREATE ROLE "+other)
			t.Cleanup(func() {
				ctx := context.WithoutCancel(t.Context())
				if err := errors.Join(try(ctx, db.admin, "DROP OWNED BY "+other),
					try(ctx, db.admin, "DROP ROLE "+other)); err != nil {
					t.Error(err)
				}
			})
			run(t, db.admin,
				`CREATE TABLE shop_order (id integer); CREATE VIEW shop_view AS SELECT * FROM shop_order; CREATE SEQUENCE shop_number;
				CREATE FUNCTION shop_total() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM shop_view';
				CREATE SCHEMA reports; CREATE TABLE reports.sums (id integer); GRANT USAGE ON SCHEMA reports TO PUBLIC;
				GRANT SELECT ON shop_view, reports.sums TO PUBLIC; GRANT USAGE ON SEQUENCE shop_number TO PUBLIC; GRANT INSERT ON shop_order TO `+other+`;
				CREATE TABLE theirs (id integer); ALTER TABLE theirs OWNER TO `+other)
			if schema != "public" {
				run(t, db.admin, "CREATE SCHEMA "+schema)
			}
			ours := db.within(schema)
			work := []string{
				"SELECT * FROM shop_view", "SELECT nextval('shop_number')", "SELECT shop_total()",
				"INSERT INTO shop_order VALUES (1)",
				"SELECT * FROM reports.sums", "INSERT INTO theirs VALUES (1)",
				"CREATE TEMPORARY TABLE mine (id integer)",
				"DO $$ BEGIN IF NOT has_database_privilege(current_user, current_database(), 'CONNECT') THEN RAISE 'no connection'; END IF; END $$",
			}
			for when, change := range []func(){func() {}, func() { ours.install(t, "postgres/roles.sql") }} {
				change()
				for _, statement := range work {
					if err := try(t.Context(), db.as(other), statement); err != nil {
						t.Errorf("%d: %s: %v", when, statement, err)
					}
				}
			}
			for _, role := range []string{other, "authctl_relay"} {
				err := try(t.Context(), ours.as(role), addsEvent)
				if denied, ok := errors.AsType[*pgconn.PgError](err); !ok || denied.Code != insufficientPrivilege &&
					denied.Code != undefinedFunction {
					t.Errorf("%s may add events: %v", role, err)
				}
			}
			// Rights that a role no longer needs are revoked.
			run(t, ours.as("authctl_migrate"), `GRANT ALL ON users, outbox_event TO authctl_relay;
				GRANT EXECUTE ON FUNCTION outbox_add, outbox_add_traced TO PUBLIC`)
			run(t, ours.as("authctl_migrate"), read(t, "postgres/grants.sql"))
			for role, statement := range map[string]string{
				"authctl_relay": "SELECT * FROM users", other: addsEvent,
			} {
				err := try(t.Context(), ours.as(role), statement)
				if denied, ok := errors.AsType[*pgconn.PgError](err); !ok || denied.Code != insufficientPrivilege &&
					denied.Code != undefinedFunction {
					t.Errorf("%s may still %s: %v", role, statement, err)
				}
			}
			ours.authctl(t, "authctl_serve", "correct horse battery staple", "user", "create", "alice",
				"--password-stdin")
			ours.authctl(t, "authctl_relay", "", "outbox", "status")
		})
	}
}

// The lines of the page bring authctl's schema back in a database that others use, and leave theirs alone.
func TestASharedDatabaseIsRestoredByTheLinesOfThePage(t *testing.T) {
	t.Parallel()
	testenv.Program(t, "install the package postgresql-client", "pg_dump")
	_, lines, _ := strings.Cut(read(t, "../docs/operations.md"), "`SHARED_URL` is a superuser")
	_, lines, _ = strings.Cut(lines, "```sh\n")
	lines, _, found := strings.Cut(lines, "```")
	if !found {
		t.Fatal("the page has no lines for a shared database")
	}
	db := emptyDatabase(t)
	run(t, db.admin, "CREATE SCHEMA authctl; CREATE TABLE public.shop_order (id integer)")
	ours := db.within("authctl")
	ours.install(t, "postgres/roles.sql")
	register := func(name string) {
		t.Helper()
		ours.authctl(t, "authctl_serve", "correct horse battery staple", "user", "create", name, "--password-stdin")
	}
	dump := filepath.Join(t.TempDir(), "authctl.dump")
	shell := func(lines string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-eu", "-c", strings.ReplaceAll(lines, "authctl.dump", dump))
		cmd.Dir = ".."
		cmd.Env = append(os.Environ(), "SHARED_URL="+db.admin, "DATABASE_URL="+db.as("authctl_migrate"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s\n%s", err, lines, out)
		}
	}
	register("alice")
	shell(`pg_dump --format=custom --schema=authctl --file=authctl.dump "$DATABASE_URL"`)
	register("bob")
	shell(lines)
	ours.authctl(t, "authctl_migrate", "", "restore", "fence", "--yes")
	ours.authctl(t, "authctl_migrate", "", "migrate", "grants")
	if list := ours.authctl(t, "authctl_serve", "", "user", "list"); !strings.Contains(list, " alice ") ||
		strings.Contains(list, " bob ") {
		t.Errorf("after the restore there are\n%s", list)
	}
	ours.authctl(t, "authctl_relay", "", "outbox", "status")
	run(t, db.admin, "SELECT id FROM public.shop_order; SELECT id FROM authctl_before.users")
}

// PostgreSQL lets everybody call a new function; the grants revoke that for each function of a
// migration.
func TestGrantsCloseEveryFunction(t *testing.T) {
	t.Parallel()
	db := newRolesDatabase(t)
	err := try(t.Context(), db.admin, `DO $$ DECLARE open text; BEGIN
		SELECT string_agg(oid::regprocedure::text, ', ') INTO open FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND has_function_privilege('public', oid, 'EXECUTE');
		IF open IS NOT NULL THEN RAISE '%', open; END IF; END $$`)
	if err != nil {
		t.Errorf("deploy/postgres/grants.sql leaves everybody: %v", err)
	}
}

// A table that a migration adds must be in grants.sql, or be listed here as the owner's alone.
func TestGrantsNameEveryTable(t *testing.T) {
	t.Parallel()
	db := newRolesDatabase(t)
	conn, err := pgx.Connect(t.Context(), db.admin)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	rows, err := conn.Query(t.Context(), `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
		AND relkind IN ('r', 'p', 'S', 'v', 'm') AND relname <> 'bun_migration_locks' AND NOT EXISTS (
			SELECT 1 FROM aclexplode(relacl) a WHERE a.grantee IN ('authctl_serve'::regrole, 'authctl_relay'::regrole))
		AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = pg_class.oid AND d.deptype IN ('a', 'i') AND relkind = 'S')`)
	if err != nil {
		t.Fatal(err)
	}
	forgotten, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if len(forgotten) > 0 {
		t.Errorf("deploy/postgres/grants.sql says nothing about %q", forgotten)
	}
}

type client struct {
	t    *testing.T
	base string
}

// call sends a request, checks the status, and returns the answer.
func (c client) call(method, path, token string, body map[string]any, status int) map[string]any {
	c.t.Helper()
	var payload io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			c.t.Fatal(err)
		}
		payload = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.base+path, payload)
	if err != nil {
		c.t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != status {
		c.t.Fatalf("%s %s answered %d, want %d: %s %v", method, path, res.StatusCode, status, text, err)
	}
	var answer map[string]any
	if len(text) > 0 {
		if err := json.Unmarshal(text, &answer); err != nil {
			c.t.Fatalf("%s %s: %v", method, path, err)
		}
	}
	return answer
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatalf("not within %v: %s", testenv.Patience, what)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// The command grants exactly what the file grants, also where other rights existed before.
func TestTheCommandGrantsWhatTheFileDoes(t *testing.T) {
	t.Parallel()
	rights := func(db rolesDatabase) string {
		var list []byte
		conn, err := pgx.Connect(t.Context(), db.admin)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		err = conn.QueryRow(t.Context(), `SELECT jsonb_pretty(jsonb_object_agg(name, rights)) FROM (
			SELECT relname AS name, ARRAY(SELECT a::text FROM unnest(relacl) a ORDER BY 1) AS rights FROM pg_class
				WHERE relnamespace = 'public'::regnamespace AND relacl IS NOT NULL
			UNION ALL SELECT proname, ARRAY(SELECT a::text FROM unnest(proacl) a ORDER BY 1) FROM pg_proc
				WHERE pronamespace = 'public'::regnamespace AND proacl IS NOT NULL) x`).Scan(&list)
		if err != nil {
			t.Fatal(err)
		}
		return string(list)
	}
	byFile, byCommand := newRolesDatabase(t), emptyDatabase(t)
	run(t, byCommand.admin, read(t, "postgres/roles.sql")+read(t, "postgres/dedicated.sql"))
	if err := byCommand.command(t, t.TempDir(), "authctl_migrate", "migrate", "grants").Run(); err == nil {
		t.Error("rights were granted before the tables existed")
	}
	byCommand.authctl(t, "authctl_migrate", "", "migrate", "up")
	run(t, byCommand.as("authctl_migrate"), "GRANT SELECT ON users TO authctl_relay")
	for range 2 {
		byCommand.authctl(t, "authctl_migrate", "", "migrate", "grants")
		if file, command := rights(byFile), rights(byCommand); file != command ||
			!strings.Contains(file, "authctl_relay=") {
			t.Errorf("the file grants\n%s\nand the command\n%s", file, command)
		}
	}
	denied := byCommand.command(t, t.TempDir(), "authctl_serve", "migrate", "grants")
	var stderr bytes.Buffer
	denied.Stderr = &stderr
	if err := denied.Run(); err == nil || !strings.Contains(stderr.String(), "grant the roles their rights: ") {
		t.Errorf("as authctl_serve: %v, %s", err, &stderr)
	}
}
