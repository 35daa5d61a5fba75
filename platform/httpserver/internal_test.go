package httpserver

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
	"go.uber.org/zap"

	"github.com/toppira/authctl/platform/fault"
)

// packets is a connection whose reads return the given pieces.
type packets struct {
	net.Conn
	pieces []string
}

func (p *packets) Read(b []byte) (int, error) {
	if len(p.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.pieces[0])
	p.pieces = p.pieces[1:]
	return n, nil
}

func (p *packets) SetReadDeadline(time.Time) error { return nil }

func readAll(pieces ...string) error {
	_, err := io.ReadAll(&conn{listener: new(listener), Conn: &packets{pieces: pieces}})
	return err
}

func TestABareLFIsFoundHoweverTheRequestLineArrives(t *testing.T) {
	t.Parallel()
	const bare, good = "GET /plain HTTP/1.1\nHost: a\r\n\r\n", "GET /plain HTTP/1.1\r\nHost: a\r\n\r\n"
	for cut := range len(bare) {
		if err := readAll(bare[:cut], bare[cut:]); !errors.Is(err, errBareLF) {
			t.Errorf("cut at %d: %v", cut, err)
		}
		if err := readAll(good[:cut], good[cut:]); err != nil {
			t.Errorf("a good request cut at %d: %v", cut, err)
		}
	}
	if err := readAll(strings.Split(good+bare, "")...); !errors.Is(err, errBareLF) {
		t.Errorf("byte by byte: %v", err)
	}
	const post = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{\n\"a\":\n1}\n"
	if err := readAll(strings.Split(good+post+"\r\n"+good, "")...); err != nil {
		t.Errorf("good requests byte by byte: %v", err)
	}
	if err := readAll(strings.Split(post+bare, "")...); !errors.Is(err, errBareLF) {
		t.Errorf("after a body, byte by byte: %v", err)
	}
}

func TestTrailersAreFoundHoweverTheyArrive(t *testing.T) {
	t.Parallel()
	const chunks = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\n0\r\n\n\r\n00\r\n"
	for name, test := range map[string]struct {
		trailers string
		want     error
	}{
		"none":                 {"\r\n", nil},
		"good":                 {"X-A: b\r\nX-C:\r\n\r\n", nil},
		"bare LF":              {"\n", errTrailer},
		"bare LF in the first": {"X-A: b\n\r\n", errTrailer},
		"folded":               {"X-A: b\r\n c\r\n\r\n", errTrailer},
		"a space":              {"X-A : b\r\n\r\n", errTrailer},
	} {
		whole := chunks + test.trailers + "GET /plain HTTP/1.1\r\nHost: a\r\n\r\n"
		for cut := range len(whole) {
			if err := readAll(whole[:cut], whole[cut:]); !errors.Is(err, test.want) {
				t.Errorf("%s, cut at %d: %v", name, cut, err)
			}
		}
		if err := readAll(strings.Split(whole, "")...); !errors.Is(err, test.want) {
			t.Errorf("%s, byte by byte: %v", name, err)
		}
	}
	if err := readAll(append([]string{chunks}, strings.Split(strings.Repeat("x", maxChunkLine+1),
		"")...)...); !errors.Is(err, errTooLong) {
		t.Errorf("a trailer without an end: %v", err)
	}
}

// The way in which bytes are cut into reads makes no difference.
func FuzzFraming(f *testing.F) {
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\n\r\n"), 7)
	f.Add([]byte("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n\n\n\nGET / HTTP/1.1\n"), 60)
	f.Fuzz(func(t *testing.T, data []byte, at int) {
		at = min(max(at, 0), len(data))
		var whole, cut framing
		wantErr := whole.read(data)
		err := cut.read(data[:at])
		if err == nil {
			err = cut.read(data[at:])
		}
		if !errors.Is(err, errTooLong) && !errors.Is(wantErr, errTooLong) &&
			(!errors.Is(err, wantErr) || err == nil && whole.part != cut.part) {
			t.Fatalf("%v in one, %v in two", wantErr, err)
		}
	})
}

// Every fault has a code and a status that statusFault maps back to it. The rest of the package
// relies on that.
func TestStatusesAndFaultsAgree(t *testing.T) {
	t.Parallel()
	codes := map[string]bool{}
	for _, f := range Faults() {
		if codes[f.Code] {
			t.Errorf("code %s twice", f.Code)
		}
		codes[f.Code] = true
		if back, _ := statusFault(Status(f)); Status(back) != Status(f) {
			t.Errorf("%s: status %d comes back as %d", f.Code, Status(f), Status(back))
		}
	}
	seen := map[int]bool{}
	for kind := fault.Malformed; kind <= fault.Unavailable; kind++ {
		status := Status(fault.New(kind, "x", "x"))
		if status == 500 || seen[status] && kind != fault.Invalid {
			t.Errorf("kind %d: status %d", kind, status)
		}
		seen[status] = true
	}
}

func FuzzWireFaultLeavesNothingAmbiguous(f *testing.F) {
	f.Add("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n")
	f.Add("GET / HTTP/1.1\r\nHost: a\r\nA: b\n c\r\n\r\n")
	f.Add("POST / HTTP/1.1\r\nhost: a\r\ncontent-length : 2\r\n\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		var header fasthttp.RequestHeader
		if header.Read(bufio.NewReaderSize(strings.NewReader(text), 16<<10)) != nil || wireFault(&header) != nil {
			return
		}
		// The rules of net/http: lines end with CRLF, and names have no white space.
		length, encoding := 0, 0
		for _, line := range strings.Split(strings.TrimSuffix(string(header.RawHeaders()), "\r\n"), "\r\n") {
			if line == "" {
				continue
			}
			name, _, found := strings.Cut(line, ":")
			if !found || name == "" || strings.ContainsAny(name, " \t\r\n") || strings.Contains(line, "\n") {
				t.Fatalf("line %q passed", line)
			}
			switch strings.ToLower(name) {
			case "content-length":
				length++
			case "transfer-encoding":
				encoding++
			}
		}
		if length > 1 || encoding > 1 || length+encoding > 1 {
			t.Fatalf("%d lengths and %d encodings passed", length, encoding)
		}
	})
}

