package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/testenv"
)

// api is a server under test, as its clients see it.
type api struct {
	t    *testing.T
	base string
}

// call sends a request and returns status and body. It has no timeout, because only the answer
// matters.
func (a api) call(method, path, token string, body any) (status int, retryAfter string, answer map[string]any) {
	a.t.Helper()
	var text io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			a.t.Fatal(err)
		}
		text = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(a.t.Context(), method, a.base+path, text)
	if err != nil {
		a.t.Fatal(err)
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		a.t.Fatal(err)
	}
	defer response.Body.Close()
	_ = json.NewDecoder(response.Body).Decode(&answer)
	return response.StatusCode, response.Header.Get("Retry-After"), answer
}

// tooLate matches the record of an answer that did not come in time, as happens on a busy machine.
var tooLate = regexp.MustCompile(`i/o timeout|deadline exceeded|has not answered`)

// becomesReady waits for it: on a busy machine a probe may take longer than it may.
func (a api) becomesReady() {
	a.t.Helper()
	if !poll(func() bool { status, _, _ := a.call("GET", "/readyz", "", nil); return status == 200 }) {
		a.t.Error("it is not ready")
	}
}

const goodPassword = "correct horse battery staple"

func (a api) want(status int, method, path, token string, body any) map[string]any {
	a.t.Helper()
	got, _, answer := a.call(method, path, token, body)
	if got != status {
		a.t.Fatalf("%s %s: %d %v, want %d", method, path, got, answer, status)
	}
	return answer
}

// serveOn starts the service in a folder of its own, with settings as key=value.
func serveOn(t *testing.T, set ...string) (api, *background) {
	t.Helper()
	t.Chdir(t.TempDir())
	t.Setenv("AUTH_PASSWORD_BCRYPT_COST", "4") // for commands as well
	line := []string{"serve", "--port", "0", "--set", "app.host=127.0.0.1", "--set", "app.operator_addr=127.0.0.1:0"}
	for _, pair := range set {
		line = append(line, "--set", pair)
	}
	server := runInBackground(t, line...)
	return api{t, "http://127.0.0.1:" + server.await(t, `"port": (\d+)`)}, server
}

func TestTheServiceNeedsOfRedisWhatIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	testenv.Must(t, err)
	rights := regexp.MustCompile(`ACL SETUSER authctl on >PASSWORD resetchannels ((?s).*?)\n` +
		"```").FindSubmatch(text)
	if rights == nil {
		t.Fatal("docs/operations.md does not say which rights a Redis user needs")
	}
	server := cachetest.Start(t)
	admin := cachetest.Open(t, server.URL())
	words := []any{"ACL", "SETUSER", "authctl", "on", ">secret", "resetchannels"}
	for word := range strings.FieldsSeq(strings.ReplaceAll(string(rights[1]), "\\\n", " ")) {
		if word != "+client|setname" && word != "+info" { // which are not needed
			words = append(words, word)
		}
	}
	testenv.Must(t, admin.Do(t.Context(), words...).Err())
	t.Setenv("REDIS_URL", strings.Replace(server.URL(), "redis://", "redis://authctl:secret@", 1))
	a, said := serveOn(t, "auth.throttle.register_per_minute=100")

	alice := map[string]string{"username": "alice", "password": goodPassword}
	first := a.want(201, "POST", "/api/v1/auth/register", "", alice)
	for range 3 {
		a.want(401, "POST", "/api/v1/auth/login", "", map[string]string{"username": "alice",
			"password": "wrong horse battery"})
	}
	second := a.want(200, "POST", "/api/v1/auth/login", "", alice)
	token := first["access_token"].(string)
	for range 3 {
		first = a.want(200, "POST", "/api/v1/auth/refresh", "", map[string]any{"refresh_token": first["refresh_token"]})
	}
	a.want(200, "GET", "/api/v1/auth/me", token, nil)
	a.want(200, "GET", "/api/v1/auth/sessions", token, nil)
	a.want(204, "DELETE", "/api/v1/auth/sessions/"+second["session_id"].(string), token, nil)
	changed := a.want(200, "POST", "/api/v1/auth/password", token, map[string]string{"current_password": goodPassword,
		"new_password": "another horse battery staple"})
	a.want(204, "POST", "/api/v1/auth/logout", changed["access_token"].(string), nil)
	a.becomesReady()
	for _, line := range []string{"session list", "session revoke --user alice", "user unlock alice", "user show alice",
		"doctor"} {
		var out bytes.Buffer
		if code := run(t.Context(), strings.Fields(line), strings.NewReader(""), &out, &out); code != exitDone {
			t.Errorf("%s: exit %d: %s", line, code, &out)
		}
	}
	said.stop()
	for line := range strings.Lines(said.String()) {
		if strings.Contains(line, "NOPERM") && !strings.Contains(line, "redis_settings_unknown") ||
			strings.Contains(line, "throttle_redis_away") && !tooLate.MatchString(line) {
			t.Errorf("something was denied: %s", line)
		}
	}
	keys, err := admin.Keys(t.Context(), "*").Result()
	if err != nil || len(keys) == 0 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	for _, key := range keys {
		if !strings.HasPrefix(key, "authctl:") {
			t.Errorf("the key %s", key)
		}
	}
}

