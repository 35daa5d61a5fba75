package throttle

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/config"
)

// ends are the settings with one of them at an end of its range, for every setting that has a
// range and for both ends. Where a rule between settings refuses that, others move along.
func ends(t testing.TB) map[string]Config {
	t.Helper()
	along := map[string]map[string]string{
		"auth.throttle.max_failures=2":             {"auth.throttle.account_free": "1"},
		"auth.throttle.account_free=50":            {"auth.throttle.max_failures": "100"},
		"auth.throttle.base_delay=1h":              {"auth.throttle.max_delay": "1h"},
		"auth.throttle.max_delay=1s":               {"auth.throttle.base_delay": "1s"},
		"auth.throttle.lock=1m":                    {"auth.throttle.max_delay": "1m"},
		"auth.throttle.forget=1m":                  {"auth.throttle.max_delay": "1m", "auth.throttle.lock": "1m"},
		"auth.throttle.address_burst=1000000":      {"auth.throttle.prefix_burst": "1000000"},
		"auth.throttle.address_per_minute=1000000": {"auth.throttle.prefix_per_minute": "1000000"},
		"auth.throttle.prefix_burst=1":             {"auth.throttle.address_burst": "1"},
		"auth.throttle.prefix_per_minute=1":        {"auth.throttle.address_per_minute": "1"},
	}
	all := map[string]Config{}
	for _, key := range config.Keys(&Config{}) {
		for _, end := range []string{key.Min, key.Max} {
			if end == "" {
				continue
			}
			override := map[string]string{key.Path: end}
			maps.Copy(override, along[key.Path+"="+end])
			var cfg Config
			if err := config.Load(&cfg, config.Options{Override: override}); err != nil {
				t.Errorf("%s = %s cannot be set: %v", key.Path, end, err)
				continue
			}
			all[key.Path+"="+end] = cfg
		}
	}
	return all
}

func TestBothEndsOfEverySettingLetAFirstGuessAndTheOwnerThrough(t *testing.T) {
	t.Parallel()
	for name, cfg := range ends(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, w *world) {
				l := w.node(cfg)
				owner := Attempt{Account: "alice", Address: v6(1, 1)}
				if err := l.Register(t.Context(), owner.Address); err != nil {
					t.Fatalf("the first registration: %v", err)
				}
				owner.Device = remember(t, l, owner.Account, owner.Address)
				if !guess(t, l, Attempt{Account: "bob", Address: address(7)}) {
					t.Error("the first guess of an unknown device is refused")
				}
				w.clock.advance(2 * time.Minute)
				if signIn(t, l, owner) == "" {
					t.Error("the owner's device gets no token")
				}
			})
		})
	}
}

func TestBothLanguagesAgreeAtBothEndsOfEverySetting(t *testing.T) {
	t.Parallel()
	all := ends(t)
	for i, name := range slices.Sorted(maps.Keys(all)) {
		cfg := all[name]
		cfg.RegisterPerMinute = max(1, cfg.RegisterPerMinute) // with 0 nothing is counted
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := onRedis(t)
			bothLanguages(t, w, w.node(cfg), rand.New(rand.NewPCG(uint64(i), 2)), 200, map[string]int{})
		})
	}
}
