package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/auth/authhttp"
	"github.com/toppira/authctl/modules/contact"
	"github.com/toppira/authctl/modules/contact/contacthttp"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/httpserver/httpservertest"
	"github.com/toppira/authctl/platform/openapi/openapitest"
	"github.com/toppira/authctl/platform/telemetry"
	"github.com/toppira/authctl/platform/testenv"
)

// site is the service on a fresh database. Its answers are checked against the document that it
// serves.
type site struct {
	t    *testing.T
	base string
	openapitest.Document
	contacts *contact.Service
	db       *database.DB
}

const (
	somePassword = "correct horse battery staple"
	someClient   = "gateway"
	someSecret   = "s3cret" // as in the document's example
)

func newSite(t *testing.T, start httpservertest.Start) *site {
	t.Helper()
	var cfg auth.Config
	if err := config.Load(&cfg, config.Options{File: os.DevNull, Environ: []string{
		"AUTH_PASSWORD_BCRYPT_COST=4", "AUTH_THROTTLE_ENABLED=false", "AUTH_TOKEN_ISSUER=https://auth.test",
		"AUTH_TOKEN_SECRET=a secret of the tests that is long enough for everything",
		// printf %s s3cret | sha256sum
		"AUTH_CLIENTS=" + someClient + ":1ec1c26b50d5d3c58d9583181af8076655fe00756bf7285940ba3670f99fcba0",
	}}); err != nil {
		t.Fatal(err)
	}
	db := dbtest.SQLite(t)
	svc, err := auth.New(t.Context(), cfg, auth.Deps{DB: db})
	testenv.Must(t, err)
	t.Cleanup(func() {
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
	})
	contacts, err := contact.New(contact.Config{FromUsername: true, Required: "off", Notify: "changes"},
		contact.Deps{DB: db, Auth: svc, Secrets: cfg.Token.Secrets()})
	testenv.Must(t, err)
	routes := authhttp.Routes(svc, authhttp.Options{Issuer: "https://auth.test"})
	routes = append(routes, contacthttp.Routes(svc, contacts)...)
	routes = append(routes, processRoutes(func() bool { return false }, telemetry.NewReadiness())...)
	return &site{t: t, base: start(t, httpserver.Options{Unavailable: auth.IsUnavailable}, routes...),
		Document: openapitest.Load(t, openAPI),
		contacts: contacts, db: db}
}

// call sends a request, and checks the answer against the operation. A 5xx fails the test.
func (s *site) call(op *openapi3.Operation, method, path string, header http.Header, body []byte) (status int,
	answer map[string]any) {
	s.t.Helper()
	status, answer = s.send(op, method, path, header, body)
	if status >= 500 {
		s.t.Errorf("%s %s %v %.300q: %d %v is the server's fault", method, path, header, body, status, answer)
	}
	return status, answer
}

// send sends a request and checks the answer against the operation.
func (s *site) send(op *openapi3.Operation, method, path string, header http.Header, body []byte) (status int,
	answer map[string]any) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.base+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	req.Header = header
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, problem := range s.Check(op, method, res, text) {
		s.t.Errorf("%s %s %v %.300q: %s", method, path, header, body, problem)
	}
	_ = json.Unmarshal(text, &answer) // not every answer has a body
	return res.StatusCode, answer
}

func jsonHeader(access string) http.Header {
	h := http.Header{"Content-Type": {"application/json"}}
	if access != "" {
		h.Set("Authorization", "Bearer "+access)
	}
	return h
}

// person is a signed-in user.
type person struct{ name, access, refresh, session string }

func (s *site) person(name string) person {
	s.t.Helper()
	body, err := json.Marshal(map[string]string{"username": name, "password": somePassword})
	if err != nil {
		s.t.Fatal(err)
	}
	status, answer := s.call(s.Operation("POST", "/api/v1/auth/register"), "POST", "/api/v1/auth/register",
		jsonHeader(""), body)
	if status != 201 {
		s.t.Fatalf("register %s: %d %v", name, status, answer)
	}
	text := func(member string) string { v, _ := answer[member].(string); return v }
	return person{name, text("access_token"), text("refresh_token"), text("session_id")}
}

