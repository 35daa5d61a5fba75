package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/testenv"
)

// TestARollingUpdateLosesNoRequest replaces two servers behind nginx one after the other, while
// people sign in, refresh and call /me 200 times a second. It does what a cluster does: a new
// server gets requests once it is ready; an old one is told to stop, and nginx learns a moment
// later from /readyz that it is leaving. Neither nginx nor the clients retry anything.
func TestARollingUpdateLosesNoRequest(t *testing.T) {
	t.Parallel()
	nginx := openBalancer(t)
	db := emptyDatabase(t)
	db.authctl(t, "postgres", "", "migrate", "up")
	first, second := startServer(t, db), startServer(t, db)
	nginx.add(first)
	nginx.add(second)
	load := startLoad(t, "http://"+nginx.addr)
	load.awaitMore(200)
	for _, old := range []*server{first, second} {
		nginx.add(startServer(t, db))
		load.awaitMore(100)
		if err := old.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-old.ended:
			if err != nil {
				t.Errorf("an old server ends with %v:\n%s", err, old.log)
			}
		case <-time.After(testenv.Patience):
			t.Fatalf("an old server does not stop:\n%s", old.log)
		}
		load.awaitMore(100)
	}
	load.stop()
	load.failures = slices.DeleteFunc(load.failures, func(f failure) bool {
		return f.request != "" && nginx.tooSlow(f.request)
	})
	for _, f := range load.failures[:min(10, len(load.failures))] {
		t.Error(f.text)
	}
	if more := len(load.failures) - 10; more > 0 {
		t.Errorf("and %d more", more)
	}
	t.Logf("%d requests", load.done.Load())
}

// server is a serve process with what the chart sets.
type server struct {
	cmd   *exec.Cmd
	addr  string
	log   *lockedBuffer
	ended chan error
}

func startServer(t *testing.T, db rolesDatabase) *server {
	t.Helper()
	s := &server{addr: fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t)), log: &lockedBuffer{}, ended: make(chan error, 1)}
	s.cmd = db.command(t, t.TempDir(), "postgres", "serve")
	_, port, _ := strings.Cut(s.addr, ":")
	// On a busy machine nginx learns late, and an answer takes long.
	s.cmd.Env = append(s.cmd.Env, "APP_HOST=127.0.0.1", "APP_PORT="+port, "APP_TRUSTED_PROXIES=127.0.0.1",
		"APP_DRAIN_DELAY=15s", "APP_HTTP_REQUEST_TIMEOUT=2m", "APP_SHUTDOWN_TIMEOUT=2m")
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.ended <- s.cmd.Wait(); close(s.ended) }()
	ended := s.ended
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-ended
	})
	eventually(t, "a new server is ready", s.isReady)
	return s
}

func (s *server) isReady() bool {
	res, err := http.Get("http://" + s.addr + "/readyz")
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// balancer is nginx, and the loop that tells it which servers are ready.
type balancer struct {
	t    *testing.T
	addr string
	file string
	dir  string
	cmd  *exec.Cmd

	mu      sync.Mutex
	servers []*server
	inUse   []*server // servers that were ready at the last check
}

func openBalancer(t *testing.T) *balancer {
	t.Helper()
	dir := t.TempDir()
	b := &balancer{t: t, addr: fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t)), dir: dir,
		file: filepath.Join(dir, "nginx.conf")}
	b.cmd = gateways["nginx"].command(t, dir, b.file)
	return b
}

// add gives nginx one more server, and begins to check whether it is ready.
func (b *balancer) add(s *server) {
	b.t.Helper()
	b.mu.Lock()
	b.servers = append(b.servers, s)
	first := len(b.servers) == 1
	b.mu.Unlock()
	b.ask()
	if !first {
		return
	}
	log, _ := launch(b.t, b.cmd)
	stopped, ended := make(chan struct{}), make(chan struct{})
	b.t.Cleanup(func() { close(stopped); <-ended })
	go func() {
		defer close(ended)
		for {
			select {
			case <-stopped:
				return
			case <-time.After(50 * time.Millisecond):
				b.ask()
			}
		}
	}()
	eventually(b.t, "nginx listens", func() bool {
		res, err := http.Get("http://" + b.addr + "/readyz")
		if err == nil {
			_ = res.Body.Close()
		}
		return err == nil
	})
	b.t.Cleanup(func() {
		if b.t.Failed() {
			b.t.Logf("nginx says:\n%s", log)
		}
	})
}

// ask checks every server, and reconfigures nginx when the answer has changed.
func (b *balancer) ask() {
	b.mu.Lock()
	defer b.mu.Unlock()
	ready := slices.DeleteFunc(slices.Clone(b.servers), func(s *server) bool { return !s.isReady() })
	if len(ready) > 0 && !slices.Equal(ready, b.inUse) {
		b.inUse = ready
		b.configure()
	}
}

