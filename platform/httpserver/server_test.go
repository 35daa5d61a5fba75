package httpserver_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/testenv"
)

// service is a server under test, on a free port of the loopback.
type service struct {
	*httpserver.Server
	url  string
	addr string
	logs *observer.ObservedLogs
	stop context.CancelFunc
	done chan error // Run's result
}

var (
	errTaken    = fault.New(fault.Conflict, "taken", "It is taken")
	errOverload = fault.New(fault.Unavailable, "overloaded", "Too much at once")
	errAway     = errors.New("the database is away")
)

type echo struct {
	Name  string   `json:"name"`
	Count int      `json:"count,omitempty"`
	Tags  []string `json:"tags,omitempty"`
}

// The inputs of the routes under test.
type (
	nothing = struct{}
	thing   struct {
		ID string `path:"id"`
	}
	echoed struct{ Body echo }
	origin struct{ Peer httpserver.Peer }
	tokens struct {
		Token string `form:"token"`
		Hint  string `form:"hint"`
		X     string `form:"x"`
	}
	queried struct {
		Except string `query:"except" enum:"current,none"`
		Free   string `query:"free"`
	}
)

func routes() []httpserver.Route {
	get := func(path string, do httpserver.Function) httpserver.Route {
		return httpserver.Route{Method: "GET", Path: path, Do: do}
	}
	fails := func(err error) httpserver.Function {
		return httpserver.PublicDo(func(context.Context, nothing) error { return err })
	}
	someone := httpserver.Identity[string]{
		Of:   func(context.Context, httpserver.Credentials) (string, error) { return "user-1", nil },
		User: func(who string) string { return who },
	}
	return []httpserver.Route{
		get("/plain", httpserver.Public(func(context.Context, nothing) (string, error) { return "plain", nil })),
		get("/things/{id}", httpserver.Public(func(_ context.Context, in thing) (string, error) { return in.ID, nil })),
		{Method: "DELETE", Path: "/things/{id}", Do: httpserver.PublicDo(func(context.Context, thing) error {
			return nil
		})},
		{Method: "POST", Path: "/echo", Do: httpserver.Public(func(_ context.Context, in echoed) (echo,
			error) {
			return in.Body, nil
		})},
		get("/ip", httpserver.Public(func(_ context.Context, in origin) (string, error) {
			return in.Peer.IP.String(), nil
		})),
		get("/me", httpserver.As(someone, func(_ context.Context, _ string, in origin) (string,
			error) {
			return in.Peer.RequestID, nil
		})),
		get("/query", httpserver.Public(func(_ context.Context, in queried) (string, error) {
			return in.Except + "|" +
				in.Free, nil
		})),
		get("/taken", fails(errTaken.Field("name", "taken", "somebody has it"))),
		get("/overload", fails(errOverload.After(1500*time.Millisecond))),
		get("/away", fails(errAway)),
		get("/broken", fails(errors.New("secret cause"))),
		get("/late", httpserver.PublicDo(func(ctx context.Context,
			_ nothing) error {
			<-ctx.Done()
			return ctx.Err()
		})),
		get("/denied", fails(fault.New(fault.Unauthenticated, "invalid_token", "No"))),
		get("/panic", httpserver.PublicDo(func(context.Context, nothing) error { panic("secret panic") })),
		get("/overload/why", fails(fmt.Errorf("the queue is full: %w", errOverload))),
		{Method: "POST", Path: "/oauth/introspect", OAuth: true, Do: httpserver.Public(func(_ context.Context,
			in tokens) (map[string]string, error) {
			switch in.Token {
			case "client":
				return nil, &httpserver.OAuthError{Status: 401, Code: "invalid_client", Description: `who "are" you`}
			case "break":
				return nil, errors.New("secret cause")
			}
			return map[string]string{"token": in.Token, "hint": in.Hint, "x": in.X}, nil
		})},
		{Method: "GET", Path: "/healthz", Quiet: true, Do: httpserver.Public(func(context.Context, nothing) (string,
			error) {
			return "ok", nil
		})},
	}
}

