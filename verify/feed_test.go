package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func ready(t testing.TB, v *Verifier) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := v.Ready(ctx); err != nil {
		t.Fatal(err)
	}
}

// following runs a test with an issuer and a verifier that follows it, in its own time.
func following(t *testing.T, change func(i *issuer, cfg *Config),
	f func(t *testing.T, i *issuer, v *Verifier, m *metrics)) {
	t.Helper()
	key := newSigner(t, "first", "EdDSA")
	synctest.Test(t, func(t *testing.T) {
		i, m := newIssuer(t, key), &metrics{}
		cfg := testConfig(i)
		cfg.Metric = m.add
		if change != nil {
			change(i, &cfg)
		}
		f(t, i, start(t, cfg), m)
	})
}

func TestEveryKindOfEndIsRefused(t *testing.T) {
	t.Parallel()
	second := newSigner(t, "second", "ES256")
	following(t, func(i *issuer, _ *Config) {
		i.keys = append(i.keys, second)
		i.endSession(id(100)) // before the start
	}, func(t *testing.T, i *issuer, v *Verifier, m *metrics) {
		first := i.keys[0]
		token := func(sub, sid int, epoch int) string { return i.tokenOf(first, id(sub), id(sid), epoch, 5*time.Hour) }
		want(t, v, token(1, 100, 0), ErrRevoked) // the first call waits for the snapshot
		want(t, v, token(1, 10, 0), nil)
		if lag := v.Lag(); lag > time.Second {
			t.Errorf("the lag is %v", lag)
		}

		i.endSession(id(10))
		synctest.Wait()
		want(t, v, token(1, 10, 0), ErrRevoked)
		want(t, v, token(1, 11, 0), nil)

		// A changed password ends all sessions but one.
		i.add(map[string]any{"type": "account", "sub": id(1), "session_epoch": 3, "kept_sid": id(12)})
		synctest.Wait()
		want(t, v, token(1, 11, 0), ErrRevoked)
		want(t, v, token(1, 11, 2), ErrRevoked)
		want(t, v, token(1, 12, 2), nil)
		want(t, v, token(1, 13, 3), nil)
		want(t, v, token(2, 11, 0), nil)

		// An older end that comes late changes nothing; a newer one ends the kept session too.
		i.add(map[string]any{"type": "account", "sub": id(1), "session_epoch": 2})
		synctest.Wait()
		want(t, v, token(1, 12, 2), nil)
		want(t, v, token(1, 11, 2), ErrRevoked)
		i.add(map[string]any{"type": "account", "sub": id(1), "session_epoch": 4})
		synctest.Wait()
		want(t, v, token(1, 12, 2), ErrRevoked)
		want(t, v, token(1, 13, 3), ErrRevoked)
		want(t, v, token(1, 14, 4), nil)

		// A revoked key is refused although it is still in the key set.
		i.add(map[string]any{"type": "key", "kid": "second"})
		synctest.Wait()
		want(t, v, i.tokenOf(second, id(5), id(50), 0, time.Hour), ErrRevoked)
		want(t, v, token(5, 50, 0), nil)
		if n := m.get(MetricEntries); n != 4 {
			t.Errorf("%v entries; want two sessions, an account and a key", n)
		}
	})
}

// The verifier states its name and the keys that it holds, so that an operator knows when all
// verifiers have a new key.
func TestAVerifierNamesItself(t *testing.T) {
	t.Parallel()
	following(t, func(_ *issuer, cfg *Config) { cfg.Name, cfg.Version = "orders\n1", "v1.2.3" },
		func(t *testing.T, i *issuer, v *Verifier, _ *metrics) {
			ready(t, v)
			time.Sleep(time.Minute)
			i.mu.Lock()
			defer i.mu.Unlock()
			last := i.questions[len(i.questions)-1]
			if last["verifier"] != "orders?1" || last["version"] != "v1.2.3" || last["keys"] != "first" {
				t.Errorf("%v", last)
			}
			// All requests of a verifier have the same instance, which no other verifier has.
			another, err := New(v.cfg)
			if err != nil {
				t.Fatal(err)
			}
			another.Close()
			if one := i.questions[0]["instance"]; one == "" || one != last["instance"] || one != v.instance ||
				one == another.instance {
				t.Errorf("the instances are %q and %q, that of another verifier is %q", one, last["instance"],
					another.instance)
			}
			// An idle verifier sends a request every third of MaxLag.
			if n := len(i.questions); n > 25 {
				t.Errorf("%d requests in a minute", n)
			}
		})
}

