package httpserver_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/testenv"
)

// client is a connection that the test writes to and reads from itself.
type client struct {
	net.Conn
	reader *bufio.Reader
}

func (s *service) dial(t testing.TB) *client {
	t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(testenv.Patience))
	return &client{c, bufio.NewReader(c)}
}

func (c *client) send(t testing.TB, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func (c *client) receive(t testing.TB) answer {
	t.Helper()
	response, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response, string(text)}
}

// closed waits for the other end to close, and reports whether nothing came before that.
func (c *client) closed() bool {
	n, _ := io.Copy(io.Discard, c.reader)
	return n == 0
}

func get(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n" }

func TestStringsOfARequestOutliveIt(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var kept []string
	type input struct {
		ID     string `path:"id"`
		Device string `header:"X-Device"`
		Mark   string `cookie:"mark"`
		Q      string `query:"q"`
		Peer   httpserver.Peer
	}
	s := serve(t, httpserver.Config{}, httpserver.Route{Method: "GET", Path: "/keep/{id}",
		Do: httpserver.PublicDo(func(_ context.Context, in input) error {
			mu.Lock()
			defer mu.Unlock()
			kept = append(kept, in.ID+" "+in.Device+" "+in.Q+" "+in.Peer.RequestID+" "+in.Peer.UserAgent+" "+in.Mark)
			kept = append(kept, in.ID, in.Device, in.Q, in.Peer.RequestID, in.Peer.UserAgent, in.Mark)
			return nil
		})})
	c := s.dial(t) // all on one connection, which reuses its buffers
	for i := range 20 {
		fmt.Fprintf(c, "GET /keep/id%02d?q=query%02d HTTP/1.1\r\nHost: a\r\nX-Device: device%02d\r\nX-Request-Id: request%02d\r\nUser-Agent: agent%02d\r\nCookie: mark=mark%02d\r\n\r\n", i, i, i, i, i, i)
		c.receive(t)
	}
	mu.Lock()
	defer mu.Unlock()
	for i := range 20 {
		if all, parts := kept[7*i], strings.Join(kept[7*i+1:7*i+7], " "); all != parts ||
			strings.Count(all, fmt.Sprintf("%02d", i)) != 6 {
			t.Errorf("request %d: %q became %q", i, all, parts)
		}
	}
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Config{})
	c := s.dial(t)
	c.send(t, get("/things/1")+"POST /echo HTTP/1.1\r\n"+lines+"Content-Length: 12\r\n\r\n{\"name\":\"x\"}"+
		get("/nowhere")+get("/things/2"))
	for _, want := range []string{`"1"`, `{"name":"x"}`, "", `"2"`} {
		if a := c.receive(t); want == "" {
			a.problem(t, 404, "not_found")
		} else if a.body != want {
			t.Errorf("%q, want %q", a.body, want)
		}
	}
}

func TestAStopFinishesWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	s := serve(t, httpserver.Config{DrainDelay: 8 * time.Second}, httpserver.Route{Method: "GET", Path: "/slow",
		Do: httpserver.Public(func(context.Context, nothing) (string, error) {
			close(entered)
			<-release
			return "finished", nil
		})})
	if s.Stopping() {
		t.Error("it stops although it runs")
	}
	busy, kept := s.dial(t), s.dial(t)
	busy.send(t, get("/slow"))
	<-entered
	kept.send(t, get("/plain"))
	if a := kept.receive(t); a.Close {
		t.Error("a connection was not kept alive")
	}
	s.stop()
	eventually(t, "the stop to show", s.Stopping)
	// During the drain delay load balancers still send requests, and the answers tell them to
	// leave.
	kept.send(t, get("/plain"))
	if late := kept.receive(t); late.StatusCode != 200 || !late.Close {
		t.Errorf("during the drain delay: %d, close %v", late.StatusCode, late.Close)
	}
	if late := s.do(t, "GET", "/plain", ""); late.StatusCode != 200 {
		t.Errorf("a new connection during the drain delay: %d", late.StatusCode)
	}
	eventually(t, "the port to close", func() bool {
		c, err := net.Dial("tcp", s.addr)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	close(release)
	if a := busy.receive(t); a.body != `"finished"` || !a.Close {
		t.Errorf("%q, close %v", a.body, a.Close)
	}
	if err := <-s.done; err != nil {
		t.Error(err)
	}
	s.done <- nil
}

func TestAStopDoesNotWaitForIdleClients(t *testing.T) {
	t.Parallel()
	// The timeouts alone would keep each of these for much longer, and the silent one would be cut
	// off.
	s := serve(t, httpserver.Config{ShutdownTimeout: time.Minute,
		HTTP: httpserver.HTTPConfig{IdleTimeout: time.Hour, ReadTimeout: 5 * time.Minute}})
	idle, silent := s.dial(t), s.dial(t)
	idle.send(t, get("/plain"))
	idle.receive(t)
	eventually(t, "both connections", func() bool { return s.Connections() == 2 })
	s.stop()
	if err := <-s.done; err != nil {
		t.Error(err)
	}
	s.done <- nil
	if !idle.closed() || !silent.closed() {
		t.Error("an idle client was sent something")
	}
	if n := s.Connections(); n != 0 {
		t.Errorf("%d connections remain", n)
	}
	if s.logs.FilterMessage("requests_cut_off").Len() > 0 {
		t.Error("idle clients used up the shutdown timeout")
	}
}

func TestAStopCutsOffWhatTakesTooLong(t *testing.T) {
	t.Parallel()
	entered, heeded, release := make(chan struct{}), make(chan error, 1), make(chan struct{})
	s := serve(t, httpserver.Config{ShutdownTimeout: 100 * time.Millisecond,
		HTTP: httpserver.HTTPConfig{RequestTimeout: time.Minute}},
		httpserver.Route{Method: "GET", Path: "/heeds",
			Do: httpserver.PublicDo(func(ctx context.Context, _ nothing) error {
				entered <- struct{}{}
				<-ctx.Done()
				heeded <- ctx.Err()
				return ctx.Err()
			})},
		httpserver.Route{Method: "GET", Path: "/stuck", Do: httpserver.PublicDo(func(context.Context,
			nothing) error {
			entered <- struct{}{}
			<-release
			return nil
		})})
	defer close(release)
	heeds, stuck := s.dial(t), s.dial(t)
	heeds.send(t, get("/heeds"))
	stuck.send(t, get("/stuck"))
	<-entered
	<-entered
	s.stop()
	if a := heeds.receive(t); !a.Close {
		t.Error("the connection stays open")
	} else {
		a.problem(t, 503, "unavailable")
	}
	if err := <-heeded; !errors.Is(err, context.Canceled) {
		t.Errorf("context: %v", err)
	}
	if err := <-s.done; err != nil {
		t.Error(err)
	}
	s.done <- nil
	if !stuck.closed() {
		t.Error("an answer from a request that was cut off")
	}
}

func TestATakenPortIsOneClearLine(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Config{})
	_, port, _ := net.SplitHostPort(s.addr)
	n, _ := strconv.Atoi(port)
	second, err := httpserver.New(httpserver.Config{Host: "127.0.0.1", Port: n}, httpserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	err = second.Run(t.Context())
	if want := "port " + port + " is in use: stop what listens there, or set APP_PORT to another port"; err == nil ||
		err.Error() != want {
		t.Errorf("error %v", err)
	}
	if second.Addr() != nil {
		t.Error("it has an address without a port")
	}
}

func TestAContextThatEndedBeforeTheStartStopsAtOnce(t *testing.T) {
	t.Parallel()
	server, err := httpserver.New(httpserver.Config{Host: "127.0.0.1"}, httpserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := server.Run(ctx); err != nil {
		t.Error(err)
	}
}

func TestSlowClientsAreCutOffWhileOthersAreServed(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Config{HTTP: httpserver.HTTPConfig{ReadTimeout: 2 * time.Second}})
	spare, header, body := s.dial(t), s.dial(t), s.dial(t)
	header.send(t, "GET /plain HTTP/1.1\r\nHost: a\r\n")
	body.send(t, "POST /echo HTTP/1.1\r\n"+lines+"Content-Length: 10000\r\n\r\n{")
	// Arriving bytes must not extend the time.
	stop, dripping := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(dripping)
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				_, _ = io.WriteString(header, "X-A: b\r\n")
				_, _ = io.WriteString(body, " ")
			}
		}
	}()
	if a := s.do(t, "GET", "/plain", ""); a.StatusCode != 200 {
		t.Errorf("others: %d", a.StatusCode)
	}
	cutOff := func(c *client) {
		t.Helper()
		if a := c.receive(t); !a.Close {
			t.Error("the connection stays open")
		} else {
			a.problem(t, 408, "request_timeout")
		}
	}
	cutOff(header)
	cutOff(body)
	close(stop)
	<-dripping
	// A spare connection, as browsers and proxies open them, was silent for the same time. It still
	// works, but once its request has begun, it has no more time than others.
	spare.send(t, get("/plain"))
	if a := spare.receive(t); a.StatusCode != 200 || a.Close {
		t.Errorf("a spare connection: %d", a.StatusCode)
	}
	late := s.dial(t)
	cutOff(func() *client { c := s.dial(t); c.send(t, "GET"); return c }())
	late.send(t, "GET /plain HTTP/1.1\r\n")
	cutOff(late)
}