type serveFunc func(testing.TB, httpserver.Config, ...httpserver.Route) *service

// eachWay runs a test with Fiber and with net/http.
func eachWay(t *testing.T, test func(*testing.T, serveFunc)) {
	for name, serve := range map[string]serveFunc{"Fiber": serve, "net_http": serveByNetHTTP} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, serve)
		})
	}
}

// serveByNetHTTP serves the routes with a server of net/http.
func serveByNetHTTP(t testing.TB, cfg httpserver.Config, more ...httpserver.Route) *service {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	table := slices.Concat(routes(), more, httpserver.Documentation("/docs", "Tests", []byte(`{"openapi":"3.1.0"}`)))
	handler, err := httpserver.Handler(cfg, options(core), table...)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return &service{url: server.URL, addr: server.Listener.Addr().String(), logs: logs}
}

func options(core zapcore.Core) httpserver.Options {
	return httpserver.Options{Log: zap.New(core), Unavailable: func(err error) bool { return errors.Is(err, errAway) }}
}

// serve starts a server and stops it when the test ends.
func serve(t testing.TB, cfg httpserver.Config, more ...httpserver.Route) *service {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	cfg.Host = "127.0.0.1"
	server, err := httpserver.New(cfg, options(core))
	if err != nil {
		t.Fatal(err)
	}
	server.Handle(append(routes(), more...)...)
	server.Handle(httpserver.Documentation("/docs", "Tests", []byte(`{"openapi":"3.1.0"}`))...)
	if err := server.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &service{Server: server, addr: server.Addr().String(), logs: logs, stop: stop, done: make(chan error, 1)}
	s.url = "http://" + s.addr
	go func() { s.done <- server.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-s.done; err != nil {
			t.Errorf("Run: %v", err)
		}
		s.done <- nil
	})
	return s
}

type answer struct {
	*http.Response
	body string
}

func (s *service) do(t testing.TB, method, path, body string, headers ...string) answer {
	t.Helper()
	request, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		request.Header.Add(headers[i], headers[i+1])
	}
	client := http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return answer{response, string(text)}
}

type problem struct {
	Type, Title, Detail, Instance, Code string
	Status                              int
	RequestID                           string `json:"request_id"`
	Errors                              []fault.Field
}

// problem checks that an answer is a complete problem document, and returns it.
func (a answer) problem(t testing.TB, status int, code string) problem {
	t.Helper()
	var p problem
	if err := json.Unmarshal([]byte(a.body), &p); err != nil {
		t.Fatalf("%d %q is no problem document: %v", a.StatusCode, a.body, err)
	}
	if got := a.Header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type %q", got)
	}
	if a.StatusCode != status || p.Status != status || p.Code != code {
		t.Errorf("%d %s, want %d %s", a.StatusCode, a.body, status, code)
	}
	if p.Type != "https://github.com/toppira/authctl/blob/main/docs/errors.md#"+code || p.Title == "" {
		t.Errorf("type %q, title %q", p.Type, p.Title)
	}
	if id := a.Header.Get("X-Request-Id"); id == "" || id != p.RequestID {
		t.Errorf("request id %q in the body, %q in the header", p.RequestID, id)
	}
	if p.Instance == "" {
		t.Error("the problem has no instance")
	}
	if a.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("an error may be cached: %q", a.Header.Get("Cache-Control"))
	}
	return p
}

