package docs_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/toppira/authctl/platform/testenv"
)

// between is on the way from a follower to the feed, and can disturb it.
type between struct {
	*httptest.Server

	mu     sync.Mutex
	silent bool     // answer, and say nothing any more
	gone   bool     // send a cursor that is gone, once
	asked  []string // Last-Event-ID of each question; none: "-"
	left   int      // questions that were given up in silence
}

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
			r.Header.Set("Last-Event-ID", "AgAA") // of another version
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { b.CloseClientConnections(); b.Close() })
	return b
}

// cut ends all connections. change is done before.
func (b *between) cut(change func()) {
	b.mu.Lock()
	change()
	b.mu.Unlock()
	b.CloseClientConnections()
}

// count returns how many questions were asked, since which one, with and without a cursor.
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

// The follower by server-sent events goes on where it was after its connection was cut, leaves one
// that is silent, and takes a new snapshot when its cursor is gone.
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
		t.Errorf("after a cut it asked %d times with a cursor and %d times without", with, without)
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
		t.Errorf("after the silence it asked %d times with a cursor and %d times without", with, without)
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