// The end has no answer: a client that begins a request at that moment would take the answer for
// its own.
func TestASpareConnectionEndsWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	tlsConfig, pool := certificate(t, t.TempDir(), 1)
	for name, cfg := range map[string]httpserver.TLSConfig{"plain": {}, "tls": tlsConfig} {
		s := serve(t, httpserver.Config{TLS: cfg,
			HTTP: httpserver.HTTPConfig{ReadTimeout: 2 * time.Second, IdleTimeout: 3 * time.Second}})
		spare := s.dial(t)
		if name == "tls" {
			secure := tls.Client(spare.Conn, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"})
			if err := secure.HandshakeContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			spare = &client{secure, bufio.NewReader(secure)}
		}
		if !spare.closed() {
			t.Errorf("%s: it was sent something", name)
		}
		eventually(t, "no connection", func() bool { return s.Connections() == 0 })
		if n := s.logs.FilterMessage("request").Len(); n != 0 {
			t.Errorf("%s: %d requests are logged", name, n)
		}
	}
}

func TestThousandsOfIdleConnectionsDoNotStopTheService(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Config{HTTP: httpserver.HTTPConfig{MaxConnectionsPerIP: 5000, ReadTimeout: time.Hour,
		IdleTimeout: time.Hour}})
	const many = 1500
	idle := make([]net.Conn, 0, many)
	defer func() {
		for _, c := range idle {
			_ = c.Close()
		}
	}()
	for len(idle) < many {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Skipf("this machine allows %d connections to a process: %v", len(idle), err)
		}
		if len(idle)%2 == 0 { // half of them stop in the middle of a header
			_, _ = io.WriteString(c, "GET /plain HTTP/1.1\r\nHost:")
		}
		idle = append(idle, c)
	}
	eventually(t, "all of them", func() bool { return s.Connections() >= many })
	for range 20 {
		if a := s.do(t, "GET", "/plain", ""); a.StatusCode != 200 {
			t.Errorf("status %d", a.StatusCode)
		}
	}
}

// busy opens connections on which a request is being answered until the test releases it.
func busy(t *testing.T, s *service, started <-chan struct{}, count int) []*client {
	t.Helper()
	var clients []*client
	for range count {
		c := s.dial(t)
		c.send(t, get("/held"))
		<-started
		clients = append(clients, c)
	}
	return clients
}

// held is a route that answers when released.
func held() (route httpserver.Route, started chan struct{}, let func()) {
	started, release := make(chan struct{}), make(chan struct{})
	return httpserver.Route{Method: "GET", Path: "/held", Do: httpserver.Public(func(context.Context, nothing) (string,
		error) {
		started <- struct{}{}
		<-release
		return "held", nil
	})}, started, sync.OnceFunc(func() { close(release) })
}

