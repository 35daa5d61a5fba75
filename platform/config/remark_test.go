package config

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestASecretIsTheSameWhereverItComesFrom(t *testing.T) {
	t.Parallel()
	const secret = "correct horse battery staple, 32+"
	for _, around := range []struct{ before, after string }{
		{"", ""}, {"", "\n"}, {"", "\r\n"}, {"", "\n\n"}, {"", " "}, {"", "\t"}, {" ", "\n"}, {"\n", ""},
	} {
		text := around.before + secret + around.after
		yaml := fmt.Sprintf("db:\n  url: %q\n", text)
		for layer, opt := range map[string]Options{
			"environment": {Environ: []string{"DB_URL=" + text}},
			"file":        {Environ: []string{"DB_URL_FILE=" + write(t, "url", text)}},
			".env":        {DotEnv: write(t, ".env", `DB_URL="`+text+`"`)},
			"YAML":        {File: write(t, "config.yaml", yaml)},
		} {
			var before []string
			opt.Trimmed = func(path string, as Secret) { before = append(before, path+"="+as.Reveal()) }
			if got := mustLoad(t, opt).DB.URL.Reveal(); got != secret {
				t.Errorf("%s: %q is %q", layer, text, got)
			}
			// One line break at the end of a file was always ignored.
			as := text
			switch layer {
			case "file":
				as = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
			case ".env": // its parser knows only one kind of line break
				as = strings.ReplaceAll(text, "\r\n", "\n")
			}
			var want []string
			if as != secret {
				want = []string{"db.url=" + as}
			}
			if !slices.Equal(before, want) {
				t.Errorf("%s: %q was %q, want %q", layer, text, before, want)
			}
		}
	}
	for source, opt := range map[string]Options{
		"environment DB_URL":  {Environ: []string{"DB_URL= \n"}},
		"config.yaml:1":       {File: write(t, "config.yaml", `db: {url: " "}`)},
		"environment DB_URL_": {Environ: []string{"DB_URL_FILE=" + write(t, "url", " \n\n")}},
	} {
		if got := faultsOf(t, opt); !strings.Contains(got, source) ||
			!strings.Contains(got, "nothing but white space") &&
				!strings.Contains(got, "empty") {
			t.Errorf("a secret of white space: %s", got)
		}
	}
	// What is inside a secret stays.
	if s := mustLoad(t, Options{Environ: []string{"DB_URL=a \n b"}}); s.DB.URL.Reveal() != "a \n b" {
		t.Errorf("the secret is %q", s.DB.URL.Reveal())
	}
}

func TestAFingerprintComparesSecretsAndShowsNothing(t *testing.T) {
	t.Parallel()
	a, b := Secret("a secret of this and that and more"), Secret("a secret of this and that and mor3")
	if a.Fingerprint() != Secret("a secret of this and that and more").Fingerprint() ||
		a.Fingerprint() == b.Fingerprint() {
		t.Error("two secrets have the same fingerprint")
	}
	if len(a.Fingerprint()) != 8 || Secret("").Fingerprint() != "" {
		t.Errorf("fingerprints %q and %q", a.Fingerprint(), Secret("").Fingerprint())
	}
}

// strangers have settings like those of the service, for names that people write by mistake.
type strangers struct {
	App struct {
		Port int    `config:"port" default:"1" doc:"x"`
		Mode string `config:"mode" default:"dev" doc:"x"`
		Host string `config:"host" doc:"x"`
	} `config:"app"`
	Token struct {
		Secret Secret `config:"secret" doc:"x"`
	} `config:"auth.token"`
	Cost      int    `config:"auth.password.bcrypt_cost" doc:"x"`
	AccessTTL string `config:"auth.access_token_ttl" doc:"x"`
	RenewTTL  string `config:"auth.refresh_token_ttl" doc:"x"`
	URL       Secret `config:"database.url" doc:"x"`
	DB        struct {
		Host     string `config:"host" doc:"x"`
		User     string `config:"user" default:"postgres" doc:"x"`
		Password Secret `config:"password" doc:"x"`
		DB       string `config:"db" doc:"x"`
		SSLMode  string `config:"sslmode" doc:"x"`
	} `config:"db.postgres"`
	Redis struct {
		Host string `config:"host" doc:"x"`
		Port int    `config:"port" doc:"x"`
	} `config:"cache.redis"`
	RedisURL Secret   `config:"redis.url" doc:"x"`
	Brokers  []string `config:"kafka.brokers" doc:"x"`
	Topic    string   `config:"kafka.topic" doc:"x"`
	Level    string   `config:"log.level" doc:"x"`
	Path     string   `config:"log.path" doc:"x"`
	Relay    string   `config:"outbox.relay" doc:"x"`
}

