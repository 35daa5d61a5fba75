package config

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// settings has one field of each kind that a settings struct may have.
type settings struct {
	App     appSettings
	DB      dbSettings `config:"db"`
	Ratio   float64    `config:"ratio" default:"0.5" min:"0" max:"1" doc:"A number."`
	Sources Sources
	ignored string
}

type appSettings struct {
	Mode    string         `config:"app.mode" default:"dev" oneof:"dev,prod" doc:"dev or prod."`
	Port    int            `config:"app.port" default:"8080" min:"1" max:"65535" doc:"Port of the API."`
	Origins []string       `config:"app.origins" doc:"Origins that may call | from a browser."`
	Proxies []netip.Prefix `config:"app.proxies" default:"127.0.0.0/8,::1/128" doc:"Networks."`
	Bind    netip.Addr     `config:"app.bind" default:"127.0.0.1" doc:"Address to listen on."`
	TTL     time.Duration  `config:"app.ttl" default:"5h" min:"1s" max:"720h" doc:"How long."`
	Debug   bool           `config:"app.debug" doc:"More words."`
	Skipped string         `config:"-"`
}

func (a appSettings) Validate(report func(path, problem string)) {
	if a.Mode == "prod" && a.Debug {
		report("app.debug", "must be false in prod mode")
	}
}

type dbSettings struct {
	URL      Secret   `config:"url" doc:"All in one."`
	Size     int64    `config:"size" default:"10" max:"100" doc:"A whole number."`
	Modes    []string `config:"modes" oneof:"r,w" doc:"Ways in."`
	Postgres struct {
		Host     string `config:"host" doc:"Host."`
		Password Secret `config:"password" doc:"Password."`
	} `config:"postgres"`
}

func (d *dbSettings) Validate(report func(path, problem string)) {
	if d.Postgres.Password != "" && d.Postgres.Host == "" {
		report("postgres.host", "is needed with a password")
	}
}

// write writes a file into the test's own folder and returns its path.
func write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustLoad(t *testing.T, opt Options) *settings {
	t.Helper()
	s := &settings{}
	if opt.File == "" {
		opt.File = write(t, "config.yaml", "")
	}
	if err := Load(s, opt); err != nil {
		t.Fatal(err)
	}
	return s
}

// faultsOf loads and returns the faults as text, without folders.
func faultsOf(t *testing.T, opt Options) string {
	t.Helper()
	if opt.File == "" {
		opt.File = write(t, "config.yaml", "")
	}
	s := &settings{ignored: "kept"}
	before := *s
	err := Load(s, opt)
	faults, ok := errors.AsType[Faults](err)
	if !ok || len(faults) == 0 {
		t.Fatalf("Load gave %v, want faults", err)
	}
	if !reflect.DeepEqual(*s, before) {
		t.Errorf("a load that failed changed the settings: %+v", s)
	}
	var b strings.Builder
	for _, f := range faults {
		text := f.String()
		for _, path := range []string{opt.File, opt.DotEnv} {
			if path != "" {
				text = strings.ReplaceAll(text, path, filepath.Base(path))
			}
		}
		fmt.Fprintln(&b, text)
	}
	return b.String()
}

