package database_test

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// told returns the refusal of the settings, "" if they are accepted.
func told(cfg database.Config) (path, problem string) {
	cfg.Validate(func(p, text string) { path, problem = p, text })
	return path, problem
}

func TestURLsThatCanBeReadInOneWayOnlyAreTaken(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"postgres://u:p@h/d":                                               "PostgreSQL h:5432/d",
		"postgresql://u@h:5433/d?sslmode=disable":                          "PostgreSQL h:5433/d",
		"postgres://u:p%40ss%2F%3A%25@h/d":                                 "PostgreSQL h:5432/d",
		"postgres://u:p!$&'()*+,;=:x@h/d":                                  "PostgreSQL h:5432/d",
		"postgres://[::1]:5433/d":                                          "PostgreSQL [::1]:5433/d",
		"postgres://[::1],[2001:db8::7]:5433/d":                            "PostgreSQL [::1]:5432,[2001:db8::7]:5433/d",
		"postgres://[fe80::1%25eth0]/d":                                    "PostgreSQL [fe80::1%eth0]:5432/d",
		"postgres://h1:5433,h2,h3:5434/d":                                  "PostgreSQL h1:5433,h2:5432,h3:5434/d",
		"postgres://u@/d?host=/run/postgresql":                             "PostgreSQL /run/postgresql/d",
		"postgres://u@%2Frun%2Fpostgresql/d":                               "PostgreSQL /run/postgresql/d",
		"postgres://u@ignored/d?host=named.example&port=6000":              "PostgreSQL named.example:6000/d",
		"postgres://u@h/d%2Fwith%40more":                                   "PostgreSQL h:5432/d/with@more",
		"postgres://u@h/d?options=-c%20statement_timeout%3D9s":             "PostgreSQL h:5432/d",
		"postgres://u@h/d?password=a%20b+c&connect_timeout=3":              "PostgreSQL h:5432/d",
		"postgres://someone@h":                                             "PostgreSQL h:5432/someone",
		"postgres://u@h/d?":                                                "PostgreSQL h:5432/d",
		"postgres://u@h/d?application_name=a&target_session_attrs=primary": "PostgreSQL h:5432/d",
	} {
		cfg := database.Config{URL: config.Secret(text)}
		if path, problem := told(cfg); problem != "" {
			t.Errorf("%s: %s %s", text, path, problem)
		}
		if got := cfg.Describe("data"); got != want {
			t.Errorf("%s is described as %q, want %q", text, got, want)
		}
	}
}

