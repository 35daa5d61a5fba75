package campaign

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// patience is the longest that anything may take. It measures nothing: it only tells a server that
// hangs from a slow one.
const patience = testenv.Patience

const (
	tokenSecret  = "campaign-signing-secret-of-more-than-32-bytes"
	clientID     = "campaign"
	clientSecret = "campaign-client-secret"
)

// installation is a database, perhaps a Redis, and any number of servers on them.
type installation struct {
	t      *testing.T
	binary string
	env    []string

	redisURL string
	db       *database.DB // reads what the servers wrote, without them
	spare    []*device    // signed in before anything broke
}

// stores are the ways to keep sessions. Every promise is tested on each.
var stores = []string{"redis", "postgres", "sqlite"}

// eachStore runs a scenario on every kind of installation.
func eachStore(t *testing.T, scenario func(w *installation) error, settings ...string) {
	t.Helper()
	t.Parallel()
	for _, store := range stores {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			if err := scenario(newInstallation(t, genuine(t), store, settings...)); err != nil {
				t.Error(err)
			}
		})
	}
}

// genuine returns the binary under test. The others are mutants.
func genuine(t *testing.T) string {
	t.Helper()
	binary, err := builtBinary()
	testenv.Must(t, err)
	return binary
}

// newInstallation makes an installation on the shared engines. settings are NAME=value and override
// others.
func newInstallation(t *testing.T, binary, store string, settings ...string) *installation {
	t.Helper()
	switch store {
	case "redis":
		redisURL := testenv.Redis(t)
		return installationOn(t, binary, dbtest.PostgresURL(t), redisURL, settings...)
	case "postgres":
		return installationOn(t, binary, dbtest.PostgresURL(t), "", settings...)
	}
	return installationOn(t, binary, "sqlite:"+filepath.Join(t.TempDir(), "authctl.db"), "", settings...)
}

// installationOn makes an installation on engines of the test's own. The database is SQLite, or has
// been migrated. Unless the settings or options of the URL say otherwise, the servers wait long for what a busy
// machine does late.
func installationOn(t *testing.T, binary, databaseURL, redisURL string, settings ...string) *installation {
	t.Helper()
	hash := sha256.Sum256([]byte(clientSecret))
	env := []string{
		"APP_MODE=dev", "APP_HOST=127.0.0.1", "APP_PORT=0", "APP_OPERATOR_ADDR=off", "APP_DATA_DIR=" + t.TempDir(),
		"LOG_LEVEL=warn",
		"DATABASE_URL=" + databaseURL, "OUTBOX_RELAY=off",
		"AUTH_TOKEN_SECRET=" + tokenSecret, "AUTH_CLIENTS=" + clientID + ":" + hex.EncodeToString(hash[:]),
		"AUTH_PASSWORD_BCRYPT_COST=4", "AUTH_THROTTLE_ENABLED=false", "AUTH_REFRESH_GRACE=60s",
		"APP_HTTP_REQUEST_TIMEOUT=60s",
	}
	if redisURL != "" && !strings.Contains(redisURL, "?") {
		redisURL += "?" + atLength
	}
	if redisURL != "" {
		env = append(env, "REDIS_URL="+redisURL)
	}
	w := &installation{t: t, binary: binary, redisURL: redisURL, env: append(env, settings...)}
	if strings.HasPrefix(databaseURL, "sqlite:") {
		w.command("migrate", "up") // so that two servers need not migrate at once
	}
	w.db = dbtest.Open(t, databaseURL)
	return w
}

// migratedInstallation is installationOn for a database without tables.
func migratedInstallation(t *testing.T, binary, databaseURL, redisURL string, settings ...string) *installation {
	t.Helper()
	w := installationOn(t, binary, databaseURL, redisURL, settings...)
	w.command("migrate", "up")
	return w
}

// setting returns the value of a setting of all processes.
func (w *installation) setting(name string) (value string) {
	for _, one := range w.env { // the last setting counts
		if v, is := strings.CutPrefix(one, name+"="); is {
			value = v
		}
	}
	return value
}

// command runs one command of the binary to its end.
func (w *installation) command(args ...string) {
	w.t.Helper()
	if err := w.try("", args...); err != nil {
		w.t.Fatal(err)
	}
}

// unanswered recognises the last words of a process whose engines did not answer its start in time. It has done
// nothing, and is started again, as a supervisor does.
var unanswered = regexp.MustCompile(`authctl: connect to .*(answer(s|ed) in time|bad connection)`)

// try runs a command with the given standard input.
func (w *installation) try(stdin string, args ...string) error {
	for deadline := time.Now().Add(patience); ; {
		err := w.tryOnce(stdin, args...)
		if err == nil || !unanswered.MatchString(err.Error()) || time.Now().After(deadline) {
			return err
		}
	}
}

