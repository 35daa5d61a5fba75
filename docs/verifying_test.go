package docs_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/toppira/authctl/platform/testenv"
)

// checkToken verifies an access token. keys finds the public key of the token's kid.
func checkToken(text, issuer, audience string, keys jwt.Keyfunc, now func() time.Time) (jwt.MapClaims, error) {
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{"ES256", "EdDSA", "RS256"}), jwt.WithStrictDecoding(),
		jwt.WithIssuer(issuer), jwt.WithAudience(audience), jwt.WithExpirationRequired(), jwt.WithTimeFunc(now),
	)
	claims := jwt.MapClaims{}
	token, err := parser.ParseWithClaims(text, claims, keys)
	if err != nil {
		return nil, err
	}
	if typ, _ := token.Header["typ"].(string); !strings.EqualFold(typ, "at+jwt") {
		return nil, errors.New("not an access token")
	}
	if _, extended := token.Header["crit"]; extended {
		return nil, errors.New("a token with extensions")
	}
	return claims, nil
}

const vectorsFile = "../verify/testdata/vectors.json"

// vectors are the tests for every verifier; see verify/testdata/README.md.
type vectors struct {
	Issuer   string                     `json:"issuer"`
	Audience string                     `json:"audience"`
	Keys     map[string]json.RawMessage `json:"keys"`
	Vectors  []struct {
		Name    string    `json:"name"`
		Token   string    `json:"token"`
		Keys    string    `json:"keys"`
		Time    time.Time `json:"time"`
		Verdict string    `json:"verdict"`
		Reason  string    `json:"reason"`
		Strict  bool      `json:"strict"`
	} `json:"vectors"`
}

