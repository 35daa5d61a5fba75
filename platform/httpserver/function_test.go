package httpserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/httpserver"
)

// members are all parts that an input may have.
type members struct {
	shared
	ID    string `path:"id"`
	Query string `query:"q"`
	Body  struct {
		Needed *string `json:"needed"`
		Free   string  `json:"free,omitempty"`
	}
}

type shared struct {
	Peer   httpserver.Peer
	Header string `header:"X-Own"`
	Cookie string `cookie:"mark"`
}

type everything struct {
	Status int          `status:"202"`
	Header string       `header:"X-Answer"`
	Unsent string       `header:"X-Unsent"`
	Cookie *http.Cookie `cookie:"answer"`
	Body   map[string]string
}

var errNobody = fault.New(fault.Unauthenticated, "invalid_token", "Who is it")

func TestAFunctionGetsAndGivesEveryPart(t *testing.T) {
	t.Parallel()
	someone := httpserver.Identity[string]{
		Scheme: &httpserver.Scheme{Name: "bearer", HTTP: "bearer"},
		Of: func(_ context.Context, c httpserver.Credentials) (string, error) {
			who, found := strings.CutPrefix(c.Authorization(), "Bearer ")
			if !found {
				return "", errNobody
			}
			return who, nil
		},
		User: func(who string) string { return who },
	}
	whole := httpserver.Route{Method: "POST", Path: "/all/{id}/end", Cache: "no-store",
		Do: httpserver.As(someone, func(ctx context.Context, who string, in members) (everything, error) {
			if _, deadline := ctx.Deadline(); !deadline {
				t.Error("the work has no deadline")
			}
			return everything{Status: 202, Header: in.Header, Cookie: &http.Cookie{Name: "answer", Value: in.Cookie,
				HttpOnly: true}, Body: map[string]string{
				"who": who, "id": in.ID, "q": in.Query, "needed": *in.Body.Needed, "free": in.Body.Free,
				"ip": in.Peer.IP.String(), "agent": in.Peer.UserAgent, "request": in.Peer.RequestID,
			}}, nil
		})}
	optional := httpserver.Route{Method: "POST", Path: "/optional",
		Do: httpserver.Public(func(_ context.Context, in struct {
			Body echo `body:"optional"`
		}) (echo, error) {
			return in.Body, nil
		})}
	lost := httpserver.Route{Method: "DELETE", Path: "/lost", Instead: "POST /lost",
		Do: httpserver.PublicDo(func(context.Context, echoed) error { return nil })}
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{}, whole, optional, lost)
		headers := []string{"Content-Type", "application/json", "Authorization", "Bearer user-7", "X-Own", "own",
			"Cookie",
			"other=1; mark=it", "User-Agent", "agent/1", "X-Request-Id", "id-1"}
		a := s.do(t, "POST", "/all/a%2Fb/end?q=c%20d", `{"needed":"","free":"f"}`, headers...)
		var got map[string]string
		if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.StatusCode != 202 {
			t.Fatalf("%d %s", a.StatusCode, a.body)
		}
		want := map[string]string{"who": "user-7", "id": "a%2Fb", "q": "c d", "needed": "", "free": "f",
			"ip":    "127.0.0.1",
			"agent": "agent/1", "request": "id-1"}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%v, want %v", got, want)
		}
		if a.Header.Get("X-Answer") != "own" || a.Header.Values("X-Unsent") != nil ||
			a.Header.Get("Set-Cookie") != "answer=it; HttpOnly" || a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%v", a.Header)
		}
		a = s.do(t, "POST", "/all/x/end", `{"needed":""}`, append(headers, "X-Own", "twice")...)
		if got := a.Header.Get("X-Answer"); got != "own, twice" {
			t.Errorf("two lines of a header are %q", got)
		}
		// The caller is identified before anything else is read.
		s.do(t, "POST", "/all/x/end?nonsense", "nonsense").problem(t, 401, "invalid_token")
		s.requests(t, 3)
		p := s.do(t, "POST", "/all/x/end", `{}`, headers...).problem(t, 400, "validation_failed")
		if len(p.Errors) != 1 || p.Errors[0].Field != "needed" || p.Errors[0].Code != "required" {
			t.Errorf("%+v", p.Errors)
		}
		if line := s.requests(t, 4)[3].ContextMap(); line["user_id"] != "user-7" || line["route"] != "/all/{id}/end" {
			t.Errorf("line %v", line)
		}
		if a := s.do(t, "POST", "/optional", ""); a.StatusCode != 200 || a.body != `{"name":""}` {
			t.Errorf("without a body: %d %s", a.StatusCode, a.body)
		}
		s.do(t, "POST", "/optional", "{", "Content-Type", "application/json").problem(t, 400, "malformed_request")
		if p := s.do(t, "DELETE", "/lost", "").problem(t, 400, "malformed_request"); !strings.Contains(p.Detail,
			"POST /lost does the same") {
			t.Errorf("%q", p.Detail)
		}
		if a := s.do(t, "DELETE", "/lost", "{}", "Content-Type", "application/json"); a.StatusCode != 204 ||
			a.body != "" || a.Header.Get("Content-Type") != "" {
			t.Errorf("%d %q %v", a.StatusCode, a.body, a.Header)
		}
	})
}

