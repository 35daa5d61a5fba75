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

// end is a setting at one end of its range, or at another value that it has to work with.
type end struct{ path, value string }

func (e end) String() string { return e.path + "=" + e.value }

// ends are all of them: both ends of each range, one where 0 means something else, and each word
// where there is a choice. They come from the settings, so that a new one is among them.
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

// along are the settings that have to move along with one at its end, since a rule between
// settings refuses it alone.
var along = map[end]map[string]string{
	{"app.mode", "prod"}: {"auth.token.issuer": "https://auth.example.com",
		"auth.password.bcrypt_cost": "10"},
	{"auth.throttle.max_failures", "2"}:              {"auth.throttle.account_free": "1"},
	{"auth.throttle.account_free", "50"}:             {"auth.throttle.max_failures": "100"},
	{"auth.throttle.base_delay", "1h"}:               {"auth.throttle.max_delay": "1h"},
	{"auth.throttle.max_delay", "1s"}:                {"auth.throttle.base_delay": "1s"},
	{"auth.throttle.lock", "1m"}:                     {"auth.throttle.max_delay": "1m"},
	{"auth.throttle.forget", "1m"}:                   {"auth.throttle.max_delay": "1m", "auth.throttle.lock": "1m"},
	{"auth.throttle.address_burst", "1000000"}:       {"auth.throttle.prefix_burst": "1000000"},
	{"auth.throttle.address_per_minute", "1000000"}:  {"auth.throttle.prefix_per_minute": "1000000"},
	{"auth.throttle.prefix_burst", "1"}:              {"auth.throttle.address_burst": "1"},
	{"auth.throttle.prefix_per_minute", "1"}:         {"auth.throttle.address_per_minute": "1"},
	{"auth.password.argon2_memory_mib", "256"}:       {"auth.password.algorithm": "argon2id"},
	{"auth.password.argon2_memory_mib", "7"}:         {"auth.password.algorithm": "argon2id"},
	{"auth.password.argon2_time", "16"}:              {"auth.password.algorithm": "argon2id"},
	{"auth.password.argon2_threads", "16"}:           {"auth.password.algorithm": "argon2id"},
	{"kafka.sasl.mechanism", "plain"}:                {"kafka.sasl.user": "u"},
	{"kafka.sasl.mechanism", "scram-sha-256"}:        {"kafka.sasl.user": "u"},
	{"kafka.sasl.mechanism", "scram-sha-512"}:        {"kafka.sasl.user": "u"},
	{"auth.session_max_age", "1s"}:                   {},
	{"auth.throttle.register_per_minute", "1000000"}: {},
}

// named are the settings that say where something is, or what is asked of somebody else's server:
// their values are taken, and the test has no server there.
var named = []string{"app.port", "db.postgres.port", "cache.redis.port", "db.postgres.sslmode",
	"kafka.sasl.mechanism", "kafka.replication_factor", "kafka.partitions"}

// slow are ends at which one hash takes longer than a test may. What becomes of them is in
// testdata/script/slow_hash.txtar.
var slow = []end{{"auth.password.bcrypt_cost", "20"}}

// TestTheServiceWorksAtBothEndsOfEverySetting starts the binary at each end and does what people
// do: somebody registers, a stranger guesses, the owner signs in, refreshes and looks; the event
// arrives; the service stops in order.
func TestTheServiceWorksAtBothEndsOfEverySetting(t *testing.T) {
	t.Parallel()
	tried := map[string]bool{}
	for _, e := range ends() {
		tried[e.path] = true
		t.Run(e.String(), func(t *testing.T) {
			t.Parallel()
			w := ranged{t: t, end: e, dir: t.TempDir(), set: map[string]string{
				"app.port": "0", "app.host": "127.0.0.1", "app.operator_addr": "off", "auth.password.bcrypt_cost": "4",
				"app.data_dir": "data",
			}}
			w.env = []string{"AUTH_TOKEN_SECRET=0123456789abcdefghijklmnopqrstuvwxyzABCD", "KAFKA_SASL_PASSWORD=x"}
			w.set[e.path] = e.value
			maps.Copy(w.set, along[e])
			var s settings
			if err := config.Load(&s, config.Options{File: os.DevNull, Environ: w.env, Override: w.set}); err != nil {
				t.Fatalf("it is refused: %v", err)
			}
			if slices.Contains(named, e.path) || slices.Contains(slow, e) {
				return
			}
			w.withServers()
		})
	}
	for _, key := range config.Keys(&settings{}) {
		if (key.Min != "" || key.Max != "" || key.OneOf != nil) && !tried[key.Path] {
			t.Errorf("%s was not tried", key.Path)
		}
	}
}

// ranged is the service at an end of a setting.
type ranged struct {
	t   *testing.T
	end end
	dir string
	set map[string]string
	env []string
}