func TestASnapshotOfManyPages(t *testing.T) {
	t.Parallel()
	following(t, func(i *issuer, _ *Config) {
		i.page = 7
		for n := range 1000 {
			i.endSession(id(n + 1))
		}
	}, func(t *testing.T, i *issuer, v *Verifier, _ *metrics) {
		ready(t, v)
		for n := range 1000 {
			want(t, v, i.token(id(5000), id(n+1), 0), ErrRevoked)
		}
		want(t, v, i.token(id(5000), id(1001), 0), nil)
	})
}

// The cursor is no longer valid, so a new snapshot is read. Until it is complete, the old knowledge
// counts.
func TestACursorThatIsGone(t *testing.T) {
	t.Parallel()
	following(t, func(i *issuer, _ *Config) {
		i.page = 1
		i.add(map[string]any{"type": "account", "sub": id(1), "session_epoch": 9})
		i.endSession(id(10))
	}, func(t *testing.T, i *issuer, v *Verifier, m *metrics) {
		ready(t, v)
		want(t, v, i.token(id(1), id(20), 5), ErrRevoked)
		want(t, v, i.token(id(2), id(10), 0), ErrRevoked)

		// After a restore from a backup the account is at an older epoch. The second page of the
		// snapshot is slow.
		pages := 0
		i.set(func() {
			i.cursors++
			i.facts = []map[string]any{
				{"type": "account", "sub": id(1), "session_epoch": 3, "expires_at": time.Now().Add(time.Hour)},
				{"type": "session", "sid": id(11), "expires_at": time.Now().Add(time.Hour)},
				{"type": "session", "sid": id(12), "expires_at": time.Now().Add(time.Hour)},
			}
			i.disturb = func(_ http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == feedPath && strings.HasPrefix(r.URL.Query().Get("after"), "1-") {
					i.mu.Lock()
					pages++
					i.mu.Unlock()
					pause(r, 2*time.Second)
				}
				return false
			}
		})
		time.Sleep(3 * time.Second)
		want(t, v, i.token(id(1), id(20), 5), ErrRevoked)
		want(t, v, i.token(id(2), id(10), 0), ErrRevoked)
		// An event that comes meanwhile is in the new list too.
		if err := v.Apply(Event{Type: "auth.SessionRevoked.v1", Data: fmt.Appendf(nil,
			`{"user_id":%q,"sid":%q,"occurred_at":%q,"expires_at":%q}`, id(7), id(70),
			time.Now().Format(time.RFC3339), time.Now().Add(time.Hour).Format(time.RFC3339))}); err != nil {
			t.Fatal(err)
		}
		want(t, v, i.token(id(7), id(70), 0), ErrRevoked)
		time.Sleep(20 * time.Second)
		want(t, v, i.token(id(1), id(20), 5), nil)
		want(t, v, i.token(id(1), id(20), 2), ErrRevoked)
		want(t, v, i.token(id(2), id(10), 0), nil)
		want(t, v, i.token(id(2), id(12), 0), ErrRevoked)
		want(t, v, i.token(id(7), id(70), 0), ErrRevoked)
		i.mu.Lock()
		defer i.mu.Unlock()
		if m.get(MetricSnapshots) != 1 || pages < 2 {
			t.Errorf("%v new snapshots, %d slow pages", m.get(MetricSnapshots), pages)
		}
	})
}

// The restored backup is older than the key. No fact says that the key was revoked, and it is
// missing from the key set, which could be cached for an hour.
func TestKeysAreFetchedWhenTheCursorIsGone(t *testing.T) {
	t.Parallel()
	next := newSigner(t, "second", "EdDSA")
	following(t, func(i *issuer, _ *Config) {
		i.maxAge = 3600
	}, func(t *testing.T, i *issuer, v *Verifier, _ *metrics) {
		ready(t, v)
		before := i.token(id(1), id(10), 5)
		want(t, v, before, nil)
		fetches := i.count(jwksPath)
		i.set(func() { i.cursors, i.keys = i.cursors+1, []signer{next} })
		time.Sleep(2 * time.Second) // in this test's own time
		want(t, v, before, ErrUnknownKey)
		want(t, v, i.token(id(1), id(11), 5), nil)
		if n := i.count(jwksPath) - fetches; n > 2 {
			t.Errorf("%d fetches", n)
		}
	})
}