// A misspelt parameter must not cause what it should have prevented.
func TestAQueryIsExactlyWhatIsDeclared(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{})
		for query, want := range map[string]string{
			"": "|", "except=current": "current|", "except=none&free=": "none|", "&&free=%C3%A4+b": "|ä b",
			"free=except": "|except",
		} {
			if a := s.do(t, "GET", "/query?"+query, ""); a.body != `"`+want+`"` {
				t.Errorf("%q: %d %s", query, a.StatusCode, a.body)
			}
		}
		for query, code := range map[string]string{
			"expect=current": "unknown", "current": "unknown", "Except=current": "unknown",
			"except=Current": "invalid_value",
			"except=":        "invalid_value",
			"except":         "invalid_value", "except=current&except=current": "twice", "free=1&x=2": "unknown",
			"%22%0a=": "unknown",
		} {
			p := s.do(t, "GET", "/query?"+query, "").problem(t, 400, "validation_failed")
			if len(p.Errors) != 1 || p.Errors[0].Code != code || strings.Contains(p.Errors[0].Field, "\n") {
				t.Errorf("%q: %+v, want %s", query, p.Errors, code)
			}
		}
		s.do(t, "GET", "/query?free=%zz", "").problem(t, 400, "malformed_request")
		if a := s.do(t, "GET", "/plain?anything=goes", ""); a.StatusCode != 200 {
			t.Errorf("where no parameter is declared: %d", a.StatusCode)
		}
	})
}

// A faulty declaration panics at once, not at the first request.
func TestAMistakenDeclarationPanics(t *testing.T) {
	t.Parallel()
	for name, declare := range map[string]func(){
		"a field from nowhere": func() {
			httpserver.Public(func(context.Context, struct{ Who string }) (string, error) { return "", nil })
		},
		"a number from the path": func() {
			httpserver.Public(func(context.Context, struct {
				N int `path:"n"`
			}) (string, error) {
				return "", nil
			})
		},
		"an input that is no struct": func() {
			httpserver.Public(func(context.Context, string) (string, error) {
				return "",
					nil
			})
		},
		"an answer's field to nowhere": func() {
			httpserver.Public(func(context.Context, struct{}) (struct {
				Body  string
				Other string
			}, error) {
				panic("not called")
			})
		},
		"a route that does nothing": func() {
			server, err := httpserver.New(httpserver.Config{}, httpserver.Options{})
			if err != nil {
				t.Fatal(err)
			}
			server.Handle(httpserver.Route{Method: "GET", Path: "/open"})
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s is accepted", name)
				}
			}()
			declare()
		}()
	}
}