// withServers runs the service with the servers that the setting is about.
func (w ranged) withServers() {
	w.t.Helper()
	group, _, _ := strings.Cut(w.end.path, ".")
	switch group {
	case "database", "outbox":
		if os.Getenv("AUTHCTL_TEST_POSTGRES") != "" {
			other := w
			other.dir = w.t.TempDir()
			other.env = append(slices.Clone(w.env), "DATABASE_URL="+dbtest.PostgresURL(w.t))
			other.doesItsWork()
		}
	case "redis", "cache":
		server := cachetest.Start(w.t, "--databases", "1024")
		if w.end.path == "cache.redis.db" {
			w.set["cache.redis.host"], w.set["cache.redis.port"] = "127.0.0.1", server.Port()
		} else {
			w.env = append(w.env, "REDIS_URL="+server.URL())
		}
	case "kafka":
		if os.Getenv("AUTHCTL_TEST_KAFKA") == "" {
			w.t.Skip("no Kafka")
		}
		w.set["kafka.brokers"], w.set["kafka.topic"], w.set["kafka.partitions"] = os.Getenv("AUTHCTL_TEST_KAFKA"), "ranges-"+uuid.NewString(), "2"
	}
	w.doesItsWork()
}

func (w ranged) doesItsWork() {
	w.t.Helper()
	line := []string{"serve"}
	for _, path := range slices.Sorted(maps.Keys(w.set)) {
		line = append(line, "--set", path+"="+w.set[path])
	}
	// The log tells the port, and in dev mode the console does whatever the level is.
	log := filepath.Join(w.dir, "authctl.log")
	line = append(line, "--set", "log.path="+log)
	program, err := exec.LookPath("authctl")
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(program, line...)
	var console background
	cmd.Dir, cmd.Env, cmd.Stderr = w.dir, append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + w.dir},
		w.env...), &console
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	w.t.Cleanup(func() { _ = cmd.Process.Kill() })
	said := func() string {
		text, _ := os.ReadFile(log)
		return console.String() + string(text)
	}
	port := regexp.MustCompile(`"port":(\d+)|http://localhost:(\d+)/api/v1/auth`)
	if !poll(func() bool { return port.MatchString(said()) || len(ended) > 0 }) || len(ended) > 0 {
		w.t.Fatalf("it does not serve:\n%s", said())
	}
	found := port.FindStringSubmatch(said())
	base := "http://127.0.0.1:" + found[1] + found[2]

	n := 0
	var last error
	if !poll(func() bool {
		n++
		last = peopleDo(w.t.Context(), base, fmt.Sprintf("user%d", n), w.set["auth.registration"] == "closed")
		return last == nil
	}) {
		w.t.Fatalf("%v\n%s", last, said())
	}
	if w.set["kafka.brokers"] == "" && w.set["outbox.relay"] != "off" && w.set["auth.registration"] != "closed" &&
		!poll(func() bool {
			text, _ := os.ReadFile(filepath.Join(w.dir, "data", "events.ndjson"))
			return bytes.Contains(text, []byte("auth.UserRegistered.v1"))
		}) {
		w.t.Errorf("no event arrives:\n%s", said())
	}
	want := "0"
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if w.set["app.drain_delay"] == "5m" { // in which it still serves; a second signal cuts it short
		if !poll(func() bool {
			return ask(w.t.Context(), base+"/readyz") == 503 && ask(w.t.Context(), base+"/healthz") == 200
		}) {
			w.t.Errorf("it does not serve while it drains:\n%s", said())
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		want = "TERM"
	}
	select {
	case err := <-ended:
		if got := outcome(err); got != want {
			w.t.Errorf("it ends with %s, want %s:\n%s", got, want, said())
		}
	case <-time.After(testenv.Patience):
		w.t.Fatalf("it does not end:\n%s", said())
	}
	if text := said(); strings.Contains(text, "panic") || strings.Contains(text, `"level":"error"`) {
		w.t.Errorf("it says:\n%s", text)
	}
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

// peopleDo does once what people do. Times and limits may be so short that it fails: then it is
// tried again, and has to work now and then.
func peopleDo(ctx context.Context, base, name string, closed bool) error {
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
	status := 201
	if closed {
		status = 403
	}
	if _, err := call(status, "POST", "/api/v1/auth/register", "", map[string]string{"username": name,
		"password": password}); err != nil {
		return err
	}
	// A stranger's first guess, at a name that is nobody's.
	if _, err := call(401, "POST", "/api/v1/auth/login", "", map[string]string{"username": "nobody." + name,
		"password": password}); err != nil || closed {
		return err
	}
	signed, err := call(200, "POST", "/api/v1/auth/login", "", map[string]string{"username": name, "password": password})
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
