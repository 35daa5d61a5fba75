package verify

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestEventsEndSessions(t *testing.T) {
	t.Parallel()
	key := newSigner(t, "k", "EdDSA")
	synctest.Test(t, func(t *testing.T) {
		i, m := newIssuer(t, key), &metrics{}
		cfg := plain(i)
		cfg.Metric = m.add
		v := start(t, cfg)
		now := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339Nano) }
		apply := func(kind, data string) {
			t.Helper()
			// A consumer of Kafka finds the type in a header; a consumer of the file has all of it
			// in JSON.
			for _, e := range []Event{{Type: kind, Source: testIssuer, Data: []byte(data)},
				{Type: kind, Data: []byte(data)}} {
				if err := v.Apply(e); err != nil {
					t.Errorf("%s: %v", kind, err)
				}
			}
			line := fmt.Sprintf(`{"specversion":"1.0","id":"1","source":%q,"type":%q,"time":%q,"sequence":"4","datacontenttype":"application/json","replay":true,"data":%s}`,
				testIssuer, kind, now(0), data)
			e, err := ParseEvent([]byte(line))
			if err != nil || e.Type != kind || v.Apply(e) != nil {
				t.Errorf("%s: %+v, %v", line, e, err)
			}
		}
		token := func(sub, sid, epoch int) string { return i.token(id(sub), id(sid), epoch) }
		want(t, v, token(1, 10, 0), nil)

		session := fmt.Sprintf(`{"user_id":%q,"sid":%q,"reason":"logout","occurred_at":%q,"expires_at":%q}`, id(1),
			id(10), now(0), now(5*time.Hour))
		apply("auth.SessionRevoked.v1", session)
		want(t, v, token(1, 10, 0), ErrRevoked)
		want(t, v, token(1, 11, 0), nil)
		all := fmt.Sprintf(`{"user_id":%q,"session_epoch":3,"kept_sid":%q,"reason":"x","occurred_at":%q,"expires_at":%q}`, id(1), id(12), now(0), now(5*time.Hour))
		apply("auth.AllSessionsRevoked.v1", all)
		want(t, v, token(1, 11, 2), ErrRevoked)
		want(t, v, token(1, 12, 2), nil)
		want(t, v, token(1, 13, 3), nil)

		for _, other := range []string{"auth.UserRegistered.v1", "auth.UserDeleted.v1", "org.example.Other"} {
			apply(other, `{"user_id":"x"}`)
		}
		apply("auth.SessionRevoked.v2", `{}`)
		if n := m.get(MetricUnknownTypes); n != 3 {
			t.Errorf("%v unknown types", n)
		}

		// Ends are forgotten by the time of events, once every token that they could refuse has
		// expired.
		time.Sleep(6 * time.Hour)
		for n := range denyShards {
			apply("auth.SessionRevoked.v1",
				fmt.Sprintf(`{"user_id":%q,"sid":%q,"occurred_at":%q,"expires_at":%q}`, id(1), id(1000+n), now(0),
					now(5*time.Hour)))
		}
		if n := v.known.list.Load().len(); n != denyShards {
			t.Errorf("%d known ends; want %d", n, denyShards)
		}

		for name, e := range map[string]Event{
			"another issuer": {Type: "auth.SessionRevoked.v1", Source: "https://evil.example", Data: []byte(session)},
			"not JSON":       {Type: "auth.SessionRevoked.v1", Data: []byte("x")},
			"no sid": {Type: "auth.SessionRevoked.v1",
				Data: []byte(strings.Replace(session, `"sid"`, `"x"`, 1))},
			"no user": {Type: "auth.AllSessionsRevoked.v1",
				Data: []byte(strings.Replace(all, `"user_id"`, `"x"`, 1))},
			"no expiry": {Type: "auth.AllSessionsRevoked.v1",
				Data: []byte(strings.Replace(all, `"expires_at"`, `"x"`, 1))},
		} {
			if err := v.Apply(e); err == nil {
				t.Errorf("%s: applied", name)
			}
		}
		for _, text := range []string{"", "{}", "[]", `{"specversion":"0.3","type":"x"}`, `{"specversion":"1.0"}`} {
			if e, err := ParseEvent([]byte(text)); err == nil {
				t.Errorf("%s: %+v", text, e)
			}
		}
	})
}

// Events come late, repeatedly and in any order: before, during and after the snapshot of the feed.
// The verifier always ends up with the same knowledge.
func TestEventsInAnyOrder(t *testing.T) {
	t.Parallel()
	following(t, func(i *issuer, _ *Config) {
		i.page = 1
		for n := range 5 {
			i.endSession(id(50 + n))
		}
		i.add(map[string]any{"type": "account", "sub": id(1), "session_epoch": 2, "kept_sid": id(12)})
	}, func(t *testing.T, i *issuer, v *Verifier, _ *metrics) {
		text := func(d time.Duration) string { return i.now().Add(d).UTC().Format(time.RFC3339Nano) }
		all := func(epoch int, kept string) Event {
			return Event{Type: "auth.AllSessionsRevoked.v1", Data: fmt.Appendf(nil,
				`{"user_id":%q,"session_epoch":%d,"kept_sid":%q,"occurred_at":%q,"expires_at":%q}`, id(1), epoch,
				kept, text(0), text(5*time.Hour))}
		}
		events := []Event{all(1, id(11)), all(2, id(12)), all(3, id(13)), all(3, id(13))}
		for n := range 4 {
			events = append(events, Event{Type: "auth.SessionRevoked.v1", Data: fmt.Appendf(nil,
				`{"user_id":%q,"sid":%q,"occurred_at":%q,"expires_at":%q}`, id(2), id(20+
					n/2), text(-time.Hour), text(time.Duration(4+n)*time.Hour))})
		}
		for round := range 30 {
			rand.Shuffle(len(events), func(a, b int) { events[a], events[b] = events[b], events[a] })
			for _, e := range events {
				if err := v.Apply(e); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Duration(round%3) * time.Millisecond)
			}
			if round == 10 {
				i.set(func() { i.cursors++ }) // a new snapshot, which knows only the first end
				time.Sleep(10 * time.Second)
			}
		}
		ready(t, v)
		for sid, reason := range map[int]error{11: ErrRevoked, 12: ErrRevoked, 13: nil, 14: ErrRevoked} {
			want(t, v, i.token(id(1), id(sid), 2), reason)
		}
		want(t, v, i.token(id(1), id(14), 3), nil)
		for sid, reason := range map[int]error{20: ErrRevoked, 21: ErrRevoked, 22: nil} {
			want(t, v, i.token(id(2), id(sid), 0), reason)
		}
		want(t, v, i.token(id(3), id(52), 0), ErrRevoked)
	})
}