func wantFaults(t *testing.T, opt Options, want ...string) {
	t.Helper()
	if got := strings.TrimSpace(faultsOf(t, opt)); got != strings.Join(want, "\n") {
		t.Errorf("faults are\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

func TestDefaultsFillEverySetting(t *testing.T) {
	t.Parallel()
	s := mustLoad(t, Options{})
	want := appSettings{
		Mode: "dev", Port: 8080, TTL: 5 * time.Hour, Bind: netip.MustParseAddr("127.0.0.1"),
		Proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
	}
	if !reflect.DeepEqual(s.App, want) {
		t.Errorf("defaults are %+v, want %+v", s.App, want)
	}
	if s.Ratio != 0.5 || s.DB.Size != 10 {
		t.Errorf("defaults are %+v", s)
	}
}

func TestARemovedSettingIsRefusedWithWhatHoldsNow(t *testing.T) {
	t.Parallel()
	removed := map[string]string{"db.patience": "it is 5s now", "db.postgres.old": "nobody needs it"}
	wantFaults(t, Options{Removed: removed, Override: map[string]string{"db.postgres.old": "1"},
		File: write(t, "config.yaml", "db:\n  patience: 9s\n")},
		"db.patience was removed: it is 5s now. Take it out (config.yaml:2)",
		"db.postgres.old was removed: nobody needs it. Take it out (flag)")
	var remarks []Remark
	mustLoad(t, Options{Removed: removed, Environ: []string{"DB_PATIENCE=9s"},
		Remark: func(r Remark) { remarks = append(remarks, r) }})
	want := []Remark{{"DB_PATIENCE", "environment", "was removed: it is 5s now. Take it out", true}}
	if !slices.Equal(remarks, want) {
		t.Errorf("remarks are %+v, want %+v", remarks, want)
	}
}

func TestWithDefaultsFillsWhatCannotBeZero(t *testing.T) {
	t.Parallel()
	type group struct {
		Timeout time.Duration `config:"a.timeout" default:"5s" min:"1s" doc:"x"`
		Grace   time.Duration `config:"a.grace" default:"5s" min:"0s" doc:"x"` // 0 is allowed
		Number  int           `config:"a.number" default:"7" min:"1" doc:"x"`
		Word    string        `config:"a.word" default:"one" oneof:"one,two" doc:"x"`
		On      bool          `config:"a.on" default:"true" doc:"x"`
		Else    int
	}
	if got, want := WithDefaults(group{Number: 3}), (group{Timeout: 5 * time.Second, Number: 3,
		Word: "one"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestEachLayerStandsAboveTheOnesBefore(t *testing.T) {
	t.Parallel()
	file := write(t, "config.yaml",
		"app:\n  ttl: 1m\n  port: 1\n  debug: true\n  origins: [a, 'b,c']\ndb:\n  size: 2\n  postgres:\n    host: file\n")
	dotEnv := write(t, ".env", "APP_PORT=2\nAPP_DEBUG=false\nDB_SIZE=3\n")
	s := mustLoad(t, Options{
		File: file, DotEnv: dotEnv,
		Environ:  []string{"DB_SIZE=4", "APP_PORT=3", "DB_POSTGRES_HOST=", "PATH=/bin", "APP_PORT=99"},
		Override: map[string]string{"app.port": "4"},
	})
	if s.App.TTL != time.Minute || s.App.Debug || s.DB.Size != 4 || s.App.Port != 4 || s.DB.Postgres.Host != "file" {
		t.Errorf("the layers gave %+v", s)
	}
	if want := []string{"a", "b,c"}; !reflect.DeepEqual(s.App.Origins, want) {
		t.Errorf("origins are %q, want %q", s.App.Origins, want)
	}
	want := map[string]string{
		"app.mode": "default", "app.ttl": file + ":2", "app.debug": dotEnv + " APP_DEBUG",
		"db.size":  "environment DB_SIZE",
		"app.port": "flag", "db.postgres.host": file + ":9", "app.origins": file + ":5",
	}
	for path, source := range want {
		if s.Sources[path] != source {
			t.Errorf("%s comes from %q, want %q", path, s.Sources[path], source)
		}
	}
}

func TestListsAreCommaSeparatedOutsideYAML(t *testing.T) {
	t.Parallel()
	for _, opt := range []Options{
		{Environ: []string{"APP_ORIGINS= https://a.example , https://b.example,", "APP_PROXIES=10.0.0.0/8"}},
		{File: write(t, "config.yaml",
			"app:\n  origins: https://a.example,https://b.example\n  proxies: [10.0.0.0/8]\n")},
	} {
		s := mustLoad(t, opt)
		if want := []string{"https://a.example", "https://b.example"}; !reflect.DeepEqual(s.App.Origins, want) {
			t.Errorf("origins are %q, want %q", s.App.Origins, want)
		}
		if want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}; !reflect.DeepEqual(s.App.Proxies, want) {
			t.Errorf("proxies are %v, want %v", s.App.Proxies, want)
		}
	}
}

func TestDotEnvIsReadInDevModeOnly(t *testing.T) {
	t.Parallel()
	dotEnv := write(t, ".env", "APP_PORT=2\n")
	for _, tc := range []struct {
		name string
		opt  Options
		port int
	}{
		{"dev by default", Options{}, 2},
		{"prod in the environment", Options{Environ: []string{"APP_MODE=prod"}}, 8080},
		{"prod by flag", Options{Environ: []string{"APP_MODE=dev"}, Override: map[string]string{"app.mode": "prod"}},
			8080},
		{"prod in the file", Options{File: write(t, "config.yaml", "app: {mode: prod}")}, 8080},
		{"dev above prod",
			Options{File: write(t, "config.yaml", "app: {mode: prod}"), Environ: []string{"APP_MODE=dev"}}, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.opt.DotEnv = dotEnv
			if s := mustLoad(t, tc.opt); s.App.Port != tc.port {
				t.Errorf("app.port is %d, want %d", s.App.Port, tc.port)
			}
		})
	}
	mustLoad(t, Options{DotEnv: filepath.Join(t.TempDir(), "none")})
	wantFaults(t, Options{DotEnv: write(t, ".env", "APP_MODE=prod\n")},
		"app.mode may only be dev in a file that is read in dev mode alone; set APP_MODE in the environment (.env APP_MODE)")
}

func TestABadDotEnvIsRefusedWithItsLineAndWithoutItsText(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"A=1\nB='x\ny'\n\nnot a pair hunter2\nC=3\n": ".env:5 cannot be understood as NAME=value",
		"DB_URL='hunter2\n":                          ".env:1 cannot be understood as NAME=value",
		"APP_PORT=x\n":                               `app.port must be a whole number, not "x" (.env APP_PORT)`,
	} {
		wantFaults(t, Options{DotEnv: write(t, ".env", text)}, want)
	}
	wantFaults(t, Options{DotEnv: t.TempDir() + "/."}, ". cannot be read: is a directory")
}

func TestADollarInADotEnvIsNotLost(t *testing.T) {
	t.Parallel()
	const lost = " refers with $ to a variable that the file does not set, so nothing would be in its place; in single " +
		"quotes a $ stays as it is"
	for text, want := range map[string]string{
		"DB_POSTGRES_HOST=$HOME/x\n":         "db.postgres.host" + lost + " (.env DB_POSTGRES_HOST)",
		"DB_POSTGRES_HOST=\"${HUNTER2}x\"\n": "db.postgres.host" + lost + " (.env DB_POSTGRES_HOST)",
		"DB_URL=pa$HUNTER2\n":                "db.url" + lost + " (.env DB_URL)",
		"DB_URL_FILE=$HOME/x\n": "db.url" + lost + " (.env DB_URL_FILE)\n" +
			"db.url cannot be read from its file: no such file or directory (.env DB_URL_FILE)",
	} {
		wantFaults(t, Options{DotEnv: write(t, ".env", text)}, want)
	}
	for text, want := range map[string]string{
		"DB_POSTGRES_HOST='a$HOME'\n": "a$HOME", "DB_POSTGRES_HOST=a$b\n": "a$b", "DB_POSTGRES_HOST=a$\n": "a$",
		"DB_POSTGRES_HOST=\"a\\$HOME\"\n": "a$HOME", "A=b\nDB_POSTGRES_HOST=${A}c\n": "bc",
		"OTHER=$HOME\nDB_POSTGRES_HOST=h\n": "h",
	} {
		if got := mustLoad(t, Options{DotEnv: write(t, ".env", text)}).DB.Postgres.Host; got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestASecretMayBeReadFromAFile(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"s3cret": "s3cret", "s3cret\n": "s3cret", "s3cret\r\n": "s3cret",
		" a b \n\n": "a b"} {
		s := mustLoad(t,
			Options{Environ: []string{"DB_URL_FILE=" + write(t, "url", text), "DB_POSTGRES_PASSWORD_FILE="}})
		if s.DB.URL.Reveal() != want {
			t.Errorf("the secret in %q is %q, want %q", text, s.DB.URL.Reveal(), want)
		}
		if s.Sources["db.url"] != "environment DB_URL_FILE" {
			t.Errorf("its source is %q", s.Sources["db.url"])
		}
	}
}

func TestASecretsFileIsRefusedWhenItCannotBeMeant(t *testing.T) {
	t.Parallel()
	secret := write(t, "url", "hunter2")
	wantFaults(t, Options{Environ: []string{
		"DB_URL_FILE=" + secret, "DB_URL=hunter2",
		"DB_POSTGRES_PASSWORD_FILE=hunter2",
		"APP_PORT_FILE=" + secret,
	}},
		"app.port is not a secret, and only secrets are read from a file; set APP_PORT (environment APP_PORT_FILE)",
		"db.url is set by DB_URL and by DB_URL_FILE; keep one (environment DB_URL_FILE)",
		"db.postgres.password cannot be read from its file: no such file or directory (environment DB_POSTGRES_PASSWORD_FILE)")
	wantFaults(t, Options{Environ: []string{"DB_URL_FILE=" + write(t, "url", "\n")}},
		"db.url is named by a file that is empty (environment DB_URL_FILE)")
	wantFaults(t, Options{Environ: []string{"DB_URL_FILE=" + write(t, "url", strings.Repeat("x", maxSecret+1))}},
		"db.url cannot be read from its file: it is larger than 65536 bytes (environment DB_URL_FILE)")
	wantFaults(t, Options{Environ: []string{"DB_URL_FILE=" + t.TempDir()}},
		"db.url cannot be read from its file: is a directory (environment DB_URL_FILE)")

	// NAME in .env and NAME_FILE above it is an override like any other.
	s := mustLoad(t, Options{DotEnv: write(t, ".env", "DB_URL=low"), Environ: []string{"DB_URL_FILE=" + secret}})
	if s.DB.URL.Reveal() != "hunter2" {
		t.Error("the environment did not override .env")
	}
}

func TestTextThatIsNoValueIsRefused(t *testing.T) {
	t.Parallel()
	for env, want := range map[string]string{
		"APP_PORT=80a":                   `app.port must be a whole number, not "80a"`,
		"APP_PORT=0x50":                  `app.port must be a whole number, not "0x50"`,
		"APP_PORT=8080\r":                `app.port must be a whole number, not "8080\r"`,
		"APP_PORT=99999999999999999999":  `app.port is too large a number: "99999999999999999999"`,
		"APP_PORT=tcp://10.0.0.1:80":     `app.port must be a whole number (Kubernetes sets such variables for services; enableServiceLinks: false stops it), not "tcp://10.0.0.1:80"`,
		"APP_PORT=postgres://u:pw@h":     `app.port must be a whole number, not what is there`,
		"APP_PORT=0":                     `app.port must be at least 1, not 0`,
		"APP_PORT=65536":                 `app.port must be at most 65535, not 65536`,
		"APP_TTL=300":                    `app.ttl needs a unit: 300s, 300m or 300h`,
		"APP_TTL=30d":                    `app.ttl must be a duration such as 300ms, 90s, 15m or 720h (there is no unit for days), not "30d"`,
		"APP_TTL=1ms":                    `app.ttl must be at least 1s, not 1ms`,
		"APP_TTL=721h":                   `app.ttl must be at most 720h, not 721h`,
		"APP_MODE=PROD":                  `app.mode must be dev or prod, not "PROD"; did you mean prod?`,
		"APP_MODE=live":                  `app.mode must be dev or prod, not "live"`,
		"APP_DEBUG=yes":                  `app.debug must be true or false, not "yes"`,
		"APP_BIND=nowhere":               `app.bind cannot be understood: ParseAddr("nowhere"): unable to parse IP`,
		"APP_PROXIES=10.0.0.0/8,10.0.0.": `app.proxies (element 2) cannot be understood: netip.ParsePrefix("10.0.0."): no '/'`,
		"RATIO=NaN":                      `ratio must be a number, not "NaN"`,
		"RATIO=1.5":                      `ratio must be at most 1, not 1.5`,
		"DB_MODES=r,x":                   `db.modes must be r or w, not "x"; did you mean r?`,
		"DB_POSTGRES_HOST=\xff":          `db.postgres.host must be valid UTF-8`,
	} {
		name, _, _ := strings.Cut(env, "=")
		wantFaults(t, Options{Environ: []string{env}}, want+" (environment "+name+")")
	}
	if s := mustLoad(t, Options{Environ: []string{"DB_URL=\xff\x00"}}); s.DB.URL.Reveal() != "\xff\x00" {
		t.Error("a secret need not be text")
	}
	if s := mustLoad(t, Options{Environ: []string{"APP_TTL=1h30m", "APP_DEBUG=1",
		"APP_TTL=2h"}}); s.App.TTL != 90*time.Minute || !s.App.Debug {
		t.Errorf("the values are %+v", s.App)
	}
}

func TestSyntaxOfAnotherPlaceIsRefused(t *testing.T) {
	t.Parallel()
	brackets := " is a list in brackets, which only the settings file may have, without quotes around it; elsewhere " +
		"write the elements with commas between them, without brackets and quotes"
	quotes := " has quotes around it, which would be part of the value; remove them"
	control := " has a line break or another control character"
	blank := " has white space at its beginning or its end"
	none := " has no element: there are only commas and white space"
	mark := " has a byte order mark in it, which cannot be seen"
	for env, want := range map[string]string{
		`APP_ORIGINS=["a","b"]`:    "app.origins" + brackets,
		`APP_ORIGINS= [a, b] `:     "app.origins" + brackets,
		`APP_ORIGINS=[]`:           "app.origins" + brackets,
		`APP_ORIGINS="a,b"`:        "app.origins" + quotes,
		`APP_ORIGINS="a","b"`:      "app.origins" + quotes,
		`APP_PORT="8080"`:          "app.port" + quotes,
		`APP_TTL='5h'`:             "app.ttl" + quotes,
		`DB_POSTGRES_HOST="h"`:     "db.postgres.host" + quotes,
		"APP_ORIGINS=a\nb":         "app.origins (element 1)" + control,
		"DB_POSTGRES_HOST=h\r":     "db.postgres.host" + control,
		"DB_POSTGRES_HOST=h ":      "db.postgres.host" + blank,
		"DB_POSTGRES_HOST=\u00a0h": "db.postgres.host" + blank,
		"DB_POSTGRES_HOST=\ufeffh": "db.postgres.host" + mark,
		"APP_ORIGINS=\ufeffa,b":    "app.origins (element 1)" + mark,
		"APP_ORIGINS=\n":           "app.origins" + none,
		"APP_ORIGINS= , ":          "app.origins" + none,
	} {
		name, _, _ := strings.Cut(env, "=")
		wantFaults(t, Options{Environ: []string{env}}, want+" (environment "+name+")")
	}
	for text, want := range map[string]string{
		"app:\n  origins: '[\"a\"]'\n":             "app.origins" + brackets,
		"app:\n  origins: ['']\n":                  "app.origins (element 1) is empty",
		"app:\n  origins: [\"a\\nb\"]\n":           "app.origins (element 1)" + control,
		"db:\n  postgres: {host: '\"h\"'}\n":       "db.postgres.host" + quotes,
		"db:\n  postgres:\n    host: |\n      h\n": "db.postgres.host" + control,
		"db:\n  postgres:\n    host: \" h\"\n":     "db.postgres.host" + blank,
		"app:\n  origins: ','\n":                   "app.origins" + none,
	} {
		got := faultsOf(t, Options{File: write(t, "config.yaml", text)})
		if !strings.HasPrefix(got, want+" (config.yaml:") {
			t.Errorf("%q: the fault is %s, want %s", text, got, want)
		}
	}
	s := mustLoad(t, Options{Environ: []string{"APP_ORIGINS=[::1]:1,[::1]:2", `DB_POSTGRES_HOST="a" <b>`}})
	if want := []string{"[::1]:1", "[::1]:2"}; !reflect.DeepEqual(s.App.Origins, want) ||
		s.DB.Postgres.Host != `"a" <b>` {
		t.Errorf("the values are %q and %q", s.App.Origins, s.DB.Postgres.Host)
	}
}

func TestQuotesAroundASecretAreKeptAndRemarked(t *testing.T) {
	t.Parallel()
	var remarks []Remark
	s := mustLoad(t, Options{Environ: []string{`DB_URL="hunter2"`},
		Remark: func(r Remark) { remarks = append(remarks, r) }})
	if s.DB.URL.Reveal() != `"hunter2"` {
		t.Errorf("the secret is %q", s.DB.URL.Reveal())
	}
	want := []Remark{{Name: "db.url", Source: "environment DB_URL", Likely: true,
		Text: "has quotes around it, which are part of the secret; remove them if they are not meant"}}
	if !reflect.DeepEqual(remarks, want) {
		t.Errorf("remarks are %+v, want %+v", remarks, want)
	}
}

func TestAByteOrderMarkIsNoPartOfAFile(t *testing.T) {
	t.Parallel()
	var before []Secret
	s := mustLoad(t, Options{
		File:    write(t, "config.yaml", "\ufeffapp:\r\n  port: 1\r\n"),
		DotEnv:  write(t, ".env", "\ufeffDB_SIZE=3\r\nDB_POSTGRES_HOST=h\r\n"),
		Environ: []string{"DB_URL_FILE=" + write(t, "url", "\ufeffhunter2\r\n")},
		Trimmed: func(_ string, secret Secret) { before = append(before, secret) },
	})
	if s.App.Port != 1 || s.DB.Size != 3 || s.DB.Postgres.Host != "h" || s.DB.URL.Reveal() != "hunter2" {
		t.Errorf("the settings are %+v, and the secret %q", s, s.DB.URL.Reveal())
	}
	if len(before) != 1 || before[0].Reveal() != "\ufeffhunter2" {
		t.Errorf("%d secrets are told as earlier versions read them", len(before))
	}
}

func TestFlagsMustNameASettingThatIsNoSecret(t *testing.T) {
	t.Parallel()
	wantFaults(t, Options{Override: map[string]string{"app.prot": "1", "db.url": "hunter2", "app.port": "x"}},
		"app.prot is not a setting; did you mean app.port? (flag)",
		"db.url is a secret and cannot be given as a flag; set DB_URL or DB_URL_FILE (flag)",
		`app.port must be a whole number, not "x" (flag)`)
}

func TestRulesBetweenSettingsAreReportedWithTheSourceOfTheSetting(t *testing.T) {
	t.Parallel()
	wantFaults(t, Options{Environ: []string{"APP_MODE=prod", "APP_DEBUG=true", "DB_POSTGRES_PASSWORD=hunter2"}},
		"app.debug must be false in prod mode (environment APP_DEBUG)",
		"db.postgres.host is needed with a password")
	// A setting that already has a fault is not checked again.
	wantFaults(t, Options{Environ: []string{"DB_POSTGRES_HOST=\xff", "DB_POSTGRES_PASSWORD=hunter2"}},
		"db.postgres.host must be valid UTF-8 (environment DB_POSTGRES_HOST)")
}

func TestANamedFileMustBeThere(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "none.yaml")
	wantFaults(t, Options{File: missing}, "none.yaml cannot be read: no such file or directory")
	wantFaults(t, Options{File: write(t, "big.yaml", strings.Repeat("#", maxFile+1))},
		"big.yaml cannot be read: it is larger than 1048576 bytes")
}

func TestConfigYAMLInTheWorkingFolderIsReadWhenThere(t *testing.T) {
	t.Chdir(t.TempDir())
	s := &settings{}
	if err := Load(s, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("config.yaml", []byte("app:\n  port: 9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Load(s, Options{}); err != nil {
		t.Fatal(err)
	}
	if s.App.Port != 9 || s.Sources["app.port"] != "config.yaml:2" {
		t.Errorf("app.port is %d from %q", s.App.Port, s.Sources["app.port"])
	}
}

func TestLoadKeepsWhatIsNoSettingAndResetsWhatIs(t *testing.T) {
	t.Parallel()
	s := &settings{ignored: "kept"}
	s.App.Skipped, s.App.Debug = "kept", true
	if err := Load(s, Options{File: write(t, "config.yaml", "---\n")}); err != nil {
		t.Fatal(err)
	}
	if s.ignored != "kept" || s.App.Skipped != "kept" || s.App.Debug {
		t.Errorf("after the load: %+v", s)
	}
}

var update = flag.Bool("update", false, "write the golden files again")

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}

// Each file breaks one rule; the file next to it has the expected fault. hunter2 stands for a
// secret.
func TestEveryRuleHasAFileThatBreaksIt(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.bad.yml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no bad files: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			got := faultsOf(t, Options{File: file})
			golden(t, strings.TrimSuffix(filepath.Base(file), ".bad.yml")+".faults", got)
			if strings.Contains(got, "hunter2") {
				t.Errorf("the faults reveal a secret: %s", got)
			}
		})
	}
}

func TestFaultsReadAsAListForPeople(t *testing.T) {
	t.Parallel()
	one := Fault{Path: "app.port", Source: "flag", Problem: "must be at least 1, not 0"}
	if got, want := (Faults{one}).Error(), "settings: app.port must be at least 1, not 0 (flag)"; got != want {
		t.Errorf("one fault is %q, want %q", got, want)
	}
	two := Faults{one, {Source: "x.yaml", Problem: "cannot be read"}}
	if got, want := two.Error(), "settings: 2 faults\n  app.port must be at least 1, not 0 (flag)\n  x.yaml cannot be read"; got != want {
		t.Errorf("two faults are %q, want %q", got, want)
	}
}

func TestKeysDescribeEverySettingAndHideSecrets(t *testing.T) {
	t.Parallel()
	s := mustLoad(t, Options{Environ: []string{"DB_URL=postgres://u:hunter2@h/db", "APP_TTL=90m", "APP_ORIGINS=a, b"}})
	keys := Keys(s)
	text, err := json.Marshal(keys)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "hunter2") {
		t.Errorf("the keys reveal a secret: %s", text)
	}
	byPath := map[string]Key{}
	var order []string
	for _, k := range keys {
		byPath[k.Path] = k
		order = append(order, k.Path)
	}
	if got, want := strings.Join(order, " "),
		"app.mode app.port app.origins app.proxies app.bind app.ttl app.debug db.url db.size db.modes db.postgres.host db.postgres.password ratio"; got != want {
		t.Errorf("keys are %s, want %s", got, want)
	}
	for _, want := range []Key{
		{Path: "app.ttl", Env: "APP_TTL", Type: "duration", Default: "5h", Doc: "How long.", Min: "1s", Max: "720h",
			Value: "1h30m", Source: "environment APP_TTL"},
		{Path: "db.url", Env: "DB_URL", Type: "secret", Doc: "All in one.", Secret: true, Value: "[redacted]",
			Source: "environment DB_URL"},
		{Path: "db.postgres.password", Env: "DB_POSTGRES_PASSWORD", Type: "secret", Doc: "Password.", Secret: true,
			Source: "default"},
		{Path: "app.mode", Env: "APP_MODE", Type: "text", Default: "dev", Doc: "dev or prod.",
			OneOf: []string{"dev", "prod"}, Value: "dev", Source: "default"},
		{Path: "app.origins", Env: "APP_ORIGINS", Type: "list", Doc: "Origins that may call | from a browser.",
			Value: "a,b", Source: "environment APP_ORIGINS"},
	} {
		if got := byPath[want.Path]; !reflect.DeepEqual(got, want) {
			t.Errorf("key is %+v, want %+v", got, want)
		}
	}
}

