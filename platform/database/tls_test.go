package database_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
)

// pretender is a server that offers TLS as PostgreSQL does, with a certificate for the names, and
// counts the clients that send anything after the handshake.
type pretender struct {
	addr string
	ca   string // the file of the authority that signed its certificate
	told atomic.Int32
}

func startPretender(t *testing.T, names ...string) *pretender {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: names,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	p := &pretender{ca: filepath.Join(t.TempDir(), "ca.pem")}
	if err := os.WriteFile(p.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	p.addr = l.Addr().String()
	settings := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der},
		PrivateKey: key}}}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(conn, settings)
		}
	}()
	return p
}

func (p *pretender) serve(conn net.Conn, settings *tls.Config) {
	defer conn.Close()
	request := make([]byte, 8) // SSLRequest
	if _, err := io.ReadFull(conn, request); err != nil {
		return
	}
	if request[4] != 0x04 || request[5] != 0xd2 { // the start of an unencrypted connection
		p.told.Add(1)
		return
	}
	if _, err := conn.Write([]byte("S")); err != nil {
		return
	}
	secure := tls.Server(conn, settings)
	if n, _ := secure.Read(make([]byte, 1)); n > 0 {
		p.told.Add(1)
	}
}

// In prod mode a server with a wrong certificate does not even get the user's name, whatever its
// place in the list.
func TestAFalseServerIsToldNothing(t *testing.T) {
	t.Parallel()
	stranger, other := startPretender(t, "127.0.0.1"), startPretender(t, "db.internal")
	for name, test := range map[string]struct{ url, remedy string }{
		"unknown authority": {"postgres://u:p@" + stranger.addr + "/d", "sslrootcert"},
		// of the first server
		"second of two": {"postgres://u:p@" + other.addr + "," + stranger.addr + "/d", "as its certificate does"},
		"another name": {"postgres://u:p@" + other.addr + "/d?sslrootcert=" + other.ca,
			"as its certificate does"},
		"an empty sslmode=": {"postgres://u:p@" + stranger.addr + "/d?sslmode=", "sslrootcert"},
	} {
		_, err := database.Open(t.Context(), database.Config{URL: config.Secret(test.url)},
			database.Options{Prod: true})
		if err == nil {
			t.Errorf("%s: it was opened", name)
		}
		if got := database.Remedy(err, database.AnyTask); !strings.Contains(got, test.remedy) {
			t.Errorf("%s: %v: the remedy is %q, want %q", name, err, got, test.remedy)
		}
	}
	if told := stranger.told.Load() + other.told.Load(); told != 0 {
		t.Errorf("the servers got something %d times", told)
	}
	// The test can fail: once its authority is named, the server gets the start of the connection.
	_, _ = database.Open(t.Context(), database.Config{URL: config.Secret("postgres://u:p@" + stranger.addr +
		"/d?sslrootcert=" + stranger.ca)},
		database.Options{Prod: true})
	if stranger.told.Load() == 0 {
		t.Error("the right server got nothing either")
	}
}