// What net/http reads is limited and checked for ambiguity too, as far as possible.
func TestAHostsServerIsHeldToTheSameRules(t *testing.T) {
	t.Parallel()
	s := serveByNetHTTP(t, httpserver.Config{Origins: []string{"https://app.example.com"}})
	a := s.do(t, "POST", "/echo", `{"name":"`+strings.Repeat("x", httpserver.MaxBody)+`"}`, "Content-Type",
		"application/json")
	if p := a.problem(t, 413, "body_too_large"); p.Instance != "/echo" {
		t.Errorf("instance %q", p.Instance)
	}
	a = s.do(t, "POST", "/oauth/introspect", "token="+strings.Repeat("x", httpserver.MaxBody), "Content-Type",
		"application/x-www-form-urlencoded")
	if a.StatusCode != 413 || !strings.Contains(a.body, `"error":"invalid_request"`) {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	s.do(t, "GET", "/plain", "", "Authorization", "Bearer a", "Authorization", "Bearer b").problem(t, 400,
		"malformed_request")
	s.do(t, "GET", "//plain", "").problem(t, 404, "not_found")
	s.do(t, "GET", "/x/../plain", "").problem(t, 404, "not_found")
	s.do(t, "GET", "/panic", "").problem(t, 500, "internal_error")
	if a := s.do(t, "OPTIONS", "/things/1", ""); a.StatusCode != 204 ||
		a.Header.Get("Allow") != "GET, HEAD, DELETE, OPTIONS" {
		t.Errorf("OPTIONS: %d %v", a.StatusCode, a.Header)
	}
	if a := s.do(t, "GET", "/plain", ""); !slices.Equal(a.TransferEncoding, nil) || a.ContentLength != 7 {
		t.Errorf("length %d %v", a.ContentLength, a.TransferEncoding)
	}
	if _, err := httpserver.Handler(httpserver.Config{Origins: []string{"*"}}, httpserver.Options{}); err == nil {
		t.Error("settings that cannot work are accepted")
	}
}

// Behind a path of the host's, answers and the log name the path that the client knows.
func TestAPathOfTheHostIsPartOfTheInstance(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zapcore.DebugLevel)
	handler, err := httpserver.Handler(httpserver.Config{}, options(core), routes()...)
	if err != nil {
		t.Fatal(err)
	}
	handler = http.StripPrefix("/accounts", handler)
	for target, want := range map[string]string{
		"/accounts/taken?secret=1": "/accounts/taken", "/accounts/no%20where": "/accounts/no%20where",
		"https://host.example/accounts/taken": "/accounts/taken", // as to a proxy
	} {
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, httptest.NewRequest("GET", target, nil))
		var p problem
		if err := json.Unmarshal(recorder.Body.Bytes(), &p); err != nil || p.Instance != want {
			t.Errorf("%s: instance %q, want %q, %v", target, p.Instance, want, err)
		}
		if path := logs.TakeAll()[0].ContextMap()["path"]; path != want {
			t.Errorf("%s: the log has the path %q", target, path)
		}
	}
	// Without a request line there is no other path than the one of the route.
	recorder := httptest.NewRecorder()
	request := httptest.NewRequest("GET", "/accounts/taken", nil)
	request.RequestURI = ""
	handler.ServeHTTP(recorder, request)
	if !strings.Contains(recorder.Body.String(), `"instance":"/taken"`) {
		t.Errorf("without a request line: %s", recorder.Body)
	}
}

// What the host's middleware knows of a request reaches functions; what ends it does not, except a deadline.
func TestAFunctionGetsTheContextOfTheHost(t *testing.T) {
	t.Parallel()
	type key struct{}
	var seen context.Context
	var failed error
	cfg := httpserver.Config{HTTP: httpserver.HTTPConfig{RequestTimeout: 5 * time.Minute}}
	handler, err := httpserver.Handler(cfg, httpserver.Options{}, httpserver.Route{
		Method: "GET", Path: "/", Do: httpserver.PublicDo(func(ctx context.Context, _ nothing) error {
			seen, failed = ctx, ctx.Err()
			return nil
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	hour := time.Now().Add(time.Hour)
	soon := time.Now().Add(4 * time.Minute) // before that of the settings
	for name, c := range map[string]struct {
		host time.Time
		kept bool
	}{"none": {}, "a later one": {host: hour}, "an earlier one": {host: soon, kept: true}} {
		host, leave := context.WithCancel(context.WithValue(t.Context(), key{}, "span"))
		if !c.host.IsZero() {
			host, leave = context.WithDeadline(host, c.host)
		}
		leave() // the client is gone
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, httptest.NewRequest("GET", "/", nil).WithContext(host))
		if recorder.Code != 204 || failed != nil || seen.Value(key{}) != "span" {
			t.Errorf("deadline of the host: %s: %d, %v, value %v", name, recorder.Code, failed, seen.Value(key{}))
		}
		if until, set := seen.Deadline(); !set || until.After(hour.Add(-time.Minute)) || until.Equal(soon) != c.kept {
			t.Errorf("deadline of the host: %s: the function's is %v, %v", name, until, set)
		}
		if seen.Err() == nil {
			t.Errorf("deadline of the host: %s: the context goes on after the answer", name)
		}
	}
}
