package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/telemetry"
	"github.com/toppira/authctl/platform/testenv"
)

func TestHealthAsksWhereTheSettingsSay(t *testing.T) {
	t.Parallel()
	at := func(operator, host string, port int, cert string) settings {
		return settings{Operator: telemetry.Config{OperatorAddr: operator},
			HTTP: httpserver.Config{Host: host, Port: port, TLS: httpserver.TLSConfig{CertFile: cert}}}
	}
	for want, s := range map[string]settings{
		"http://127.0.0.1:9090/readyz":   at("127.0.0.1:9090", "", 8080, "cert.pem"),
		"http://127.0.0.1:9091/readyz":   at(":9091", "", 8080, ""),
		"http://127.0.0.1:9092/readyz":   at("0.0.0.0:9092", "", 8080, ""),
		"http://[::1]:9093/readyz":       at("[::]:9093", "", 8080, ""),
		"http://10.0.0.7:9094/readyz":    at("10.0.0.7:9094", "", 8080, ""),
		"http://localhost:9095/readyz":   at("localhost:9095", "", 8080, ""),
		"http://127.0.0.1:8080/readyz":   at("off", "", 8080, ""),
		"http://127.0.0.1:8081/readyz":   at("", "0.0.0.0", 8081, ""),
		"https://[::1]:8443/readyz":      at("off", "::", 8443, "cert.pem"),
		"https://192.0.2.1:8444/readyz":  at("off", "192.0.2.1", 8444, "cert.pem"),
		"http://[2001:db8::1]:80/readyz": at("off", "2001:db8::1", 80, ""),
	} {
		if url, err := s.readinessURL(); url != want || err != nil {
			t.Errorf("%s, %v; want %s", url, err, want)
		}
	}
	for _, s := range []settings{at("127.0.0.1:0", "", 8080, ""), at("off", "", 0, "")} {
		if url, err := s.readinessURL(); err == nil {
			t.Errorf("port 0 gives %s", url)
		}
	}
}

// background runs a command line until the test ends it, and returns its output.
type background struct {
	mu  sync.Mutex
	out bytes.Buffer

	stop  context.CancelFunc
	ended chan int
}

func (b *background) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.Write(p)
}

func (b *background) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.String()
}

func runInBackground(t *testing.T, line ...string) *background {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	b := &background{stop: stop, ended: make(chan int, 1)}
	go func() { b.ended <- run(ctx, line, strings.NewReader(""), io.Discard, b) }()
	t.Cleanup(func() {
		stop()
		select {
		case code := <-b.ended:
			b.ended <- code
		case <-time.After(patience):
			t.Error("the command does not end")
		}
	})
	return b
}

// await waits until the output matches and returns the first group.
func (b *background) await(t *testing.T, pattern string) string {
	t.Helper()
	want := regexp.MustCompile(pattern)
	if !poll(func() bool { return want.MatchString(b.String()) }) {
		t.Fatalf("nothing matches %s in:\n%s", pattern, b)
	}
	return want.FindStringSubmatch(b.String())[1]
}

func TestHealthAsksAListenerWithTLS(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testenv.Must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "auth.example.com"},
		DNSNames: []string{"auth.example.com"}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	testenv.Must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	testenv.Must(t, err)
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: cert},
		"key.pem": {Type: "PRIVATE KEY", Bytes: private}} {
		testenv.Must(t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600))
	}
	flags := []string{"--set", "app.tls.cert_file=cert.pem", "--set", "app.tls.key_file=key.pem", "--set",
		"app.host=127.0.0.1", "--set", "app.operator_addr=off"}
	server := runInBackground(t, append([]string{"serve", "--port", "0"}, flags...)...)
	port := server.await(t, `"port": (\d+)`)
	var out bytes.Buffer
	if code := run(t.Context(), append([]string{"health", "--set", "app.port=" + port}, flags...), nil, &out,
		&out); code != exitDone || out.String() != "ready\n" {
		t.Errorf("exit %d: %s", code, &out)
	}
}

// After 101 net/http hands over the bare connection, and no context ends reading from it.
func TestHealthIsNotHeldUpByAnotherProtocol(t *testing.T) {
	t.Parallel()
	over := make(chan struct{})
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
		<-over
	}))
	defer other.Close()
	said := make(chan error, 1)
	go func() {
		_, err := askReadiness(t.Context(), other.URL)
		said <- err
	}()
	select {
	case err := <-said:
		if err == nil || !strings.Contains(err.Error(), "answers 101") {
			t.Errorf("it says %v", err)
		}
	case <-time.After(patience):
		t.Error("it waits for more")
	}
	close(over)
}

func TestTheServiceManagerIsToldOfTheStartAndTheStop(t *testing.T) {
	for _, command := range []string{"serve", "relay"} {
		dir := t.TempDir()
		t.Chdir(dir)
		path := filepath.Join(dir, "notify")
		socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		testenv.Must(t, err)
		defer socket.Close()
		t.Setenv("NOTIFY_SOCKET", path)
		process := runInBackground(t, command, "--set", "app.port=0", "--set", "app.host=127.0.0.1", "--set",
			"app.operator_addr=off")
		for _, want := range []string{"READY=1", "STOPPING=1"} {
			buffer := make([]byte, 1024)
			_ = socket.SetReadDeadline(time.Now().Add(patience))
			n, err := socket.Read(buffer)
			if err != nil || string(buffer[:n]) != want {
				t.Fatalf("%s: the service manager gets %q, %v; want %s:\n%s", command, buffer[:n], err, want, process)
			}
			process.stop() // after READY
		}
	}
	// A missing service manager prevents neither start nor stop.
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	process := runInBackground(t, "serve", "--set", "app.port=0", "--set", "app.host=127.0.0.1", "--set",
		"app.operator_addr=off")
	process.await(t, `(service_manager_not_notified)`)
	process.stop()
	code := <-process.ended
	process.ended <- code
	if code != exitDone {
		t.Errorf("exit %d:\n%s", code, process)
	}
}