func TestANetworkIsAnAddressOrACIDR(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"203.0.113.7":            "203.0.113.7/32",
		"203.0.113.7/24":         "203.0.113.0/24",
		"2001:db8::1":            "2001:db8::1/128",
		"2001:db8::1/32":         "2001:db8::/32",
		"::ffff:203.0.113.7":     "203.0.113.7/32",
		"::ffff:203.0.113.0/120": "203.0.113.0/24",
	} {
		if got, err := ParseNetwork(text); err != nil || got.String() != want {
			t.Errorf("%q is %v, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"everywhere", "203.0.113", "203.0.113.0/33", "10.0.0.0/"} {
		if got, err := ParseNetwork(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func FuzzForwardedFor(f *testing.F) {
	f.Add("1.2.3.4, 10.0.0.1")
	f.Add("::ffff:10.0.0.2%eth0,[2001:db8::1]:80, 10.0.0.3")
	trusted := proxies{}
	for _, text := range []string{"10.0.0.0/8", "fd00::/8"} {
		prefix, err := ParseNetwork(text)
		if err != nil {
			f.Fatal(err)
		}
		trusted = append(trusted, prefix)
	}
	hop, _ := forwardedAddr("10.0.0.1")
	f.Fuzz(func(t *testing.T, value string) {
		var fctx fasthttp.RequestCtx
		header := &fctx.Request.Header
		header.Add("X-Forwarded-For", value)
		header.Add("X-Forwarded-For", "192.0.2.7, 10.1.1.1")
		if got, _ := trusted.client(hop, fastCarrier{&fctx}); got.String() != "192.0.2.7" {
			t.Fatalf("client %s: an address left of an untrusted hop was believed", got)
		}
		header.Del("X-Forwarded-For")
		header.Add("X-Forwarded-For", value)
		if got, _ := trusted.client(hop, fastCarrier{&fctx}); !got.IsValid() || got.Zone() != "" || got.Is4In6() {
			t.Fatalf("client %s", got)
		}
	})
}

func FuzzDecodeJSON(f *testing.F) {
	for _, seed := range []string{`{"name":"x"}`, `{"name":1}`, `{"name":null}`,
		`{"a":[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]}`, `{"name":"x","name":"y"}`, "{\"name\":\"\xff\"}", `{}{}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var into struct {
			Name string `json:"name"`
		}
		err := decodeJSON(body, &into)
		var known *fault.Fault
		switch {
		case err == nil:
			if !strings.HasPrefix(strings.TrimLeft(string(body), " \t\r\n"), "{") || tooDeep(body) {
				t.Fatalf("took %q", body)
			}
		case !errors.As(err, &known):
			t.Fatalf("%q: %v is no fault", body, err)
		}
	})
}

func FuzzDecodeForm(f *testing.F) {
	f.Add("token=a&token_type_hint=b")
	f.Add("a=%zz&&=&a=1")
	f.Fuzz(func(t *testing.T, body string) {
		form, err := decodeForm(body)
		var oauth *OAuthError
		if err != nil && !errors.As(err, &oauth) {
			t.Fatalf("%q: %v", body, err)
		}
		for name, value := range form {
			if value == "" {
				t.Fatalf("%q: empty %q kept", body, name)
			}
		}
	})
}

func FuzzCleanPath(f *testing.F) {
	f.Add([]byte("/a\r\nb\x1b\xe2\x80\xa8"))
	f.Fuzz(func(t *testing.T, path []byte) {
		clean := cleanPath(string(path))
		if len(clean) > 3*maxLogged+3 {
			t.Fatalf("%d bytes", len(clean))
		}
		for _, r := range clean {
			if r <= ' ' || r >= 0x7f {
				t.Fatalf("%q", clean)
			}
		}
	})
}

// starved is a listener without file descriptors for its first accepts.
type starved struct {
	net.Listener
	failures int
}

func (s *starved) Accept() (net.Conn, error) {
	if s.failures > 0 {
		s.failures--
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	near, far := net.Pipe()
	_ = far.Close()
	return near, nil
}

func TestBeingOutOfFilesPasses(t *testing.T) {
	t.Parallel()
	refused := 0
	l := &listener{
		Listener: &starved{failures: 3}, total: 1, perIP: 1, log: zap.NewNop(), closed: make(chan struct{}),
		refused: func(limit string) { refused++ }, conns: map[*conn]struct{}{},
		clients: map[netip.Prefix]map[*conn]struct{}{},
	}
	if c, err := l.Accept(); err != nil || c == nil || refused != 3 {
		t.Errorf("%v %v, %d times out of files", c, err, refused)
	}
}

func TestAnIPv6ClientIsItsNetwork(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		"192.0.2.7": "192.0.2.7/32", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
	} {
		if got := network(netip.MustParseAddr(addr)).String(); got != want {
			t.Errorf("%s: %s", addr, got)
		}
	}
}

func TestAChangedCertificateIsServedWithoutARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := TLSConfig{CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}
	write := func(serial int64, written time.Time) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		for file, block := range map[string]*pem.Block{cfg.CertFile: {Type: "CERTIFICATE", Bytes: der},
			cfg.KeyFile: {Type: "PRIVATE KEY", Bytes: private}} {
			if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(file, written, written); err != nil {
				t.Fatal(err)
			}
		}
	}
	begin := time.Unix(1e9, 0)
	write(1, begin)
	c := &certificate{cfg: cfg, log: zap.NewNop()}
	if err := c.read(); err != nil {
		t.Fatal(err)
	}
	serial := func() int64 {
		c.looked = time.Time{}
		pair, err := c.get(nil)
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.SerialNumber.Int64()
	}
	if got := serial(); got != 1 {
		t.Errorf("certificate %d", got)
	}
	write(2, begin.Add(time.Second))
	if got := serial(); got != 2 {
		t.Errorf("certificate %d after a change", got)
	}
	if err := os.WriteFile(cfg.CertFile, []byte("half written"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := serial(); got != 2 {
		t.Errorf("certificate %d while the file is no good", got)
	}
}