func TestOneAddressMayHoldOnlySoManyConnections(t *testing.T) {
	t.Parallel()
	route, started, let := held()
	s := serve(t, httpserver.Config{HTTP: httpserver.HTTPConfig{MaxConnectionsPerIP: 3}}, route)
	t.Cleanup(let)
	clients := busy(t, s, started, 3)
	if over := s.dial(t); !over.closed() {
		t.Error("a connection over the limit was answered")
	}
	_ = clients[0].Close()
	let()
	eventually(t, "the place to be free", func() bool { return s.Connections() == 2 })
	again := s.dial(t)
	again.send(t, get("/plain"))
	again.receive(t)

	proxy := serve(t, httpserver.Config{TrustedProxies: []string{"127.0.0.1"},
		HTTP: httpserver.HTTPConfig{MaxConnectionsPerIP: 3}})
	for range 8 { // a proxy carries the connections of many clients
		c := proxy.dial(t)
		c.send(t, get("/plain"))
		c.receive(t)
	}
}

// Connections without a request, or with one that never ends, keep nobody else out at the same
// address, which may be that of a school or of a proxy missing from the settings.
func TestAtTheLimitTheLongestWaitingConnectionMakesRoom(t *testing.T) {
	t.Parallel()
	for name, limits := range map[string]httpserver.HTTPConfig{
		"one address": {MaxConnectionsPerIP: 16, ReadTimeout: time.Hour, IdleTimeout: time.Hour},
		"in all":      {MaxConnections: 16, ReadTimeout: time.Hour, IdleTimeout: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			route, started, let := held()
			s := serve(t, httpserver.Config{HTTP: limits}, route)
			t.Cleanup(let)
			answered := busy(t, s, started, 1)[0] // the oldest, but in use
			var waiting []*client
			for i := range 15 {
				c := s.dial(t)
				eventually(t, "the connection to be counted", func() bool { return len(s.Waiting()) == i+1 })
				counted := slices.Max(s.Waiting())
				switch i % 3 {
				case 0: // answered, and kept open
					c.send(t, get("/plain"))
					c.receive(t)
				case 1: // never finishes
					c.send(t, "GET /plain HTTP/1.1\r\nHost:")
				}
				// The server reads what was sent when its turn comes, and then the wait begins
				// again.
				eventually(t, "the connection to wait", func() bool {
					since := s.Waiting()
					return len(since) == i+1 && (i%3 == 2 || slices.Max(since) > counted)
				})
				waiting = append(waiting, c)
			}
			for range 3 {
				c := s.dial(t)
				c.send(t, get("/plain"))
				c.receive(t)
			}
			for i, c := range waiting[:3] {
				if !c.closed() {
					t.Errorf("connection %d did not make room", i)
				}
			}
			last := waiting[len(waiting)-3] // answered and kept, but newer than others
			last.send(t, get("/plain"))
			last.receive(t)
			let()
			if a := answered.receive(t); a.body != `"held"` {
				t.Errorf("the answer to the request in flight is %q", a.body)
			}
			if n := s.Connections(); n != 16 {
				t.Errorf("%d connections, the limit is 16", n)
			}
		})
	}
}

func TestAllClientsTogetherMayHoldOnlySoManyConnections(t *testing.T) {
	t.Parallel()
	route, started, let := held()
	s := serve(t, httpserver.Config{HTTP: httpserver.HTTPConfig{MaxConnections: 16}}, route)
	t.Cleanup(let)
	busy(t, s, started, 16)
	if over := s.dial(t); !over.closed() {
		t.Error("a connection over the limit was answered")
	}
}