func TestARedisThatTakesNoWritesIsNotReadyAndNobodysMistake(t *testing.T) {
	server := cachetest.Start(t)
	admin := cachetest.Open(t, server.URL())
	t.Setenv("REDIS_URL", server.URL())
	a, _ := serveOn(t)
	alice := map[string]string{"username": "alice", "password": goodPassword}
	signed := a.want(201, "POST", "/api/v1/auth/register", "", alice)
	for name, change := range map[string]struct{ on, off []any }{
		"too few replicas": {[]any{"CONFIG", "SET", "min-replicas-to-write", "1"}, []any{"CONFIG", "SET",
			"min-replicas-to-write", "0"}},
		"no memory": {[]any{"CONFIG", "SET", "maxmemory", "1"}, []any{"CONFIG", "SET", "maxmemory", "0"}},
		// The primary is stopped and keeps its data.
		"a replica": {[]any{"REPLICAOF", "127.0.0.1", "1"}, []any{"REPLICAOF", "NO", "ONE"}},
		"no rights": {[]any{"ACL", "SETUSER", "default", "-time"}, []any{"ACL", "SETUSER", "default", "+time"}},
		"no keys": {[]any{"ACL", "SETUSER", "default", "resetkeys", "~x"}, []any{"ACL", "SETUSER", "default",
			"allkeys"}},
		"no scripts": {[]any{"ACL", "SETUSER", "default", "-@scripting"}, []any{"ACL", "SETUSER", "default",
			"+@scripting"}},
	} {
		do(t, admin, change.on)
		if !poll(func() bool { status, _, _ := a.call("GET", "/readyz", "", nil); return status == 503 }) {
			t.Errorf("%s: ready", name)
		}
		for what, request := range map[string]struct {
			path string
			body any
		}{
			"sign-in": {"/api/v1/auth/login", alice},
			"refresh": {"/api/v1/auth/refresh", map[string]any{"refresh_token": signed["refresh_token"]}},
			"registration": {"/api/v1/auth/register",
				map[string]string{"username": "x" + time.Now().Format("150405.000000000"), "password": goodPassword}},
		} {
			status, after, answer := a.call("POST", request.path, "", request.body)
			if name == "no memory" && status/100 == 2 {
				if what == "refresh" {
					signed = answer
				}
				continue // a script that has begun to write may go on
			}
			if status != 503 || after == "" {
				t.Errorf("%s: %s answers %d, Retry-After %q: %v", name, what, status, after, answer)
			}
		}
		do(t, admin, change.off)
		if !poll(func() bool { status, _, _ := a.call("GET", "/readyz", "", nil); return status == 200 }) {
			t.Fatalf("%s: not ready again", name)
		}
		signed = a.want(200, "POST", "/api/v1/auth/refresh", "",
			map[string]any{"refresh_token": signed["refresh_token"]})
	}
}

func do(t *testing.T, client *redis.Client, words []any) {
	t.Helper()
	if err := client.Do(t.Context(), words...).Err(); err != nil {
		t.Fatalf("%v: %v", words, err)
	}
}

