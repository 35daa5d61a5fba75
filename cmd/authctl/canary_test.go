package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// TestPlantedSecretsAppearNowhere gives the binary unique secrets of every kind, makes it do
// everything that it can do, and searches everything that it leaves for them.
func TestPlantedSecretsAppearNowhere(t *testing.T) {
	t.Parallel()
	t.Run("dev", func(t *testing.T) {
		t.Parallel()
		f := newPlanting(t)
		f.env = append(f.env, "APP_MODE=dev", "AUTH_PASSWORD_BCRYPT_COST=4")
		f.searchAll(func(add func(place, text string)) {
			// the server has folded the -wal into it
			add("authctl.db", readFile(t, filepath.Join(f.dir, "data", "authctl.db")))
		})
	})
	t.Run("prod", func(t *testing.T) {
		t.Parallel()
		testenv.Redis(t)
		f := newPlanting(t)
		open := dbtest.PostgresURL(t)
		server := cachetest.Start(t)
		client := cachetest.Open(t, server.URL())
		password := f.plant("redis-password")
		testenv.Must(t, client.ConfigSet(t.Context(), "requirepass", password).Err())
		f.env = append(f.env, "APP_MODE=prod", "AUTH_TOKEN_ISSUER=https://auth.test", "AUTH_PASSWORD_BCRYPT_COST=10",
			"AUTH_TOKEN_ALGORITHM=EdDSA",
			"DATABASE_URL="+dbtest.AsUser(t, open, f.plant("database-password")), "CACHE_REDIS_HOST=127.0.0.1",
			"CACHE_REDIS_PORT="+server.Port(), "CACHE_REDIS_PASSWORD="+password,
			"MAIL_URL=smtp://canary:"+f.plant("mail-password")+"@127.0.0.1:1", "MAIL_FROM=no-reply@auth.test")
		f.searchAll(func(add func(place, text string)) {
			add("the database", dumpPostgres(t, open))
			add("Redis", dumpRedis(t, cachetest.Open(t, "redis://:"+password+"@127.0.0.1:"+server.Port())))
		})
	})
}

// K7 of contacts: codes and links that let somebody in by mail are stored in no engine. In dev mode
// mails become files, and the test reads the codes and links from those.
func TestCodesAndLinksOfMailsAreInNoEngine(t *testing.T) {
	t.Parallel()
	testenv.Redis(t)
	brokers, open := testenv.Kafka(t), dbtest.PostgresURL(t)
	topic := "canary-" + rand.Text()
	redisServer := cachetest.Start(t)
	f := newPlanting(t)
	f.env = append(f.env, "APP_MODE=dev", "AUTH_PASSWORD_BCRYPT_COST=4", "DATABASE_URL="+open,
		"CACHE_REDIS_HOST=127.0.0.1",
		"CACHE_REDIS_PORT="+redisServer.Port(), "KAFKA_BROKERS="+brokers, "KAFKA_TOPIC="+topic, "KAFKA_PARTITIONS=3",
		"OUTBOX_RELAY=inline")
	f.command("", "migrate", "up")
	server := f.serve()
	f.useTheMails()
	haystack := map[string]string{}
	read := func() string {
		var all strings.Builder
		records, err := outboxtest.ReadRecords(t.Context(), strings.Split(brokers, ","), topic)
		if err != nil {
			return "" // the file is not there yet
		}
		for _, r := range records {
			fmt.Fprintf(&all, "%s %s\n", r.Key, r.Value)
			for _, h := range r.Headers {
				fmt.Fprintf(&all, "%s %s\n", h.Key, h.Value)
			}
		}
		return all.String()
	}
	if !poll(func() bool {
		haystack["Kafka"] = read()
		return strings.Contains(haystack["Kafka"], `"by":"undo"`)
	}) {
		t.Fatalf("the last event is not in Kafka: %.2000s", haystack["Kafka"])
	}
	haystack["the database"] = dumpPostgres(t, open)
	haystack["Redis"] = dumpRedis(t, cachetest.Open(t, redisServer.URL()))
	haystack["metrics"] = f.get(f.operator() + "/metrics")
	testenv.Must(t, server.Process.Signal(syscall.SIGTERM))
	_ = server.Wait()
	haystack["the log file"] = readFile(t, filepath.Join(f.dir, "log", "authctl.log"))
	for place, known := range map[string]string{"Kafka": "contact.Verified.v1",
		"the database": "mail-canary@example.org",
		"Redis":        "authctl:", "metrics": `authctl_contact_answers_total{outcome="code",purpose="reset"} 1`,
		"the log file": "mail_sent"} {
		if !strings.Contains(haystack[place], known) {
			t.Errorf("the search of %s is wrong: no %q in %.2000s", place, known, haystack[place])
		}
	}
	if f.secrets["code to reset"] == "" || f.secrets["secret of the link to notice_password"] == "" {
		t.Errorf("codes and links are missing among %d secrets", len(f.secrets))
	}
	f.searched(haystack)
}