func TestMetricsHaveBoundedLabels(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	server, err := httpserver.New(httpserver.Config{}, httpserver.Options{Registry: registry})
	if err != nil {
		t.Fatal(err)
	}
	server.Handle(routes()...)
	for _, target := range []string{"GET /things/1", "GET /things/2", "GET /a", "GET /b", "BREW /a", "MIX /b",
		"GET /broken"} {
		method, path, _ := strings.Cut(target, " ")
		request, _ := http.NewRequest(method, "http://a"+path, nil)
		if _, err := server.App().Test(request, -1); err != nil {
			t.Fatal(err)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			key := family.GetName()
			for _, label := range metric.GetLabel() {
				key += " " + label.GetValue()
			}
			switch {
			case metric.Counter != nil:
				counts[key] = metric.GetCounter().GetValue()
			case metric.Histogram != nil:
				counts[key] = float64(metric.GetHistogram().GetSampleCount())
			case metric.Gauge != nil:
				counts[key] = metric.GetGauge().GetValue()
			}
		}
	}
	for key, want := range map[string]float64{
		"authctl_http_requests_total GET /things/{id} 200":       2,
		"authctl_http_requests_total GET none 404":               2,
		"authctl_http_requests_total OTHER none 404":             2,
		"authctl_http_requests_total GET /broken 500":            1,
		"authctl_http_request_duration_seconds GET /things/{id}": 2,
		"authctl_http_requests_in_flight":                        0,
	} {
		if counts[key] != want {
			t.Errorf("%s: %v, want %v (%v)", key, counts[key], want, counts)
		}
	}
}

// certificate writes a self-signed pair for 127.0.0.1 and returns its pool.
func certificate(t *testing.T, dir string, serial int64) (httpserver.TLSConfig, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), NotBefore: time.Now().Add(-time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cfg := httpserver.TLSConfig{CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}
	for file, block := range map[string]*pem.Block{
		cfg.CertFile: {Type: "CERTIFICATE", Bytes: der},
		cfg.KeyFile:  {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	parsed, _ := x509.ParseCertificate(der)
	pool.AddCert(parsed)
	return cfg, pool
}

func TestTLSIsServedDirectly(t *testing.T) {
	t.Parallel()
	cfg, pool := certificate(t, t.TempDir(), 1)
	s := serve(t, httpserver.Config{TLS: cfg})
	secure := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool},
		ForceAttemptHTTP2: true}}
	defer secure.CloseIdleConnections()
	for range 3 {
		response, err := secure.Get("https://" + s.addr + "/ip")
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if response.StatusCode != 200 || string(text) != `"127.0.0.1"` || response.ProtoMajor != 1 {
			t.Errorf("%d %s %s", response.StatusCode, text, response.Proto)
		}
		if got := response.Header.Get("Strict-Transport-Security"); got != "max-age=31536000" {
			t.Errorf("HSTS %q", got)
		}
	}
	wide, err := httpserver.New(httpserver.Config{TLS: cfg, HSTSSubdomains: true}, httpserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	response, err := wide.App().Test(httptest.NewRequest("GET", "/", nil), -1)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if got := response.Header.Get("Strict-Transport-Security"); got != "max-age=31536000; includeSubDomains" {
		t.Errorf("with app.hsts_subdomains: %q", got)
	}
	if _, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: pool, MaxVersion: tls.VersionTLS11,
		MinVersion: tls.VersionTLS10}); err == nil {
		t.Error("TLS 1.1 is served")
	}
	c, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: pool})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(testenv.Patience))
	_, _ = io.WriteString(c, "GET /plain HTTP/1.1\nHost: a\r\n\r\n")
	response, err = http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || response.StatusCode != 400 {
		t.Errorf("a bare LF under TLS: %v %v", response, err)
	}
	plain, err := http.Post("http://"+s.addr+"/plain", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Body.Close()
	var problem httpserver.Problem
	if err := json.NewDecoder(plain.Body).Decode(&problem); err != nil || plain.StatusCode != 400 ||
		!strings.Contains(problem.Detail, "https://") || problem.RequestID != plain.Header.Get("X-Request-Id") {
		t.Errorf("plain HTTP is answered %d %+v: %v", plain.StatusCode, problem, err)
	}
	s.dial(t) // a client that never begins its handshake does not delay the stop
}