func (w *installation) tryOnce(stdin string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.binary, args...)
	cmd.Dir, cmd.Env, cmd.Stdin = w.t.TempDir(), w.env, strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("authctl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// server is a process of authctl serve.
type server struct {
	t    testing.TB
	url  string
	http *http.Client

	clientSecret string // a client other than the right one, for introspection

	process *exec.Cmd
	ended   chan struct{} // closed when it has ended
	log     lastLines
}

var listening = regexp.MustCompile(`API\s+(http://localhost:\d+)/`)

// serve starts a server and waits until it listens. It dies with the test.
func (w *installation) serve(settings ...string) *server {
	w.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		s := w.start(settings...)
		switch {
		case s.url != "":
			return s
		case !unanswered.MatchString(s.log.String()) || time.Now().After(deadline):
			w.t.Fatalf("the server did not start:\n%s", s.log.String())
		}
	}
}

// start starts a server and waits until it listens or has ended. Then it has no URL.
func (w *installation) start(settings ...string) *server {
	w.t.Helper()
	s := &server{t: w.t, process: exec.Command(w.binary, "serve"), ended: make(chan struct{})}
	if w.setting("APP_PORT") == "0" { // when it is killed, nothing else must answer at its port
		settings = append(settings[:len(settings):len(settings)], "APP_PORT="+strconv.Itoa(testenv.FreePort(w.t)))
	}
	s.process.Dir, s.process.Env = w.t.TempDir(), append(w.env[:len(w.env):len(w.env)], settings...)
	stderr, err := s.process.StderrPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := s.process.Start(); err != nil {
		w.t.Fatalf("start the server: %v", err)
	}
	w.t.Cleanup(func() {
		s.kill()
		if w.t.Failed() {
			w.t.Logf("the last output of the server at %s:\n%s", s.url, s.log.String())
		}
	})
	up := make(chan string, 1)
	go func() {
		defer close(s.ended)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			s.log.add(lines.Text())
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				up <- m[1]
			}
		}
		_ = s.process.Wait()
	}()
	select {
	case s.url = <-up:
	case <-s.ended:
	case <-time.After(patience):
		w.t.Fatalf("the server does not answer:\n%s", s.log.String())
	}
	s.http = &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 256},
		Timeout:   patience,
	}
	w.t.Cleanup(s.http.CloseIdleConnections)
	return s
}

// kill ends the server as kill -9 does, and returns once it has ended.
func (s *server) kill() {
	_ = s.process.Process.Kill()
	<-s.ended
}

// lastLines keeps the last lines of a log.
type lastLines struct {
	mu    sync.Mutex
	lines []string
}

func (l *lastLines) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lines = append(l.lines, line); len(l.lines) > 60 {
		l.lines = l.lines[1:]
	}
}

func (l *lastLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// answer is an answer over HTTP.
type answer struct {
	Status     int    `json:"-"`
	Code       string `json:"-"` // of a problem
	Replayed   bool   `json:"-"`
	RetryAfter string `json:"-"`
	Body       []byte `json:"-"`

	Device                string    `json:"-"` // the token of a known device
	AccessToken           string    `json:"access_token"`
	RefreshToken          string    `json:"refresh_token"`
	SessionID             uuid.UUID `json:"session_id"`
	AccessTokenExpiresAt  time.Time `json:"access_token_expires_at"`
	RefreshTokenExpiresAt time.Time `json:"refresh_token_expires_at"`
}

func (a answer) String() string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", a.Status, a.Code))
}

// ok reports whether the request succeeded.
func (a answer) ok() bool { return a.Status >= 200 && a.Status < 300 }

// proper reports whether the contract knows the answer: success, or a problem that is not a defect
// of the program.
func (a answer) proper() bool {
	return a.ok() || a.Code != "" && a.Status != http.StatusInternalServerError
}

// refused reports whether the answer is a refusal, for good or for now.
func (a answer) refused() bool {
	return a.Status == http.StatusUnauthorized || a.Status == http.StatusServiceUnavailable
}

// call sends one request; a body other than url.Values is sent as JSON. It returns an error if no
// answer came. It repeats a request that was refused because this machine hashes too slowly.
func (s *server) call(method, path, bearer string, body any) (a answer, err error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		a, err = s.callOnce(method, path, bearer, body)
		if a.Code != "overloaded" || time.Now().After(deadline) {
			return a, err
		}
	}
}

