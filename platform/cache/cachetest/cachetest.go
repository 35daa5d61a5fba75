// Package cachetest gives tests a Redis: a client of the shared server, or the test's own server,
// which may be killed, flushed and replicated.
package cachetest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/retry"
	"github.com/toppira/authctl/platform/testenv"
)

// Shared returns a client of the shared real Redis. Each test uses its own keys.
func Shared(t testing.TB) *redis.Client { t.Helper(); return Open(t, testenv.Redis(t)) }

// Open returns a client of the one Redis server at a URL, closed when the test ends.
func Open(t testing.TB, url string) *redis.Client { t.Helper(); return OpenAny(t, url).(*redis.Client) }

// OpenAny returns a client of what a URL names, closed when the test ends. It retries for a while: on a busy machine a
// server may answer too late. A command may take as long, but of several servers one that is silent must be noticed.
func OpenAny(t testing.TB, url string) cache.Client {
	t.Helper()
	if !strings.Contains(url, "addr=") && !strings.Contains(url, "read_timeout=") {
		separator := "?"
		if strings.Contains(url, separator) {
			separator = "&"
		}
		url += separator + "read_timeout=" + testenv.Patience.String()
	}
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
	defer cancel()
	for {
		client, err := cache.Open(ctx, cache.Config{URL: config.Secret(url)}, cache.Options{AppName: "authctl-test"})
		if err == nil {
			t.Cleanup(func() { _ = client.Close() })
			return client
		}
		if !cache.IsUnavailable(err) || !retry.Sleep(ctx, 100*time.Millisecond) {
			t.Fatalf("open the test's Redis: %v", err)
		}
	}
}

// Server is a redis-server process of one test.
type Server struct {
	t       testing.TB
	program string
	dir     string
	port    int
	args    []string
	kind    kind

	process *os.Process     // nil while it does not run
	ended   <-chan struct{} // closed when it has ended
}

// Start runs a redis-server that saves every write before it answers, and ends it with the
// test. Arguments are added to its command line. Without the binary the test is skipped, or fails
// if engines are demanded (see testenv).
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return start(t, store, args...)
}

// StartSentinel runs a Sentinel with a configuration file, which it rewrites.
func StartSentinel(t testing.TB, conf string) *Server {
	t.Helper()
	return start(t, sentinel, conf, "--sentinel")
}

// StartTLS runs a redis-server that only speaks TLS, with a certificate that nobody trusts.
func StartTLS(t testing.TB) *Server {
	t.Helper()
	server, _ := startTLS(t, &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	return server
}

// StartNamedTLS runs a redis-server that only speaks TLS, with a certificate for one host name, and
// returns the file to trust. Arguments are added to its command line.
func StartNamedTLS(t testing.TB, host string, args ...string) (server *Server, caFile string) {
	t.Helper()
	return startTLS(t, &x509.Certificate{DNSNames: []string{host}, IsCA: true, BasicConstraintsValid: true}, args...)
}

// StartSentinelTLS runs a Sentinel that only speaks TLS, also to the servers that it watches, with
// a certificate for one host name. It trusts its own authority and the one in trusted; caFile has
// both.
func StartSentinelTLS(t testing.TB, conf, host, trusted string) (server *Server, caFile string) {
	t.Helper()
	args, certFile := certificate(t,
		&x509.Certificate{DNSNames: []string{host}, IsCA: true, BasicConstraintsValid: true})
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	var both []byte
	for _, file := range []string{certFile, trusted} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, text...)
	}
	if err := os.WriteFile(caFile, both, 0o600); err != nil {
		t.Fatal(err)
	}
	args = append([]string{conf, "--sentinel"}, append(args, "--tls-ca-cert-file", caFile, "--tls-replication",
		"yes")...)
	return start(t, securedSentinel, args...), caFile
}

func startTLS(t testing.TB, template *x509.Certificate, args ...string) (server *Server, certFile string) {
	t.Helper()
	own, certFile := certificate(t, template)
	return start(t, secured, append(own, args...)...), certFile
}

