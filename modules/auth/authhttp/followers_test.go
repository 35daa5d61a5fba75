package authhttp

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/httpserver/httpservertest"
	"github.com/toppira/authctl/platform/testenv"
)

// connection opens a connection and sends lines of a request.
func (s *site) connection(lines ...string) net.Conn {
	s.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.base, "http://"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(testenv.Patience)); err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
		s.t.Fatal(err)
	}
	return conn
}

// follow opens a connection that follows the feed.
func (s *site) follow(query, accept string) net.Conn {
	s.t.Helper()
	return s.connection("GET /oauth2/revocations"+query+" HTTP/1.1", "Host: auth.test", "Authorization: "+gateway(),
		"Accept: "+accept)
}

// A deployment ends all followers at once. The test is not parallel, since it counts all
// goroutines.
func TestFollowersThatHangUpLeaveNothing(t *testing.T) {
	for name, start := range map[string]httpservertest.Start{"Fiber": httpservertest.Fiber,
		"net_http": httpservertest.NetHTTP} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, start)
			first := s.revocations("")
			const many = 100 // of each kind
			var all []net.Conn
			for range many {
				all = append(all, s.follow("?wait=2&after="+first.str("cursor"), "application/json"),
					s.follow("?wait=1", "text/event-stream"))
			}
			// others may have left
			testenv.Eventually(t, "they follow", func() bool { return s.svc.Followers() >= many })
			for _, conn := range all {
				_ = conn.Close()
			}
			testenv.Eventually(t, "none of them is left", func() bool {
				var stacks bytes.Buffer
				if err := pprof.Lookup("goroutine").WriteTo(&stacks, 1); err != nil {
					t.Fatal(err)
				}
				return s.svc.Followers() == 0 && !strings.Contains(stacks.String(), "(*api).revocations") &&
					!strings.Contains(stacks.String(), "tellRevocations")
			})
		})
	}
}

// The server drops a follower that does not read after the write timeout, and the others do not
// wait for it.
func TestAFollowerThatDoesNotReadIsLeft(t *testing.T) {
	t.Parallel()
	// Long enough for the other follower to read on a busy machine.
	hasty := httpserver.Config{HTTP: httpserver.HTTPConfig{WriteTimeout: 10 * time.Second}}
	httpservertest.EachWith(t, hasty, func(t *testing.T, start httpservertest.Start) {
		s := newSite(t, start)
		const many = 40_000 // more facts than the sockets buffer
		if _, err := s.db.Write(t.Context(),
			`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
			INSERT INTO revocation (type, user_id, sid, expires_ms) SELECT 'session', '0199b7f2-6f3e-7c1d-9a55-0c8c5b1f6a10',
				printf('0199b7f2-6f3f-7000-8000-%012x', i), ? FROM n`, many, time.Now().Add(time.Hour).UnixMilli()); err != nil {
			t.Fatal(err)
		}
		slow := s.follow("", "text/event-stream")
		if err := slow.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, "it follows", func() bool { return s.svc.Followers() == 1 })
		reads := s.events("", "") // another follower is not held up
		for told := 0; told < many; {
			_, _, page := reads.next()
			told += len(page.Revocations)
		}
		_ = reads.res.Body.Close()
		testenv.Eventually(t, "it is left", func() bool { return s.svc.Followers() == 0 })
	})
}

// A stop answers followers that wait for JSON, and ends streams between two events. It does not
// wait for them: that would take half a minute here.
func TestAStopLetsFollowersGo(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.InfoLevel)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	s := newSite(t, func(t testing.TB, opt httpserver.Options, routes ...httpserver.Route) string {
		t.Helper()
		opt.Log = zap.New(core)
		server, err := httpserver.New(httpserver.Config{Host: "127.0.0.1", ShutdownTimeout: 25 * time.Second}, opt)
		if err != nil {
			t.Fatal(err)
		}
		server.Handle(routes...)
		if err := server.Listen(); err != nil {
			t.Fatal(err)
		}
		go func() { ended <- server.Run(ctx) }()
		return "http://" + server.Addr().String()
	})
	defer stop()
	first := s.revocations("")
	http.DefaultClient.CloseIdleConnections()
	const many = 50 // of each kind
	var waiting, streams []net.Conn
	for range many {
		waiting = append(waiting, s.follow("?wait=30&after="+first.str("cursor"), "application/json"))
		streams = append(streams, s.follow("?wait=30", "text/event-stream"))
	}
	testenv.Eventually(t, "they follow", func() bool { return s.svc.Followers() == 2*many })
	stop()
	for _, conn := range waiting {
		if res, text := whole(t, conn); res.StatusCode != 200 || !res.Close ||
			!strings.Contains(text, `"revocations":[]`) {
			t.Fatalf("%d %v %s", res.StatusCode, res.Header, text)
		}
	}
	for _, conn := range streams {
		if _, text := whole(t, conn); !strings.HasSuffix(text, "\n\n") || strings.Contains(text, "event: error") {
			t.Fatalf("a stream ends with %q", text)
		}
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := logs.FilterMessage("requests_cut_off").Len(); n > 0 {
		t.Error("the stop waited for followers")
	}
}

// whole reads an answer to its end.
func whole(t *testing.T, conn net.Conn) (*http.Response, string) {
	t.Helper()
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(text)
}