// Whatever a server answers instead of the feed, the next server is asked and nothing is missed.
func TestABrokenServerIsLeft(t *testing.T) {
	t.Parallel()
	write := func(text string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) }
	}
	for name, answer := range map[string]func(w http.ResponseWriter, r *http.Request){
		"hangs": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"500":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"503": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(503)
		},
		"401":        func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
		"410 always": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) },
		"half":       write(`{"cursor":"0-0","as_of":"2026-11-28T20:00:00Z","more":false,"revocations":[{"type":"sess`),
		"two":        write(`{"cursor":"0-0","as_of":"2026-11-28T20:00:00Z","revocations":[]}{}`),
		"empty":      write(``),
		"huge":       write(`{"cursor":"0-0","x":"` + strings.Repeat("x", maxFeedAnswer) + `"}`),
		"no cursor":  write(`{"as_of":"2026-11-28T20:00:00Z","revocations":[]}`),
		"no as_of":   write(`{"cursor":"0-0","revocations":[]}`),
		"a bad fact": write(`{"cursor":"0-0","as_of":"2026-11-28T20:00:00Z","revocations":[{"type":"session","sid":"x","expires_at":"2026-11-28T20:00:00Z"}]}`),
		"no expiry":  write(`{"cursor":"0-0","as_of":"2026-11-28T20:00:00Z","revocations":[{"type":"session","sid":"` + id(5) + `"}]}`),
		"a circle":   write(`{"cursor":"0-0","as_of":"2000-01-01T00:00:00Z","more":true,"revocations":[]}`),
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://evil.example/", http.StatusFound)
		},
		"another document": write(`<html>`),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			following(t, func(i *issuer, cfg *Config) {
				cfg.Servers = []string{"http://one.internal:8080", "http://two.internal:8080"}
				// Behind the proxy the service has no path, so its metadata is at the root.
				serve := func(broken bool) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if r.URL.Path == "/oauth2/revocations" && broken && i.count("break") > 0 {
							answer(w, r)
							return
						}
						if r.URL.Path == "/.well-known/oauth-authorization-server" {
							r.URL.Path = metadataPath
						} else {
							r.URL.Path = "/auth" + r.URL.Path
						}
						i.ServeHTTP(w, r)
					})
				}
				network := cfg.Transport.(*direct)
				network.set("auth.example.com", nil)
				network.set("one.internal:8080", serve(true))
				network.set("two.internal:8080", serve(false))
				network.set("evil.example", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
					t.Error("a redirect was followed")
				}))
			}, func(t *testing.T, i *issuer, v *Verifier, _ *metrics) {
				ready(t, v)
				i.set(func() { i.asked["break"] = 1 })
				for n := range 60 {
					i.endSession(id(n + 1))
					time.Sleep(time.Second)
					if lag := v.Lag(); lag > v.cfg.MaxLag {
						t.Errorf("the lag is %v", lag)
					}
				}
				for n := range 60 {
					want(t, v, i.token(id(5000), id(n+1), 0), ErrRevoked)
				}
				want(t, v, i.token(id(5000), id(5001), 0), nil)
			})
		})
	}
}

