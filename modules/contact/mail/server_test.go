package mail

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/mail"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/testenv"
)

// smtpServer is a real SMTP server in its own process. testdata/smtp/server.py says which address
// gets which answer.
type smtpServer struct {
	t     *testing.T
	port  int
	stdin io.Writer
	asked chan int
	waits chan struct{} // the server delays the answer to a mail

	mu          sync.Mutex
	mails       []received
	connections int
	signIns     []string // the mechanism of each
}

// received is a mail that the server accepted, or a connection.
type received struct {
	Port      int
	Asked     int
	Connected bool
	SignsIn   string `json:"signs_in"` // the mechanism
	Waits     bool
	MailFrom  string `json:"mail_from"`
	To        string
	Text      string
	User      string
	TLS       bool
	UTF8      bool
	Helo      string
}

func startSMTP(t *testing.T, arguments ...string) *smtpServer {
	t.Helper()
	python := testenv.Program(t, "install Python 3", "python3")
	packages := testenv.PythonPackages(t, "testdata/smtp")
	cmd := exec.CommandContext(t.Context(), python, append([]string{"testdata/smtp/server.py"}, arguments...)...)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+packages, "PYTHONDONTWRITEBYTECODE=1")
	cmd.Stderr = t.Output()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s, ready, ended := &smtpServer{t: t, stdin: stdin, asked: make(chan int, 1),
		waits: make(chan struct{}, 10)}, make(chan int, 1), make(chan struct{})
	go func() {
		defer close(ended)
		s.read(stdout, ready)
	}()
	t.Cleanup(func() {
		_ = stdin.Close() // the server ends then
		<-ended
		_ = cmd.Wait()
	})
	select {
	case s.port = <-ready:
	case <-ended:
		t.Fatal("the SMTP server has ended")
	case <-time.After(testenv.Patience):
		t.Fatal("the SMTP server does not say its port")
	}
	return s
}

func (s *smtpServer) read(from io.Reader, ready chan<- int) {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r received
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			continue
		}
		switch {
		case r.Port != 0:
			ready <- r.Port
		case r.Asked != 0:
			s.asked <- r.Asked
		case r.Waits:
			s.waits <- struct{}{}
		case r.SignsIn != "":
			s.mu.Lock()
			s.signIns = append(s.signIns, r.SignsIn)
			s.mu.Unlock()
		case r.Connected:
			s.mu.Lock()
			s.connections++
			s.mu.Unlock()
		default:
			s.mu.Lock()
			s.mails = append(s.mails, r)
			s.mu.Unlock()
		}
	}
}

// hear waits until everything that the server has said so far was read.
func (s *smtpServer) hear() {
	s.t.Helper()
	if _, err := fmt.Fprintln(s.stdin, 1); err != nil {
		s.t.Fatal(err)
	}
	select {
	case <-s.asked:
	case <-time.After(testenv.Patience):
		s.t.Fatal("the SMTP server says nothing")
	}
}

// release lets the delayed answers go.
func (s *smtpServer) release() {
	s.t.Helper()
	if _, err := fmt.Fprintln(s.stdin, "release"); err != nil {
		s.t.Fatal(err)
	}
}

// keepsWaiting waits until the server delays an answer. done gets the end of the attempt.
func (s *smtpServer) keepsWaiting(done <-chan error) {
	s.t.Helper()
	select {
	case <-s.waits:
	case err := <-done:
		s.t.Fatalf("the attempt has ended: %v", err)
	case <-time.After(testenv.Patience):
		s.t.Fatal("the server was not asked")
	}
}

// to returns the accepted mails to an address.
func (s *smtpServer) to(address string) (list []received) {
	s.hear()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.mails {
		if m.To == address {
			list = append(list, m)
		}
	}
	return list
}

// signedIn is with which mechanisms somebody has tried to sign in so far.
func (s *smtpServer) signedIn() string {
	s.hear()
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.signIns, " ")
}

func (s *smtpServer) connected() int {
	s.hear()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connections
}

// address is the address of the server.
func (s *smtpServer) address(host string) string { return fmt.Sprintf("%s:%d", host, s.port) }

// config returns settings for a service on the same machine.
func (s *smtpServer) config() Config {
	return Config{URL: config.Secret("smtp://" + s.address("127.0.0.1")), From: "Example <no-reply@example.com>"}
}

// message parses a mail as a mail program does.
func (r received) message(t *testing.T) *mail.Message {
	t.Helper()
	m, err := mail.ReadMessage(strings.NewReader(r.Text))
	if err != nil {
		t.Fatalf("the mail cannot be read: %v\n%s", err, r.Text)
	}
	return m
}

// certificates writes an authority, and a certificate by it for the names, to files.
type certificates struct{ ca, cert, key string }

func makeCertificates(t *testing.T, names ...string) (c certificates) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "an authority"},
		IsCA:      true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign}
	caKey, ownKey := key(), key()
	ca, err := x509.CreateCertificate(rand.Reader, authority, authority, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	own := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "a server"},
		NotBefore: authority.NotBefore, NotAfter: authority.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			own.IPAddresses = append(own.IPAddresses, ip)
		} else {
			own.DNSNames = append(own.DNSNames, name)
		}
	}
	cert, err := x509.CreateCertificate(rand.Reader, own, authority, ownKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(ownKey)
	if err != nil {
		t.Fatal(err)
	}
	return certificates{ca: write("ca.pem", "CERTIFICATE", ca), cert: write("cert.pem", "CERTIFICATE", cert),
		key: write("key.pem", "PRIVATE KEY", private)}
}
