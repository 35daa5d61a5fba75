package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// end is a setting at one end of its range, or at another value that has to work.
type end struct{ path, value string }

func (e end) String() string { return e.path + "=" + e.value }

// ends returns all of them: both ends of each range, 1 where 0 means something special, and each
// word of a choice. They come from the settings' tags, so that new settings are included.
func ends() []end {
	var all []end
	for _, key := range config.Keys(&settings{}) {
		values := append([]string{key.Min, key.Max}, key.OneOf...)
		if key.Min == "0" && key.Type == "whole number" {
			values = append(values, "1")
		}
		for _, value := range values {
			if value != "" {
				all = append(all, end{key.Path, value})
			}
		}
	}
	return all
}

// along are other settings that an end needs, because a rule between settings refuses the end
// alone.
var along = map[end]map[string]string{
	{"app.mode", "prod"}: {"auth.token.issuer": "https://auth.example.com", "auth.password.bcrypt_cost": "10",
		// Sooner done than bcrypt at that cost, which the race detector slows down.
		"auth.password.algorithm": "argon2id", "auth.password.argon2_memory_mib": "7"},
	{"auth.password.argon2_memory_mib", "7"}:   {"auth.password.algorithm": "argon2id"},
	{"auth.password.argon2_memory_mib", "256"}: {"auth.password.algorithm": "argon2id"},
	{"kafka.sasl.mechanism", "plain"}:          {"kafka.sasl.user": "u"},
	{"kafka.sasl.mechanism", "scram-sha-256"}:  {"kafka.sasl.user": "u"},
	{"kafka.sasl.mechanism", "scram-sha-512"}:  {"kafka.sasl.user": "u"},
}

// named are settings that name a place or describe a foreign server. Their values are only loaded,
// since the test has no server there. With app.autogroup_nice at its end, the service would not get
// to run on a busy machine.
var named = []string{"app.port", "db.postgres.port", "cache.redis.port", "db.postgres.sslmode",
	"kafka.sasl.mechanism", "kafka.partitions", "app.autogroup_nice"}

// slow are ends at which one hash takes too long for a test. testdata/script/slow_hash.txtar tests
// them.
var slow = []end{{"auth.password.bcrypt_cost", "20"}}

// alone are ends that change what the service does so much that other ends could not be tested with
// them.
var alone = []end{{"app.mode", "prod"}, {"auth.registration", "closed"}, {"app.drain_delay", "5m"},
	{"outbox.relay", "off"},
	{"contact.required", "verified"}}

// wanted are the settings for these ends.
func wanted(ends ...end) map[string]string {
	set := map[string]string{}
	for _, e := range ends {
		set[e.path] = e.value
		maps.Copy(set, along[e])
	}
	return set
}

// groups puts ends together that one start can test: no two of a group need different values of one
// setting.
func groups(ends []end) (all [][]end) {
	var lone [][]end
	for _, e := range ends {
		if slices.Contains(alone, e) {
			lone = append(lone, []end{e})
			continue
		}
		i := slices.IndexFunc(all, func(group []end) bool {
			set := wanted(group...)
			for path, value := range wanted(e) {
				if have, taken := set[path]; taken && have != value {
					return false
				}
			}
			return true
		})
		if i < 0 {
			all, i = append(all, nil), len(all)
		}
		all[i] = append(all[i], e)
	}
	return append(all, lone...)
}

// TestTheServiceWorksAtBothEndsOfEverySetting starts the binary with many settings at an end, and
// does what people do: somebody registers, a stranger guesses, the owner signs in, refreshes and
// asks for /me; the event arrives; the service stops in order. When a group fails, each of its ends
// is tried alone.
func TestTheServiceWorksAtBothEndsOfEverySetting(t *testing.T) {
	t.Parallel()
	var tried []end
	env := []string{"AUTH_TOKEN_SECRET=0123456789abcdefghijklmnopqrstuvwxyzABCD", "KAFKA_SASL_PASSWORD=x"}
	for _, e := range ends() {
		var s settings
		if err := config.Load(&s, config.Options{File: os.DevNull, Environ: env, Override: wanted(e)}); err != nil {
			t.Errorf("%s is refused: %v", e, err)
		} else if !slices.Contains(named, e.path) && !slices.Contains(slow, e) {
			tried = append(tried, e)
		}
	}
	for i, group := range groups(tried) {
		name := fmt.Sprintf("group %d", i+1)
		if len(group) == 1 {
			name = group[0].String()
		}
		for place, start := range map[string]func(*testing.T, ...end) error{"embedded": embedded,
			"on servers": onServers} {
			if place == "on servers" && group[0] == (end{"app.mode", "prod"}) {
				continue // prod mode refuses servers without TLS
			}
			t.Run(name+" "+place, func(t *testing.T) {
				t.Parallel()
				together := start(t, group...)
				if together == nil {
					return
				}
				t.Errorf("together: %v", together)
				for _, e := range group {
					if err := start(t, e); err != nil {
						t.Errorf("%s alone: %v", e, err)
					}
				}
			})
		}
	}
}

