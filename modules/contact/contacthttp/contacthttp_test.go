package contacthttp

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/auth/authhttp"
	"github.com/toppira/authctl/modules/contact"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/httpserver/httpservertest"
	"github.com/toppira/authctl/platform/openapi"
	"github.com/toppira/authctl/platform/openapi/openapitest"
)

const (
	issuer                    = "https://auth.test"
	secret      config.Secret = "a secret of the tests that is long enough for everything"
	password                  = "a quite good password"
	jsonType                  = "application/json"
	contacts                  = "/api/v1/auth/contacts"
	noID                      = "7d3e8a52-98a5-4a0b-9d53-2ed8a2a0c7f1"
	newPassword               = "another quite good one"
)

// site is the routes of accounts and contacts on a fresh database.
type site struct {
	t    *testing.T
	base string
	db   *database.DB
	doc  openapitest.Document
}

// eachWay runs a test with Fiber and with net/http.
func eachWay(t *testing.T, required string, test func(t *testing.T, s *site)) {
	t.Helper()
	httpservertest.Each(t, func(t *testing.T, start httpservertest.Start) {
		db := dbtest.SQLite(t)
		var set auth.Config
		if err := config.Load(&set, config.Options{Environ: []string{"AUTH_TOKEN_SECRET=" + secret.Reveal(),
			"AUTH_PASSWORD_BCRYPT_COST=4", "AUTH_TOKEN_ISSUER=" + issuer}}); err != nil {
			t.Fatal(err)
		}
		accounts, err := auth.New(t.Context(), set, auth.Deps{DB: db})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := accounts.Close(); err != nil {
				t.Error(err)
			}
		})
		svc, err := contact.New(contact.Config{FromUsername: true, Required: required, Notify: "changes"},
			contact.Deps{DB: db, Auth: accounts, Secrets: []config.Secret{secret}})
		if err != nil {
			t.Fatal(err)
		}
		routes := append(authhttp.Routes(accounts, authhttp.Options{Issuer: issuer, SecureCookies: true}),
			Routes(accounts, svc)...)
		text, err := openapi.Document(openapi.Info{Title: "test", Version: "1", ContactURL: issuer,
			License: "Apache-2.0", Server: "/",
			Groups: append(authhttp.Groups, Groups...)}, routes)
		if err != nil {
			t.Fatal(err)
		}
		test(t, &site{t: t, base: start(t, httpserver.Options{Unavailable: auth.IsUnavailable}, routes...), db: db,
			doc: openapitest.Load(t, text)})
	})
}

type answer struct {
	status int
	code   string
	text   string
	body   map[string]any
}

func (a answer) str(name string) string { s, _ := a.body[name].(string); return s }

// send sends a request and checks the answer against the document. headers are names and values.
func (s *site) send(method, path, body string, headers ...string) answer {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.base+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", jsonType)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	op := s.doc.Operation(method, req.URL.EscapedPath())
	if op == nil {
		s.t.Fatalf("%s %s is not documented", method, path)
	}
	for _, problem := range s.doc.Check(op, method, res, text) {
		s.t.Errorf("%s %s %.100s: %s", method, path, body, problem)
	}
	a := answer{status: res.StatusCode, text: string(text)}
	if len(text) > 0 {
		if err := json.Unmarshal(text, &a.body); err != nil {
			s.t.Fatalf("%s %s: %s", method, path, text)
		}
	}
	a.code = a.str("code")
	return a
}

func (s *site) expect(a answer, status int, code string) answer {
	s.t.Helper()
	if a.status != status || a.code != code {
		s.t.Errorf("%d %s, want %d %s", a.status, a.text, status, code)
	}
	return a
}

// person registers somebody and returns the session's Authorization header.
func (s *site) person(name string) string {
	s.t.Helper()
	a := s.expect(s.send("POST", "/api/v1/auth/register", `{"username":"`+name+`","password":"`+password+`"}`), 201, "")
	return "Bearer " + a.str("access_token")
}

// message is the newest message to an address.
func (s *site) message(to string) (newest contact.Message) {
	s.t.Helper()
	sealer, err := contact.NewSealer(secret)
	if err != nil {
		s.t.Fatal(err)
	}
	rows, err := s.db.QueryContext(s.t.Context(), "SELECT event_id, data FROM outbox_message ORDER BY id")
	if err != nil {
		s.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id uuid.UUID
		var data []byte
		if err := rows.Scan(&id, &data); err != nil {
			s.t.Fatal(err)
		}
		if m, err := sealer.Open(id, data); err != nil {
			s.t.Fatal(err)
		} else if m.Recipient == to {
			newest = m
		}
	}
	if err := rows.Err(); err != nil {
		s.t.Fatal(err)
	}
	return newest
}