// operations lists the documented operations in order.
func (s *site) operations() (list []operation) {
	for _, pattern := range slices.Sorted(maps.Keys(s.Paths.Map())) {
		for _, method := range slices.Sorted(maps.Keys(s.Paths.Value(pattern).Operations())) {
			list = append(list, operation{s.Paths.Value(pattern).GetOperation(method), method, pattern})
		}
	}
	return list
}

type operation struct {
	*openapi3.Operation
	method, pattern string
}

// Every example of a request is sent, with real tokens in place of those in the example, and must
// succeed. The answer has the members of the example of the answer.
func TestEveryExampleOfTheDocumentIsRun(t *testing.T) {
	t.Parallel()
	httpservertest.Each(t, func(t *testing.T, start httpservertest.Start) {
		s := newSite(t, start)
		ran := 0
		for _, op := range s.operations() {
			who := s.person("user-" + op.OperationID)
			path, header, body := s.exampleRequest(op, who)
			status, answer := s.call(op.Operation, op.method, path, header, body)
			ran++
			if status/100 != 2 {
				t.Errorf("%s %s with the example %s: %d %v", op.method, path, body, status, answer)
				continue
			}
			content := op.Responses.Value(strconv.Itoa(status)).Value.Content["application/json"]
			if content == nil {
				continue
			}
			if got, want := shape(answer), shape(content.Examples["example"].Value.Value); !reflect.DeepEqual(got,
				want) {
				t.Errorf("%s %s answers with the members %v, want those of the example: %v", op.method, path, got, want)
			}
		}
		if ran < 15 {
			t.Errorf("only %d examples were run", ran)
		}
	})
}

// exampleRequest is the example of an operation, as a person would send it.
func (s *site) exampleRequest(op operation, who person) (path string, header http.Header, body []byte) {
	s.t.Helper()
	theirs := map[string]string{
		"art_AQ": who.refresh, "0199b7f2-6f3f-7000-8000-5b1f6a100c8c": who.session,
		"eyJhbGciOiJFUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJhdCtqd3QifQ.e30.c2ln": who.access,
	}
	if op.OperationID != "register" { // nobody has the name yet
		theirs["alice"] = who.name
	}
	maps.Copy(theirs, s.withContact(op.OperationID, who))
	substitute := func(value any) string {
		text := fmt.Sprint(value)
		if with, ok := theirs[text]; ok {
			return with
		}
		return text
	}
	path, header = op.pattern, http.Header{}
	for _, p := range op.Parameters {
		examples := p.Value.Schema.Value.Examples
		if len(examples) == 0 {
			continue
		}
		switch text := substitute(examples[0]); p.Value.In {
		case "path":
			path = strings.ReplaceAll(path, "{"+p.Value.Name+"}", text)
		case "header":
			header.Set(p.Value.Name, text)
		case "cookie":
			header.Set("Cookie", p.Value.Name+"="+text)
		}
	}
	s.identify(op, header, who)
	if op.RequestBody == nil {
		return path, header, nil
	}
	for media, content := range op.RequestBody.Value.Content {
		header.Set("Content-Type", media)
		form, members := url.Values{}, map[string]any{}
		for name, value := range content.Examples["example"].Value.Value.(map[string]any) {
			form.Set(name, substitute(value))
			members[name] = substitute(value)
		}
		if media != "application/json" {
			return path, header, []byte(form.Encode())
		}
		text, err := json.Marshal(members)
		if err != nil {
			s.t.Fatal(err)
		}
		body = text
	}
	return path, header, body
}

