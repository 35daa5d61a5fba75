package campaign

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// An attacker has all of Redis and all of the database. Nothing in them lets the attacker in, or is
// a secret of a person or a client.
func TestADumpOfEverythingLetsNobodyIn(t *testing.T) {
	t.Parallel()
	for _, store := range stores {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			if err := aDumpLetsNobodyIn(t, genuine(t), store); err != nil {
				t.Error(err)
			}
		})
	}
}

func aDumpLetsNobodyIn(t *testing.T, binary, store string) error {
	var w *installation
	var client *redis.Client
	databasePassword := ""
	switch store {
	case "redis":
		testenv.Redis(t)
		own := cachetest.Start(t)
		client = cachetest.Open(t, own.URL())
		databasePassword = "database-password-of-the-campaign"
		w = installationOn(t, binary, dbtest.AsUser(t, dbtest.PostgresURL(t), databasePassword), own.URL(),
			"AUTH_THROTTLE_ENABLED=true", "OUTBOX_RELAY=inline")
	default:
		w = newInstallation(t, binary, store, "AUTH_THROTTLE_ENABLED=true")
	}
	s := w.serve()

	// Everything that makes the service store something.
	d := s.register()
	other := s.login(d.name)
	secrets := []string{password, newPassword, tokenSecret, clientSecret}
	if databasePassword != "" {
		secrets = append(secrets, databasePassword)
	}
	secrets = append(secrets, d.access, d.refresh, other.access, other.refresh)
	keep := func(a answer) {
		d.keep(a)
		secrets = append(secrets, a.AccessToken, a.RefreshToken)
	}
	rotated := d.refresh
	inTheEnd := func(path, access string, body fields) answer {
		return s.must(untilAvailable(func() (answer, error) { return s.call("POST", api+path, access, body) }))
	}
	keep(s.must(s.refreshInTheEnd(d.refresh)))
	keep(s.must(s.refreshInTheEnd(d.refresh)))
	keep(s.must(s.refreshInTheEnd(rotated))) // creates links to the newest token
	keep(inTheEnd("/password", d.access, fields{"current_password": password, "new_password": newPassword}))
	keep(s.must(s.refreshInTheEnd(d.refresh)))
	_, _ = s.call("POST", api+"/login", "", fields{"username": d.name, "password": "a wrong one, mistyped"})
	secrets = append(secrets, "a wrong one, mistyped")
	a := inTheEnd("/login", "", fields{"username": d.name, "password": newPassword})
	secrets = append(secrets, a.AccessToken, a.RefreshToken, a.Device)
	reused := s.register()
	secrets = append(secrets, w.reuse(s, reused), reused.refresh, reused.access)

	dump, err := w.dump(client)
	testenv.Must(t, err)
	t.Logf("%d values", len(dump))
	for _, secret := range secrets {
		if where := find(dump, secret); where != "" {
			return fmt.Errorf("the secret %.12s… is in the dump: %.80q", secret, where)
		}
	}
	tried, err := s.tryAsCredentials(d.name, dump)
	t.Logf("%d candidates tried", tried)
	return err
}

// dump reads every key and value of Redis, and every column of every row of the database.
func (w *installation) dump(client *redis.Client) ([]string, error) {
	ctx := w.t.Context()
	var values []string
	if client != nil {
		keys, err := client.Keys(ctx, "*").Result()
		if err != nil {
			return nil, err
		}
		for _, key := range keys {
			values = append(values, key)
			raw, err := client.Dump(ctx, key).Result()
			if errors.Is(err, redis.Nil) {
				continue // it has expired since the listing: counters of the throttle live only for a moment
			}
			if err != nil {
				return nil, err
			}
			values = append(values, raw)
			switch kind := client.Type(ctx, key).Val(); kind {
			case "none": // expired just now, but its dump is kept
			case "string":
				values = append(values, client.Get(ctx, key).Val())
			case "hash":
				for field, value := range client.HGetAll(ctx, key).Val() {
					values = append(values, field, value)
				}
			case "set":
				values = append(values, client.SMembers(ctx, key).Val()...)
			case "zset":
				values = append(values, client.ZRange(ctx, key, 0, -1).Val()...)
			default:
				return nil, fmt.Errorf("%s is a %s, which this test cannot read", key, kind)
			}
		}
	}
	query := "SELECT name FROM sqlite_master WHERE type = 'table'"
	if w.db.IsPostgres() {
		query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
	}
	tables, err := w.column(ctx, query)
	if err != nil {
		return nil, err
	}
	for _, table := range tables {
		rows, err := w.db.QueryContext(ctx, "SELECT * FROM "+table)
		if err != nil {
			return nil, err
		}
		columns, err := rows.Columns()
		if err != nil {
			return nil, err
		}
		cells, into := make([]any, len(columns)), make([]any, len(columns))
		for i := range cells {
			into[i] = &cells[i]
		}
		for rows.Next() {
			if err := rows.Scan(into...); err != nil {
				return nil, err
			}
			for _, cell := range cells {
				switch v := cell.(type) {
				case []byte:
					values = append(values, string(v))
				default:
					values = append(values, fmt.Sprint(v))
				}
			}
		}
		if err := rows.Close(); err != nil {
			return nil, err
		}
	}
	return values, nil
}