// planting is a folder in which authctl runs, with the secrets planted there and the places to
// search.
type planting struct {
	t       *testing.T
	dir     string
	env     []string
	base    string
	device  string            // token of a known device
	secrets map[string]string // keyed by what the secret is
	outputs map[string]string // the output of commands
}

func newPlanting(t *testing.T) *planting {
	f := &planting{t: t, dir: t.TempDir(), secrets: map[string]string{}, outputs: map[string]string{}}
	digest := sha256.Sum256([]byte(f.plant("client-secret")))
	f.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + f.dir, "GORACE=" + os.Getenv("GORACE"), "APP_AUTOGROUP_NICE=0",
		"APP_HOST=127.0.0.1", "APP_PORT=0", "APP_OPERATOR_ADDR=127.0.0.1:0",
		"APP_HTTP_REQUEST_TIMEOUT=2m", // the hash waits for the compilers of other tests
		"LOG_LEVEL=debug", "LOG_PATH=" + filepath.Join(f.dir, "log", "authctl.log"),
		"AUTH_TOKEN_SECRET=" + f.plant("token-secret"), "AUTH_CLIENTS=client:" + hex.EncodeToString(digest[:]),
	}
	return f
}

// plant makes a secret that occurs nowhere by chance.
func (f *planting) plant(what string) string {
	raw := make([]byte, 20)
	_, _ = rand.Read(raw)
	f.secrets[what] = "canary-" + hex.EncodeToString(raw)
	return f.secrets[what]
}

// searchAll makes the binary do everything, and searches what store adds and all other places for
// the secrets.
func (f *planting) searchAll(store func(add func(place, text string))) {
	t := f.t
	if slices.Contains(f.env, "APP_MODE=prod") {
		f.command("", "migrate", "up")
	}
	server := f.serve()
	f.useTheAPI()
	f.useTheMails()
	f.useTheCommands()
	f.failToReachBackends()

	// A check that takes longer than a second has failed, which the report shows too.
	poll(func() bool { return ask(t.Context(), f.operator()+"/readyz") == http.StatusOK })
	haystack := map[string]string{
		"arguments": readFile(t, fmt.Sprintf("/proc/%d/cmdline", server.Process.Pid)),
		"metrics":   f.get(f.operator() + "/metrics"),
		"readiness": f.get(f.operator() + "/readyz"),
		"stacks":    f.get(f.operator() + "/debug/pprof/goroutine?debug=2"),
	}
	// After the stop everything has been written, so the log is complete.
	testenv.Must(t, server.Process.Signal(syscall.SIGTERM))
	_ = server.Wait()
	haystack["the log file"] = readFile(t, filepath.Join(f.dir, "log", "authctl.log"))
	haystack["the console"] = readFile(t, filepath.Join(f.dir, "serve.out"))
	haystack["events"] = readFile(t, filepath.Join(f.dir, "data", "events.ndjson"))
	for name, output := range f.outputs {
		haystack["authctl "+name] = output
	}
	store(func(place, text string) { haystack[place] = text })

	// A search that cannot find anything proves nothing.
	for place, known := range map[string]string{
		"the log file": `"route":"/api/v1/auth/login"`, "events": "auth.UserLoggedIn.v1",
		"metrics": "authctl_password_hash_seconds",
		"stacks":  "goroutine ", "arguments": "serve", "authctl user list": "user-canary",
		"authctl config show": "AUTH_TOKEN_SECRET",
		"the console":         "", "authctl.db": "user-canary", "the database": "user-canary", "Redis": "device-canary",
	} {
		if text, searched := haystack[place]; searched && !strings.Contains(text, known) {
			t.Errorf("the search of %s is wrong: no %q in %d bytes", place, known, len(text))
		}
	}
	if len(f.secrets) < 12 {
		t.Errorf("only %d secrets were planted", len(f.secrets))
	}
	f.searched(haystack)
}

