package docs_test

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/toppira/authctl/platform/testenv"
)

// between is a proxy between a follower and the feed. It can disturb the connection.
type between struct {
	*httptest.Server

	mu     sync.Mutex
	silent bool     // answer, and then stay silent
	gone   bool     // send an expired cursor, once
	asked  []string // Last-Event-ID of each request; "-" without one
	left   int      // silent requests that the follower gave up
}

// compressing compresses an answer as the directive encode of Caddy 2.6 does: it holds events back.
type compressing struct {
	http.ResponseWriter
	into io.Writer
}

func (c compressing) Write(p []byte) (int, error) { return c.into.Write(p) }

func newBetween(t *testing.T, base string) *between {
	t.Helper()
	target, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		FlushInterval: -1,
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ErrorHandler:  func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	b := &between{}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		last := r.Header.Get("Last-Event-ID")
		b.mu.Lock()
		silent, gone := b.silent, b.gone && last != ""
		if gone {
			b.gone = false
		}
		if last == "" {
			last = "-"
		}
		b.asked = append(b.asked, last)
		b.mu.Unlock()
		switch {
		case silent:
			w.Header().Set("Content-Type", "text/event-stream")
			_ = http.NewResponseController(w).Flush() // the follower may have left
			<-r.Context().Done()
			b.mu.Lock()
			b.left++
			b.mu.Unlock()
			return
		case gone:
			r.Header.Set("Last-Event-ID", "AgAA") // a cursor of another version
		}
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			w.Header().Set("Content-Encoding", "gzip")
			into := gzip.NewWriter(w)
			defer into.Close()
			w = compressing{w, into}
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { b.CloseClientConnections(); b.Close() })
	return b
}

// cut ends all connections, after it has called change.
func (b *between) cut(change func()) {
	b.mu.Lock()
	change()
	b.mu.Unlock()
	b.CloseClientConnections()
}

// count returns how many requests since the given one came with and without a cursor, and the
// total.
func (b *between) count(since int) (all, with, without int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, last := range b.asked[since:] {
		if last == "-" {
			without++
		} else {
			with++
		}
	}
	return len(b.asked), with, without
}

// After a cut connection, the follower by server-sent events continues where it was. It leaves a
// silent connection, and takes a new snapshot when its cursor has expired.
func TestFollowingByEventsInNode(t *testing.T) {
	t.Parallel()
	p := inNode(t)
	s := newService(t)
	way := newBetween(t, s.base)
	first := s.must("POST", "/register", "", credentials).Access
	tokens := []string{first}
	for range 4 {
		tokens = append(tokens, s.must("POST", "/login", "", credentials).Access)
	}
	v := p.follows(s, map[string]string{"feed": way.URL + "/oauth2/revocations", "silence": "5000"})
	verdict := func(token string, refused bool) {
		t.Helper()
		testenv.Eventually(t, "the verdict on a token", func() bool {
			said, err := v.check(token)
			if err != nil {
				t.Fatal(err)
			}
			return strings.HasPrefix(said, "refuse") == refused
		})
	}
	end := func(n int) {
		t.Helper()
		s.must("POST", "/logout", tokens[n], "")
		verdict(tokens[n], true)
		for _, live := range tokens[n+1:] {
			verdict(live, false)
		}
	}
	verdict(first, false)
	end(0)
	before, _, _ := way.count(0)
	way.cut(func() {})
	end(1)
	if _, with, without := way.count(before); with == 0 || without != 0 {
		t.Errorf("after a cut it sent %d requests with a cursor and %d without", with, without)
	}

	way.cut(func() { way.silent = true })
	testenv.Eventually(t, "it leaves a connection that is silent", func() bool {
		way.mu.Lock()
		defer way.mu.Unlock()
		return way.left > 0
	})
	before, _, _ = way.count(0)
	way.cut(func() { way.silent = false })
	end(2)
	if _, with, without := way.count(before); with == 0 || without != 0 {
		t.Errorf("after the silence it sent %d requests with a cursor and %d without", with, without)
	}

	before, _, _ = way.count(0)
	way.cut(func() { way.gone = true })
	testenv.Eventually(t, "it asks again without its cursor", func() bool {
		_, with, without := way.count(before)
		return with > 0 && without > 0
	})
	end(3)
	for _, token := range tokens[:3] {
		verdict(token, true)
	}
	v.end(t)
}