func TestWhatEachRouteRefuses(t *testing.T) {
	t.Parallel()
	eachWay(t, "off", func(t *testing.T, s *site) {
		alice, bob := s.person("alice-of-the-test"), s.person("bob-of-the-test")
		added := s.expect(s.send("POST", contacts, `{"email":"alice@example.com"}`, "Authorization", alice), 201, "")
		own := contacts + "/" + added.str("id")
		large := `{"email":"` + strings.Repeat("a", 17<<10) + `"}`
		deep := `{"email":` + strings.Repeat("[", 17) + strings.Repeat("]", 17) + `}`
		for _, test := range []struct {
			method, path, body string
			who                string // Authorization
			contentType        string // the content type, if not JSON
			status             int
			code               string
		}{
			// Without a sign-in.
			{"GET", contacts, "", "", "", 401, "missing_token"},
			{"POST", contacts, `{"email":"a@example.com"}`, "", "", 401, "missing_token"},
			{"DELETE", own, "", "", "", 401, "missing_token"},
			{"POST", own + "/verify", `{"code":"x"}`, "", "", 401, "missing_token"},
			{"GET", contacts, "", "Bearer x", "", 401, "invalid_token"},
			// Malformed requests.
			{"POST", contacts, `{`, alice, "", 400, "malformed_request"},
			{"POST", contacts, `[]`, alice, "", 400, "malformed_request"},
			{"POST", contacts, `{"email":"a@example.com"} {}`, alice, "", 400, "malformed_request"},
			{"POST", contacts, `{"email":"a@example.com","email":"b@example.com"}`, alice, "", 400,
				"malformed_request"},
			{"POST", contacts, `{"Email":"a@example.com"}`, alice, "", 400, "malformed_request"},
			{"POST", contacts, `{"email":"a@example.com","verified":true}`, alice, "", 400, "malformed_request"},
			{"POST", contacts, `{"email":7}`, alice, "", 400, "validation_failed"},
			{"POST", contacts, deep, alice, "", 400, "malformed_request"},
			{"POST", contacts, "{\"email\":\"\xff@example.com\"}", alice, "", 400, "malformed_request"},
			{"POST", contacts, large, alice, "", 413, "body_too_large"},
			{"POST", contacts, `{"email":"a@example.com"}`, alice, "text/plain", 415, "unsupported_media_type"},
			{"POST", contacts, `{"email":"a@example.com"}`, alice, "application/json; charset=latin1", 415,
				"unsupported_media_type"},
			{"POST", "/api/v1/auth/password/forgot", `email=alice@example.com`, "",
				"application/x-www-form-urlencoded", 415, "unsupported_media_type"},
			{"POST", "/api/v1/auth/password/reset", large, "", "", 413, "body_too_large"},
			{"POST", "/api/v1/auth/undo", `{"token":null}`, "", "", 400, "validation_failed"},
			// Unacceptable values.
			{"POST", contacts, `{}`, alice, "", 400, "validation_failed"},
			{"POST", contacts, `{"email":""}`, alice, "", 400, "validation_failed"},
			{"POST", contacts, `{"email":"alice"}`, alice, "", 400, "validation_failed"},
			{"POST", contacts, `{"email":"a@example.com\r\nBcc: eve@example.com"}`, alice, "", 400,
				"validation_failed"},
			{"POST", contacts, `{"email":"a\u0000@example.com"}`, alice, "", 400, "validation_failed"},
			{"POST", contacts, `{"email":"` + strings.Repeat("a", 65) + `@example.com"}`, alice, "", 400,
				"validation_failed"},
			{"POST", own + "/verify", `{}`, alice, "", 400, "validation_failed"},
			{"POST", "/api/v1/auth/password/forgot", `{}`, "", "", 400, "validation_failed"},
			{"POST", "/api/v1/auth/password/forgot", `{"email":""}`, "", "", 400, "validation_failed"},
			{"POST", "/api/v1/auth/password/forgot", `{"email":"a@example.com","username":"alice"}`, "", "", 400,
				"validation_failed"},
			{"POST", "/api/v1/auth/password/reset", `{"token":"alt_x"}`, "", "", 400, "validation_failed"},
			{"POST", "/api/v1/auth/password/reset", `{"new_password":"` + newPassword + `"}`, "", "", 400,
				"validation_failed"},
			{"POST", "/api/v1/auth/password/reset", `{"challenge_id":"` + noID + `","new_password":"` + newPassword +
				`"}`, "", "", 400, "validation_failed"},
			{"POST", "/api/v1/auth/password/reset", `{"token":"x","code":"x","new_password":"` + newPassword + `"}`,
				"", "", 400, "validation_failed"},
			{"POST", "/api/v1/auth/password/reset", `{"token":"alt_x","new_password":"short"}`, "", "", 400,
				"validation_failed"},
			{"POST", "/api/v1/auth/verify", `{}`, "", "", 400, "validation_failed"},
			{"POST", "/api/v1/auth/verify", `{"code":"x"}`, "", "", 400, "validation_failed"},
			{"POST", "/api/v1/auth/verify", `{"token":"x","challenge_id":"` + noID + `"}`, "", "", 400,
				"validation_failed"},
			// What does not exist, or does not belong to the caller.
			{"DELETE", contacts + "/" + noID, "", alice, "", 404, "contact_not_found"},
			{"DELETE", contacts + "/nonsense", "", alice, "", 404, "contact_not_found"},
			{"DELETE", contacts + "/" + strings.ToUpper(added.str("id")), "", alice, "", 404, "contact_not_found"},
			{"DELETE", own, "", bob, "", 404, "contact_not_found"},
			{"POST", own + "/verify", `{"code":"2345-6789"}`, bob, "", 404, "contact_not_found"},
			{"POST", contacts + "/" + noID + "/verify", `{"code":"2345-6789"}`, alice, "", 404, "contact_not_found"},
			// Wrong codes and links.
			{"POST", own + "/verify", `{"code":"2345-6789"}`, alice, "", 403, "invalid_code"},
			{"POST", own + "/verify", `{"code":""}`, alice, "", 403, "invalid_code"},
			{"POST", "/api/v1/auth/verify", `{"challenge_id":"` + noID + `","code":"2345-6789"}`, "", "", 403,
				"invalid_code"},
			{"POST", "/api/v1/auth/verify", `{"challenge_id":"nonsense","code":"2345-6789"}`, "", "", 403,
				"invalid_code"},
			{"POST", "/api/v1/auth/verify", `{"token":""}`, "", "", 403, "invalid_code"},
			{"POST", "/api/v1/auth/verify", `{"token":"alt_x"}`, "", "", 403, "invalid_code"},
			{"POST", "/api/v1/auth/password/reset", `{"challenge_id":"` + noID + `","code":"x","new_password":"` +
				newPassword + `"}`, "", "", 403, "invalid_code"},
			{"POST", "/api/v1/auth/password/reset", `{"challenge_id":"","code":"","new_password":"` + newPassword +
				`"}`, "", "", 403, "invalid_code"},
			{"POST", "/api/v1/auth/password/reset", `{"token":"","new_password":"` + newPassword + `"}`, "", "", 403,
				"invalid_code"},
			{"POST", "/api/v1/auth/undo", `{"token":"aut_x"}`, "", "", 403, "invalid_code"},
			{"POST", "/api/v1/auth/undo", `{"token":""}`, "", "", 403, "invalid_code"},
		} {
			headers := []string{"Authorization", test.who}
			if test.who == "" {
				headers = nil
			}
			if test.contentType != "" {
				headers = append(headers, "Content-Type", test.contentType)
			}
			if a := s.send(test.method, test.path, test.body, headers...); a.status != test.status ||
				a.code != test.code {
				t.Errorf("%s %s %.120s: %d %s, want %d %s", test.method, test.path, test.body, a.status, a.text,
					test.status, test.code)
			}
		}
		// None of these requests has changed anything.
		list := s.expect(s.send("GET", contacts, "", "Authorization", alice), 200, "")
		if got, _ := list.body["contacts"].([]any); len(got) != 1 || strings.Contains(list.text, `"verified":true`) {
			t.Errorf("%s", list.text)
		}
		code := s.message("alice@example.com").Code
		s.expect(s.send("POST", own+"/verify", `{"code":"`+code+`"}`, "Authorization", alice), 200, "")
		s.expect(s.send("POST", contacts, `{"email":"ALICE@example.com"}`, "Authorization", alice), 409,
			"contact_exists")
		s.expect(s.send("DELETE", own, "", "Authorization", alice), 204, "")
	})
}