// Without the issuer the policy decides. When the issuer is back, everything is as before.
func TestPoliciesWhileTheIssuerIsAway(t *testing.T) {
	t.Parallel()
	for policy, reason := range map[Policy]error{Refuse: ErrStale, Accept: nil, Introspect: ErrStale} {
		t.Run(fmt.Sprint(policy), func(t *testing.T) {
			t.Parallel()
			following(t, func(i *issuer, cfg *Config) { cfg.Stale, cfg.MaxLag = policy, 3*time.Second },
				func(t *testing.T, i *issuer, v *Verifier, m *metrics) {
					ready(t, v)
					i.endSession(id(1))
					synctest.Wait()
					network := v.cfg.Transport.(*direct)
					network.set("auth.example.com", nil)
					gone := time.Now()
					time.Sleep(1500 * time.Millisecond)
					want(t, v, i.token(id(5), id(6), 0), nil) // not long enough
					time.Sleep(time.Hour - 1500*time.Millisecond)
					if lag := v.Lag(); lag < time.Hour-2*time.Second || lag > time.Hour+2*time.Second {
						t.Errorf("after an hour the lag is %v", lag)
					}
					want(t, v, i.token(id(5), id(6), 0), reason)
					want(t, v, i.token(id(5), id(1), 0), ErrRevoked) // existing knowledge stays in use
					if reason != nil {
						_, err := v.Check(t.Context(), i.token(id(5), id(6), 0))
						if !Unknowable(err) || !strings.Contains(err.Error(), "refused") {
							t.Errorf("%v", err)
						}
					}
					if m.get(MetricStale) == 0 || m.get(MetricFeedErrors) < 100 {
						t.Errorf("%v", m.sum)
					}
					i.endSession(id(2))
					network.set("auth.example.com", i)
					time.Sleep(5 * time.Second)
					want(t, v, i.token(id(5), id(6), 0), nil)
					want(t, v, i.token(id(5), id(2), 0), ErrRevoked)
					if lag := v.Lag(); lag > 2*time.Second {
						t.Errorf("the lag is %v, %v after the beginning", lag, time.Since(gone))
					}
				})
		})
	}
}

// Only the feed is down. Each token is introspected once for all concurrent callers, with few
// requests at once.
func TestIntrospectionInPlaceOfTheFeed(t *testing.T) {
	t.Parallel()
	busy, most := 0, 0
	following(t, func(i *issuer, cfg *Config) {
		cfg.Stale = Introspect
		i.disturb = func(w http.ResponseWriter, r *http.Request) bool {
			switch r.URL.Path {
			case feedPath:
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			case askPath:
				i.mu.Lock()
				busy++
				most = max(most, busy)
				i.mu.Unlock()
				pause(r, 100*time.Millisecond)
				i.mu.Lock()
				busy--
				i.mu.Unlock()
			}
			return false
		}
	}, func(t *testing.T, i *issuer, v *Verifier, m *metrics) {
		live, over := i.token(id(1), id(2), 0), i.token(id(1), id(3), 0)
		i.set(func() { i.inactive[over] = true })
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() { want(t, v, live, nil) })
			wg.Go(func() { want(t, v, over, ErrRevoked) })
		}
		wg.Wait()
		if n := i.count(askPath); n != 2 {
			t.Errorf("%d requests about two tokens", n)
		}
		for n := range 300 {
			token := i.token(id(1), id(100+n), 0)
			wg.Go(func() { want(t, v, token, nil) })
		}
		wg.Wait()
		if most > maxIntrospections || most < 2 {
			t.Errorf("%d requests at once", most)
		}

		// With far too many tokens some are not introspected, and no caller waits for long.
		was := time.Now()
		unknown := 0
		var mu sync.Mutex
		for n := range 3000 {
			token := i.token(id(1), id(1000+n), 0)
			wg.Go(func() {
				if _, err := v.Check(t.Context(), token); errors.Is(err, ErrStale) {
					mu.Lock()
					unknown++
					mu.Unlock()
				} else if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if waited := time.Since(was); unknown == 0 || unknown == 3000 || waited > introspectTimeout+time.Second {
			t.Errorf("%d of 3,000 were not introspected, in %v", unknown, waited)
		}
		// An invalid answer does not mean yes.
		i.set(func() {
			i.disturb = func(w http.ResponseWriter, r *http.Request) bool { _, _ = w.Write([]byte("{}")); return true }
		})
		want(t, v, live, ErrStale)
		if m.get(MetricIntrospectErr) == 0 {
			t.Error("the fault was not counted")
		}
	})
}

func TestACallerThatLeaves(t *testing.T) {
	t.Parallel()
	following(t, func(i *issuer, _ *Config) {
		i.disturb = func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
	}, func(t *testing.T, i *issuer, v *Verifier, _ *metrics) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := v.Check(ctx, i.token(id(1), id(2), 0))
		if !errors.Is(err, context.DeadlineExceeded) || !Unknowable(err) {
			t.Errorf("%v", err)
		}
	})
}