func TestServeRefusesARedisThatCannotBeTheRightOne(t *testing.T) {
	t.Chdir(t.TempDir())
	node := cachetest.Start(t, "--cluster-enabled", "yes")
	locked := cachetest.Start(t, "--requirepass", "right")
	for name, tc := range map[string]struct{ url, want string }{
		"a cluster": {node.URL(), "its cluster mode is on: this server is a node of a cluster"},
		"a wrong password": {strings.Replace(locked.URL(), "redis://", "redis://:wrong@", 1),
			"the user or the password is wrong: set CACHE_REDIS_PASSWORD"},
		"nothing": {"redis://127.0.0.1:1", "nothing listens there: start Redis, or name another one with REDIS_URL"},
	} {
		t.Setenv("REDIS_URL", tc.url)
		var out bytes.Buffer
		code := run(t.Context(), []string{"serve", "--port", "0", "--set", "app.operator_addr=off"}, nil, io.Discard,
			&out)
		if code != exitFailed || !strings.Contains(out.String(), tc.want) {
			t.Errorf("%s: exit %d: %s", name, code, &out)
		}
		out.Reset()
		code = run(t.Context(), []string{"doctor", "--set", "auth.password.bcrypt_cost=4"}, nil, &out, io.Discard)
		advice := tc.want[strings.Index(tc.want, ": ")+2:]
		if code != exitFailed ||
			!regexp.MustCompile(`(?m)^fail +redis .*— .*`+regexp.QuoteMeta(advice)).MatchString(out.String()) &&
				!strings.Contains(out.String(), tc.want) {
			t.Errorf("%s: doctor exits %d: %s", name, code, &out)
		}
	}
}

// Everything works with several Redis servers, and goes on when one of them fails.
func TestTheServiceRunsOnSentinelsAndOnACluster(t *testing.T) {
	cluster, watched := cachetest.StartCluster(t), cachetest.StartWatched(t)
	for _, tc := range []struct {
		name, url string
		trouble   func() (end func()) // that doctor names
		want      string
		fail      func()
	}{
		{"cluster", cluster.URL(), func() (end func()) {
			return cluster.Move(0, cluster.Primaries[0], cluster.Primaries[1])
		}, ": a slot is being moved.* — .*redis-cli --cluster fix", cluster.Primaries[0].Kill},
		{"Sentinel", watched.URL(), func() (end func()) { return func() {} }, "", watched.Primary.Kill},
	} {
		t.Setenv("REDIS_URL", tc.url)
		a, _ := serveOn(t, "auth.throttle.register_per_minute=100", "auth.refresh_grace=60s") // answers may be lost
		var tokens []map[string]any
		for i := range 12 {
			tokens = append(tokens, a.want(201, "POST", "/api/v1/auth/register", "", map[string]string{
				"username": fmt.Sprint("alice", i), "password": goodPassword}))
		}
		for _, command := range [][2]string{
			{"session list -o json", `"id"`},
			{"session revoke --user alice11", "ended"},
			{"user unlock alice1", ""},
			{"doctor", "append-only file is off"},
		} {
			line, want := command[0], command[1]
			var out bytes.Buffer
			if code := run(t.Context(), strings.Fields(line), strings.NewReader(""), &out, &out); code != exitDone ||
				!strings.Contains(out.String(), want) {
				t.Errorf("%s: %s: exit %d: %s", tc.name, line, code, &out)
			}
			if n := strings.Count(out.String(), `"device_name"`); strings.Contains(line, "list") && n != len(tokens) {
				t.Errorf("%s: %d of %d sessions are listed", tc.name, n, len(tokens))
			}
		}
		end := tc.trouble()
		var out bytes.Buffer
		if code := run(t.Context(), []string{"doctor"}, nil, &out, io.Discard); code != exitDone ||
			!regexp.MustCompile(tc.want).MatchString(out.String()) {
			t.Errorf("%s: doctor does not say %q, exit %d: %s", tc.name, tc.want, code, &out)
		}
		end()
		tc.fail()
		for i, token := range tokens[:11] {
			if !poll(func() bool {
				status, after, answer := a.call("POST", "/api/v1/auth/refresh", "",
					map[string]any{"refresh_token": token["refresh_token"]})
				if status != 200 && (status != 503 || after == "") {
					t.Fatalf("%s: refresh %d answers %d %v", tc.name, i, status, answer)
				}
				return status == 200
			}) {
				t.Errorf("%s: refresh %d has no answer", tc.name, i)
			}
		}
		a.becomesReady()
		a.want(401, "POST", "/api/v1/auth/refresh", "", map[string]any{"refresh_token": tokens[11]["refresh_token"]})
	}
}