// An account has at most ten contacts, and a verified address belongs to one account.
func TestContactsAreLimitedAndUnique(t *testing.T) {
	t.Parallel()
	eachWay(t, "off", func(t *testing.T, s *site) {
		alice, bob := s.person("alice-of-the-test"), s.person("bob-of-the-test")
		for i := range 10 {
			s.expect(s.send("POST", contacts, `{"email":"`+string(rune('a'+i))+`@example.com"}`, "Authorization",
				alice), 201, "")
		}
		s.expect(s.send("POST", contacts, `{"email":"z@example.com"}`, "Authorization", alice), 403,
			"too_many_contacts")
		mine := s.message("j@example.com")
		// the answer does not say whose it is
		s.expect(s.send("POST", contacts, `{"email":"j@example.com"}`, "Authorization", bob), 201, "")
		theirs := s.message("j@example.com")
		s.expect(s.send("POST", "/api/v1/auth/verify", `{"challenge_id":"`+mine.ChallengeID.String()+`","code":"`+
			mine.Code+`"}`), 204, "")
		s.expect(s.send("POST", "/api/v1/auth/verify", `{"token":"`+theirs.LinkToken+`"}`), 409, "contact_taken")
		s.expect(s.send("POST", "/api/v1/auth/verify", `{"challenge_id":"`+theirs.ChallengeID.String()+`","code":"`+
			theirs.Code+`"}`), 409, "contact_taken")
	})
}

