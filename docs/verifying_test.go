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
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
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

// vectors are what every verifier is tried on; see verify/testdata/README.md.
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

// compare holds what a verifier said, by the names of the vectors, against what is right. except
// names what it is known not to do.
func (all vectors) compare(t *testing.T, who string, said map[string]string, except func(header map[string]any, reason string) bool) {
	t.Helper()
	compared := 0
	for _, v := range all.Vectors {
		text, _ := base64.RawURLEncoding.DecodeString(strings.Split(v.Token, ".")[0])
		var header map[string]any
		_ = json.Unmarshal(text, &header) // of some it is none
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
		if _, err := checkToken(v.Token, all.Issuer, all.Audience, keys, func() time.Time { return v.Time }); err != nil {
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
			point, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, decode(k.X), decode(k.Y)))
			if err != nil {
				t.Fatal(err)
			}
			keys[k.KID] = point
		case "OKP":
			keys[k.KID] = ed25519.PublicKey(decode(k.X))
		case "RSA":
			keys[k.KID] = &rsa.PublicKey{N: new(big.Int).SetBytes(decode(k.N)), E: int(new(big.Int).SetBytes(decode(k.E)).Int64())}
		}
	}
	return func(token *jwt.Token) (any, error) {
		if kid, is := token.Header["kid"].(string); is && keys[kid] != nil {
			return keys[kid], nil
		}
		return nil, errors.New("unknown key")
	}
}

// program is an example of the page in a language, with what tries it.
type program struct {
	name string
	dir  string   // holds all of its files
	args []string // the command, but for what it is to do
	env  []string
}

// copyOut puts the files of the page in a language, and those of a folder, into another folder.
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
	if err := os.Symlink(filepath.Join(testenv.NodeModules(t, from), "node_modules"), filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	copyOut(t, "js", from, dir)
	return program{name: "node", dir: dir, args: []string{node, "try.mjs"}}
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

// command runs it with settings in JSON.
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

// said is a line of what a program says.
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

// followsTheService refuses the token of a session that ends, soon after, and no other, of a real
// service.
func (p program) followsTheService(t *testing.T) {
	t.Helper()
	secret := sha256.Sum256([]byte("s&cret"))
	dir := t.TempDir()
	base := serve(t, dir, "AUTH_CLIENTS=orders:"+hex.EncodeToString(secret[:]), "AUTH_PASSWORD_BCRYPT_COST=4")
	cmd := p.command(t, map[string]string{
		"issuer": "http://localhost:8080", "audience": "authctl", "jwks": base + "/.well-known/jwks.json",
		"feed": base + "/oauth2/revocations", "id": "orders", "secret": "s&cret", "name": "orders-" + p.name,
	})
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(pipe)
	ask := func(token string) string {
		t.Helper()
		if _, err := fmt.Fprintln(in, token); err != nil {
			t.Fatal(err)
		}
		line, err := lines.ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		var s said
		if err := json.Unmarshal(line, &s); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		return s.Verdict
	}
	call := func(method, path, bearer, body string) (token string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, base+"/api/v1/auth"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if bearer != "" {
			req.Header.Set("Authorization", "Bearer "+bearer)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var answer struct {
			AccessToken string `json:"access_token"`
		}
		_ = json.NewDecoder(res.Body).Decode(&answer) // a 204 has none
		if res.StatusCode >= 300 {
			t.Fatalf("%s %s answered %d", method, path, res.StatusCode)
		}
		return answer.AccessToken
	}
	const credentials = `{"username":"alice","password":"correct horse battery staple"}`
	first := call("POST", "/register", "", credentials)
	second, third := call("POST", "/login", "", credentials), call("POST", "/login", "", credentials)
	all := []string{first, second, third}
	expect := func(over ...string) {
		t.Helper()
		for _, token := range all {
			ended := slices.Contains(over, token)
			testenv.Eventually(t, "the verdict on a token", func() bool { return strings.HasPrefix(ask(token), "refuse") == ended })
		}
	}
	expect()
	call("POST", "/logout", first, "")
	expect(first)
	call("DELETE", "/sessions?except=current", second, "")
	expect(first, third)
	call("DELETE", "/me", second, `{"password":"correct horse battery staple"}`)
	expect(first, second, third)
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyingInNode(t *testing.T) {
	t.Parallel()
	p := inNode(t)
	p.triesTheVectors(t)
	p.followsTheService(t)
}

func TestVerifyingInPython(t *testing.T) {
	t.Parallel()
	p := inPython(t)
	p.triesTheVectors(t)
	p.followsTheService(t)
}

func TestVerifyingInJava(t *testing.T) {
	t.Parallel()
	const from = "testdata/verifying/java"
	javac, java := testenv.Program(t, "install a JDK, 17 or newer", "javac"), testenv.Program(t, "install a JDK, 17 or newer", "java")
	classes := filepath.Join(testenv.MavenJars(t, from), "jars", "*")
	dir := t.TempDir()
	copyOut(t, "java", from, dir)
	compile := exec.CommandContext(t.Context(), javac, "-proc:none", "-cp", classes, "Try.java", "Nimbus.java", "Spring.java")
	compile.Dir = dir
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	all := readVectors(t)
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(all.Keys["all"]) }))
	defer keys.Close()
	file, err := filepath.Abs(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*testenv.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, java, "-cp", dir+string(filepath.ListSeparator)+classes, "Try", file, keys.URL)
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	verdicts := map[string]map[string]string{"nimbus": {}, "spring": {}}
	for line := range bytes.Lines(out) {
		var s said
		if err := json.Unmarshal(line, &s); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		verdicts[s.By][s.Name] = s.Verdict
	}
	for by, said := range verdicts {
		all.compare(t, by, said, func(header map[string]any, reason string) bool {
			return reason == "revoked" || header["alg"] == "EdDSA" && reason == ""
		})
	}
}