func TestCheckFindsMistakesInTags(t *testing.T) {
	t.Parallel()
	if err := Check(&settings{}); err != nil {
		t.Errorf("good tags are refused: %v", err)
	}
	for want, target := range map[string]any{
		"not a pointer to a struct": settings{},
		"a.b and a_b both have the environment name A_B": &struct {
			A string `config:"a_b" doc:"d"`
			B string `config:"a.b" doc:"d"`
		}{},
		"setting x.file and x both have the environment name X_FILE": &struct {
			A Secret `config:"x" doc:"d"`
			B string `config:"x.file" doc:"d"`
		}{},
		"x is declared twice": &struct {
			A string `config:"x" doc:"d"`
			B string `config:"x" doc:"d"`
		}{},
		"x is a group of settings as well": &struct {
			A string `config:"x" doc:"d"`
			B string `config:"x.y" doc:"d"`
		}{},
		"x has no doc": &struct {
			A string `config:"x"`
		}{},
		"X is not a path of lower-case names": &struct {
			A string `config:"X" doc:"d"`
		}{},
		"x is a secret and has a default": &struct {
			A Secret `config:"x" default:"changeme" doc:"d"`
		}{},
		"x has a default that must be at least 1, not 0": &struct {
			A int `config:"x" min:"1" doc:"d"`
		}{},
		`x has a default that must be a or b, not "c"`: &struct {
			A string `config:"x" default:"c" oneof:"a,b" doc:"d"`
		}{},
		"x has a min that needs a unit": &struct {
			A time.Duration `config:"x" min:"1" doc:"d"`
		}{},
		"x has max, which only numbers": &struct {
			A string `config:"x" max:"3" doc:"d"`
		}{},
		"x has type map[string]string, which cannot be loaded": &struct {
			A map[string]string `config:"x" doc:"d"`
		}{},
		"x is an unexported field": &struct {
			a string `config:"x" doc:"d"`
		}{},
	} {
		for _, err := range []error{Check(target), Load(target, Options{})} {
			if err == nil ||
				!strings.Contains(strings.ReplaceAll(err.Error(), "setting a_b and a.b", "setting a.b and a_b"),
					want) {
				t.Errorf("the mistake is %v, want %q", err, want)
			}
		}
	}
}

func TestSecretsHideHoweverTheyArePrinted(t *testing.T) {
	t.Parallel()
	type holder struct{ S Secret }
	s := Secret("hunter2")
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		for _, v := range []any{s, &s, holder{s}, &holder{s}, []Secret{s}, map[string]Secret{"k": s},
			fmt.Errorf("with %v", s)} {
			text := fmt.Sprintf(verb, v)
			for _, bad := range []string{"hunter2", fmt.Sprintf("%x", "hunter2"), fmt.Sprintf("%X", "hunter2")} {
				if strings.Contains(text, bad) {
					t.Errorf("%s of %T reveals it: %s", verb, v, text)
				}
			}
		}
	}
	if text, err := json.Marshal(holder{s}); err != nil || strings.Contains(string(text), "hunter2") {
		t.Errorf("JSON reveals it: %s, %v", text, err)
	}
}