// searched fails the test if any place contains a secret.
func (f *planting) searched(haystack map[string]string) {
	for what, secret := range f.secrets {
		for form, needle := range forms(secret) {
			for place, text := range haystack {
				if strings.Contains(text, needle) {
					f.t.Errorf("the %s, %s, is in %s", what, form, place)
				}
			}
		}
	}
}

// forms are the ways in which a secret may be written.
func forms(secret string) map[string]string {
	return map[string]string{
		"as it is": secret, "in base64": base64.RawStdEncoding.EncodeToString([]byte(secret)),
		"in hexadecimal": hex.EncodeToString([]byte(secret)),
		"escaped":        url.QueryEscape(secret),
	}
}

// serve starts the server and waits until it says its address.
func (f *planting) serve() *exec.Cmd {
	t := f.t
	cmd := f.prepare("serve")
	out, err := os.Create(filepath.Join(f.dir, "serve.out"))
	testenv.Must(t, err)
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	testenv.Must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	f.base = "http://127.0.0.1:" + f.logged(`"msg":"serving","port":(\d+)`)
	return cmd
}

func (f *planting) operator() string {
	return "http://" + f.logged(`"operator_addr":"([^"]+)"`)
}

// logged waits for something in the log file.
func (f *planting) logged(pattern string) string {
	f.t.Helper()
	want := regexp.MustCompile(pattern)
	var found []string
	if !poll(func() bool {
		text, _ := os.ReadFile(filepath.Join(f.dir, "log", "authctl.log"))
		found = want.FindStringSubmatch(string(text))
		return found != nil
	}) {
		text, _ := os.ReadFile(filepath.Join(f.dir, "serve.out"))
		f.t.Fatalf("the log has no %s; the console:\n%s", pattern, text)
	}
	return found[1]
}

func (f *planting) prepare(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(f.t.Context(), "authctl", args...)
	cmd.Dir, cmd.Env = f.dir, f.env
	return cmd
}

// command runs authctl, keeps what it says, and returns that.
func (f *planting) command(stdin string, args ...string) string {
	cmd := f.prepare(args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	name := strings.Join(args, " ")
	f.outputs[name] += string(out)
	if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
		f.t.Fatalf("authctl %s: %v", name, err)
	}
	return string(out)
}

func (f *planting) get(url string) string {
	f.t.Helper()
	status, body, _ := f.send("GET", url, "", nil)
	if status != http.StatusOK {
		f.t.Errorf("%s: %d", url, status)
	}
	return body
}

// send sends a request and returns status, body and headers.
func (f *planting) send(method, target, body string, header map[string]string) (int, string, http.Header) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	if strings.HasPrefix(target, "/") {
		target = f.base + target
	}
	req, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for name, value := range header {
		req.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return response.StatusCode, string(text), response.Header
}