// withContact prepares what an operation on contacts needs. It returns replacements for values of
// the example.
func (s *site) withContact(operation string, who person) map[string]string {
	s.t.Helper()
	if s.contacts == nil || !slices.Contains([]string{"listContacts", "addContact", "removeContact", "verifyContact",
		"verifyChallenge", "forgotPassword",
		"resetPassword", "undoChange"}, operation) {
		return nil
	}
	const example = "alice@example.com"
	address := who.name + "@example.com"
	if operation == "addContact" {
		return map[string]string{example: address}
	}
	claims, _, _ := strings.Cut(strings.SplitN(who.access, ".", 3)[1], "=")
	text, err := base64.RawURLEncoding.DecodeString(claims)
	if err != nil {
		s.t.Fatal(err)
	}
	var caller struct {
		Subject uuid.UUID `json:"sub"`
	}
	if err := json.Unmarshal(text, &caller); err != nil {
		s.t.Fatal(err)
	}
	c, id, err := s.contacts.Add(s.t.Context(), caller.Subject, contact.NewContact{Email: address}, auth.Device{})
	if err != nil {
		s.t.Fatal(err)
	}
	if operation != "verifyContact" && operation != "verifyChallenge" {
		if _, err := s.contacts.VerifyByOperator(s.t.Context(), caller.Subject, c.ID, false); err != nil {
			s.t.Fatal(err)
		}
	}
	switch operation {
	case "resetPassword":
		if id, err = s.contacts.Forgot(s.t.Context(), contact.Forgotten{Email: address}, auth.Device{}); err != nil {
			s.t.Fatal(err)
		}
	case "undoChange": // the first contact is told of another one
		other, err := s.contacts.AddByOperator(s.t.Context(), caller.Subject, "other."+address)
		if err != nil {
			s.t.Fatal(err)
		}
		if _, err := s.contacts.VerifyByOperator(s.t.Context(), caller.Subject, other.ID, false); err != nil {
			s.t.Fatal(err)
		}
	}
	m := s.lastMessage(address)
	return map[string]string{example: address, "0199b7f2-6f40-7000-8000-5b1f6a100c8c": c.ID.String(),
		"7KQM-X2PD": m.Code, "alt_AQ": m.LinkToken,
		"aut_AQ": m.LinkToken, "7d3e8a52-98a5-4a0b-9d53-2ed8a2a0c7f1": id.String()}
}

// lastMessage returns the newest unsent message to an address.
func (s *site) lastMessage(address string) (newest contact.Message) {
	s.t.Helper()
	sealer, err := contact.NewSealer("a secret of the tests that is long enough for everything")
	if err != nil {
		s.t.Fatal(err)
	}
	_, err = database.Collect(s.t.Context(), s.db, "read messages",
		func(row database.Row) (m contact.Message, err error) {
			var id uuid.UUID
			var data []byte
			if err := row.Scan(&id, &data); err != nil {
				return m, err
			}
			if m, err = sealer.Open(id, data); err == nil && m.Recipient == address {
				newest = m
			}
			return m, err
		}, "SELECT event_id, data FROM outbox_message ORDER BY id")
	if err != nil {
		s.t.Fatal(err)
	}
	return newest
}

// identify adds the credentials that the operation requires.
func (s *site) identify(op operation, header http.Header, who person) {
	for _, requirement := range *op.Security {
		for name := range requirement {
			switch scheme := s.Components.SecuritySchemes[name].Value; {
			case scheme.Type == "apiKey" && scheme.In == "cookie": // in place of the token in the body of the example
			case scheme.Scheme == "bearer":
				header.Set("Authorization", "Bearer "+who.access)
			case scheme.Scheme == "basic":
				header.Set("Authorization", "Basic "+
					base64.StdEncoding.EncodeToString([]byte(someClient+":"+someSecret)))
			default:
				s.t.Errorf("%s requires %s, which this test does not have", op.OperationID, scheme.Scheme)
			}
		}
	}
}

// shape returns the names of a value's members, at any depth.
func shape(value any) any {
	switch value := value.(type) {
	case map[string]any:
		members := map[string]any{}
		for name, part := range value {
			members[name] = shape(part)
		}
		return members
	case []any:
		if len(value) == 0 {
			return nil
		}
		return shape(value[0])
	}
	return nil
}

// failWith is the input of functions that fail with a given fault.
type failWith struct {
	With string `header:"Fail-With"`
}

