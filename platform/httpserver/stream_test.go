package httpserver_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/testenv"
)

// waiting is a route whose function waits for the test, and answers with events or JSON.
func waiting(more <-chan string, ended chan<- error) httpserver.Route {
	type input struct {
		Accept string `header:"Accept"`
	}
	type output struct {
		Body   string
		Events httpserver.Events
	}
	next := func(ctx context.Context) (string, error) {
		select {
		case text := <-more:
			return text, nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	known := httpserver.Identity[string]{Of: func(_ context.Context, c httpserver.Credentials) (string, error) {
		if c.Authorization() == "" {
			return "", httpserver.ErrUnauthenticated
		}
		return "known", nil
	}}
	return httpserver.Route{Method: "GET", Path: "/waiting", Waits: true, Cache: "no-store",
		Do: httpserver.As(known, func(ctx context.Context, _ string, in input) (output, error) {
			if in.Accept != "text/event-stream" {
				text, err := next(ctx)
				return output{Body: text + "."}, err
			}
			return output{Events: func(ctx context.Context, send func(httpserver.Event) error) {
				for {
					text, err := next(ctx)
					if text == "panic" {
						panic(text)
					}
					if err == nil {
						err = send(httpserver.Event{Name: "news", ID: "7", Data: []byte(text)})
					}
					if err != nil {
						ended <- err
						return
					}
				}
			}}, nil
		})}
}

// stream asks for events and returns a function that reads the next one.
func (s *service) stream(t *testing.T) (events func() string, res *http.Response) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/waiting", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Authorization", "x")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err = client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	reader := bufio.NewReader(res.Body)
	return func() string {
		var event strings.Builder
		for {
			line, err := reader.ReadString('\n')
			if line == "\n" {
				return event.String()
			}
			if err != nil {
				return "ended: " + event.String()
			}
			event.WriteString(line)
		}
	}, res
}

// The timeouts of other requests do not end these.
var hasty = httpserver.Config{ShutdownTimeout: time.Minute,
	HTTP: httpserver.HTTPConfig{RequestTimeout: time.Second, WriteTimeout: time.Second}}

// outlast returns once all of hasty's timeouts have passed.
func outlast() { <-time.After(1100 * time.Millisecond) }

func TestEventsComeWhenTheyAreSent(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		more, ended := make(chan string), make(chan error, 1)
		s := serve(t, hasty, waiting(more, ended))
		next, res := s.stream(t) // the headers come before any event
		if res.StatusCode != 200 || res.Header.Get("Content-Type") != "text/event-stream" ||
			res.Header.Get("Cache-Control") != "no-store, no-transform" {
			t.Errorf("%d %v", res.StatusCode, res.Header)
		}
		for _, text := range []string{"one", "two", "three"} {
			if text != "three" {
				outlast()
			}
			more <- text
			if got := next(); got != "event: news\nid: 7\ndata: "+text+"\n" {
				t.Errorf("the event: %q", got)
			}
		}
		_ = res.Body.Close()
		eventually(t, "a client that has gone ends the stream", func() bool {
			select {
			case more <- "nobody reads this":
				return false
			case err := <-ended:
				return err != nil
			}
		})
	})
}

func TestAnAnswerThatWaitsIsNotCutOff(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		more := make(chan string)
		s := serve(t, hasty, waiting(more, make(chan error, 1)))
		go func() {
			outlast()
			more <- "late"
		}()
		if a := s.do(t, "GET", "/waiting", "", "Authorization", "x"); a.StatusCode != 200 || a.body != `"late."` {
			t.Errorf("%d %s", a.StatusCode, a.body)
		}
		if a := s.do(t, "HEAD", "/waiting", "", "Authorization", "x", "Accept",
			"text/event-stream"); a.StatusCode != 200 || a.body != "" {
			t.Errorf("HEAD: %d %q", a.StatusCode, a.body)
		}
		if a := s.do(t, "GET", "/waiting", ""); a.StatusCode != 401 {
			t.Errorf("a stranger: %d %s", a.StatusCode, a.body)
		}
	})
}

func TestAStopEndsWhatWaits(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	s := serve(t, hasty, waiting(nil, ended))
	next, _ := s.stream(t)
	s.stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the stream ended with %v", err)
	}
	if got := next(); got != "ended: " {
		t.Errorf("the client was sent %q", got)
	}
	if err := <-s.done; err != nil {
		t.Error(err)
	}
	s.done <- nil
	if s.logs.FilterMessage("requests_cut_off").Len() > 0 {
		t.Error("the stream used up the shutdown timeout")
	}
}

// Requests that are known to wait do not count against their address.
func TestWhoWaitsDoesNotCountAgainstItsAddress(t *testing.T) {
	t.Parallel()
	more := make(chan string)
	const most = 3
	s := serve(t, httpserver.Config{HTTP: httpserver.HTTPConfig{MaxConnectionsPerIP: most}},
		waiting(more, make(chan error, 16)))
	for range 3 * most {
		s.stream(t)
	}
	c := s.dial(t)
	c.send(t, get("/plain"))
	c.receive(t)
}

