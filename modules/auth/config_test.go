package auth

import (
	"testing"
	"time"

	"github.com/toppira/authctl/platform/config"
)

// What deployments may have set already keeps working, and so do the times of a few seconds
// with which they try it out.
func TestLifetimesOfSessionsAreTakenAsSet(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		environ       []string
		idle, maximum time.Duration
	}{
		"seconds":                       {[]string{"AUTH_REFRESH_TOKEN_TTL=1s", "AUTH_SESSION_MAX_AGE=2s"}, time.Second, 2 * time.Second},
		"an idle time above the oldest": {[]string{"AUTH_REFRESH_TOKEN_TTL=8760h"}, 8760 * time.Hour, 720 * time.Hour},
		"an age below the idle time":    {[]string{"AUTH_SESSION_MAX_AGE=1h"}, 120 * time.Hour, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var cfg Config
			if err := config.Load(&cfg, config.Options{Environ: tc.environ}); err != nil {
				t.Fatal(err)
			}
			if cfg.RefreshTokenTTL != tc.idle || cfg.SessionMaxAge != tc.maximum {
				t.Errorf("got %v and %v, want %v and %v", cfg.RefreshTokenTTL, cfg.SessionMaxAge, tc.idle, tc.maximum)
			}
		})
	}
}

func TestASessionEndsByItsAgeWhateverTheIdleTime(t *testing.T) {
	t.Parallel()
	eachWith(t, func(cfg *Config) { cfg.RefreshTokenTTL, cfg.SessionMaxAge = 120*time.Hour, time.Hour }, func(t *testing.T, w *world) {
		_, tokens := w.newcomer(t)
		next := w.live(t, tokens)
		for _, end := range []time.Time{tokens.RefreshTokenExpiresAt, next.RefreshTokenExpiresAt} {
			if end.After(time.Now().Add(time.Hour + time.Minute)) {
				t.Errorf("a session of one hour is said to last until %v", end)
			}
		}
	})
}

func TestTheDefaultIssuerIsTheOneOfTheSettings(t *testing.T) {
	t.Parallel()
	var cfg Config
	if err := config.Load(&cfg, config.Options{}); err != nil {
		t.Fatal(err)
	}
	if cfg.Token.Issuer != DefaultIssuer {
		t.Errorf("%q and %q", cfg.Token.Issuer, DefaultIssuer)
	}
}