// One node of a cluster is down and has no replica. Commands that only need the database work.
// Those that need every session say that they cannot see them all. Ended sessions stay ended.
func TestCommandsWhileAPartOfTheClusterIsAway(t *testing.T) {
	cluster := cachetest.StartCluster(t, "--cluster-require-full-coverage", "no", "--cluster-allow-reads-when-down",
		"yes")
	t.Setenv("REDIS_URL", cluster.URL())
	a, _ := serveOn(t, "auth.throttle.register_per_minute=100")
	var tokens []map[string]any
	for i := range 12 {
		tokens = append(tokens, a.want(201, "POST", "/api/v1/auth/register", "", map[string]string{
			"username": fmt.Sprint("alice", i), "password": goodPassword}))
	}
	command := func(line string) (code int, out string) {
		var all bytes.Buffer
		code = run(t.Context(), strings.Fields(line), strings.NewReader(""), &all, &all)
		return code, all.String()
	}
	cluster.Replicas[0].Kill()
	cluster.Primaries[0].Kill()
	node := "127.0.0.1:" + cluster.Primaries[0].Port()

	unknown := 0
	for i := range tokens {
		code, out := command(fmt.Sprint("user show alice", i))
		if !strings.Contains(out, "password changed") {
			t.Errorf("what the database knows of alice%d is not shown: %s", i, out)
		}
		if code == exitFailed && strings.Contains(out, node) &&
			regexp.MustCompile(`sessions +unknown`).MatchString(out) {
			unknown++
		} else if code != exitDone && !strings.Contains(out, "unknown") { // the counters may be lost too
			t.Errorf("show alice%d: exit %d: %s", i, code, out)
		}
	}
	if unknown == 0 {
		t.Error("no account has its sessions on the lost node")
	}

	ended := []string{"user disable alice0"}
	for i := 1; i < 11; i++ { // including accounts with sessions on the lost node
		ended = append(ended, fmt.Sprint("session revoke --user alice", i))
	}
	for _, line := range ended {
		if code, out := command(line); code != exitDone {
			t.Errorf("%s: exit %d: %s", line, code, out)
		}
	}
	for i, token := range tokens[:11] {
		if status, _, answer := a.call("GET", "/api/v1/auth/me", token["access_token"].(string), nil); status != 401 {
			t.Errorf("the session of alice%d goes on: %d %v", i, status, answer)
		}
	}
	a.want(200, "GET", "/api/v1/auth/me", tokens[11]["access_token"].(string), nil)
	for line, want := range map[string]struct {
		code int
		text string
	}{
		"session list":                        {exitFailed, node},
		"session revoke --ip 127.0.0.1 --yes": {exitFailed, node},
		"doctor":                              {exitFailed, node},
		"outbox status":                       {exitDone, ""},
		"key stage":                           {exitDone, ""},
		"session revoke --all --yes":          {exitDone, "ended"},
	} {
		if code, out := command(line); code != want.code || !strings.Contains(out, want.text) {
			t.Errorf("%s: exit %d, want %d and %q: %s", line, code, want.code, want.text, out)
		}
	}
	a.want(401, "GET", "/api/v1/auth/me", tokens[11]["access_token"].(string), nil)
	a.becomesReady()
	cluster.Primaries[0].Restart()
	if !poll(func() bool { code, _ := command("session list"); return code == exitDone }) {
		t.Error("sessions are not listed when the node is back")
	}
	// Sessions that come back with the node stay ended.
	for i, token := range tokens {
		body := map[string]any{"refresh_token": token["refresh_token"]}
		if !poll(func() bool {
			status, _, answer := a.call("POST", "/api/v1/auth/refresh", "", body)
			if status != 401 && status != 503 {
				t.Fatalf("refresh %d answers %d %v", i, status, answer)
			}
			return status == 401
		}) {
			t.Errorf("refresh %d is not refused", i)
		}
	}
}
