package verify

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
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
			// A consumer of Kafka has the type in a header; one of the file has the whole in JSON.
			for _, e := range []Event{{Type: kind, Source: testIssuer, Data: []byte(data)}, {Type: kind, Data: []byte(data)}} {
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

		session := fmt.Sprintf(`{"user_id":%q,"sid":%q,"reason":"logout","occurred_at":%q,"expires_at":%q}`, id(1), id(10), now(0), now(5*time.Hour))
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

		// They are forgotten by the time of events, and a token that would need them has expired.
		time.Sleep(6 * time.Hour)
		for n := range denyShards {
			apply("auth.SessionRevoked.v1", fmt.Sprintf(`{"user_id":%q,"sid":%q,"occurred_at":%q,"expires_at":%q}`, id(1), id(1000+n), now(0), now(5*time.Hour)))
		}
		if n := v.known.list.Load().len(); n != denyShards {
			t.Errorf("%d ends are known; want %d", n, denyShards)
		}

		for name, e := range map[string]Event{
			"another issuer": {Type: "auth.SessionRevoked.v1", Source: "https://evil.example", Data: []byte(session)},
			"not JSON":       {Type: "auth.SessionRevoked.v1", Data: []byte("x")},
			"no sid":         {Type: "auth.SessionRevoked.v1", Data: []byte(strings.Replace(session, `"sid"`, `"x"`, 1))},
			"no user":        {Type: "auth.AllSessionsRevoked.v1", Data: []byte(strings.Replace(all, `"user_id"`, `"x"`, 1))},
			"no expiry":      {Type: "auth.AllSessionsRevoked.v1", Data: []byte(strings.Replace(all, `"expires_at"`, `"x"`, 1))},
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
	for _, got := range []string{fmt.Sprintf("%v %+v %#v %s %q %x", cfg, cfg, cfg, cfg.Client, cfg.Client, cfg.Client), fmt.Sprint(&cfg.Client), log.String(), string(text)} {
		if strings.Contains(got, "pl4nt3d") || strings.Contains(got, fmt.Sprintf("%x", "pl4nt3d")) {
			t.Error(got)
		}
	}
}