func readVectors(t *testing.T) vectors {
	t.Helper()
	text, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	var all vectors
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// compare checks a verifier's answers, by the names of the vectors, against the right ones. except
// lists what the verifier is known not to check.
func (all vectors) compare(t *testing.T, who string, said map[string]string,
	except func(header map[string]any, reason string) bool) {
	t.Helper()
	compared := 0
	for _, v := range all.Vectors {
		text, _ := base64.RawURLEncoding.DecodeString(strings.Split(v.Token, ".")[0])
		var header map[string]any
		_ = json.Unmarshal(text, &header) // some vectors are not tokens of this kind
		if v.Strict || except != nil && except(header, v.Reason) {
			continue
		}
		compared++
		if said[v.Name] != v.Verdict {
			t.Errorf("%s, %s: %q; want %s", who, v.Name, said[v.Name], v.Verdict)
		}
	}
	if compared < 60 {
		t.Errorf("%s: only %d vectors were compared", who, compared)
	}
}

func TestVerifyingInGo(t *testing.T) {
	t.Parallel()
	all := readVectors(t)
	said := map[string]string{}
	for _, v := range all.Vectors {
		keys := keyfunc(t, all.Keys[v.Keys])
		said[v.Name] = "accept"
		if _, err := checkToken(v.Token, all.Issuer, all.Audience, keys, func() time.Time {
			return v.Time
		}); err != nil {
			said[v.Name] = "refuse"
		}
	}
	all.compare(t, "golang-jwt", said, revokedAlone)
}

// revokedAlone excepts what only a follower of the feed can know.
func revokedAlone(_ map[string]any, reason string) bool { return reason == "revoked" }

// keyfunc finds keys in a set that is known to be good.
func keyfunc(t *testing.T, jwks []byte) jwt.Keyfunc {
	t.Helper()
	var set struct {
		Keys []struct{ KID, Kty, X, Y, N, E string }
	}
	if err := json.Unmarshal(jwks, &set); err != nil {
		t.Fatal(err)
	}
	decode := func(text string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	keys := map[any]any{}
	for _, k := range set.Keys {
		switch k.Kty {
		case "EC":
			point, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(),
				slices.Concat([]byte{4}, decode(k.X), decode(k.Y)))
			if err != nil {
				t.Fatal(err)
			}
			keys[k.KID] = point
		case "OKP":
			keys[k.KID] = ed25519.PublicKey(decode(k.X))
		case "RSA":
			keys[k.KID] = &rsa.PublicKey{N: new(big.Int).SetBytes(decode(k.N)),
				E: int(new(big.Int).SetBytes(decode(k.E)).Int64())}
		}
	}
	return func(token *jwt.Token) (any, error) {
		if kid, is := token.Header["kid"].(string); is && keys[kid] != nil {
			return keys[kid], nil
		}
		return nil, errors.New("unknown key")
	}
}

// program is an example of the page in one language, with the harness that drives it.
type program struct {
	name string
	dir  string   // the folder of its files
	args []string // the command, without the arguments that say what to do
	env  []string
}

// copyOut copies the files of the page in one language, and those of a folder, into another folder.
func copyOut(t *testing.T, language, from, into string) {
	t.Helper()
	for _, b := range read(t, "verifying.md").fence {
		first, _, _ := strings.Cut(b.text, "\n")
		comment, name, _ := strings.Cut(first, " ")
		if b.language != language {
			continue
		}
		if comment != "//" && comment != "#" || filepath.Ext(name) == "" {
			t.Fatalf("verifying.md, %s: the first line does not name the file", b.heading)
		}
		if lines := strings.Count(b.text, "\n") - 1; lines > 60 {
			t.Errorf("%s has %d lines; want at most 60", name, lines)
		}
		if err := os.WriteFile(filepath.Join(into, name), []byte(b.text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(into, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func inNode(t *testing.T) program {
	t.Helper()
	const from = "testdata/verifying/node"
	node := testenv.Program(t, "install Node.js 20 or newer", "node")
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(testenv.NodeModules(t, from), "node_modules"),
		filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	copyOut(t, "js", from, dir)
	return program{name: "node", dir: dir, args: []string{node, "--expose-gc", "try.mjs"}}
}

func inPython(t *testing.T) program {
	t.Helper()
	const from = "testdata/verifying/python"
	python := testenv.Program(t, "install Python 3.11 or newer", "python3")
	packages := testenv.PythonPackages(t, from)
	dir := t.TempDir()
	copyOut(t, "python", from, dir)
	return program{name: "python", dir: dir, args: []string{python, "try.py"}, env: []string{"PYTHONPATH=" + packages}}
}

// command prepares a run with settings in JSON.
func (p program) command(t *testing.T, settings map[string]string) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*testenv.Patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, p.args[0], append(p.args[1:len(p.args):len(p.args)], string(text))...)
	cmd.Dir, cmd.Env, cmd.Stderr = p.dir, append(os.Environ(), p.env...), t.Output()
	return cmd
}

// said is a line of a program's output.
type said struct{ Name, Verdict, By string }

func (p program) triesTheVectors(t *testing.T) {
	t.Helper()
	file, err := filepath.Abs(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.command(t, map[string]string{"vectors": file}).Output()
	if err != nil {
		t.Fatal(err)
	}
	verdicts := map[string]string{}
	for line := range bytes.Lines(out) {
		var s said
		if err := json.Unmarshal(line, &s); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		verdicts[s.Name] = s.Verdict
	}
	readVectors(t).compare(t, p.name, verdicts, nil)
}

// service is a real one, on SQLite, with a client that verifies tokens.
type service struct {
	t         *testing.T
	dir, base string
	env       []string
	jwks      string // a counting proxy of the key set that it publishes
	fetched   atomic.Int64
}

func newService(t *testing.T, env ...string) *service {
	t.Helper()
	secret := sha256.Sum256([]byte("s&cret"))
	s := &service{t: t, dir: t.TempDir(), env: append([]string{
		"AUTH_CLIENTS=orders:" + hex.EncodeToString(secret[:]), "AUTH_PASSWORD_BCRYPT_COST=4",
		"AUTH_THROTTLE_ENABLED=false", "AUTH_REFRESH_GRACE=60s", // the answer to a refresh may be lost
	}, env...)}
	s.base = serve(t, s.dir, s.env...)
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.fetched.Add(1)
		res, err := http.Get(s.base + "/.well-known/jwks.json")
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer res.Body.Close()
		w.Header().Set("Cache-Control", res.Header.Get("Cache-Control"))
		_, _ = io.Copy(w, res.Body) // the client may have closed the connection
	}))
	t.Cleanup(keys.Close)
	s.jwks = keys.URL
	return s
}

// command runs a command of the service and returns the first line of its output.
func (s *service) command(args ...string) string {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), authctl(s.t), args...)
	cmd.Dir, cmd.Stderr = s.dir, s.t.Output()
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir}, s.env...)
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("authctl %s: %v", strings.Join(args, " "), err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}

// tokens are the answer to a sign-in or a refresh.
type tokens struct {
	Access  string `json:"access_token"`
	Refresh string `json:"refresh_token"`
}

// errNotNow is the answer of a service on an overloaded machine.
var errNotNow = errors.New("answered 503")