// signIn registers or signs in, and plants the tokens of the answer.
func (f *planting) signIn(what, path, name, password string) (access, refresh string) {
	f.t.Helper()
	body, err := json.Marshal(map[string]string{"username": name, "password": password, "device_name": "device-canary"})
	if err != nil {
		f.t.Fatal(err)
	}
	status, answer, header := f.send("POST", path, string(body), map[string]string{"Auth-Device": f.device})
	if status/100 != 2 {
		f.t.Fatalf("%s: %d %s", path, status, answer)
	}
	f.device = header.Get("Auth-Device")
	f.secrets["device token of "+what] = f.device
	return f.tokens(what, answer)
}

func (f *planting) tokens(what, answer string) (access, refresh string) {
	f.t.Helper()
	var t struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
	}
	if err := json.Unmarshal([]byte(answer), &t); err != nil || t.Access == "" || t.Refresh == "" {
		f.t.Fatalf("%s: no tokens in %s", what, answer)
	}
	f.secrets["access token of "+what], f.secrets["refresh token of "+what] = t.Access, t.Refresh
	// The secret part alone: the 32 bytes before the MAC of 16.
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(t.Refresh, "art_"))
	if err != nil || len(raw) < 64 {
		f.t.Fatalf("%s: the refresh token is not as expected: %v", what, err)
	}
	f.secrets["secret of the refresh token of "+what] = string(raw[len(raw)-48 : len(raw)-16])
	return t.Access, t.Refresh
}