// The only harm is a missed entry, so entries that this version cannot read are counted.
func TestTypesOfTheFuture(t *testing.T) {
	t.Parallel()
	following(t, nil, func(t *testing.T, i *issuer, v *Verifier, m *metrics) {
		ready(t, v)
		i.add(map[string]any{"type": "planet", "name": "Alderaan"})
		i.add(map[string]any{"type": "session", "sid": id(1), "why": "new"})
		synctest.Wait()
		want(t, v, i.token(id(5), id(1), 0), ErrRevoked)
		if n := m.get(MetricUnknownTypes); n != 1 {
			t.Errorf("%v unknown types", n)
		}
	})
}

// The clocks of the verifier and the issuer differ by hours. The lag is still right, good tokens
// are good, ended ones are refused as long as they live, and expired ones after that.
func TestClocksThatDifferByHours(t *testing.T) {
	t.Parallel()
	for _, skew := range []time.Duration{-3 * time.Hour, -20 * time.Second, 0, 20 * time.Second, 3 * time.Hour} {
		t.Run(skew.String(), func(t *testing.T) {
			t.Parallel()
			following(t, func(i *issuer, cfg *Config) {
				i.skew = 24 * time.Hour // so that the test's clock decides nothing
				cfg.Now = func() time.Time { return time.Now().Add(i.skew + skew) }
			}, func(t *testing.T, i *issuer, v *Verifier, m *metrics) {
				ready(t, v)
				live := i.tokenOf(i.keys[0], id(1), id(2), 0, 2*time.Hour)
				over := i.tokenOf(i.keys[0], id(1), id(3), 0, 2*time.Hour)
				i.add(map[string]any{"type": "session", "sid": id(3), "expires_at": i.now().Add(2 * time.Hour)})
				for minute := range 119 {
					time.Sleep(time.Minute)
					if lag := v.Lag(); lag > 5*time.Second {
						t.Errorf("after %d minutes the lag is %v", minute, lag)
					}
					want(t, v, live, nil)
					want(t, v, over, ErrRevoked)
				}
				time.Sleep(10 * time.Minute)
				want(t, v, live, ErrExpired)
				want(t, v, over, ErrExpired)
				if n := m.get(MetricEntries); n != 0 {
					t.Errorf("%v entries were not forgotten", n)
				}
			})
		})
	}
}

// The clock of the issuer's database is wrong, and servers issue tokens by their own. Nothing is forgotten
// or refused because of it: not while it is wrong, nor when it has been corrected.
func TestADatabaseWhoseClockIsWrong(t *testing.T) {
	t.Parallel()
	for _, wrong := range []time.Duration{-3 * time.Hour, -2 * time.Minute, 2 * time.Minute, 3 * time.Hour} {
		for name, skew := range map[string]time.Duration{"": 0, " and another clock here": -10 * time.Second} {
			t.Run(wrong.String()+name, func(t *testing.T) {
				t.Parallel()
				following(t, func(i *issuer, cfg *Config) {
					i.skew = 24 * time.Hour
					cfg.Now = func() time.Time { return time.Now().Add(i.skew + skew) }
				}, func(t *testing.T, i *issuer, v *Verifier, m *metrics) {
					ready(t, v)
					over := i.tokenOf(i.keys[0], id(1), id(3), 0, 3*time.Hour)
					i.add(map[string]any{"type": "session", "sid": id(3), "expires_at": i.now().Add(3 * time.Hour)})
					check := func() {
						t.Helper()
						for range 58 {
							time.Sleep(time.Minute)
							want(t, v, i.token(id(1), id(2), 0), nil)
							want(t, v, over, ErrRevoked)
							if lag := v.Lag(); lag > 5*time.Second {
								t.Fatalf("the lag is %v", lag)
							}
						}
					}
					check()
					for _, ahead := range []time.Duration{wrong, 0} {
						i.set(func() {
							if ahead < i.ahead { // which the issuer notices
								i.cursors++
							}
							i.ahead = ahead
						})
						check()
					}
					time.Sleep(10 * time.Minute)
					want(t, v, over, ErrExpired)
					time.Sleep(10 * time.Minute)
					if n := m.get(MetricEntries); n != 0 {
						t.Errorf("%v entries were not forgotten", n)
					}
				})
			})
		}
	}
}