func (s strangers) Overridden(report func(path, by string)) {
	if s.URL != "" {
		for _, name := range []string{"host", "user", "password", "db", "sslmode"} {
			report("db.postgres."+name, "database.url")
		}
	}
}

func remarksOf(t *testing.T, opt Options) []Remark {
	t.Helper()
	var list []Remark
	opt.Remark = func(r Remark) { list = append(list, r) }
	if opt.File == "" {
		opt.File = write(t, "config.yaml", "")
	}
	_ = Load(&strangers{}, opt)
	return list
}

func TestAVariableThatLooksLikeASettingAndIsNoneIsRemarkedOn(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"AUTH_PASSWORD_BCRYPT_COTS": "AUTH_PASSWORD_BCRYPT_COST",
		"AUTH_TOKEN_SECRT":          "AUTH_TOKEN_SECRET",
		"AUTH_TOKEN_SECRT_FILE":     "AUTH_TOKEN_SECRET_FILE",
		"AUTH_TOKENS_SECRET":        "AUTH_TOKEN_SECRET",
		"AUTH_BCRYPT_COST":          "AUTH_PASSWORD_BCRYPT_COST",
		"AUTH_TOKEN_TTL":            "AUTH_ACCESS_TOKEN_TTL or AUTH_REFRESH_TOKEN_TTL",
		"APP_PROT":                  "APP_PORT",
		"app_port":                  "APP_PORT",
		"App_Port":                  "APP_PORT",
		"DB_HOST":                   "DB_POSTGRES_HOST",
		"DATABASE_HOST":             "DB_POSTGRES_HOST",
		"DATABASE_NAME":             "DB_POSTGRES_DB",
		"DATABASE_PASS":             "DB_POSTGRES_PASSWORD",
		"DB_POSTGRES_SSL_MODE":      "DB_POSTGRES_SSLMODE",
		"DATABASE_URI":              "DATABASE_URL",
		"REDIS_HOST":                "CACHE_REDIS_HOST",
		"REDIS_PORT":                "CACHE_REDIS_PORT",
		"CACHE_HOST":                "CACHE_REDIS_HOST",
		"KAFKA_BROKER":              "KAFKA_BROKERS",
		"KAFKA_TOPICS":              "KAFKA_TOPIC",
		"LOG_LEVELL":                "LOG_LEVEL",
		"LOG_FILE":                  "LOG_PATH",
		"OUTBOX_RELAYS":             "OUTBOX_RELAY",
		// It resembles no setting, but begins like ours.
		"AUTH_COLOUR_OF_THE_BUTTON":             "",
		"OUTBOX_X":                              "",
		"KAFKA_NODE_ID":                         "",
		"DATABASE_" + strings.Repeat("X", 5000): "",
	} {
		got := remarksOf(t, Options{Environ: []string{name + "=hunter2"}})
		text := "is not a setting of authctl"
		if want != "" {
			text += "; did you mean " + want + "?"
		}
		if len(got) != 1 || got[0] != (Remark{Name: name, Source: "environment", Text: text, Likely: want != ""}) {
			t.Errorf("%.40s: %+v, want %q", name, got, text)
		}
		if strings.Contains(fmt.Sprint(got), "hunter2") {
			t.Errorf("%s shows the value", name)
		}
	}
	// The same in .env, where it is a remark too.
	got := remarksOf(t, Options{DotEnv: write(t, ".env", "AUTH_TOKEN_SECRT=x\n")})
	if len(got) != 1 || got[0].Name != "AUTH_TOKEN_SECRT" || !strings.HasSuffix(got[0].Source, ".env") {
		t.Errorf(".env: %+v", got)
	}
	// The remark comes even if the load fails, because it may be the reason.
	if got := remarksOf(t, Options{Environ: []string{"APP_PORT=x", "APP_PROT=1"}}); len(got) != 1 {
		t.Errorf("with a fault: %+v", got)
	}
}