func TestEveryKindOfErrorIsAProblemDocument(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{HTTP: httpserver.HTTPConfig{RequestTimeout: 50 * time.Millisecond}})

		p := s.do(t, "GET", "/taken?secret=1", "").problem(t, 409, "taken")
		if p.Instance != "/taken" || len(p.Errors) != 1 || p.Errors[0].Field != "name" || p.Errors[0].Code != "taken" {
			t.Errorf("problem %+v", p)
		}
		s.do(t, "GET", "/nowhere", "").problem(t, 404, "not_found")
		s.do(t, "GET", "/plain/", "").problem(t, 404, "not_found")
		s.do(t, "GET", "/Plain", "").problem(t, 404, "not_found")
		s.do(t, "GET", "/things/", "").problem(t, 404, "not_found")

		a := s.do(t, "POST", "/things/7", "")
		a.problem(t, 405, "method_not_allowed")
		if got := a.Header.Get("Allow"); got != "GET, HEAD, DELETE, OPTIONS" {
			t.Errorf("Allow %q", got)
		}
		for _, method := range []string{"TRACE", "PROPFIND", "CONNECT"} {
			if method != "CONNECT" {
				s.do(t, method, "/plain", "").problem(t, 405, "method_not_allowed")
			}
			s.do(t, method, "/nowhere", "").problem(t, 404, "not_found")
		}
		if got := s.do(t, "GET", "/overload", ""); got.Header.Get("Retry-After") != "2" {
			t.Errorf("Retry-After %q of 1.5 s", got.Header.Get("Retry-After"))
		} else {
			got.problem(t, 503, "overloaded")
		}
		for _, path := range []string{"/away", "/late"} {
			a := s.do(t, "GET", path, "")
			a.problem(t, 503, "unavailable")
			if a.Header.Get("Retry-After") != "1" {
				t.Errorf("Retry-After %q", a.Header.Get("Retry-After"))
			}
		}
	})
}

func TestAnInternalErrorIsLoggedAndNotShown(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{})
		for i, path := range []string{"/broken", "/panic"} {
			a := s.do(t, "GET", path, "")
			s.requests(t, i+1)
			a.problem(t, 500, "internal_error")
			if strings.Contains(a.body, "secret") {
				t.Errorf("%s shows its cause: %s", path, a.body)
			}
		}
		s.do(t, "GET", "/plain", "") // the process survives
		lines := s.requests(t, 3)
		for i, cause := range []string{"secret cause", "panic: secret panic"} {
			if lines[i].Level != zapcore.ErrorLevel || lines[i].ContextMap()["error"] != cause {
				t.Errorf("logged %v %v", lines[i].Level, lines[i].ContextMap())
			}
		}
		if stack, _ := lines[1].ContextMap()["stack"].(string); !strings.Contains(stack, "server_test.go") {
			t.Errorf("no stack of the panic: %q", stack)
		}
	})
}

func TestTheCauseOfAnUnavailableAnswerIsLogged(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		s := serve(t, httpserver.Config{})
		s.do(t, "GET", "/overload", "").problem(t, 503, "overloaded")
		s.requests(t, 1)
		s.do(t, "GET", "/overload/why", "").problem(t, 503, "overloaded")
		s.requests(t, 2)
		s.do(t, "GET", "/away", "").problem(t, 503, "unavailable")
		lines := s.requests(t, 3)
		for i, want := range []struct {
			level zapcore.Level
			cause any
		}{
			{zapcore.InfoLevel, nil}, // refused on purpose, as documented
			{zapcore.WarnLevel, "the queue is full: overloaded: Too much at once"},
			{zapcore.WarnLevel, "the database is away"},
		} {
			if lines[i].Level != want.level || lines[i].ContextMap()["error"] != want.cause {
				t.Errorf("line %d: %v %v", i, lines[i].Level, lines[i].ContextMap())
			}
		}
	})
}

// requests waits for n log lines of requests, which are written after their answers: the lines of two requests, one
// sent after the answer to the other, may come in any order.
func (s *service) requests(t testing.TB, n int) []observer.LoggedEntry {
	t.Helper()
	eventually(t, "the log lines", func() bool { return s.logs.FilterMessage("request").Len() >= n })
	return s.logs.FilterMessage("request").All()
}

func eventually(t testing.TB, what string, reached func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testenv.Patience); !reached(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// raw sends bytes unchanged. It returns the first answer, and whether the connection was closed
// after it.
func (s *service) raw(t testing.TB, request string) (a answer, closed bool) {
	t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(testenv.Patience))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(c)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	return answer{response, string(text)}, response.Close
}