func (s *service) call(method, path, bearer, body string) (tokens, error) {
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.base+"/api/v1/auth"+path, strings.NewReader(body))
	if err != nil {
		return tokens{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return tokens{}, err
	}
	defer res.Body.Close()
	var answer tokens
	_ = json.NewDecoder(res.Body).Decode(&answer) // a 204 has no body
	switch {
	case res.StatusCode == http.StatusServiceUnavailable:
		return tokens{}, errNotNow
	case res.StatusCode >= 300:
		return tokens{}, fmt.Errorf("%s %s answered %d", method, path, res.StatusCode)
	}
	return answer, nil
}

func (s *service) must(method, path, bearer, body string) (answer tokens) {
	s.t.Helper()
	testenv.Eventually(s.t, path+" is answered", func() bool {
		var err error
		if answer, err = s.call(method, path, bearer, body); err != nil && !errors.Is(err, errNotNow) {
			s.t.Fatal(err)
		}
		return err == nil
	})
	return answer
}

// verifier is a running program that answers each line with a line.
type verifier struct {
	name string
	cmd  *exec.Cmd
	mu   sync.Mutex
	in   io.WriteCloser
	out  *bufio.Reader
	line func(token string) string
}

// follows starts the program as a verifier of a service. more replaces usual settings.
func (p program) follows(s *service, more map[string]string) *verifier {
	s.t.Helper()
	settings := map[string]string{
		"issuer": "http://localhost:8080", "audience": "authctl", "jwks": s.jwks,
		"feed": s.base + "/oauth2/revocations", "id": "orders", "secret": "s&cret", "name": "orders-" + p.name,
	}
	maps.Copy(settings, more)
	cmd := p.command(s.t, settings)
	return begin(s.t, &verifier{name: p.name, cmd: cmd, line: func(token string) string { return token }})
}