// embedded tries ends of settings with nothing but the binary.
func embedded(t *testing.T, ends ...end) error { return newRanged(t, ends).works(t) }

// onServers tries them with PostgreSQL, Redis and Kafka.
func onServers(t *testing.T, ends ...end) error {
	r := newRanged(t, ends)
	r.set["kafka.brokers"], r.set["kafka.topic"], r.set["kafka.partitions"] = testenv.Kafka(t),
		"ranges-"+uuid.NewString(), "1"
	r.set["cache.redis.host"], r.set["cache.redis.port"] = "127.0.0.1", cachetest.Start(t, "--databases", "1024").Port()
	r.env = append(r.env, "DATABASE_URL="+dbtest.PostgresURL(t))
	return r.works(t)
}

// slowRenewal is what a busy machine says that does not renew a lease in half of the shortest one.
var slowRenewal = regexp.MustCompile(`"level":"error",[^\n]*_database_away[^\n]*context deadline exceeded`)

// ranged is the service with settings at their ends.
type ranged struct {
	dir string
	set map[string]string
	env []string
}

func newRanged(t *testing.T, ends []end) ranged {
	set := map[string]string{
		"app.port": "0", "app.host": "127.0.0.1", "app.operator_addr": "off", "auth.password.bcrypt_cost": "4",
		"app.data_dir": "data", "app.autogroup_nice": "0",
	}
	maps.Copy(set, wanted(ends...))
	return ranged{dir: t.TempDir(), set: set,
		env: []string{"AUTH_TOKEN_SECRET=0123456789abcdefghijklmnopqrstuvwxyzABCD"}}
}

func (r ranged) works(t *testing.T) error {
	t.Helper()
	line := []string{"serve"}
	for _, path := range slices.Sorted(maps.Keys(r.set)) {
		line = append(line, "--set", path+"="+r.set[path])
	}
	// The log says the port. In dev mode the console says it at every log level.
	log := filepath.Join(r.dir, "authctl.log")
	line = append(line, "--set", "log.path="+log)
	program, err := exec.LookPath("authctl")
	if err != nil {
		return err
	}
	cmd := exec.Command(program, line...)
	var console background
	cmd.Dir, cmd.Env, cmd.Stderr = r.dir, append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + r.dir,
		"GORACE=" + os.Getenv("GORACE")}, r.env...), &console
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	said := func() string {
		text, _ := os.ReadFile(log)
		return console.String() + string(text)
	}
	port := regexp.MustCompile(`"port":(\d+)|http://localhost:(\d+)/api/v1/auth`)
	if !poll(func() bool { return port.MatchString(said()) || len(ended) > 0 }) || len(ended) > 0 {
		return fmt.Errorf("it does not serve:\n%s", said())
	}
	found := port.FindStringSubmatch(said())
	base := "http://127.0.0.1:" + found[1] + found[2]

	n := 0
	registered := http.StatusCreated
	switch {
	case r.set["auth.registration"] == "closed":
		registered = http.StatusForbidden
	case r.set["contact.required"] == "verified":
		registered = http.StatusAccepted
	}
	var last error
	if !poll(func() bool {
		n++
		last = peopleDo(t.Context(), base, fmt.Sprintf("user%d", n), registered)
		return last == nil
	}) {
		return fmt.Errorf("%w\n%s", last, said())
	}
	if r.set["kafka.brokers"] == "" && r.set["outbox.relay"] != "off" && registered != http.StatusForbidden &&
		!poll(func() bool {
			text, _ := os.ReadFile(filepath.Join(r.dir, "data", "events.ndjson"))
			return bytes.Contains(text, []byte("auth.UserRegistered.v1"))
		}) {
		return fmt.Errorf("no event arrives:\n%s", said())
	}
	want := "0"
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if r.set["app.drain_delay"] == "5m" { // it still serves during the drain; a second signal ends that
		if !poll(func() bool {
			return ask(t.Context(), base+"/readyz") == 503 && ask(t.Context(), base+"/healthz") == 200
		}) {
			return fmt.Errorf("it does not serve during the drain:\n%s", said())
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		want = "TERM"
	}
	select {
	case err := <-ended:
		if got := outcome(err); got != want {
			return fmt.Errorf("it ends with %s, want %s:\n%s", got, want, said())
		}
	case <-time.After(testenv.Patience):
		return fmt.Errorf("it does not end:\n%s", said())
	}
	text := said()
	if strings.Contains(text, "panic") || strings.Contains(slowRenewal.ReplaceAllString(text, ""), `"level":"error"`) {
		return fmt.Errorf("it says:\n%s", text)
	}
	return nil
}