// All clocks of the issuer were ahead, so that ends were forgotten whose tokens live when the clocks are
// right again. The snapshot tells of them once more.
func TestWhatAWrongClockMadeForgottenComesBack(t *testing.T) {
	t.Parallel()
	following(t, func(i *issuer, cfg *Config) {
		i.skew = 24 * time.Hour
		cfg.Now = func() time.Time { return time.Now().Add(24 * time.Hour) }
	}, func(t *testing.T, i *issuer, v *Verifier, m *metrics) {
		ready(t, v)
		var over []string
		for n := range 64 { // of every part of the list
			over = append(over, i.tokenOf(i.keys[0], id(1), id(n+2), 0, 3*time.Hour))
			i.add(map[string]any{"type": "session", "sid": id(n + 2), "expires_at": i.now().Add(3 * time.Hour)})
		}
		time.Sleep(time.Minute)
		i.set(func() { i.skew += 10 * time.Hour })
		for n := 0; m.get(MetricEntries) > 0; n++ {
			if time.Sleep(time.Minute); n == 60 {
				t.Fatal("nothing is forgotten")
			}
		}
		i.set(func() { i.skew -= 10 * time.Hour; i.cursors++ })
		time.Sleep(time.Minute)
		for range 20 {
			for _, one := range over {
				want(t, v, one, ErrRevoked)
			}
			want(t, v, i.token(id(1), id(1), 0), nil)
			time.Sleep(time.Minute)
		}
	})
}

// The knowledge is old when a server's answers are slow, or the server is behind its database. Lag
// never says that it is younger than it is.
func TestLagIsNeverTooLow(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(i *issuer, cfg *Config){
		"a slow network": func(_ *issuer, cfg *Config) { cfg.Transport.(*direct).delay = 1500 * time.Millisecond },
		"slow answers": func(i *issuer, _ *Config) {
			i.disturb = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != feedPath {
					return false
				}
				rec := httptest.NewRecorder()
				i.feed(rec, r)
				pause(r, 2*time.Second)
				_, _ = w.Write(rec.Body.Bytes())
				return true
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var newest time.Time // the time up to which the last answer is complete
			following(t, func(i *issuer, cfg *Config) {
				i.skew = 7 * time.Hour
				change(i, cfg)
			}, func(t *testing.T, i *issuer, v *Verifier, _ *metrics) {
				ready(t, v)
				for range 3000 {
					time.Sleep(100 * time.Millisecond)
					v.clock.mu.Lock()
					newest = v.clock.asOf
					v.clock.mu.Unlock()
					if lag, real := v.Lag(), i.now().Sub(newest); lag < real || lag > real+3*time.Second {
						t.Fatalf("the lag is %v, but the knowledge is %v old", lag, real)
					}
				}
			})
		})
	}
	t.Run("a server that stands still", func(t *testing.T) {
		t.Parallel()
		following(t, nil, func(t *testing.T, i *issuer, v *Verifier, _ *metrics) {
			ready(t, v)
			time.Sleep(time.Minute)
			stuck := i.now().UTC()
			i.set(func() {
				i.disturb = func(w http.ResponseWriter, r *http.Request) bool {
					if r.URL.Path != feedPath {
						return false
					}
					pause(r, time.Second)
					text, _ := json.Marshal(answer{Cursor: "0-0", AsOf: stuck, Revocations: []revocation{}})
					_, _ = w.Write(text)
					return true
				}
			})
			time.Sleep(10 * time.Minute)
			if lag := v.Lag(); lag < 10*time.Minute-time.Second {
				t.Errorf("after ten minutes the lag is %v", lag)
			}
		})
	})
}