// inGo is the module verify.
func inGo(s *service) *verifier {
	s.t.Helper()
	probe := filepath.Join(s.t.TempDir(), "probe")
	build := exec.CommandContext(s.t.Context(), "go", "build", "-o", probe, "./internal/probe")
	build.Dir = filepath.Join(root, "verify")
	if out, err := build.CombinedOutput(); err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.CommandContext(s.t.Context(), probe)
	cmd.Stderr = s.t.Output()
	v := begin(s.t, &verifier{name: "go", cmd: cmd, line: func(token string) string {
		return fmt.Sprintf(`{"token":%q}`, token)
	}})
	setup, err := json.Marshal(map[string]any{
		"issuer": "http://localhost:8080", "audience": "authctl", "servers": []string{s.base}, "client_id": "orders",
		"secret": "s&cret",
		"name":   "orders-go", "max_lag": 30,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(v.in, "%s\n", setup); err != nil {
		s.t.Fatal(err)
	}
	return v
}

func begin(t *testing.T, v *verifier) *verifier {
	t.Helper()
	var err error
	if v.in, err = v.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	pipe, err := v.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v.out = bufio.NewReader(pipe)
	return v
}

// check returns "accept", or why a token is refused.
func (v *verifier) check(token string) (string, error) {
	list, err := v.checkAll([]string{token})
	if err != nil {
		return "", err
	}
	return list[0], nil
}

func (v *verifier) checkAll(tokens []string) ([]string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var written sync.WaitGroup
	defer written.Wait()
	written.Go(func() {
		for _, token := range tokens {
			_, _ = fmt.Fprintln(v.in, v.line(token)) // otherwise no answer comes
		}
	})
	var list []string
	for range tokens {
		line, err := v.out.ReadBytes('\n')
		if err != nil {
			return nil, fmt.Errorf("the verifier in %s does not answer: %w", v.name, err)
		}
		var s struct{ Verdict, Reason, Error string }
		if err := json.Unmarshal(line, &s); err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		switch {
		case s.Reason != "":
			s.Verdict = "refuse: " + s.Error
		case s.Verdict == "":
			s.Verdict = "accept"
		}
		list = append(list, s.Verdict)
	}
	return list, nil
}

// end ends the program.
func (v *verifier) end(t *testing.T) {
	t.Helper()
	if err := v.in.Close(); err != nil {
		t.Error(err)
	}
	if err := v.cmd.Wait(); err != nil {
		t.Errorf("the verifier in %s ended with: %v", v.name, err)
	}
}

const credentials = `{"username":"alice","password":"correct horse battery staple"}`

// followsTheService checks, against a real service, that a verifier soon refuses the token of an
// ended session and no other.
func (p program) followsTheService(t *testing.T) {
	t.Helper()
	s := newService(t)
	v := p.follows(s, nil)
	first := s.must("POST", "/register", "", credentials).Access
	second, third := s.must("POST", "/login", "", credentials).Access, s.must("POST", "/login", "", credentials).Access
	all := []string{first, second, third}
	expect := func(over ...string) {
		t.Helper()
		for _, token := range all {
			ended := slices.Contains(over, token)
			testenv.Eventually(t, "the verdict on a token", func() bool {
				said, err := v.check(token)
				if err != nil {
					t.Fatal(err)
				}
				return strings.HasPrefix(said, "refuse") == ended
			})
		}
	}
	expect()
	s.withstandsAFlood(v, first)
	s.must("POST", "/logout", first, "")
	expect(first)
	s.must("DELETE", "/sessions?except=current", second, "")
	expect(first, third)
	s.must("DELETE", "/me", second, `{"password":"correct horse battery staple"}`)
	expect(first, second, third)
	v.end(t)
}

// withstandsAFlood sends tokens with 10,000 made-up key ids, which may cause at most two fetches a
// minute.
func (s *service) withstandsAFlood(v *verifier, good string) {
	s.t.Helper()
	const every = 1000
	begun, before := time.Now(), s.fetched.Load()
	var flood []string
	for n := range 10_000 {
		header := fmt.Sprintf(`{"alg":"ES256","typ":"at+jwt","kid":"made-up-%d"}`, n)
		flood = append(flood, base64.RawURLEncoding.EncodeToString([]byte(header))+".e30."+strings.Repeat("A", 86))
		if n%every == 0 {
			flood = append(flood, good)
		}
	}
	verdicts, err := v.checkAll(flood)
	if err != nil {
		s.t.Fatal(err)
	}
	for n, verdict := range verdicts {
		if strings.HasPrefix(verdict, "refuse") == (flood[n] == good) {
			s.t.Fatalf("%s, token %d of the flood: %s", v.name, n, verdict)
		}
	}
	minutes := int64(time.Since(begun)/time.Minute) + 1
	if n := s.fetched.Load() - before; n > 2*minutes {
		s.t.Errorf("%s fetched the keys %d times in %d minutes", v.name, n, minutes)
	}
}

func TestVerifyingInNode(t *testing.T) {
	t.Parallel()
	p := inNode(t)
	p.triesTheVectors(t)
	p.followsTheService(t)
}

// Keys stay while they cannot be fetched. One that is gone from the set is forgotten, although nothing has asked
// for an unknown one: after a restore no entry of the feed names the keys that the database does not know.
func TestKeysAreFetchedAgainInNode(t *testing.T) {
	t.Parallel()
	p := inNode(t)
	s := newService(t)
	res, err := http.Get(s.base + "/.well-known/jwks.json")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var keys atomic.Pointer[[]byte]
	var asked atomic.Int64
	keys.Store(&text)
	published := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		if set := keys.Load(); set != nil {
			_, _ = w.Write(*set)
			return
		}
		w.WriteHeader(http.StatusBadGateway)
	}))
	t.Cleanup(published.Close)
	v := p.follows(s, map[string]string{"jwks": published.URL, "every": "100"})
	token := s.must("POST", "/register", "", credentials).Access
	check := func() string {
		t.Helper()
		said, err := v.check(token)
		if err != nil {
			t.Fatal(err)
		}
		return said
	}
	if said := check(); said != "accept" {
		t.Fatal(said)
	}
	keys.Store(nil)
	before := asked.Load()
	testenv.Eventually(t, "it asks again", func() bool { return asked.Load() > before+2 })
	if said := check(); said != "accept" {
		t.Errorf("without an answer: %s", said)
	}
	none := []byte(`{"keys":[]}`)
	keys.Store(&none)
	testenv.Eventually(t, "it forgets the key", func() bool { return check() != "accept" })
	v.end(t)
}

func TestVerifyingInPython(t *testing.T) {
	t.Parallel()
	p := inPython(t)
	p.triesTheVectors(t)
	p.followsTheService(t)
}

// inJava compiles the examples, once.
func inJava(t *testing.T) program {
	t.Helper()
	const from = "testdata/verifying/java"
	javac, java := testenv.Program(t, "install a JDK, 17 or newer", "javac"), testenv.Program(t,
		"install a JDK, 17 or newer", "java")
	classes := filepath.Join(testenv.MavenJars(t, from), "jars", "*")
	dir := t.TempDir()
	copyOut(t, "java", from, dir)
	compile := exec.CommandContext(t.Context(), javac, "-proc:none", "-cp", classes,
		"Try.java", "Nimbus.java", "Spring.java", "Ended.java", "Follow.java")
	compile.Dir = dir
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program{name: "java", dir: dir,
		args: []string{java, "-cp", dir + string(filepath.ListSeparator) + classes, "Try"}}
}

