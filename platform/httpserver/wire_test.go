package httpserver_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/testenv"
)

const lines = "Host: a\r\nContent-Type: application/json\r\n"

func TestAnAmbiguousRequestIsRefusedAndItsConnectionClosed(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Config{})
	for name, request := range map[string]string{
		"length and chunked": "POST /echo HTTP/1.1\r\n" + lines +
			"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"chunked and length": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"chunked and length, on GET": "GET /plain HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n",
		"identity and length": "POST /echo HTTP/1.1\r\n" + lines +
			"Content-Length: 2\r\nTransfer-Encoding: identity\r\n\r\n{}",
		"identity": "POST /echo HTTP/1.1\r\n" + lines + "Transfer-Encoding: identity\r\n\r\n{}",
		"chunked twice": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"chunked, gzip": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"xchunked": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: xchunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"chunked in HTTP/1.0": "POST /echo HTTP/1.0\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"two authorizations": "GET /plain HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a\r\nauthorization: Bearer b\r\n\r\n",
		"two content types": "POST /echo HTTP/1.1\r\n" + lines +
			"Content-type: text/plain\r\nContent-Length: 2\r\n\r\n{}",
		"two content codings": "POST /echo HTTP/1.1\r\n" + lines +
			"Content-Encoding:\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
		"two hosts": "GET /plain HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"no host":   "GET /plain HTTP/1.1\r\nAccept: */*\r\n\r\n",
		"two lengths": "POST /echo HTTP/1.1\r\n" + lines +
			"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
		"a list of lengths":  "POST /echo HTTP/1.1\r\n" + lines + "Content-Length: 2, 2\r\n\r\n{}",
		"signed length":      "POST /echo HTTP/1.1\r\n" + lines + "Content-Length: +2\r\n\r\n{}",
		"negative length":    "POST /echo HTTP/1.1\r\n" + lines + "Content-Length: -2\r\n\r\n{}",
		"hexadecimal length": "POST /echo HTTP/1.1\r\n" + lines + "Content-Length: 0x2\r\n\r\n{}",
		"length out of range": "POST /echo HTTP/1.1\r\n" + lines +
			"Content-Length: 18446744073709551618\r\n\r\n{}",
		"bare LF in a header":        "GET /plain HTTP/1.1\r\nHost: a\nX-A: b\r\n\r\n",
		"bare LF in the last header": "GET /plain HTTP/1.1\r\nX-A: b\r\nHost: a\n\r\n\r\n",
		"bare LF after request line": "GET /plain HTTP/1.1\nHost: a\r\n\r\n",
		"bare LF everywhere":         "GET /plain HTTP/1.1\nHost: a\n\n",
		"bare CR in a header":        "GET /plain HTTP/1.1\r\nHost: a\rX-A: b\r\n\r\n",
		"NUL in a header":            "GET /plain HTTP/1.1\r\nHost: a\r\nX-A: b\x00c\r\n\r\n",
		"NUL in a name":              "GET /plain HTTP/1.1\r\nHost: a\r\nX\x00A: b\r\n\r\n",
		"NUL in the path":            "GET /pl\x00ain HTTP/1.1\r\nHost: a\r\n\r\n",
		"user in the host":           "GET /plain HTTP/1.1\r\nHost: u@a\r\n\r\n",
		"markup in the host":         "GET /plain HTTP/1.1\r\nHost: <a>\r\n\r\n",
		"a quotation mark there":     "GET /plain HTTP/1.1\r\nHost: a\"\r\n\r\n",
		"path in the host":           "GET /plain HTTP/1.1\r\nHost: a/b\r\n\r\n",
		"fragment":                   "GET /plain#x HTTP/1.1\r\nHost: a\r\n\r\n",
		"fragment of a query":        "GET /plain?a#x HTTP/1.1\r\nHost: a\r\n\r\n",
		"two words in the host":      "GET /plain HTTP/1.1\r\nHost: a b\r\n\r\n",
		"NUL in the host":            "GET /plain HTTP/1.1\r\nHost: a\x00b\r\n\r\n",
		"space before the colon":     "POST /echo HTTP/1.1\r\n" + lines + "Content-Length : 2\r\n\r\n{}",
		"space in a name":            "GET /plain HTTP/1.1\r\nHost: a\r\nX A: b\r\n\r\n",
		"folded header":              "GET /plain HTTP/1.1\r\nHost: a\r\nX-A: b\r\n c\r\n\r\n",
		"folded framing": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding:\r\n chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"first header folded":   "GET /plain HTTP/1.1\r\n Host: a\r\n\r\n",
		"header without colon":  "GET /plain HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n",
		"header without name":   "GET /plain HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
		"future version":        "GET /plain HTTP/9.9\r\nHost: a\r\n\r\n",
		"HTTP/2 preface":        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"no version":            "GET /plain\r\nHost: a\r\n\r\n",
		"two spaces":            "GET  /plain HTTP/1.1\r\nHost: a\r\n\r\n",
		"TLS on the plain port": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
		"chunk without CRLF": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}0\r\n\r\n",
		"chunk ended by LF": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n",
		"negative chunk": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
		"chunk out of range": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
		"framing in the trailer": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nContent-Length: 2\r\n\r\n",
		"authorization in the trailer": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nAuthorization: Bearer x\r\n\r\n",
		"trailers ended by LF": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\n",
		"trailer ended by LF": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-A: b\n\r\n",
		"a second trailer by LF": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-A: b\r\nX-C: d\n\r\n",
		"end of trailers by LF": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-A: b\r\n\n",
		"folded trailer": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-A: b\r\n c\r\n\r\n",
		"folded trailer with a tab": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-A: b\r\n\tc\r\n\r\n",
		"first trailer folded": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n X-A: b\r\n\r\n",
		"trailer with a space before :": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-A : b\r\n\r\n",
		"trailer with a tab before :": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-A\t: b\r\n\r\n",
		"trailer with a space in it": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX A: b\r\n\r\n",
		"trailer without a colon": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nnonsense\r\n\r\n",
		"trailer without a name": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n: b\r\n\r\n",
		"NUL in a trailer": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-A: b\x00c\r\n\r\n",
		"bare CR in a trailer": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-A: b\rX-C: d\r\n\r\n",
		"CR before the name": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\rX-A: b\r\n\r\n",
		"coding in the trailer": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
		"host in the trailer": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nHost: b\r\n\r\n",
		"escape in a trailer": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-A: \x1b[2J\r\n\r\n",
		"last chunk ended by LF": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\n\r\n",
		"last chunk by LF in an extension": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0;a\n\r\n",
		"trailer of the second request": "POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: Chunked\r\n\r\n2\r\n{}\r\n0\r\nX-A : b\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, closed := s.raw(t, request+"GET /plain HTTP/1.1\r\nHost: smuggled\r\n\r\n")
			p := a.problem(t, 400, "malformed_request")
			if !closed {
				t.Error("the connection stays open")
			}
			if strings.Contains(p.Detail, "smuggled") || strings.Contains(p.Detail, "fasthttp") {
				t.Errorf("detail %q", p.Detail)
			}
		})
	}
}

func TestWhatIsUnusualButClearIsServed(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Config{})
	for name, test := range map[string]struct{ request, want string }{
		"HTTP/1.0":           {"GET /plain HTTP/1.0\r\n\r\n", `"plain"`},
		"absolute form":      {"GET http://other/plain HTTP/1.1\r\nHost: a\r\n\r\n", `"plain"`},
		"the whole server":   {"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", ""},
		"empty line before":  {"\r\nGET /plain HTTP/1.1\r\nHost: a\r\n\r\n", `"plain"`},
		"empty header value": {"GET /plain HTTP/1.1\r\nHost: a\r\nX-A:\r\n\r\n", `"plain"`},
		"chunked": {"POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n8\r\n{\"name\":\r\n4;ext=1\r\n\"x\"}\r\n0\r\nX-Checksum: 1\r\n\r\n",
			`{"name":"x"}`},
		"trailers": {"POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\nC\r\n{\"name\":\"x\"}\r\n000\r\nX-A:\r\nX-C: d\te\r\n\r\n",
			`{"name":"x"}`},
		"no trailer": {"POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\nc\r\n{\"name\":\"x\"}\r\n0;last\r\n\r\n", `{"name":"x"}`},
		"chunk of line breaks": {"POST /echo HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\nf\r\n{\n\"name\":\"x\"\n}\n\r\n0\r\n\r\n", `{"name":"x"}`},
		"line breaks in JSON": {"POST /echo HTTP/1.1\r\n" + lines + "Content-Length: 16\r\n\r\n{\n\"name\": \"x\"\n}\n",
			`{"name":"x"}`},
		"version in a JSON body": {"POST /echo HTTP/1.1\r\n" + lines +
			"Content-Length: 20\r\n\r\n{\"name\":\"HTTP/1.1\"}\n", `{"name":"HTTP/1.1"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if a, _ := s.raw(t, test.request); a.StatusCode/100 != 2 || a.body != test.want {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}
		})
	}
}

func TestWhatIsTooLargeIsRefusedBeforeItIsRead(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Config{HTTP: httpserver.HTTPConfig{MaxHeaderBytes: 8192}})
	fits := `{"name":"` + strings.Repeat("x", httpserver.MaxBody-11) + `"}`
	if a := s.do(t, "POST", "/echo", fits, "Content-Type", "application/json"); a.StatusCode != 200 {
		t.Errorf("a body of just the limit: %d", a.StatusCode)
	}
	a := s.do(t, "POST", "/echo", fits+" ", "Content-Type", "application/json")
	if p := a.problem(t, 413, "body_too_large"); p.Instance != "/echo" {
		t.Errorf("instance %q", p.Instance)
	}
	// A gigabyte that is announced but never sent.
	a, closed := s.raw(t, "POST /echo HTTP/1.1\r\n"+lines+"Content-Length: 1073741824\r\n\r\n")
	if a.problem(t, 413, "body_too_large"); !closed {
		t.Error("the connection waits for the body")
	}
	a, closed = s.raw(t, "POST /echo HTTP/1.1\r\n"+lines+"Transfer-Encoding: chunked\r\n\r\n40000000\r\n")
	if a.problem(t, 413, "body_too_large"); !closed {
		t.Error("the connection waits for the chunk")
	}
	a, closed = s.raw(t, "GET /plain HTTP/1.1\r\nHost: a\r\nX-A: "+strings.Repeat("x", 8192)+"\r\n\r\n")
	if a.problem(t, 431, "headers_too_large"); !closed {
		t.Error("the connection stays open")
	}
	a, _ = s.raw(t, "GET /"+strings.Repeat("x", 9000)+" HTTP/1.1\r\nHost: a\r\n\r\n")
	a.problem(t, 431, "headers_too_large")
}

func TestAClientThatAsksBeforeItSendsIsTold(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Config{})
	a, closed := s.raw(t, "POST /echo HTTP/1.1\r\n"+lines+"Content-Length: 1000000\r\nExpect: 100-continue\r\n\r\n")
	if a.problem(t, 413, "body_too_large"); !closed {
		t.Error("the connection stays open")
	}
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(testenv.Patience))
	_, _ = io.WriteString(c, "POST /echo HTTP/1.1\r\n"+lines+"Content-Length: 12\r\nExpect: 100-continue\r\n\r\n")
	reader := bufio.NewReader(c)
	if line, _ := reader.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("answer %q", line)
	}
	_, _ = reader.ReadString('\n')
	_, _ = io.WriteString(c, `{"name":"x"}`)
	response, err := http.ReadResponse(reader, nil)
	if err != nil || response.StatusCode != 200 {
		t.Errorf("%v %v", response, err)
	}
}

// The refusal must reach a client that is still sending. Closing a socket with unread bytes would
// cause a reset, which destroys it.
func TestARefusalReachesAClientThatIsStillSending(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Config{})
	c := s.dial(t)
	c.send(t, "POST /echo HTTP/1.1\r\n"+lines+"Content-Length: 100000\r\n\r\n"+strings.Repeat(" ", 100000))
	s.requests(t, 1)
	eventually(t, "the server to give the connection up", func() bool { return s.Connections() == 0 })
	c.receive(t).problem(t, 413, "body_too_large")
	if _, err := c.reader.ReadByte(); err != io.EOF {
		t.Errorf("the connection ended with %v", err)
	}
}

// An unreadable request gets an answer with its path, as far as the path can be found, in the error
// format of that path.
func TestARefusalSaysWhereTheRequestWasFor(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Config{HTTP: httpserver.HTTPConfig{MaxHeaderBytes: 8192}})
	long := strings.Repeat("x", 9000)
	const served = "GET /plain HTTP/1.1\r\nHost: a\r\n\r\n"
	for name, test := range map[string]struct {
		before, request string
		status          int
		code, want      string
	}{
		"body in chunks": {"", "POST /echo?secret=1 HTTP/1.1\r\n" + lines +
			"Transfer-Encoding: chunked\r\n\r\n40000000\r\n", 413, "body_too_large", "/echo"},
		"headers": {"", "GET /plain HTTP/1.1\r\nHost: a\r\nX-A: " + long + "\r\n\r\n", 431,
			"headers_too_large", "/plain"},
		"path":             {"", "GET /" + long + " HTTP/1.1\r\nHost: a\r\n\r\n", 431, "headers_too_large", "/xxx"},
		"line end before":  {"", "\r\nGET /plain HTTP/1.1\r\n\r\n", 400, "malformed_request", "/plain"},
		"the next request": {served, "GET /th\"ings HTTP/1.1\r\n\r\n", 400, "malformed_request", "/th%22ings"},
		"no request at all": {"", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "malformed_request",
			"*"},
		"a target that is not": {"", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed_request", "*"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := s.dial(t)
			if test.before != "" {
				c.send(t, test.before)
				if a := c.receive(t); a.StatusCode != 200 {
					t.Fatalf("%d %s", a.StatusCode, a.body)
				}
			}
			c.send(t, test.request)
			if p := c.receive(t).problem(t, test.status, test.code); !strings.HasPrefix(p.Instance, test.want) ||
				len(p.Instance) > 250 {
				t.Errorf("instance %q, want %q", p.Instance, test.want)
			}
		})
	}
	a, _ := s.raw(t, "POST /oauth/introspect HTTP/1.1\r\n"+lines+"Transfer-Encoding: chunked\r\n\r\n40000000\r\n")
	if a.StatusCode != 413 || !strings.Contains(a.body, `"error":"invalid_request"`) {
		t.Errorf("beside an OAuth route: %d %s", a.StatusCode, a.body)
	}
}
