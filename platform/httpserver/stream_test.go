package httpserver_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/httpserver"
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

// stream asks for events and returns how to read the next one.
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

// Nothing of what bounds other requests cuts these off.
var hasty = httpserver.Config{ShutdownTimeout: time.Minute,
	HTTP: httpserver.HTTPConfig{RequestTimeout: time.Second, WriteTimeout: time.Second}}

// outlast returns when what hasty bounds would be over.
func outlast() { <-time.After(1100 * time.Millisecond) }

func TestEventsComeWhenTheyAreSent(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, serve serveFunc) {
		more, ended := make(chan string), make(chan error, 1)
		s := serve(t, hasty, waiting(more, ended))
		next, res := s.stream(t) // the headers come before any event
		if res.StatusCode != 200 || res.Header.Get("Content-Type") != "text/event-stream" ||
			res.Header.Get("Cache-Control") != "no-store" {
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
	if s.logs.FilterMessage("requests cut off: app.shutdown_timeout is over").Len() > 0 {
		t.Error("the stream used up the shutdown timeout")
	}
}

// Those who are known to wait take no place from others at their address.
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
