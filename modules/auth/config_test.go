package auth

import (
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/testenv"
)

// Existing settings of deployments keep working, and so do the few seconds with which people try
// them out.
func TestLifetimesOfSessionsAreTakenAsSet(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		environ       []string
		idle, maximum time.Duration
	}{
		"seconds": {[]string{"AUTH_REFRESH_TOKEN_TTL=1s", "AUTH_SESSION_MAX_AGE=2s"},
			time.Second, 2 * time.Second},
		"an idle time above the oldest": {[]string{"AUTH_REFRESH_TOKEN_TTL=8760h"}, 8760 * time.Hour, 720 * time.Hour},
		"an age below the idle time":    {[]string{"AUTH_SESSION_MAX_AGE=1h"}, 120 * time.Hour, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var cfg Config
			testenv.Must(t, config.Load(&cfg, config.Options{Environ: tc.environ}))
			if cfg.RefreshTokenTTL != tc.idle || cfg.SessionMaxAge != tc.maximum {
				t.Errorf("got %v and %v, want %v and %v", cfg.RefreshTokenTTL, cfg.SessionMaxAge, tc.idle, tc.maximum)
			}
		})
	}
}

func TestASessionEndsByItsAgeWhateverTheIdleTime(t *testing.T) {
	t.Parallel()
	eachWith(t, func(cfg *Config) {
		cfg.RefreshTokenTTL, cfg.SessionMaxAge = 120*time.Hour, time.Hour
	}, func(t *testing.T, env *testEnv) {
		_, tokens := env.newUser(t)
		next := env.live(t, tokens)
		for _, end := range []time.Time{tokens.RefreshTokenExpiresAt, next.RefreshTokenExpiresAt} {
			if end.After(time.Now().Add(time.Hour + time.Minute)) {
				t.Errorf("a session of one hour claims to last until %v", end)
			}
		}
	})
}

func TestTheDefaultIssuerIsTheOneOfTheSettings(t *testing.T) {
	t.Parallel()
	var cfg Config
	testenv.Must(t, config.Load(&cfg, config.Options{}))
	if cfg.Token.Issuer != DefaultIssuer {
		t.Errorf("%q and %q", cfg.Token.Issuer, DefaultIssuer)
	}
}

func TestAClientIDMayBeNamedOnce(t *testing.T) {
	t.Parallel()
	one, other := strings.Repeat("a", 64), strings.Repeat("b", 64)
	for clients, want := range map[string]string{
		"shop:" + one + ",desk:" + one:                  "",
		"shop:" + one + ",shop:" + other:                `(element 2) has the same id as element 1: "shop"`,
		"shop:" + one + ",desk:" + one + ",shop:" + one: "(element 3) is the same as element 1",
		"shop:" + one + ",Shop:" + other:                "",
		"shop:xyz,desk:" + one:                          "(element 1) is not id:sha256-hex-of-secret",
	} {
		var cfg Config
		err := config.Load(&cfg, config.Options{Environ: []string{"AUTH_CLIENTS=" + clients}})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", clients, err, want)
		}
	}
}

func TestClientsAreIDsAndHashes(t *testing.T) {
	t.Parallel()
	const hash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
	for text, id := range map[string]string{
		"gateway:" + hash: "gateway", "https://api.example:8443/x:" + hash: "https://api.example:8443/x",
		"a:b:" + strings.ToUpper(hash): "a:b", "with blanks:" + hash: "with blanks",
		"": "", hash: "", ":" + hash: "", "gateway:": "", "gateway:secret": "", "gateway:" + hash[1:]: "",
		"gateway:" + hash + "0": "", "gateway:" + hash + ":": "",
		"g\u00e4teway:" + hash: "", "gate\x00way:" + hash: "",
	} {
		got, digest, err := parseClient(text)
		if got != id || (err == nil) != (id != "") || id != "" && hex.EncodeToString(digest) != hash {
			t.Errorf("%q: %q %x %v, want %q", text, got, digest, err, id)
		}
	}
}

func TestSeveralAudiencesAreAList(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]string{
		"orders": `"orders"`, "orders,billing": `["orders","billing"]`,
		" orders , https://api.example/x ": `["orders","https://api.example/x"]`,
	} {
		var cfg Config
		testenv.Must(t, config.Load(&cfg,
			config.Options{Environ: []string{"AUTH_TOKEN_AUDIENCE=" + setting, "AUTH_TOKEN_SECRET=" +
				testSecret}}))
		eachWith(t, func(c *Config) { c.Token.Audience = cfg.Token.Audience }, func(t *testing.T, env *testEnv) {
			_, tokens := env.newUser(t)
			payload, err := base64.RawURLEncoding.DecodeString(strings.Split(tokens.AccessToken, ".")[1])
			if err != nil || !strings.Contains(string(payload), `"aud":`+want+",") {
				t.Errorf("%s: %s", setting, payload)
			}
			env.live(t, tokens)
			in, active, err := env.Introspect(t.Context(), tokens.AccessToken)
			if err != nil || !active || !slices.Equal(in.Audience, cfg.Token.Audience) {
				t.Errorf("%s: introspected as %+v, %v, %v", setting, in, active, err)
			}
			if report, err := env.InspectToken(t.Context(), tokens.AccessToken); err != nil || !report.Valid {
				t.Errorf("%s: inspected as %+v, %v", setting, report, err)
			}
		})
	}
}