// The server answers each fault with exactly the documented example.
func TestEveryRefusalOfTheDocumentIsAnsweredSo(t *testing.T) {
	t.Parallel()
	faults := map[string]*fault.Fault{} // by status and code
	for _, f := range slices.Concat(httpserver.Faults(), auth.Faults(), contact.Faults(), []*fault.Fault{errNotReady}) {
		faults[fmt.Sprint(httpserver.Status(f), f.Code)] = f
	}
	document := &site{t: t, Document: openapitest.Load(t, openAPI)}
	var routes []httpserver.Route
	for _, op := range document.operations() {
		routes = append(routes, httpserver.Route{Method: op.method, Path: op.pattern,
			Do: httpserver.PublicDo(func(_ context.Context, in failWith) error {
				f := faults[in.With]
				if f == nil {
					return fmt.Errorf("there is no fault %s", in.With)
				}
				if f.Kind == fault.Invalid { // with the fields of the example
					example := op.Responses.Value("400").Value.Content["application/problem+json"].Examples[f.Code].Value.Value.(map[string]any)
					for _, field := range example["errors"].([]any) {
						field := field.(map[string]any)
						f = f.Field(field["field"].(string), field["code"].(string), field["detail"].(string))
					}
				}
				return f
			})})
	}
	httpservertest.Each(t, func(t *testing.T, start httpservertest.Start) {
		s := &site{t: t, Document: document.Document, base: start(t, httpserver.Options{}, routes...)}
		ran := 0
		for _, op := range s.operations() {
			path, _, _ := s.exampleRequest(op, person{session: "0199b7f2-6f3f-7000-8000-5b1f6a100c8c"})
			for status, response := range op.Responses.Map() {
				content := response.Value.Content["application/problem+json"]
				if content == nil {
					continue
				}
				for code, example := range content.Examples {
					want := example.Value.Value.(map[string]any)
					header := http.Header{"Fail-With": {status + code}, "X-Request-Id": {want["request_id"].(string)}}
					_, got := s.send(op.Operation, op.method, path, header, nil)
					if response.Ref != "" { // several places share one description
						got["instance"] = want["instance"]
					}
					if !reflect.DeepEqual(got, want) {
						t.Errorf("%s %s answers %v, the example is %v", op.method, path, got, want)
					}
					ran++
				}
			}
		}
		if ran < 100 {
			t.Errorf("only %d examples were run", ran)
		}
	})
}

// Generated requests, right and wrong in every part, with and without credentials, get documented
// answers: no 5xx, and no undocumented status, media type, header or member.
func TestRequestsFromTheDocumentAreAnsweredAsDocumented(t *testing.T) {
	t.Parallel()
	rounds := 25
	if os.Getenv("AUTHCTL_CAMPAIGN") == "long" {
		rounds = 300
	}
	all := newSite(t, httpservertest.Fiber)
	for _, op := range all.operations() {
		t.Run(op.OperationID, func(t *testing.T) {
			t.Parallel()
			s := &site{t: t, base: all.base, Document: all.Document, contacts: all.contacts, db: all.db}
			seen := map[int]int{}
			for round := range rounds {
				g := &generator{Rand: rand.New(rand.NewPCG(uint64(round), 7)), site: s}
				who := s.person("p" + uuid.NewString()[:30])
				path, header, body := g.request(op, who, round)
				status, _ := s.call(op.Operation, op.method, path, header, body)
				seen[status]++
			}
			want := []int{successOf(op)}
			if op.RequestBody != nil {
				want = append(want, 400, 413)
			}
			if !slices.ContainsFunc(*op.Security, func(r openapi3.SecurityRequirement) bool { return len(r) == 0 }) &&
				len(*op.Security) > 0 {
				want = append(want, 401)
			}
			for _, status := range want {
				if seen[status] == 0 {
					t.Errorf("no request was answered %d: %v", status, seen)
				}
			}
		})
	}
}

func successOf(op operation) int {
	for _, status := range []int{200, 201, 202, 204} {
		if op.Responses.Value(strconv.Itoa(status)) != nil {
			return status
		}
	}
	return 0
}

// generator makes requests from the document.
type generator struct {
	*rand.Rand
	*site
}