// A promoted standby has a clock that is behind or ahead. From its first answer on, its clock
// counts as a new one: callers need not wait until the old one is forgotten, and the lag stays
// right.
func TestThePromotedStandbyHasAnotherClock(t *testing.T) {
	t.Parallel()
	for _, step := range []time.Duration{-40 * time.Second, 40 * time.Second} {
		t.Run(step.String(), func(t *testing.T) {
			t.Parallel()
			following(t, func(i *issuer, _ *Config) {
				i.page = 1
				i.endSession(id(3))
				i.endSession(id(4))
			}, func(t *testing.T, i *issuer, v *Verifier, m *metrics) {
				ready(t, v)
				time.Sleep(time.Minute)
				i.set(func() { i.skew += step; i.cursors++ })
				time.Sleep(15 * time.Second)
				if m.get(MetricSnapshots) != 1 {
					t.Fatalf("%v new snapshots", m.get(MetricSnapshots))
				}
				for range 600 {
					if lag := v.Lag(); lag > 5*time.Second {
						t.Fatalf("the lag is %v", lag)
					}
					want(t, v, i.token(id(1), id(2), 0), nil)
					want(t, v, i.token(id(1), id(3), 0), ErrRevoked)
					time.Sleep(time.Second)
				}
			})
		})
	}
}

// behind answers as a server that is a constant time behind its database.
func behind(i *issuer, by time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != feedPath {
			i.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		i.ServeHTTP(rec, r)
		var a answer
		if err := json.Unmarshal(rec.Body.Bytes(), &a); err != nil || rec.Code != http.StatusOK {
			w.WriteHeader(rec.Code)
			return
		}
		a.AsOf = a.AsOf.Add(-by)
		i.write(w, http.StatusOK, a)
	})
}

// A verifier leaves a server that falls behind by a constant time for one that is up to date, and
// never takes its time for a changed clock.
func TestAServerThatIsBehindIsLeft(t *testing.T) {
	t.Parallel()
	key := newSigner(t, "k", "EdDSA")
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t, key)
		way := &direct{hosts: map[string]http.Handler{"one": i, "two": i}}
		cfg := testConfig(i)
		cfg.Transport, cfg.Servers = way, []string{"http://one/auth", "http://two/auth"}
		v := start(t, cfg)
		ready(t, v)
		time.Sleep(time.Minute)
		way.set("one", behind(i, time.Minute))
		time.Sleep(20 * time.Second)
		for range 1200 {
			if lag := v.Lag(); lag > 5*time.Second {
				t.Fatalf("the lag is %v", lag)
			}
			want(t, v, i.token(id(1), id(2), 0), nil)
			time.Sleep(time.Second)
		}
		// Without a better server, the verifier knows that its knowledge is old.
		way.set("two", behind(i, time.Minute))
		time.Sleep(20 * time.Second)
		for range 200 {
			if lag := v.Lag(); lag < time.Minute {
				t.Fatalf("the lag is %v", lag)
			}
			time.Sleep(time.Second)
		}
	})
}