func (w *installation) column(ctx context.Context, query string) ([]string, error) {
	rows, err := w.db.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []string
	for rows.Next() {
		var one string
		if err := rows.Scan(&one); err != nil {
			return nil, err
		}
		list = append(list, one)
	}
	return list, rows.Err()
}

// find returns the value that holds a secret in any likely spelling.
func find(dump []string, secret string) string {
	if secret == "" {
		return ""
	}
	spellings := []string{secret, hex.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte(secret))}
	if body, ok := strings.CutPrefix(secret, "art_"); ok {
		raw, _ := base64.RawURLEncoding.DecodeString(body)
		// The random part of a token is its secret; ids and generation are not.
		random := raw[38:70]
		spellings = append(spellings, body, string(raw), string(random), hex.EncodeToString(random),
			base64.RawURLEncoding.EncodeToString(random), base64.RawStdEncoding.EncodeToString(random))
	}
	for _, value := range dump {
		for _, spelling := range spellings {
			if strings.Contains(value, spelling) {
				return value
			}
		}
	}
	return ""
}

var words = regexp.MustCompile(`[A-Za-z0-9_+/=.$-]{8,}`)

// tryAsCredentials tries every value of the dump, its words, and every encoding of them wherever
// the service accepts a credential.
func (s *server) tryAsCredentials(name string, dump []string) (int, error) {
	candidates := map[string]bool{}
	for _, value := range dump {
		for _, piece := range append(words.FindAllString(value, -1), value) {
			if len(piece) < 8 || len(piece) > 4096 {
				continue
			}
			raw := []byte(piece)
			if decoded, err := hex.DecodeString(piece); err == nil {
				raw = decoded
			}
			for _, form := range []string{piece, hex.EncodeToString(raw), base64.StdEncoding.EncodeToString(raw),
				base64.RawURLEncoding.EncodeToString(raw)} {
				candidates[strings.ToValidUTF8(form, "")] = true
			}
		}
	}
	list := make([]string, 0, len(candidates))
	for c := range candidates {
		list = append(list, c)
	}
	if !long() && len(list) > 1500 { // in random order, so that each run covers another part
		list = list[:1500]
	}
	next := make(chan string)
	go func() {
		defer close(next)
		for _, c := range list {
			next <- c
		}
	}()
	err := atOnce(8, func(int) error {
		var first error
		for c := range next {
			if err := s.tryAsCredential(name, c); err != nil && first == nil {
				first = err
			}
		}
		return first
	})
	return len(list), err
}

func (s *server) tryAsCredential(name, c string) error {
	for _, token := range []string{c, "art_" + c} {
		if a, err := s.refreshInTheEnd(token); err != nil || a.Status != http.StatusUnauthorized {
			return fmt.Errorf("%.20q as a refresh token: %v, %v", token, a, err)
		}
		if live, err := s.active(token); err != nil || live {
			return fmt.Errorf("%.20q introspected: active %v, %v", token, live, err)
		}
	}
	if header := strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return -1
		}
		return r
	}, c); len(header) >= 8 {
		if a, err := s.getInTheEnd("/me", header); err != nil || a.Status != http.StatusUnauthorized {
			return fmt.Errorf("%.20q as an access token: %v, %v", header, a, err)
		}
		there := &server{t: s.t, url: s.url, http: s.http, clientSecret: header}
		if a, err := untilAvailable(func() (answer, error) {
			return there.call("POST", "/oauth2/introspect", "", url.Values{"token": {"x"}})
		}); err != nil || a.Status != http.StatusUnauthorized {
			return fmt.Errorf("%.20q as a client's secret: %v, %v", header, a, err)
		}
	}
	if len(c) <= 256 {
		// Wrong passwords are throttled, and that is a refusal too.
		if a, err := s.call("POST", api+"/login", "", fields{"username": name, "password": c}); err != nil || a.ok() {
			return fmt.Errorf("%.20q as the password: %v, %v", c, a, err)
		}
	}
	return nil
}