// useTheAPI calls every route, rightly and wrongly.
func (f *planting) useTheAPI() {
	const login, register = "/api/v1/auth/login", "/api/v1/auth/register"
	password, next, wrong := f.plant("password"), f.plant("next-password"), f.plant("wrong-password")
	access, refresh := f.signIn("registering", register, "user-canary", password)
	second, _ := f.signIn("signing in", login, "user-canary", password)
	bearer := func(token string) map[string]string { return map[string]string{"Authorization": "Bearer " + token} }
	with := func(pairs ...string) string {
		m := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		text, _ := json.Marshal(m)
		return string(text)
	}

	// Passwords and tokens go everywhere that a careless client may put them.
	for _, body := range []string{
		with("username", "user-canary", "password", wrong), with("username", "nobody-canary", "password", wrong),
		`{"username":"user-canary","password":"` + wrong + `","password":"` + wrong + `"}`,
		`{"username":"user-canary","password":["` + wrong + `"]}`,
		`{"username":"user-canary","Password":"` + wrong + `"}`,
		`{"username":"user-canary","password":"` + wrong, wrong, "[" + strings.Repeat("[", 100) + `"` + wrong + `"`,
		`{"username":"user-canary","password":"` + wrong + "\xff\"}", `{"username":"user-canary","password":"` + wrong +
			`\u0000"}`,
		with("username", "user-canary", "password", wrong+strings.Repeat("x", 20_000)),
	} {
		for _, path := range []string{login, register, "/api/v1/auth/refresh", "/api/v1/auth/logout"} {
			f.send("POST", path, body, nil)
		}
		f.send("DELETE", "/api/v1/auth/me", body, bearer(access))
		f.send("POST", "/api/v1/auth/password", body, bearer(access))
	}
	f.send("POST", login, "username=user-canary&password="+wrong,
		map[string]string{"Content-Type": "application/x-www-form-urlencoded"})
	for n, header := range []map[string]string{
		bearer(wrong), bearer(access + "x"), bearer("x." + access), {"Authorization": wrong},
		{"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte("user-canary:"+wrong))},
		{"Auth-Device": wrong}, {"Cookie": "authctl_device=" + wrong + "; session=" +
			refresh}, {"X-Forwarded-For": wrong},
		{"Origin": "https://" + wrong},
		{"X-Api-Key": wrong},
	} {
		f.send("GET", "/api/v1/auth/me?access_token="+access+"&password="+wrong, "", header)
		// A new name each time: after a few guesses the service refuses a name without comparing.
		name := fmt.Sprint("nobody-canary-", n)
		f.send("POST", login, with("username", name, "password", wrong), header)
	}
	for _, text := range []string{wrong, refresh + "x", "art_" + wrong, access} {
		f.send("POST", "/api/v1/auth/refresh", with("refresh_token", text), nil)
		f.send("POST", "/api/v1/auth/logout", with("refresh_token", text), nil)
	}

	// The OAuth routes.
	client := map[string]string{"Content-Type": "application/x-www-form-urlencoded",
		"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte("client:"+f.secrets["client-secret"]))}
	stranger := map[string]string{"Content-Type": "application/x-www-form-urlencoded", "Authorization": "Basic " +
		base64.StdEncoding.EncodeToString([]byte("client:"+wrong))}
	for _, path := range []string{"/oauth2/introspect", "/oauth2/revoke"} {
		f.send("POST", path, "token="+wrong, client)
		f.send("POST", path, "token="+access+"&token="+refresh, client)
		f.send("POST", path, "token="+access, stranger)
	}
	f.send("POST", "/oauth2/introspect", "token="+access, client)
	f.send("POST", "/oauth2/introspect", "token="+refresh, client)

	// Now the way that it is meant.
	for _, path := range []string{"/api/v1/auth/me", "/api/v1/auth/sessions", "/.well-known/jwks.json",
		"/.well-known/oauth-authorization-server", "/healthz", "/readyz"} {
		if status, body, _ := f.send("GET", path, "", bearer(access)); status != http.StatusOK {
			f.t.Errorf("%s: %d %s", path, status, body)
		}
	}
	status, body, _ := f.send("POST", "/api/v1/auth/refresh", with("refresh_token", refresh), nil)
	if status != http.StatusOK {
		f.t.Fatalf("refresh: %d %s", status, body)
	}
	access, _ = f.tokens("refreshing", body)
	f.send("POST", "/api/v1/auth/refresh", with("refresh_token", refresh), nil) // once more, to see a replay
	status, body, _ = f.send("POST", "/api/v1/auth/password", with("current_password", password, "new_password", next),
		bearer(access))
	if status != http.StatusOK {
		f.t.Fatalf("password: %d %s", status, body)
	}
	access, refresh = f.tokens("changing the password", body)
	f.send("GET", "/api/v1/auth/me", "", bearer(second)) // its session has ended
	f.send("POST", "/api/v1/auth/register", with("username", "weak-canary", "password", "weak-canary"), nil)
	f.send("POST", "/oauth2/revoke", "token="+refresh, client)
	f.send("GET", "/api/v1/auth/me", "", bearer(access))
	f.useTheCookie("user-canary", next)
	f.signIn("signing in once more", login, "user-canary", next) // a live session for the dump
}

// useTheMails requests codes and links, and uses them rightly and wrongly. In prod mode no server
// accepts the mails, so they wait.
func (f *planting) useTheMails() {
	f.t.Helper()
	const api = "/api/v1/auth"
	post := func(want int, path, access string, pairs ...string) string {
		f.t.Helper()
		m := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		body, _ := json.Marshal(m)
		status, answer, _ := f.send("POST", api+path, string(body),
			map[string]string{"Authorization": "Bearer " + access})
		if status != want {
			f.t.Fatalf("%s: %d %s", path, status, answer)
		}
		return answer
	}
	member := func(answer, name string) string {
		found := regexp.MustCompile(`"` + name + `":"([^"]+)"`).FindStringSubmatch(answer)
		if found == nil {
			f.t.Fatalf("no %s in %s", name, answer)
		}
		return found[1]
	}
	access, _ := f.tokens("registering with an address",
		post(http.StatusCreated, "/register", "", "username", "mail-canary",
			"password", f.plant("mail-password-of-the-account"), "email", "mail-canary@example.org"))
	if slices.Contains(f.env, "APP_MODE=prod") {
		post(http.StatusAccepted, "/password/forgot", "", "username", "mail-canary")
		return
	}
	_, contacts, _ := f.send("GET", api+"/contacts", "", map[string]string{"Authorization": "Bearer " + access})
	code, _ := f.mail("verify", 1)
	contact := "/contacts/" + member(contacts, "id") + "/verify"
	post(http.StatusForbidden, contact, access, "code", f.plant("wrong-code"))
	post(http.StatusOK, contact, access, "code", code)
	challenge := member(post(http.StatusAccepted, "/password/forgot", "", "email", "mail-canary@example.org"),
		"challenge_id")
	code, link := f.mail("reset", 1)
	post(http.StatusForbidden, "/password/reset", "", "challenge_id", challenge, "code", f.plant("wrong-reset-code"),
		"new_password", f.plant("password-that-is-not-set"))
	post(http.StatusNoContent, "/password/reset", "", "challenge_id", challenge, "code", code,
		"new_password", f.plant("reset-password"))
	post(http.StatusForbidden, "/password/reset", "", "token", link, "new_password", f.plant("late-password"))
	_, link = f.mail("notice_password", 1)
	post(http.StatusNoContent, "/undo", "", "token", link)
	post(http.StatusForbidden, "/undo", "", "token", link)
}

// mail waits for the nth mail of a purpose, and plants the code and the link's token in it.
func (f *planting) mail(purpose string, n int) (code, link string) {
	f.t.Helper()
	var files []string
	if !poll(func() bool {
		files, _ = filepath.Glob(filepath.Join(f.dir, "data", "mail", "*-"+purpose+"-*.eml"))
		return len(files) >= n
	}) {
		f.t.Fatalf("%d mails of %s", len(files), purpose)
	}
	slices.Sort(files)
	text := strings.NewReplacer("=\r\n", "", "=3D", "=").Replace(readFile(f.t, files[n-1]))
	if found := regexp.MustCompile(`(?m)^ {4}([0-9A-Z]{4}-[0-9A-Z]{4})\r?$`).FindStringSubmatch(text); found != nil {
		code = found[1]
		f.secrets["code to "+purpose], f.secrets["typed code to "+purpose] = code, strings.ReplaceAll(code, "-", "")
	} else if purpose != "notice_password" {
		f.t.Fatalf("no code in %s", text)
	}
	found := regexp.MustCompile(`#token=([\w-]+)`).FindStringSubmatch(text)
	if found == nil {
		f.t.Fatalf("no link in %s", text)
	}
	link = found[1]
	raw, err := base64.RawURLEncoding.DecodeString(link[strings.Index(link, "_")+1:])
	if err != nil || len(raw) != 48 {
		f.t.Fatalf("the token %s is not as expected: %v", link, err)
	}
	f.secrets["link to "+purpose], f.secrets["secret of the link to "+purpose] = link, string(raw[16:])
	return code, link
}

// useTheCookie keeps a refresh token in the cookie, and sends it rightly and wrongly.
func (f *planting) useTheCookie(name, password string) {
	f.t.Helper()
	origin, cookie := "http://localhost:8080", ""
	if slices.Contains(f.env, "APP_MODE=prod") {
		origin = "https://auth.test"
	}
	send := func(path, body, origin, cookie string) (status int) {
		f.t.Helper()
		status, answer, header := f.send("POST", "/api/v1/auth"+path, body,
			map[string]string{"Origin": origin, "Cookie": cookie})
		if strings.Contains(answer, "art_") {
			f.t.Errorf("%s puts the token into the answer: %s", path, answer)
		}
		for _, c := range (&http.Response{Header: header}).Cookies() {
			if strings.HasPrefix(c.Value, "art_") {
				f.secrets[fmt.Sprint("refresh token in the cookie ", len(f.secrets))] = c.Value
			}
		}
		return status
	}
	newest := func() string {
		status, _, header := f.send("POST", "/api/v1/auth/login",
			`{"username":"`+name+`","password":"`+password+`","transport":"cookie"}`,
			map[string]string{"Origin": origin})
		for _, c := range (&http.Response{Header: header}).Cookies() {
			if strings.HasPrefix(c.Value, "art_") {
				f.secrets[fmt.Sprint("refresh token in the cookie ", len(f.secrets))] = c.Value
				return c.Name + "=" + c.Value
			}
		}
		f.t.Fatalf("sign-in by cookie: %d %v", status, header)
		return ""
	}
	cookie = newest()
	for _, one := range []struct {
		path, body, origin, cookie string
		status                     int
	}{
		{"/refresh", "{}", "https://evil.example", cookie, 403}, {"/logout", "{}", "null", cookie, 403},
		{"/refresh", "{}", origin, cookie + "; " + cookie, 400}, {"/refresh", `{"refresh_token":"art_x"}`, origin,
			cookie,
			400},
		{"/refresh", "{}", origin, cookie + "x", 401}, {"/refresh", "{", origin, cookie, 400},
		{"/nowhere", "{}", origin, cookie, 404},
		{"/refresh?" + cookie[:strings.IndexByte(cookie, '=')], "{}", origin, cookie, 200},
		{"/refresh", "{}", origin, cookie, 200},
		{"/logout", "{}", origin, cookie, 204}, {"/refresh", "{}", origin, cookie, 401},
	} {
		if status := send(one.path, one.body, one.origin, one.cookie); status != one.status {
			f.t.Errorf("%s from %s with a cookie: %d, want %d", one.path, one.origin, status, one.status)
		}
	}
	f.send("GET", "/api/v1/auth/me", "", map[string]string{"Cookie": newest()})
}

// useTheCommands runs those that handle secrets or show state.
func (f *planting) useTheCommands() {
	operators, changed := f.plant("operators-password"), f.plant("changed-password")
	f.command(operators+"\n", "user", "create", "made-canary", "--password-stdin")
	f.command(changed+"\n", "user", "set-password", "made-canary", "--password-stdin")
	f.command("short\n", "user", "create", "other-canary", "--password-stdin")
	if list := f.command("", "user", "list"); !strings.Contains(list, "made-canary") {
		f.t.Errorf("the commands do not work: %s", list)
	}
	f.shown("secret of a webhook", "outbox", "target", "add", "webhook", "https://receiver.invalid/", "--types", "*")
	f.shown("next secret of a webhook", "outbox", "target", "rotate-secret", "receiver.invalid")
	f.command(f.secrets["access token of registering"]+"\n", "token", "inspect", "-")
	f.command(f.secrets["refresh token of registering"]+"\n", "token", "inspect", "-")
	for _, line := range []string{
		"config show", "config show -o json", "config check", "doctor", "doctor -o json", "user show made-canary",
		"session list", "key list",
		"outbox status", "outbox tail", "outbox target list", "outbox target show receiver.invalid",
		"outbox target test receiver.invalid", "migrate status", "version", "user export",
	} {
		f.command("", strings.Fields(line)...)
	}
}

// shown runs a command that prints a new secret of a webhook. Nothing else in its output may
// contain the secret.
func (f *planting) shown(what string, args ...string) {
	f.t.Helper()
	var answer struct{ Secret string }
	var words bytes.Buffer
	cmd := f.prepare(append(args, "-o", "json")...)
	cmd.Stderr = &words
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &answer)
	}
	key, decoding := base64.StdEncoding.DecodeString(strings.TrimPrefix(answer.Secret, "whsec_"))
	if err != nil || decoding != nil || len(key) != 32 {
		f.t.Fatalf("authctl %s: %v: %s%s", strings.Join(args, " "), err, out, words.String())
	}
	f.secrets[what], f.secrets["key in the "+what] = strings.TrimPrefix(answer.Secret, "whsec_"), string(key)
	f.outputs[strings.Join(args, " ")] = words.String()
}