func (s *server) callOnce(method, path, bearer string, body any) (answer, error) {
	var content io.Reader
	kind := ""
	switch b := body.(type) {
	case nil:
	case url.Values:
		content, kind = strings.NewReader(b.Encode()), "application/x-www-form-urlencoded"
	default:
		text, err := json.Marshal(b)
		if err != nil {
			s.t.Fatal(err)
		}
		content, kind = bytes.NewReader(text), "application/json"
	}
	req, err := http.NewRequest(method, s.url+path, content)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	req.Header.Set("User-Agent", "campaign/1")
	switch {
	case bearer != "":
		req.Header.Set("Authorization", "Bearer "+bearer)
	case strings.HasPrefix(path, "/oauth2/"):
		req.SetBasicAuth(clientID, cmp.Or(s.clientSecret, clientSecret))
	}
	res, err := s.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	a := answer{Status: res.StatusCode, Replayed: res.Header.Get("Auth-Refresh-Replayed") == "true",
		RetryAfter: res.Header.Get("Retry-After"), Device: res.Header.Get("Auth-Device")}
	if a.Body, err = io.ReadAll(res.Body); err != nil {
		return answer{}, err
	}
	if a.ok() {
		if strings.HasPrefix(res.Header.Get("Content-Type"), "application/json") {
			if err := json.Unmarshal(a.Body, &a); err != nil {
				return answer{}, fmt.Errorf("the answer to %s %s is not JSON: %w", method, path, err)
			}
		}
		return a, nil
	}
	var problem struct{ Code, Error string }
	if err := json.Unmarshal(a.Body, &problem); err == nil {
		a.Code = problem.Code + problem.Error // the latter for /oauth2/
	}
	return a, nil
}

const api = "/api/v1/auth"

type fields map[string]string

// device is what a client stores of one session.
type device struct {
	name    string // of the user
	access  string
	refresh string
	sid     uuid.UUID
}

// keep stores the new tokens of an answer.
func (d *device) keep(a answer) {
	d.access, d.refresh, d.sid = a.AccessToken, a.RefreshToken, a.SessionID
}

const password = "correct horse battery staple"

// register makes a user with a unique name, signed in on one device.
func (s *server) register() *device {
	s.t.Helper()
	d := &device{}
	d.keep(s.must(untilAvailable(func() (answer, error) {
		d.name = "u" + strings.ReplaceAll(uuid.NewString(), "-", "") // an earlier attempt may have taken the name
		return s.call("POST", api+"/register", "", fields{"username": d.name, "password": password})
	})))
	return d
}

// login signs the user in on another device.
func (s *server) login(name string) *device {
	s.t.Helper()
	d := &device{name: name}
	d.keep(s.must(s.signInEventually(name)))
	return d
}

// signInEventually signs in, and tries again where this machine hashes too slowly.
func (s *server) signInEventually(name string) (answer, error) {
	return untilAvailable(func() (answer, error) {
		return s.call("POST", api+"/login", "", fields{"username": name, "password": password})
	})
}

// must ends the test unless the request, which is not under test, succeeded.
func (s *server) must(a answer, err error) answer {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	if !a.ok() {
		s.t.Fatalf("answered %v: %s", a, a.Body)
	}
	return a
}

// strict starts a server without a grace window. It waits long for its engines: a client whose refresh had no answer
// would be taken for a thief when it sends it again.
func (w *installation) strict() *server {
	w.t.Helper()
	return w.serve(append(patient(w.env), "AUTH_REFRESH_GRACE=0s")...)
}

// reuse ends the device's session by reuse: it presents a replaced token without a grace window,
// and returns that token.
func (w *installation) reuse(s *server, d *device) (replaced string) {
	w.t.Helper()
	strict := w.strict()
	defer strict.kill()
	replaced = d.refresh
	for range 2 {
		d.keep(strict.must(strict.refreshInTheEnd(d.refresh)))
	}
	if err := s.expectCode(replaced, "refresh_token_reused"); err != nil {
		w.t.Fatal(err)
	}
	return replaced
}

func (s *server) refresh(token string) (answer, error) {
	return s.call("POST", api+"/refresh", "", fields{"refresh_token": token})
}

// untilAvailable repeats a request while the answer is "not now", as a client does. A busy machine
// or an engine that has just come back is not under test.
func untilAvailable(send func() (answer, error)) (answer, error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		a, err := send()
		if err != nil || a.Status != http.StatusServiceUnavailable || time.Now().After(deadline) {
			return a, err
		}
	}
}

// refreshInTheEnd repeats a refresh until there is an answer.
func (s *server) refreshInTheEnd(token string) (answer, error) {
	return untilAvailable(func() (answer, error) { return s.refresh(token) })
}

// getInTheEnd repeats a GET with an access token until there is an answer.
func (s *server) getInTheEnd(path, access string) (answer, error) {
	return untilAvailable(func() (answer, error) { return s.call("GET", api+path, access, nil) })
}

// active asks the introspection whether a token of either kind is live.
func (s *server) active(token string) (bool, error) {
	a, err := untilAvailable(func() (answer, error) {
		return s.call("POST", "/oauth2/introspect", "", url.Values{"token": {token}})
	})
	if err != nil {
		return false, err
	}
	var body struct{ Active bool }
	if err := json.Unmarshal(a.Body, &body); err != nil || a.Status != http.StatusOK {
		return false, fmt.Errorf("introspection answered %v", a)
	}
	return body.Active, nil
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