// A page of a snapshot may be older than the request, so Lag does not rely on it.
func TestAnOldPageIsNoMeasure(t *testing.T) {
	t.Parallel()
	following(t, func(i *issuer, cfg *Config) {
		i.page = 1
		i.endSession(id(3))
		i.endSession(id(4))
		late, way := behind(i, 8*time.Second), cfg.Transport.(*direct)
		way.delay = 200 * time.Millisecond
		way.set("auth.example.com", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if after := r.URL.Query().Get("after"); r.URL.Path == feedPath && (after == "" || after == "0-1") {
				late.ServeHTTP(w, r)
				return
			}
			i.ServeHTTP(w, r)
		}))
	}, func(t *testing.T, i *issuer, v *Verifier, _ *metrics) {
		for first := true; ; first = false {
			v.clock.mu.Lock()
			asOf := v.clock.asOf
			v.clock.mu.Unlock()
			if lag, real := v.Lag(), i.now().Sub(asOf); lag < real && !asOf.IsZero() {
				t.Fatalf("the lag is %v, but the knowledge is %v old", lag, real)
			} else if lag < 5*time.Second && !first {
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// While a machine sleeps, its monotonic clock may stop. The wall clock shows the time.
func TestAMachineThatSleeps(t *testing.T) {
	t.Parallel()
	now := time.Now()
	asleep := time.Duration(0)
	c := newServerClock(func() time.Time {
		if asleep == 0 {
			return now
		}
		return now.Round(0).Add(asleep) // without a monotonic part the wall clocks are compared
	})
	asOf := now.Add(3 * time.Hour)
	c.answered(measure{asked: now, read: now, asOf: asOf, complete: asOf})
	if lag := c.lag(); lag != answerAge {
		t.Errorf("the lag is %v", lag)
	}
	asleep = time.Hour
	if lag := c.lag(); lag < time.Hour {
		t.Errorf("after an hour of sleep the lag is %v", lag)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	t.Parallel()
	// A bubble fails if it ends with a goroutine left.
	following(t, func(_ *issuer, cfg *Config) {
		cfg.Stale = Introspect
	}, func(t *testing.T, i *issuer, v *Verifier, _ *metrics) {
		ready(t, v)
		v.Close()
		asked := i.count(feedPath) + i.count(jwksPath)
		time.Sleep(time.Hour)
		if again := i.count(feedPath) + i.count(jwksPath); again != asked {
			t.Errorf("%d requests after Close", again-asked)
		}
		want(t, v, i.token(id(1), id(2), 0), ErrStale)
		want(t, v, i.tokenOf(newSigner(t, "other", "EdDSA"), id(1), id(2), 0, time.Hour), ErrUnknownKey)
		v.Close()
	})
}

// The same over real sockets: a server that is killed during a poll, half answers, and the move to
// another server.
func TestAKilledServerIsLeft(t *testing.T) {
	t.Parallel()
	i := newIssuer(t, newSigner(t, "k", "EdDSA"))
	one := httptest.NewServer(i)
	two := httptest.NewServer(i)
	defer two.Close()
	i.issuer, i.base = one.URL+"/auth", one.URL+"/auth"
	cfg := testConfig(i)
	cfg.Transport, cfg.Servers = nil, []string{one.URL + "/auth", two.URL + "/auth"}
	v := start(t, cfg)
	ready(t, v)
	i.endSession(id(1))
	eventually(t, "the first end", func() bool { return v.known.list.Load().len() == 1 })
	one.CloseClientConnections()
	_ = one.Listener.Close()
	i.endSession(id(2))
	eventually(t, "the second end, from the other server", func() bool { return v.known.list.Load().len() == 2 })
	want(t, v, i.token(id(5), id(2), 0), ErrRevoked)
	want(t, v, i.token(id(5), id(3), 0), nil)
}

func TestAHalfAnswerMovesNothing(t *testing.T) {
	t.Parallel()
	i := newIssuer(t, newSigner(t, "k", "EdDSA"))
	srv := httptest.NewServer(i)
	defer srv.Close()
	i.issuer, i.base = srv.URL+"/auth", srv.URL+"/auth"
	broken := 0
	i.disturb = func(w http.ResponseWriter, r *http.Request) bool {
		i.mu.Lock()
		defer i.mu.Unlock()
		if r.URL.Path != feedPath || broken == 4 {
			return false
		}
		broken++
		conn, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return true
		}
		text := `{"cursor":"0-99","as_of":"2026-11-28T20:00:00Z","more":false,"revocations":[]}`
		_, _ = fmt.Fprintf(buf, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text)+broken, text)
		_ = buf.Flush()
		if tcp, ok := conn.(*net.TCPConn); ok && broken%2 == 0 {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
		return true
	}
	i.endSession(id(1))
	cfg := testConfig(i)
	cfg.Transport = nil
	v := start(t, cfg)
	ready(t, v)
	want(t, v, i.token(id(5), id(1), 0), ErrRevoked)
}

// After 101 net/http hands over the bare connection, and no context ends reading from it.
func TestAServerThatSwitchesProtocolsIsLeft(t *testing.T) {
	t.Parallel()
	i := newIssuer(t, newSigner(t, "k", "EdDSA"))
	srv := httptest.NewServer(i)
	t.Cleanup(srv.Close)
	i.issuer, i.base = srv.URL+"/auth", srv.URL+"/auth"
	switched := 0
	i.disturb = func(w http.ResponseWriter, r *http.Request) bool {
		i.mu.Lock()
		defer i.mu.Unlock()
		if switched++; switched > 4 {
			return false
		}
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return true
		}
		t.Cleanup(func() { _ = conn.Close() })
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
		return true
	}
	cfg := testConfig(i)
	cfg.Transport = nil
	v := start(t, cfg)
	ready(t, v)
	want(t, v, i.token(id(5), id(1), 0), nil)
}