// TestARelayWorksAtBothEndsOfItsSettings makes an account with a command, before anything has served, and has a
// relay of its own publish the event, with the same settings.
func TestARelayWorksAtBothEndsOfItsSettings(t *testing.T) {
	t.Parallel()
	var tried []end
	for _, e := range ends() {
		if strings.HasPrefix(e.path, "outbox.") && e.path != "outbox.relay" || e.path == "database.max_conns" ||
			e.path == "app.shutdown_timeout" {
			tried = append(tried, e)
		}
	}
	for i, group := range groups(tried) {
		t.Run(fmt.Sprintf("group %d", i+1), func(t *testing.T) {
			t.Parallel()
			r := newRanged(t, group)
			r.env = append(r.env, "DATABASE_URL="+dbtest.PostgresURL(t))
			if err := r.relays(t); err != nil {
				t.Errorf("%v: %v", group, err)
			}
		})
	}
}

func (r ranged) relays(t *testing.T) error {
	t.Helper()
	program, err := exec.LookPath("authctl")
	if err != nil {
		return err
	}
	command := func(words ...string) *exec.Cmd {
		for _, path := range slices.Sorted(maps.Keys(r.set)) {
			words = append(words, "--set", path+"="+r.set[path])
		}
		cmd := exec.CommandContext(t.Context(), program, words...)
		cmd.Dir, cmd.Env = r.dir, append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + r.dir,
			"GORACE=" + os.Getenv("GORACE")}, r.env...)
		cmd.Stdin = strings.NewReader("correct horse battery staple\n")
		return cmd
	}
	if out, err := command("user", "create", "alice", "--password-stdin").CombinedOutput(); err != nil {
		return fmt.Errorf("make an account: %w\n%s", err, out)
	}
	relay := command("relay")
	var console background
	relay.Stderr = &console
	if err := relay.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- relay.Wait() }()
	defer func() { _ = relay.Process.Kill() }()
	if !poll(func() bool {
		text, _ := os.ReadFile(filepath.Join(r.dir, "data", "events.ndjson"))
		return bytes.Contains(text, []byte("auth.UserRegistered.v1")) || len(ended) > 0
	}) || len(ended) > 0 {
		return fmt.Errorf("no event arrives:\n%s", console.String())
	}
	for _, words := range [][]string{{"outbox", "status", "--shards"}, {"outbox", "tail"},
		{"outbox", "replay", "--from-id", "1", "--yes"}, {"session", "revoke", "--all", "--yes"}} {
		if out, err := command(words...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(words, " "), err, out)
		}
	}
	_ = relay.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-ended:
		if got := outcome(err); got != "0" {
			return fmt.Errorf("it ends with %s:\n%s", got, console.String())
		}
	case <-time.After(testenv.Patience):
		return fmt.Errorf("it does not end:\n%s", console.String())
	}
	return nil
}

// ask returns the status of an answer, 0 for none.
func ask(ctx context.Context, url string) int {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0
	}
	_ = response.Body.Close()
	return response.StatusCode
}

// peopleDo does what people do, once. With very short times and low limits it may fail; then it is
// repeated until it works. registered is the expected status of a registration; without a 201
// nobody signs in.
func peopleDo(ctx context.Context, base, name string, registered int) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	defer client.CloseIdleConnections()
	call := func(want int, method, path, token string, body any) (map[string]any, error) {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		request, err := http.NewRequestWithContext(ctx, method, base+path, bytes.NewReader(data))
		if err != nil {
			return nil, err
		}
		if method == http.MethodGet {
			request.Body, request.ContentLength = http.NoBody, 0
		} else {
			request.Header.Set("Content-Type", "application/json")
		}
		if token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		response, err := client.Do(request)
		if err != nil {
			return nil, err
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			return nil, err
		}
		if response.StatusCode != want {
			return nil, fmt.Errorf("%s %s: %d, want %d: %s", method, path, response.StatusCode, want, text)
		}
		var answer map[string]any
		return answer, json.Unmarshal(text, &answer)
	}
	password := strings.Repeat("correct horse battery ", 4)
	if _, err := call(registered, "POST", "/api/v1/auth/register", "", map[string]string{"username": name,
		"password": password, "email": name + "@example.com"}); err != nil {
		return err
	}
	// A stranger guesses first, at a name without an account.
	if _, err := call(401, "POST", "/api/v1/auth/login", "", map[string]string{"username": "nobody." + name,
		"password": password}); err != nil || registered != http.StatusCreated {
		return err
	}
	signed, err := call(200, "POST", "/api/v1/auth/login", "",
		map[string]string{"username": name, "password": password})
	if err != nil {
		return err
	}
	if signed, err = call(200, "POST", "/api/v1/auth/refresh", "",
		map[string]any{"refresh_token": signed["refresh_token"]}); err != nil {
		return err
	}
	if _, err = call(200, "GET", "/api/v1/auth/me", signed["access_token"].(string), nil); err != nil {
		return err
	}
	_, err = call(200, "GET", "/readyz", "", nil)
	return err
}