// tooSlow reports whether a server says of a request that the database took longer than it waits for: five seconds
// for a session check, whatever APP_HTTP_REQUEST_TIMEOUT is. That happens beside the compilers of other tests.
func (b *balancer) tooSlow(request string) bool {
	return slices.ContainsFunc(b.servers, func(s *server) bool {
		for line := range strings.Lines(s.log.String()) {
			if strings.Contains(line, request) && strings.Contains(line, context.DeadlineExceeded.Error()) {
				return true
			}
		}
		return false
	})
}

// configure writes the configuration and makes nginx read it.
func (b *balancer) configure() {
	var upstream strings.Builder
	for _, s := range b.inUse {
		fmt.Fprintf(&upstream, "server %s max_fails=0;\n", s.addr)
	}
	config := gateways["nginx"].wrap(b.dir, fmt.Sprintf(`
		upstream authctl {
			%s
			keepalive 16;
		}
		server {
			listen %s;
			location / {
				proxy_pass http://authctl;
				proxy_http_version 1.1;
				proxy_set_header Connection "";
				proxy_set_header Host $host;
				proxy_set_header X-Forwarded-For $remote_addr;
				proxy_next_upstream off;
				proxy_read_timeout 180s;
			}
		}`, &upstream, b.addr))
	if err := os.WriteFile(b.file+".new", []byte(config), 0o600); err != nil {
		b.t.Error(err)
	}
	if err := os.Rename(b.file+".new", b.file); err != nil {
		b.t.Error(err)
	}
	if b.cmd.Process != nil {
		if err := b.cmd.Process.Signal(syscall.SIGHUP); err != nil && !errors.Is(err, os.ErrProcessDone) {
			b.t.Error(err)
		}
	}
}

// load is people who use the service, 200 requests a second in all if the machine is fast enough.
type load struct {
	t    *testing.T
	base string
	http http.Client
	done atomic.Int64
	stop func()

	mu       sync.Mutex
	failures []failure
}

// failure is a request that failed, with its id if a server has refused it for now.
type failure struct{ text, request string }

func startLoad(t *testing.T, base string) *load {
	t.Helper()
	l := &load{t: t, base: base, http: http.Client{
		// One connection for each request, because nginx closes idle ones when it reads its
		// configuration, which is not under test here.
		Transport: &http.Transport{DisableKeepAlives: true}, Timeout: testenv.Patience,
	}}
	ticks, stopped := make(chan struct{}), make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		defer close(ticks)
		ticker := time.NewTicker(5 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-stopped:
				return
			case <-ticker.C:
			}
			select {
			case <-stopped:
				return
			case ticks <- struct{}{}:
			}
		}
	})
	for n := range 16 {
		account := map[string]string{"username": fmt.Sprintf("person-%d", n),
			"password": "correct horse battery staple"}
		running.Go(func() { l.person(account, ticks) })
	}
	l.stop = sync.OnceFunc(func() { close(stopped); running.Wait() })
	t.Cleanup(l.stop)
	return l
}

// person registers, and then refreshes, calls /me, and sometimes signs in again.
func (l *load) person(account map[string]string, ticks <-chan struct{}) {
	var tokens struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
	}
	path := "register"
	for i := 0; ; i++ {
		if _, more := <-ticks; !more {
			return
		}
		switch {
		case tokens.Access == "" || i%20 == 0:
			if l.call("POST", path, "", account, &tokens) {
				path = "login"
			}
		case i%3 == 0:
			l.call("POST", "refresh", "", map[string]string{"refresh_token": tokens.Refresh}, &tokens)
		default:
			l.call("GET", "me", tokens.Access, nil, nil)
		}
	}
}

var errOverloaded = errors.New("the service refuses to hash any more passwords")

func (l *load) call(method, path, token string, body, answer any) bool {
	refused := ""
	err := func() error {
		var payload io.Reader
		if body != nil {
			text, err := json.Marshal(body)
			if err != nil {
				return err
			}
			payload = bytes.NewReader(text)
		}
		req, err := http.NewRequest(method, l.base+"/api/v1/auth/"+path, payload)
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		res, err := l.http.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			return err
		}
		// The hashing, which has the lowest priority, may not get to run beside the compilers of other tests. A
		// request that is refused for that is not lost.
		if res.StatusCode == http.StatusServiceUnavailable && bytes.Contains(text, []byte(`"code":"overloaded"`)) {
			return errOverloaded
		}
		if res.StatusCode == http.StatusServiceUnavailable {
			refused = res.Header.Get("X-Request-Id")
		}
		if res.StatusCode/100 != 2 {
			return fmt.Errorf("%s %.300s", res.Status, text)
		}
		if answer != nil {
			return json.Unmarshal(text, answer)
		}
		return nil
	}()
	l.done.Add(1)
	if err != nil && !errors.Is(err, errOverloaded) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.failures = append(l.failures, failure{fmt.Sprintf("%s %s: %v", method, path, err), refused})
	}
	return err == nil
}

// awaitMore waits until n more requests have been answered.
func (l *load) awaitMore(n int64) {
	l.t.Helper()
	want := l.done.Load() + n
	eventually(l.t, fmt.Sprintf("%d requests are answered", want), func() bool { return l.done.Load() >= want })
}