func TestVerifyingInJava(t *testing.T) {
	t.Parallel()
	p := inJava(t)
	all := readVectors(t)
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(all.Keys["all"])
	}))
	defer keys.Close()
	file, err := filepath.Abs(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.command(t, map[string]string{"vectors": file, "jwks": keys.URL}).Output()
	if err != nil {
		t.Fatal(err)
	}
	verdicts := map[string]map[string]string{"nimbus": {}, "spring": {}}
	for line := range bytes.Lines(out) {
		var s said
		if err := json.Unmarshal(line, &s); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		verdict, _, _ := strings.Cut(s.Verdict, ":")
		verdicts[s.By][s.Name] = verdict
	}
	for by, said := range verdicts {
		all.compare(t, by, said, func(header map[string]any, reason string) bool {
			return header["alg"] == "EdDSA" && reason == ""
		})
	}
	p.followsTheService(t)
}

// Keys that were published in time take turns, each for two seconds or until it has signed something,
// while clients refresh and verifiers in four languages check each of their tokens. No token is refused.
// At the end the first key is revoked, and all verifiers refuse it.
func TestKeysRotateUnderLoad(t *testing.T) {
	t.Parallel()
	programs := []program{inNode(t), inPython(t), inJava(t)}
	s := newService(t)
	turns, clients := 3, 4
	if os.Getenv("AUTHCTL_CAMPAIGN") == "long" {
		turns = 60
	}
	var kids []string
	for range turns {
		kids = append(kids, s.command("key", "stage"))
	}
	testenv.Eventually(t, "the keys are published", func() bool { // the server looks for new keys from time to time
		answer, err := http.Get(s.base + "/.well-known/jwks.json")
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		return err == nil && !slices.ContainsFunc(kids, func(kid string) bool {
			return !bytes.Contains(text, []byte(kid))
		})
	})
	first := s.must("POST", "/register", "", credentials)
	verifiers := []*verifier{inGo(s)}
	for _, p := range programs {
		verifiers = append(verifiers, p.follows(s, nil))
	}
	for _, v := range verifiers { // the verifier has fetched the keys, including the coming ones
		testenv.Eventually(t, "the verifier in "+v.name+" accepts a token", func() bool {
			said, err := v.check(first.Access)
			if err != nil {
				t.Fatal(err)
			}
			return said == "accept"
		})
	}
	var load sync.WaitGroup
	stop := make(chan struct{})
	var checks atomic.Int64
	var signed sync.Map // the keys of tokens that all verifiers have accepted
	for range clients {
		mine := s.must("POST", "/login", "", credentials)
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				answer, err := s.call("POST", "/refresh", "", fmt.Sprintf(`{"refresh_token":%q}`, mine.Refresh))
				if errors.Is(err, errNotNow) {
					time.Sleep(20 * time.Millisecond) // as a client does when told to wait
					continue
				}
				if err != nil {
					t.Errorf("a refresh: %v", err)
					return
				}
				mine = answer
				header, _ := base64.RawURLEncoding.DecodeString(strings.Split(mine.Access, ".")[0])
				var of struct{ KID string }
				_ = json.Unmarshal(header, &of) // the service has just made it
				for _, v := range verifiers {
					if said, err := v.check(mine.Access); err != nil || said != "accept" {
						t.Errorf("%s, a token of the key %s: %s, %v", v.name, of.KID, said, err)
						return
					}
					checks.Add(1)
				}
				signed.Store(of.KID, true)
			}
		})
	}
	turn := time.NewTicker(2 * time.Second)
	defer turn.Stop()
	for _, kid := range kids {
		<-turn.C
		s.command("key", "promote", "--force", kid)
		testenv.Eventually(t, "the key "+kid+" has signed something", func() bool {
			_, has := signed.Load(kid)
			return has || t.Failed()
		})
	}
	close(stop)
	load.Wait()
	header, _ := base64.RawURLEncoding.DecodeString(strings.Split(first.Access, ".")[0])
	var of struct{ KID string }
	if err := json.Unmarshal(header, &of); err != nil {
		t.Fatal(err)
	}
	s.command("key", "revoke", "--force", of.KID)
	for _, v := range verifiers {
		testenv.Eventually(t, "the verifier in "+v.name+" refuses the revoked key", func() bool {
			said, err := v.check(first.Access)
			if err != nil {
				t.Fatal(err)
			}
			return said != "accept"
		})
		v.end(t)
	}
	t.Logf("%d checks in four languages of tokens by %d keys, none refused", checks.Load(), len(kids)+1)
}