func TestAPanicInAStreamCostsOnlyTheStream(t *testing.T) {
	t.Parallel()
	more := make(chan string)
	s := serve(t, hasty, waiting(more, nil))
	next, res := s.stream(t)
	more <- "panic"
	if got := next(); got != "ended: " {
		t.Errorf("the client was sent %q", got)
	}
	_, _ = io.Copy(io.Discard, res.Body)
	eventually(t, "the log to say so", func() bool { return s.logs.FilterMessage("stream_panicked").Len() == 1 })
	s.do(t, "GET", "/plain", "")
}

// A client that hangs up is noticed at once, not only when there is something to send, because its
// wait takes a place until then.
func TestAClientThatHangsUpIsNoticed(t *testing.T) {
	t.Parallel()
	ways := map[string]func(*testing.T, ...httpserver.Route) (*service, func() net.Conn){
		"net_http": func(t *testing.T, more ...httpserver.Route) (*service, func() net.Conn) {
			s := serveByNetHTTP(t, hasty, more...)
			return s, func() net.Conn { return s.dial(t).Conn }
		},
		"Fiber": func(t *testing.T, more ...httpserver.Route) (*service, func() net.Conn) {
			s := serve(t, hasty, more...)
			return s, func() net.Conn { return s.dial(t).Conn }
		},
		"TLS": func(t *testing.T, more ...httpserver.Route) (*service, func() net.Conn) {
			cfg, pool := certificate(t, t.TempDir(), 1)
			secure := hasty
			secure.TLS = cfg
			s := serve(t, secure, more...)
			return s, func() net.Conn {
				return tls.Client(s.dial(t).Conn, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"})
			}
		},
	}
	for name, start := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begun, over := make(chan struct{}), make(chan error)
			wait := func(ctx context.Context) error {
				begun <- struct{}{}
				<-ctx.Done()
				return ctx.Err()
			}
			type output struct {
				Body   string
				Events httpserver.Events
			}
			_, dial := start(t, httpserver.Route{Method: "GET", Path: "/long", Waits: true,
				Do: httpserver.PublicDo(func(ctx context.Context, _ nothing) error {
					over <- wait(ctx)
					return nil
				})}, httpserver.Route{Method: "GET", Path: "/events", Waits: true,
				Do: httpserver.Public(func(context.Context, nothing) (output, error) {
					return output{Events: func(ctx context.Context, _ func(httpserver.Event) error) {
						over <- wait(ctx)
					}}, nil
				})})
			for _, path := range []string{"/long", "/events"} {
				c := dial()
				if _, err := io.WriteString(c, get(path)); err != nil {
					t.Fatal(err)
				}
				<-begun
				_ = c.Close()
				select {
				case err := <-over:
					if !errors.Is(err, context.Canceled) {
						t.Errorf("%s ended with %v", path, err)
					}
				case <-time.After(testenv.Patience):
					t.Fatalf("%s still waits for a client that has gone", path)
				}
			}
		})
	}
}

// Bytes that arrive while a request waits begin the next request.
func TestWhatComesMeanwhileIsTheNextRequest(t *testing.T) {
	t.Parallel()
	tlsConfig, pool := certificate(t, t.TempDir(), 1)
	for name, cfg := range map[string]httpserver.TLSConfig{"plain": {}, "TLS": tlsConfig} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			settings := hasty
			settings.TLS = cfg
			begun, more := make(chan struct{}), make(chan struct{})
			s := serve(t, settings, httpserver.Route{Method: "GET", Path: "/long", Waits: true,
				Do: httpserver.Public(func(ctx context.Context, _ nothing) (string, error) {
					begun <- struct{}{}
					select {
					case <-more:
						return "long", nil
					case <-ctx.Done():
						return "", ctx.Err()
					}
				})})
			c := s.dial(t)
			if name == "TLS" {
				secure := tls.Client(c.Conn, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"})
				c = &client{secure, bufio.NewReader(secure)}
			}
			long := func() {
				t.Helper()
				more <- struct{}{}
				if a := c.receive(t); a.StatusCode != 200 || a.body != `"long"` {
					t.Fatalf("%d %q", a.StatusCode, a.body)
				}
			}
			for range 3 { // one after the other
				c.send(t, get("/long"))
				<-begun
				long()
			}
			c.send(t, get("/long"))
			<-begun
			c.send(t, get("/things/1")+get("/long"))
			eventually(t, "it is read ahead", s.ReadAhead)
			long()
			<-begun // fasthttp sends both answers together
			more <- struct{}{}
			for _, want := range []string{`"1"`, `"long"`} {
				if a := c.receive(t); a.StatusCode != 200 || a.body != want {
					t.Fatalf("%d %q", a.StatusCode, a.body)
				}
			}
		})
	}
}