func TestConfigRefusesWhatWouldNotDoWhatItSays(t *testing.T) {
	t.Parallel()
	for origin, words := range map[string]string{ // part of the refusal; empty where there must be none
		"https://app.example.com": "", "http://localhost:3000": "", "http://[::1]:8080": "",
		"https://xn--bcher-kva.example": "",
		"HTTPS://app.example.com":       "", "https://App.example.com": "", "https://app.example.com:443": "",
		"http://app.example.com:80": "",
		"capacitor://localhost":     "", "tauri://localhost": "", "chrome-extension://abcdefghijklmnop": "",
		"moz-extension://c0ffee:1": "",
		"*":                        "any page", "null": "any page", "": "empty",
		"app.example.com":          "scheme, host and port",
		"localhost:3000":           "scheme, host and port",
		"https://app.example.com/": "slash at the end: https://app.example.com",
		"capacitor://localhost/":   "slash at the end: capacitor://localhost",
		"https://*.example.com":    "wildcards", "https://app.example.com/x": "path",
		"https://app.example.com?": "https://app.example.com",
		"https://app.example.com#": "https://app.example.com", "https://u@app.example.com": "user",
		"https://app.example.com:":  "port",
		"https://app.example.com:x": "port", "https://app.example.com:65536": "port",
		"https://app.example.com:-1": "port", "https://app.example.com:0": "port",
		"file:///x": "null", "file://": "null", "data:text/html,x": "scheme, host and port",
		"https://":                            "no host",
		"capacitor://":                        "no host",
		"https://a.example https://b.example": "path", "https://a b": "character", "https://a%20b": "character",
		"https://[::1": "IPv6", "https://[::1%eth0]": "IPv6",
		"https://127.1": "IPv4", "https://b\u00fccher.example": "https://xn--bcher-kva.example",
		"https://B\u00dcCHER.example:8443": "https://xn--bcher-kva.example:8443",
		"https://\u4f8b\u3048.example":     "xn--r8jz45g.example", "https://b%C3%BCcher.example": "character",
		"h\u00e9://x": "scheme, host and port",
	} {
		got := problems(httpserver.Config{Origins: []string{origin}})
		switch {
		case words == "" && len(got) > 0, words != "" && (len(got) != 1 || !strings.Contains(got[0], words)):
			t.Errorf("origin %q: %q, want %q", origin, got, words)
		}
	}
	for name, good := range map[string]bool{"X-Tenant": true, "x-acme-*": true, "*": true, "": false, "X Tenant": false,
		"X-Tenant:": false, "X-T\u00e9": false, "*-Tenant": false, "X-*-Tenant": false, "X-**": false} {
		if got := problems(httpserver.Config{CORSHeaders: []string{name}}); (len(got) == 0) != good {
			t.Errorf("header %q: %q", name, got)
		}
	}
	for proxy, good := range map[string]bool{
		"10.0.0.1": true, "10.0.0.0/8": true, "::1": true, "fd00::/8": true, "10.0.0.7/8": true,
		"": false, "proxy": false, "10.0.0.0/33": false, "10.0.0.1-9": false, "*": false,
	} {
		if got := problems(httpserver.Config{TrustedProxies: []string{proxy}}); (len(got) == 0) != good {
			t.Errorf("proxy %q: %q", proxy, got)
		}
	}
	for proxy, told := range map[string]bool{
		"0.0.0.0/0": true, "::/0": true, "::ffff:0:0/96": true, "128.0.0.0/1": true, "2000::/3": true, "fe00::/7": true,
		"10.0.0.0/8": false, "fc00::/7": false, "192.0.2.1": false, "2001:db8::/32": false, "proxy/0": false,
	} {
		got := ""
		httpserver.Config{TrustedProxies: []string{proxy}}.Doubted(func(_, text string) { got = text })
		if (got != "") != told || told && !strings.Contains(got, proxy) {
			t.Errorf("proxy %q: told %q", proxy, got)
		}
	}
	if got := problems(httpserver.Config{TLS: httpserver.TLSConfig{CertFile: "/nowhere"}}); len(got) != 2 {
		t.Errorf("TLS: %q", got)
	}
	if _, err := httpserver.New(httpserver.Config{Origins: []string{"*"}}, httpserver.Options{}); err == nil {
		t.Error("New accepts what Validate refuses")
	}
}

func problems(cfg httpserver.Config) (all []string) {
	cfg.Validate(func(path, problem string) { all = append(all, path+": "+problem) })
	return all
}