// When a URL can be read in several ways, no part of it is shown and no server is contacted.
func TestURLsThatCannotBeReadAreRefusedUnseen(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"postgres://u:pa^ss{1}@h/d", "postgres://u:1/SECRET@h/d", "postgres://u:p@SECRET@h/d",
		"postgres://u:p@SECRET@h",
		"postgres://u:p?SECRET@h/d", "postgres://u:1?SECRET=x@h/d", "postgres://u:1?x=SECRET@h/d",
		"postgres://u:p#SECRET@h/d", "postgres://u:1#SECRET@h/d",
		"postgres://u:[SECRET]@h/d", "postgres://u:SEC RET@h/d", "postgres://u:SEC%RET@h/d", "postgres://u:SEC%2@h/d",
		"postgres://u:SECRET%@h/d",
		"postgres://u:SECRET\n@h/d", "postgres://u:p@h/d\n", " postgres://u:p@h/d", "postgres://u:p@h/d ",
		"postgres://u:SÉCRET@h/d", `postgres://u:SE\CRET@h/d`, `postgres://u:"SECRET"@h/d`,
		"postgres://u:SECRET@h:port/d", "postgres://u:p@h:SECRET/d", "postgres://u:p@h:123456/d",
		"postgres://u:p@h:0/d",
		"postgres://u:p@h:70000/d",
		"postgres://u:p@h/d/SECRET", "postgres://u:p@h/d?SECRET", "postgres://u:p@h/d?a=SECRET=b",
		"postgres://u:p@h/d?a=b&&c=d", "postgres://u:p@h/d?user=u@SECRET",
		"postgres://u:p@[::1/d", "postgres://u:p@::1/d", "postgres://u:p@[SECRET]/d", "postgres://u:p@[]/d",
		"postgres://u:p@h1:1:2/d",
		"postgres://u:p@h/d?sslmode=SECRET", "postgres://u:p@h/d?connect_timeout=SECRET",
		"postgres://u:p@h/d?connect_timeout=-1", "postgres://u:p@h/d?target_session_attrs=SECRET",
		"postgres://u:p@h1,h2,h3:1,h4:2/d?port=1,2", "postgres://u:p@h/d?sslrootcert=/no/such/file",
		"postgres://u:p@h/d?service=SECRET",
		"POSTGRES://u:SECRET@h/d", "mysql://u:SECRET@h/d", "host=h password=SECRET", "h/d", "postgres:u:SECRET@h/d",
		"postgres:/u:SECRET@h/d", "file:x.db", "sqlite3:x.db", "SQLITE:x.db",
	} {
		cfg := database.Config{URL: config.Secret(text)}
		path, problem := told(cfg)
		if path != "database.url" || problem == "" {
			t.Errorf("%q: %q of %q", text, problem, path)
		}
		_, err := database.Open(t.Context(), cfg, database.Options{DataDir: t.TempDir()})
		if err == nil || database.IsUnavailable(err) {
			t.Errorf("%q was opened: %v", text, err)
		}
		for _, shown := range []string{problem, fmt.Sprint(err), cfg.Describe("data"),
			fmt.Sprintf("%v %+v", cfg, cfg)} {
			for _, part := range []string{"SECRET", "SÉCRET", "SEC", "pa^ss", "CRET", "RET"} {
				if strings.Contains(shown, part) {
					t.Errorf("%q: %q is shown in %q", text, part, shown)
				}
			}
		}
		if strings.ContainsAny(text, "^{}@") && strings.Contains(text, "SECRET@") &&
			!strings.Contains(problem, "percent-encode") && strings.HasPrefix(text, "postgres://") {
			t.Errorf("%q: it does not say what to do: %s", text, problem)
		}
	}
}

func TestHostsInPartsAreTakenOrRefused(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{
		"db.internal": "PostgreSQL db.internal:6000/a'b", "10.0.0.1": "PostgreSQL 10.0.0.1:6000/a'b",
		"::1": "PostgreSQL [::1]:6000/a'b", "fe80::1%eth0": "PostgreSQL [fe80::1%eth0]:6000/a'b",
		"/run/postgresql": "PostgreSQL /run/postgresql/a'b",
		"db:5432":         "", "postgres://db": "", "db/x": "", "a b": "", "u@db": "", "[::1]:5432": "", "[::1]": "",
		"h1,h2": "",
	} {
		cfg := database.Config{Postgres: database.PostgresConfig{Host: host, Port: 6000, DB: "a'b", User: `u\'`,
			Password: `p'\ @/`}}
		path, problem := told(cfg)
		if want == "" {
			if path != "db.postgres.host" || problem == "" {
				t.Errorf("%s: %q of %q", host, problem, path)
			}
			continue
		}
		if got := cfg.Describe("data"); problem != "" || got != want {
			t.Errorf("%s: %q, described as %q, want %q", host, problem, got, want)
		}
	}
}