// Where a sign-in needs a verified address, a client can go on from the answer alone: first the
// code, then the sign-in. This works again after the client has forgotten everything but the
// password.
func TestAClientGoesOnWhereSignInWaits(t *testing.T) {
	t.Parallel()
	eachWay(t, "verified", func(t *testing.T, s *site) {
		const login, register, verify = "/api/v1/auth/login", "/api/v1/auth/register", "/api/v1/auth/verify"
		for name, again := range map[string]bool{"alice-of-the-test": false, "bob-of-the-test": true} {
			cred := `"username":"` + name + `","password":"` + password + `"`
			s.expect(s.send("POST", register, `{`+cred+`}`), 400, "validation_failed")
			a := s.expect(s.send("POST", register, `{`+cred+`,"email":"`+name+`@example.com"}`), 202, "")
			if len(a.body) != 1 {
				t.Errorf("%s", a.text)
			}
			s.expect(s.send("POST", register, `{`+cred+`,"email":"`+name+`@example.com"}`), 409, "username_taken")
			s.expect(s.send("POST", login, `{"username":"`+name+`","password":"not the password"}`), 401,
				"invalid_credentials")
			refused := s.expect(s.send("POST", login, `{`+cred+`}`), 403, "contact_unverified")
			id := a.str("challenge_id")
			if again {
				id = refused.str("challenge_id")
			}
			m := s.message(name + "@example.com")
			if id == "" || id != m.ChallengeID.String() {
				t.Errorf("the challenge is %q: %s", id, refused.text)
			}
			s.expect(s.send("POST", verify, `{"challenge_id":"`+id+`","code":"2345-6789"}`), 403, "invalid_code")
			s.expect(s.send("POST", verify, `{"challenge_id":"`+id+`","code":"`+m.Code+`"}`), 204, "")
			tokens := s.expect(s.send("POST", login, `{`+cred+`}`), 200, "")
			bearer := "Bearer " + tokens.str("access_token")
			list := s.expect(s.send("GET", contacts, "", "Authorization", bearer), 200, "")
			first, _ := list.body["contacts"].([]any)[0].(map[string]any)
			s.expect(s.send("DELETE", contacts+"/"+first["id"].(string), "", "Authorization", bearer), 409,
				"contact_needed")
		}
	})
}

// A device that has signed in before is known by its cookie, as by its header.
func TestAKnownDeviceHasMessagesOfItsOwn(t *testing.T) {
	t.Parallel()
	eachWay(t, "off", func(t *testing.T, s *site) {
		bearer := s.person("alice-of-the-test")
		added := s.expect(s.send("POST", contacts, `{"email":"alice@example.com"}`, "Authorization", bearer), 201, "")
		m := s.message("alice@example.com")
		s.expect(s.send("POST", contacts+"/"+added.str("id")+"/verify", `{"code":"`+m.Code+`"}`, "Authorization",
			bearer), 200, "")
		req, err := http.NewRequestWithContext(t.Context(), "POST", s.base+"/api/v1/auth/login",
			strings.NewReader(`{"username":"alice-of-the-test","password":"`+password+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", jsonType)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		device := res.Header.Get("Auth-Device")
		for _, header := range [][]string{nil, {"Auth-Device", device}, {"Cookie", "authctl_device=" + device}} {
			if _, err := s.db.Write(t.Context(),
				"UPDATE contact_challenge SET created_ms = created_ms - 120000"); err != nil {
				t.Fatal(err)
			}
			s.expect(s.send("POST", "/api/v1/auth/password/forgot", `{"email":"alice@example.com"}`, header...), 202,
				"")
		}
		known, err := database.Value[int](s.db.QueryRowContext(t.Context(),
			"SELECT count(*) FROM contact_challenge WHERE owner"))
		if err != nil || known != 2 {
			t.Errorf("%d of 3 requests came from a known device, %v", known, err)
		}
	})
}