// failToReachBackends provokes errors of drivers, which know the passwords.
func (f *planting) failToReachBackends() {
	env := f.env
	defer func() { f.env = env }()
	away := url.URL{Scheme: "postgres", User: url.UserPassword("auth", f.plant("password of a database that is away")),
		Host: "127.0.0.1:1", Path: "/auth"}
	redisAway := url.URL{Scheme: "redis", User: url.UserPassword("auth", f.plant("password of a Redis that is away")),
		Host: "127.0.0.1:1"}
	for _, broken := range [][]string{
		{"DATABASE_URL=" + away.String()},
		{"DATABASE_URL=" + away.String() + "?sslmode=" + f.plant("misplaced")},
		{"DATABASE_URL=" + strings.Replace(away.String(), "@", "%zz@", 1)},
		{"DATABASE_URL=mysql" + away.String()},
		{"REDIS_URL=" + redisAway.String()},
		{"REDIS_URL=http" + redisAway.String()},
		{"AUTH_CLIENTS=" + f.plant("malformed client")},
		{"AUTH_TOKEN_SECRET=", "AUTH_TOKEN_SECRET_FILE=/nowhere/" + "file"},
	} {
		f.env = append(slices.Clone(env), broken...)
		for _, args := range [][]string{{"serve"}, {"doctor"}, {"config", "check"}, {"config", "show"},
			{"user", "list"}} {
			if args[0] == "serve" && strings.HasPrefix(broken[0], "REDIS_URL=redis") {
				continue // serve waits for a Redis that may come back
			}
			if out := f.command("", args...); out == "" {
				f.t.Errorf("authctl %s says nothing with %s", args[0], strings.SplitN(broken[0], "=", 2)[0])
			}
		}
	}
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	testenv.Must(t, err)
	return string(text)
}