// In prod mode every server is verified, unless the settings explicitly say otherwise.
func TestProdModeVerifiesEveryServer(t *testing.T) {
	for _, test := range []struct {
		name string
		cfg  database.Config
		env  [2]string
		want string // "" when all servers are verified
	}{
		{name: "nothing said", cfg: database.Config{URL: "postgres://u@h/d"}},
		{name: "empty", cfg: database.Config{URL: "postgres://u@h/d?sslmode="}},
		{name: "empty after another", cfg: database.Config{URL: "postgres://u@h/d?sslmode=disable&sslmode="}},
		{name: "question mark alone", cfg: database.Config{URL: "postgres://u@h/d?"}},
		{name: "no path", cfg: database.Config{URL: "postgres://u@h"}},
		{name: "other parameters",
			cfg: database.Config{URL: "postgres://u:p%20q@h/d?options=-c%20statement_timeout%3D9s&connect_timeout=2"}},
		{name: "several", cfg: database.Config{URL: "postgres://u@h1:5433,h2/d"}},
		{name: "IPv6", cfg: database.Config{URL: "postgres://u@[::1]:5433,[::2]:5433/d"}},
		{name: "host as a parameter", cfg: database.Config{URL: "postgres://u@h1/d?host=h2"}},
		{name: "direct negotiation", cfg: database.Config{URL: "postgres://u@h/d?sslnegotiation=direct"}},
		{name: "host from the environment", cfg: database.Config{URL: "postgres:///d"},
			env: [2]string{"PGHOST", "db.internal"}},
		{name: "empty in the environment", cfg: database.Config{URL: "postgres://u@h/d"},
			env: [2]string{"PGSSLMODE", ""}},
		{name: "socket and server", cfg: database.Config{URL: "postgres://u@%2Frun,h/d"}},
		{name: "said", cfg: database.Config{URL: "postgres://u@h1,h2/d?sslmode=verify-full"}},
		{name: "socket", cfg: database.Config{URL: "postgres://u@/d?host=/run"}},
		{name: "parts", cfg: database.Config{Postgres: database.PostgresConfig{Host: "h1", DB: "d"}}},

		{name: "disable in the URL", cfg: database.Config{URL: "postgres://u@h/d?sslmode=disable"},
			want: "plain h:5432"},
		{name: "encoded", cfg: database.Config{URL: "postgres://u@h/d?ssl%6Dode=disable"}, want: "plain h:5432"},
		{name: "require in the URL", cfg: database.Config{URL: "postgres://u@h/d?sslmode=require"},
			want: "unverified h:5432"},
		{name: "ssl", cfg: database.Config{URL: "postgres://u@h/d?ssl=true"}, want: "unverified h:5432"},
		{name: "require in the environment", cfg: database.Config{URL: "postgres://u@h/d"},
			env: [2]string{"PGSSLMODE", "disable"}, want: "plain h:5432"},
		{name: "the URL beats the environment", cfg: database.Config{URL: "postgres://u@h/d?sslmode=verify-full"},
			env: [2]string{"PGSSLMODE", "disable"}},
		{name: "the setting beats the environment", cfg: database.Config{Postgres: database.PostgresConfig{Host: "h",
			SSLMode: "require"}},
			env: [2]string{"PGSSLMODE", "disable"}, want: "unverified h:5432"},
		{name: "parts, said", cfg: database.Config{Postgres: database.PostgresConfig{Host: "h", DB: "d",
			SSLMode: "disable"}}, want: "plain h:5432"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.env[0] != "" {
				t.Setenv(test.env[0], test.env[1])
			}
			if path, problem := told(test.cfg); problem != "" {
				t.Fatal(path, problem)
			}
			got := test.cfg.Unverified(true)
			if strings.Join(got, ", ") != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

// The TLS setting in a service file cannot be told from the default.
func TestAServiceFileIsNoWordAboutTLS(t *testing.T) {
	file := filepath.Join(t.TempDir(), "service")
	if err := os.WriteFile(file, []byte("[s]\nhost=evil.example\nsslmode=prefer\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGSERVICEFILE", file)
	cfg := database.Config{URL: "postgres://u@/d?service=s"}
	if got := cfg.Unverified(true); len(got) > 0 {
		t.Errorf("%q", got)
	}
	if got := cfg.Unverified(false); len(got) != 2 {
		t.Errorf("%q", got)
	}
	if got := cfg.Describe(""); got != "PostgreSQL evil.example:5432/d" {
		t.Errorf("described as %q", got)
	}
}

// A parameter reaches the server unchanged, whatever else happens to the URL.
func TestParametersKeepTheirBlanks(t *testing.T) {
	t.Parallel()
	base := dbtest.PostgresURL(t)
	separator := "?"
	if strings.Contains(base, "?") {
		separator = "&"
	}
	db := dbtest.Open(t, base+separator+"options=-c%20a.note%3Da%5C%20b+c&search_path=public,%20pg_catalog")
	for name, want := range map[string]string{"a.note": "a b+c", "search_path": "public, pg_catalog"} {
		var have string
		if err := db.QueryRowContext(t.Context(), "SELECT current_setting(?)", name).Scan(&have); err != nil ||
			have != want {
			t.Errorf("%s is %q, %v; want %q", name, have, err, want)
		}
	}
}

// silent is a server that accepts connections and sends nothing.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

func TestAServerThatHangsDoesNotKeepTheNextFromBeingTried(t *testing.T) {
	t.Parallel()
	base := dbtest.PostgresURL(t)
	for name, parameters := range map[string]string{"shared": "", "connect_timeout": "&connect_timeout=2"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := strings.Replace(base, "@", "@"+silent(t)+","+silent(t)+",", 1) + parameters
			db := dbtest.Open(t, text)
			var one int
			if err := db.QueryRowContext(t.Context(), "SELECT 1").Scan(&one); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAConnectTimeoutIsKept(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"postgres://u@127.0.0.1/d?connect_timeout=17": 17 * time.Second, "postgres://u@127.0.0.1/d": 5 * time.Second,
		"postgres://u@127.0.0.1:1,127.0.0.1:2/d":                   2500 * time.Millisecond,
		"postgres://u@127.0.0.1:1,127.0.0.1:1/d":                   5 * time.Second,
		"postgres://u@127.0.0.1:1,127.0.0.1:2/d?connect_timeout=4": 4 * time.Second,
	} {
		each, all, err := database.Patience(t.Context(), database.Config{URL: config.Secret(text)})
		if err != nil || each != want || all < each {
			t.Errorf("%s: %s per server and %s in all, %v; want %s", text, each, all, err, want)
		}
	}
}

func TestSQLitePathsAreMeantOrRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, path := range []string{"x.db", "a b.db", "100%.db", "%20.db", "sub/x.db", "é.db", "a'b.db", "a\"b.db",
		"a;b.db", "x", ".x.db", "a&b=c.db", "a+b.db", "a#01.db"} {
		text := "sqlite:" + filepath.Join(dir, path)
		db, err := database.Open(t.Context(), database.Config{URL: config.Secret(text)}, database.Options{})
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if _, err := db.Write(t.Context(), "CREATE TABLE one (n integer)"); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		if info, err := os.Stat(filepath.Join(dir, path)); err != nil || info.Size() == 0 {
			t.Errorf("%s is in another place: %v", path, err)
		}
	}
	for _, text := range []string{
		"sqlite:", "sqlite::memory:", "sqlite://:memory:", "sqlite://data/x.db", "sqlite:///data/x.db",
		"sqlite:////data/x.db", "sqlite:file:x.db", "sqlite:file::memory:",
		"sqlite:x.db?mode=ro", "sqlite:file:x.db?mode=ro", "sqlite:x.db?", "sqlite:~/x.db", "sqlite:~someone/x.db",
		"sqlite:$HOME/x.db", "sqlite:${HOME}/x.db",
		"sqlite: x.db", "sqlite:x.db ", "sqlite:x.db\n", "sqlite:\t", "sqlite:a\x00b", "sqlite:a\nb.db",
		"sqlite:" + dir,
		"sqlite:" + dir + "/", "sqlite:.", "sqlite:..", "sqlite:/",
		"sqlite:data/",
	} {
		cfg := database.Config{URL: config.Secret(text)}
		if path, problem := told(cfg); path != "database.url" || problem == "" {
			t.Errorf("%q: %q of %q", text, problem, path)
		}
		if db, err := database.Open(t.Context(), cfg, database.Options{DataDir: dir}); err == nil {
			_ = db.Close()
			t.Errorf("%q was opened", text)
		}
	}
	for _, made := range []string{"data", "~", "file:x.db", ":memory:"} {
		if _, err := os.Lstat(made); err == nil {
			t.Errorf("%s was created", made)
		}
	}
}

// One of two servers is away and the other is a standby: what is said is of both, and so is the advice.
func TestTheErrorOfSeveralServersIsOfAllOfThem(t *testing.T) {
	t.Parallel()
	u, err := url.Parse(dbtest.PostgresURL(t))
	if err != nil {
		t.Fatal(err)
	}
	closed := fmt.Sprint("127.0.0.1:", testenv.FreePort(t))
	standby := u.Host
	u.Host = closed + "," + standby
	u.RawQuery += "&default_transaction_read_only=on"
	_, err = database.Open(t.Context(), database.Config{URL: config.Secret(u.String())}, database.Options{})
	if err == nil || !strings.Contains(err.Error(), "dial tcp "+closed+": connect: connection refused; "+standby+
		" takes no writes") {
		t.Errorf("the error is: %v", err)
	}
	if got := database.Remedy(err, database.AnyTask); !strings.Contains(got, "promote a standby") {
		t.Errorf("the remedy is: %s", got)
	}
}