func TestVariablesOfOtherProgramsAreNotRemarkedOn(t *testing.T) {
	t.Parallel()
	for _, entry := range []string{
		"REDIS_SERVICE_HOST=10.0.0.1", "REDIS_SERVICE_PORT=6379", "REDIS_SERVICE_PORT_REDIS=6379",
		"REDIS_PORT=tcp://10.0.0.1:6379",
		"REDIS_PORT_6379_TCP=tcp://10.0.0.1:6379", "REDIS_PORT_6379_TCP_ADDR=10.0.0.1", "REDIS_PORT_6379_TCP_PORT=6379",
		"REDIS_PORT_6379_TCP_PROTO=tcp",
		"AUTH_API_SERVICE_HOST=10.0.0.1", "DATABASE_PORT_5432_UDP_ADDR=x", "KAFKA_HEAP_OPTS=-Xmx1g", "KAFKA_JMX_PORT=1",
		"KAFKA_LOG4J_LOGGERS=x",
		"APP_ENV=production", "APP_NAME=x", "APP_VERSION=1", "REDIS_VERSION=7", "KAFKA_HOME=/opt",
		"DB_SERVE_PASSWORD=x",
		"PATH=/bin", "APP=1", "DBUS_SESSION_BUS_ADDRESS=x", "LOGNAME=x", "APPLE=1", "AUTHOR=x", "AUTH_TOKENS=",
		"DB_POSTGRES_USER=x", "DATABASE_URL=x",
		"HOME=/", "COMPOSE_PROJECT_NAME=x", "POSTGRES_PASSWORD=x",
	} {
		if got := remarksOf(t, Options{Environ: []string{entry}}); len(got) != 0 {
			t.Errorf("%s: %+v", entry, got)
		}
	}
}

func TestASettingThatAnotherOneOverridesIsRemarkedOn(t *testing.T) {
	t.Parallel()
	got := remarksOf(t, Options{
		File:    write(t, "config.yaml", "db: {postgres: {host: db}}"),
		Environ: []string{"DATABASE_URL=x", "DB_POSTGRES_SSLMODE=verify-full"},
	})
	if len(got) != 2 || got[0].Name != "db.postgres.host" || !strings.HasSuffix(got[0].Source, "config.yaml:1") ||
		got[1].String() != "db.postgres.sslmode has no effect: database.url overrides it (environment "+
			"DB_POSTGRES_SSLMODE)" || !got[1].Likely {
		t.Errorf("%v", got)
	}
	if got := remarksOf(t, Options{Environ: []string{"DB_POSTGRES_SSLMODE=disable"}}); len(got) != 0 {
		t.Errorf("nothing overrides it: %v", got)
	}
}

func TestAListHasNothingTwice(t *testing.T) {
	t.Parallel()
	wantFaults(t, Options{Environ: []string{"APP_ORIGINS=https://a.example, https://b.example,https://a.example",
		"APP_PROXIES=10.0.0.0/8,::1/128,::1/128"}},
		"app.origins (element 3) is the same as element 1 (environment APP_ORIGINS)",
		"app.proxies (element 3) is the same as element 2 (environment APP_PROXIES)")
	s := &struct {
		Keys []Secret `config:"keys" doc:"x"`
	}{}
	if err := Load(s, Options{Environ: []string{"KEYS=hunter2,hunter3"}}); err != nil {
		t.Error(err)
	}
	if err := Load(s, Options{Environ: []string{"KEYS=hunter2,hunter2"}}); err == nil || strings.Contains(err.Error(),
		"hunter") {
		t.Errorf("a secret twice: %v", err)
	}
}