// dumpPostgres returns every value of every table.
func dumpPostgres(t testing.TB, dsn string) string {
	t.Helper()
	db := dbtest.Open(t, dsn)
	rows, err := db.QueryContext(t.Context(),
		"SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'")
	testenv.Must(t, err)
	var tables []string
	for rows.Next() {
		var name string
		testenv.Must(t, rows.Scan(&name))
		tables = append(tables, name)
	}
	testenv.Must(t, errors.Join(rows.Err(), rows.Close()))
	var out bytes.Buffer
	for _, table := range tables {
		rows, err := db.QueryContext(t.Context(), "SELECT * FROM "+table)
		testenv.Must(t, err)
		columns, err := rows.Columns()
		testenv.Must(t, err)
		for rows.Next() {
			values := make([]any, len(columns))
			for i := range values {
				values[i] = new(sql.RawBytes)
			}
			testenv.Must(t, rows.Scan(values...))
			for _, v := range values {
				out.Write(*v.(*sql.RawBytes))
				out.WriteByte('\n')
			}
		}
		testenv.Must(t, errors.Join(rows.Err(), rows.Close()))
	}
	return out.String()
}

// dumpRedis returns every key with everything in it.
func dumpRedis(t testing.TB, client *redis.Client) string {
	t.Helper()
	ctx := t.Context()
	var out strings.Builder
	keys := client.Scan(ctx, 0, "*", 1000).Iterator()
	for keys.Next(ctx) {
		key := keys.Val()
		kind, err := client.Type(ctx, key).Result()
		testenv.Must(t, err)
		var value any
		switch kind {
		case "none": // it has expired meanwhile
			continue
		case "string":
			value, err = client.Get(ctx, key).Result()
		case "hash":
			value, err = client.HGetAll(ctx, key).Result()
		case "set":
			value, err = client.SMembers(ctx, key).Result()
		case "zset":
			value, err = client.ZRangeWithScores(ctx, key, 0, -1).Result()
		case "list":
			value, err = client.LRange(ctx, key, 0, -1).Result()
		default:
			t.Fatalf("%s is a %s, which this test cannot read", key, kind)
		}
		if errors.Is(err, redis.Nil) {
			continue
		}
		testenv.Must(t, err)
		fmt.Fprintf(&out, "%s %v\n", key, value)
	}
	testenv.Must(t, keys.Err())
	return out.String()
}