// A server whose clock is wrong for a moment writes an event of tomorrow. Good tokens stay good,
// and nothing is forgotten early.
func TestAnEventOfAWrongClock(t *testing.T) {
	t.Parallel()
	key := newSigner(t, "k", "EdDSA")
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t, key)
		v := start(t, plain(i))
		end := func(sid string, at time.Time) {
			t.Helper()
			text := func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }
			err := v.Apply(Event{Type: "auth.SessionRevoked.v1",
				Data: fmt.Appendf(nil, `{"user_id":%q,"sid":%q,"occurred_at":%q,"expires_at":%q}`,
					id(1), sid, text(at), text(time.Now().Add(5*time.Hour)))})
			if err != nil {
				t.Error(err)
			}
		}
		live, over := i.token(id(1), id(10), 0), i.token(id(1), id(11), 0)
		end(id(11), time.Now())
		end(id(12), time.Now().Add(24*time.Hour))
		for range 4 {
			for n := range denyShards { // each call checks what can be forgotten
				end(id(1000+n), time.Now())
			}
			want(t, v, live, nil)
			want(t, v, over, ErrRevoked)
			time.Sleep(time.Hour)
		}
		time.Sleep(2 * time.Hour)
		want(t, v, live, ErrExpired)
		want(t, v, over, ErrExpired)
	})
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	t.Parallel()
	good := Config{Issuer: "https://auth.example.com", Audience: "orders", Client: Client{"orders", "secret"}}
	for name, c := range map[string]struct {
		change func(c *Config)
		want   string
	}{
		"no issuer":         {func(c *Config) { c.Issuer = "" }, "Issuer"},
		"issuer no URL":     {func(c *Config) { c.Issuer = "auth.example.com" }, "Issuer"},
		"issuer with query": {func(c *Config) { c.Issuer += "?x" }, "Issuer"},
		"issuer with user":  {func(c *Config) { c.Issuer = "https://u:p4ss@auth.example.com" }, "Issuer"},
		"a bad server":      {func(c *Config) { c.Servers = []string{"10.0.0.1:8080"} }, "Servers"},
		"no audience":       {func(c *Config) { c.Audience = "" }, "Audience"},
		"half a client":     {func(c *Config) { c.Client.Secret = "" }, "Client"},
		"no policy":         {func(c *Config) { c.Stale = 7 }, "Stale"},
		"a short MaxLag":    {func(c *Config) { c.MaxLag = time.Second }, "MaxLag"},
		"Refuse, no client": {func(c *Config) { c.Client = Client{} }, "verify.Accept"},
		"Introspect too":    {func(c *Config) { c.Client, c.Stale = Client{}, Introspect }, "verify.Accept"},
	} {
		cfg := good
		c.change(&cfg)
		v, err := New(cfg)
		if err == nil {
			v.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "p4ss") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestASecretIsNeverPrinted(t *testing.T) {
	t.Parallel()
	cfg := Config{Client: Client{ID: "orders", Secret: "pl4nt3d"}}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "client", cfg.Client, "config", cfg.Client)
	text, err := json.Marshal(cfg.Client)
	if err != nil {
		t.Error(err)
	}
	for _, got := range []string{fmt.Sprintf("%v %+v %#v %s %q %x", cfg, cfg, cfg, cfg.Client, cfg.Client,
		cfg.Client), fmt.Sprint(&cfg.Client), log.String(), string(text)} {
		if strings.Contains(got, "pl4nt3d") || strings.Contains(got, fmt.Sprintf("%x", "pl4nt3d")) {
			t.Error(got)
		}
	}
}

// Events come while the feed tells of a revoked key. What has expired is forgotten with each of them.
func TestARevokedKeyStaysWhileOthersForget(t *testing.T) {
	t.Parallel()
	d := &denylist{}
	now, over := time.Now(), make(chan struct{})
	var forgetting sync.WaitGroup
	for range 2 {
		forgetting.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
					d.forget(now, 1)
				}
			}
		})
	}
	for n := range 20_000 {
		kid := strconv.Itoa(n)
		d.addKey(kid, now.Add(time.Minute))
		if !d.hasKey(kid) {
			t.Errorf("the key %s is not revoked any more", kid)
			break
		}
		if n%1000 == 0 {
			d.keys.Clear() // so that forgetting stays quick
		}
	}
	close(over)
	forgetting.Wait()
	d.addKey("k", now.Add(time.Hour))
	d.addKey("k", now.Add(time.Minute))
	if d.forget(now.Add(time.Minute), 1); !d.hasKey("k") {
		t.Error("a shorter time replaced a longer one")
	}
	if d.forget(now.Add(time.Hour+time.Second), 1); d.hasKey("k") {
		t.Error("an expired entry is kept")
	}
}