// certificate makes a self-signed certificate, and returns the arguments that use it.
func certificate(t testing.TB, template *x509.Certificate) (args []string, certFile string) {
	t.Helper()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, template.NotAfter = big.NewInt(1), time.Now().Add(24*time.Hour)
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: cert},
		"key.pem": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	certFile = filepath.Join(dir, "cert.pem")
	return []string{"--tls-cert-file", certFile, "--tls-key-file", filepath.Join(dir, "key.pem"), "--tls-auth-clients",
		"no"}, certFile
}

// kind is what a redis-server is.
type kind int

const (
	store kind = iota
	sentinel
	secured
	securedSentinel
)

func start(t testing.TB, what kind, args ...string) *Server {
	t.Helper()
	program := testenv.Program(t, "install Redis", "redis-server")
	s := &Server{t: t, program: program, dir: t.TempDir(), args: args, kind: what}
	t.Cleanup(s.Kill)
	s.Restart()
	return s
}

// Port returns the port on 127.0.0.1, which stays the same over a restart.
func (s *Server) Port() string { return strconv.Itoa(s.port) }

// URL returns the server's URL.
func (s *Server) URL() string { return "redis://127.0.0.1:" + s.Port() }

// Restart starts the server, which must not be running, with the data that it had saved.
func (s *Server) Restart() {
	s.t.Helper()
	// Another process may take the free port first.
	var log bytes.Buffer
	for range 5 {
		port := s.port
		if port == 0 {
			port = testenv.FreePort(s.t)
		}
		at := strconv.Itoa(port)
		args := append([]string{"--port", at, "--bind", "127.0.0.1", "--dir", s.dir,
			"--save", "", "--appendonly", "yes", "--appendfsync", "always", "--loglevel", "warning"}, s.args...)
		switch s.kind {
		case sentinel:
			args = append(slices.Clone(s.args), "--port", at, "--bind", "127.0.0.1", "--dir", s.dir)
		case securedSentinel:
			args = append(slices.Clone(s.args), "--port", "0", "--tls-port", at, "--bind", "127.0.0.1", "--dir", s.dir)
		case secured:
			args[1] = "0"
			args = append(args, "--tls-port", at)
		}
		cmd := exec.Command(s.program, args...)
		log.Reset()
		cmd.Stdout, cmd.Stderr = &log, &log
		if err := cmd.Start(); err != nil {
			s.t.Fatalf("start redis-server: %v", err)
		}
		ended := make(chan struct{})
		go func() { _ = cmd.Wait(); close(ended) }()
		if s.answers(s.t.Context(), port, cmd.Process, ended) {
			s.port, s.process, s.ended = port, cmd.Process, ended
			return
		}
		_ = cmd.Process.Kill()
		<-ended
	}
	s.t.Fatalf("redis-server does not start:\n%s", &log)
}

// Kill ends the server as a crash would.
func (s *Server) Kill() {
	if s.process == nil {
		return
	}
	_ = s.process.Kill()
	<-s.ended
	s.process = nil
}

// BreakFolder removes the folder that the server saves to.
func (s *Server) BreakFolder() {
	s.t.Helper()
	if err := os.RemoveAll(s.dir); err != nil {
		s.t.Fatalf("remove the folder of redis-server: %v", err)
	}
}

// Pause stops the process without ending it; Resume lets it continue.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume undoes Pause.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig os.Signal) {
	s.t.Helper()
	if err := s.process.Signal(sig); err != nil {
		s.t.Fatalf("signal redis-server: %v", err)
	}
}

// answers waits until this process answers on the port, and not another one that took it first.
func (s *Server) answers(ctx context.Context, port int, process *os.Process, ended <-chan struct{}) bool {
	logging.Disable() // while connections are refused, until the server is up
	opt := &redis.Options{Addr: fmt.Sprintf("127.0.0.1:%d", port), MaxRetries: -1, DialerRetries: 1}
	if s.kind == secured || s.kind == securedSentinel {
		opt.TLSConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // a test's own server
	}
	for i, arg := range s.args {
		if arg == "--requirepass" {
			opt.Password = s.args[i+1]
		}
	}
	client := redis.NewClient(opt)
	defer func() { _ = client.Close() }()
	deadline := time.After(testenv.Patience)
	for {
		info, err := client.Info(ctx, "server").Result()
		if err == nil && strings.Contains(info, fmt.Sprintf("process_id:%d\r\n", process.Pid)) {
			return true
		}
		select {
		case <-ended:
			return false
		case <-deadline:
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
}