// request makes a request for an operation. The first rounds cover the cases that must occur.
func (g *generator) request(op operation, who person, round int) (path string, header http.Header, body []byte) {
	path, header, body = g.exampleRequest(op, who)
	if op.OperationID == "register" {
		body = []byte(`{"username":"r` + uuid.NewString()[:30] + `","password":"` + somePassword + `"}`)
	}
	switch round {
	case 0:
		return path, header, body
	case 1:
		header.Del("Authorization")
		return path, header, body
	case 2:
		return path, header, []byte(strings.Repeat(" ", httpserver.MaxBody+1))
	case 3:
		return path, header, []byte("{")
	}
	for range 1 + g.IntN(2) {
		switch g.IntN(6) {
		case 0: // credentials
			header.Set("Authorization",
				g.pick("", "Bearer", "Bearer "+who.refresh, "Bearer "+who.access+"x", "Bearer x.y.z",
					"Basic "+who.access,
					"Basic "+base64.StdEncoding.EncodeToString([]byte(g.text()+":"+g.text())), "Bearer "+who.access))
		case 1: // the query
			path += g.pick("?", "?except=current", "?except=other", "?except=current&except=current",
				"?"+url.QueryEscape(g.text())+"=1", "?%zz")
		case 2: // path parameters
			for _, p := range op.Parameters {
				if p.Value.In == "path" {
					path = strings.ReplaceAll(op.pattern, "{"+p.Value.Name+"}",
						url.PathEscape(g.pick(uuid.NewString(), strings.ToUpper(who.session), "0", who.session+"x",
							"x"+g.text())))
				}
			}
		case 3: // the content type
			header.Set("Content-Type", g.pick("text/plain", "application/json; charset=utf-8",
				"application/json; charset=latin1",
				"application/x-www-form-urlencoded", "", "application/problem+json"))
			if g.IntN(4) == 0 {
				header.Set("Content-Encoding", g.pick("gzip", "identity"))
			}
		case 4: // other headers
			header.Set(g.pick("X-Request-Id", "Auth-Device", "If-None-Match", "Cookie", "Accept", "X-Forwarded-For",
				"User-Agent"),
				g.pick("*", "adt_x", "a b", `"x", W/"y"`, "authctl_device=adt_"+strings.Repeat("A", 76),
					"__Host-authctl="+who.refresh, "application/xml", strings.Repeat("u", 3000)))
		case 5: // the body
			if op.RequestBody != nil {
				body = g.mutate(body)
			}
		}
	}
	return path, header, body
}

func (g *generator) pick(list ...string) string { return list[g.IntN(len(list))] }

// text returns a string that a client may send.
func (g *generator) text() string {
	return g.pick("", " ", "a", "alice", "\u00e4\u0438\U0001f600", "\u202e\u2028\x00", strings.Repeat("x", 300),
		"'; DROP TABLE users; --",
		"null", "0199b7f2-6f3e-7c1d-9a55-0c8c5b1f6a10", "art_"+strings.Repeat("A", 120), "a\r\nb: c")
}

// mutate spoils a body as faulty clients do.
func (g *generator) mutate(body []byte) []byte {
	var members map[string]any
	if json.Unmarshal(body, &members) != nil || len(members) == 0 {
		return []byte(g.pick(string(body)+"&"+string(body), string(body)+"&x=%zz", "token=%ff", "", "{}",
			string(body)+"&unknown=1"))
	}
	name := slices.Sorted(maps.Keys(members))[g.IntN(len(members))]
	switch g.IntN(8) {
	case 0:
		delete(members, name)
	case 1:
		members["unknown"] = g.text()
	case 2:
		members[name] = []any{nil, 1, true, []any{}, map[string]any{}, 1e300}[g.IntN(6)]
	case 3:
		return body[:g.IntN(len(body))]
	case 4:
		return append(slices.Clone(body), g.pick("x", "{}", " ", "\x00")...)
	case 5:
		return []byte(g.pick("[]", "null", `"x"`, "1", "\ufeff"+string(body), strings.Repeat("[", 100),
			`{"a":`+strings.Repeat("[", 20)+strings.Repeat("]", 20)+"}", "\xff\xfe"))
	case 6:
		return append(slices.Clone(body[:len(body)-1]), fmt.Sprintf(`,%q:"again"}`, name)...)
	default:
		members[name] = g.text()
	}
	text, err := json.Marshal(members)
	if err != nil {
		g.t.Fatal(err)
	}
	return text
}
