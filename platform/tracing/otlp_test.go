package tracing

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	wire "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// environment looks up variables in "NAME=value" texts.
func environment(vars ...string) func(string) string {
	return func(name string) string {
		for _, one := range vars {
			if key, value, _ := strings.Cut(one, "="); key == name {
				return value
			}
		}
		return ""
	}
}

func collectorFor(t *testing.T, vars ...string) *collector {
	t.Helper()
	c, err := newCollector("1.2.3", environment(vars...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Stop(context.Background()) })
	return c
}

const (
	forAll    = "OTEL_EXPORTER_OTLP_"
	forTraces = "OTEL_EXPORTER_OTLP_TRACES_"
)

// spans are the spans of one batch.
func spans(name string) []*wire.ResourceSpans {
	return []*wire.ResourceSpans{{ScopeSpans: []*wire.ScopeSpans{{Spans: []*wire.Span{{Name: name}}}}}}
}

// message is a protobuf message with a number in field 1 and a text in field 2.
func message(number uint64, text string) []byte {
	out := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), number)
	return protowire.AppendString(protowire.AppendTag(out, 2, protowire.BytesType), text)
}

func partial(rejected uint64, text string) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), message(rejected, text))
}

type seen struct {
	method, path string
	header       http.Header
	body         []byte
}

// answering is a collector that gives the answers in turn, and repeats the last one.
func answering(t *testing.T, answers ...func(http.ResponseWriter)) (url string, requests func() []seen) {
	t.Helper()
	var mu sync.Mutex
	var list []seen
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		list = append(list, seen{r.Method, r.URL.Path, r.Header, body})
		answer := answers[min(len(list), len(answers))-1]
		mu.Unlock()
		answer(w)
	}))
	t.Cleanup(server.Close)
	return server.URL, func() []seen {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(list)
	}
}

func answer(status int, kind string, body []byte) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
		_, _ = w.Write(body)
	}
}

var fine = answer(200, protobuf, nil)

func TestSpansAreSentAsTheVariablesSay(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, path string // below the endpoint
		vars       []string
		wantPath   string
		gzip       bool
		header     map[string]string
	}{
		{"all signals", "ENDPOINT", nil, "/v1/traces", false, nil},
		{"all signals below a path", "ENDPOINT /otlp/", nil, "/otlp/v1/traces", false, nil},
		{"traces", "TRACES_ENDPOINT", nil, "/", false, nil},
		{"traces with a path", "TRACES_ENDPOINT /spans/x", nil, "/spans/x", false, nil},
		{"traces win", "TRACES_ENDPOINT /mine", []string{forAll + "ENDPOINT=http://127.0.0.1:1"}, "/mine", false, nil},
		{"headers", "ENDPOINT", []string{forAll + "HEADERS=api-key=a%2Cb%20c, X-Scope = 1 ,"}, "/v1/traces", false,
			map[string]string{"Api-Key": "a,b c", "X-Scope": "1"}},
		{"headers of traces win", "ENDPOINT", []string{forAll + "HEADERS=x=1,y=2", forTraces + "HEADERS=x=3"},
			"/v1/traces", false, map[string]string{"X": "3", "Y": ""}},
		{"gzip", "ENDPOINT", []string{forAll + "COMPRESSION=gzip"}, "/v1/traces", true, nil},
		{"no gzip for traces", "ENDPOINT", []string{forAll + "COMPRESSION=gzip", forTraces + "COMPRESSION=none"},
			"/v1/traces", false, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			url, requests := answering(t, fine)
			name, path, _ := strings.Cut(test.path, " ")
			c := collectorFor(t, append([]string{forAll + name + "=" + url + path}, test.vars...)...)
			if err := c.UploadTraces(t.Context(), spans("one")); err != nil || len(requests()) != 1 {
				t.Fatalf("%d requests, %v", len(requests()), err)
			}
			got := requests()[0]
			want := map[string]string{"Content-Type": protobuf, "User-Agent": "authctl/1.2.3", "Content-Encoding": ""}
			if test.gzip {
				want["Content-Encoding"] = "gzip"
				from, err := gzip.NewReader(bytes.NewReader(got.body))
				if err != nil {
					t.Fatal(err)
				}
				if got.body, err = io.ReadAll(from); err != nil {
					t.Fatal(err)
				}
			}
			for name, value := range test.header {
				want[name] = value
			}
			for name, value := range want {
				if got.header.Get(name) != value {
					t.Errorf("%s is %q, want %q", name, got.header.Get(name), value)
				}
			}
			var data wire.TracesData
			err := proto.Unmarshal(got.body, &data)
			if err != nil || !proto.Equal(&data, &wire.TracesData{ResourceSpans: spans("one")}) {
				t.Errorf("the body is %v, %v", &data, err)
			}
			if got.method != "POST" || got.path != test.wantPath {
				t.Errorf("%s %s, want POST %s", got.method, got.path, test.wantPath)
			}
		})
	}
}

func TestVariablesThatCannotBeMeantAreRefused(t *testing.T) {
	t.Parallel()
	const endpoint = forAll + "ENDPOINT=http://127.0.0.1:1"
	none := filepath.Join(t.TempDir(), "none.pem")
	for vars, want := range map[string]string{
		forAll + "ENDPOINT=collector:4318":                      "http://collector:4318",
		forAll + "ENDPOINT=grpc://collector:4317":               "http://collector:4318",
		forTraces + "ENDPOINT=http://":                          forTraces + "ENDPOINT",
		endpoint + " " + forAll + "COMPRESSION=zstd":            "gzip",
		endpoint + " " + forAll + "TIMEOUT=10s":                 "milliseconds",
		endpoint + " " + forTraces + "TIMEOUT=0":                forTraces + "TIMEOUT",
		endpoint + " " + forAll + "HEADERS=secret":              "name=value",
		endpoint + " " + forAll + "HEADERS=a=secret%zz":         "name=value",
		endpoint + " " + forAll + "HEADERS=a=secret%0a":         "name=value",
		endpoint + " " + forAll + "HEADERS=a:b=secret":          "name=value",
		endpoint + " " + forAll + "CERTIFICATE=" + none:         none,
		endpoint + " " + forAll + "CERTIFICATE=" + "otlp.go":    "PEM",
		endpoint + " " + forAll + "CLIENT_KEY=" + none:          "set both",
		endpoint + " " + forTraces + "CLIENT_CERTIFICATE=x.pem": "set both",
	} {
		_, err := newCollector("1", environment(strings.Fields(vars)...))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %s", vars, err, want)
		}
	}
}

// Spans that a collector cannot accept at the moment are sent again unchanged, but not before the
// time that it asks for.
func TestSpansAreSentAgainUntilTheyAreTaken(t *testing.T) {
	t.Parallel()
	busy := func(w http.ResponseWriter) {
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
	}
	url, requests := answering(t, busy, fine)
	c := collectorFor(t, forAll+"ENDPOINT="+url)
	begun := time.Now()
	if err := c.UploadTraces(t.Context(), spans("one")); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < time.Second {
		t.Errorf("the second attempt came after %s", took)
	}
	if got := requests(); len(got) != 2 || !bytes.Equal(got[0].body, got[1].body) || len(got[1].body) == 0 {
		t.Errorf("the requests are %v", got)
	}
}

func TestWhatIsTriedAgain(t *testing.T) {
	t.Parallel()
	for status, again := range map[int]bool{
		429: true, 502: true, 503: true, 504: true, 400: false, 401: false, 404: false, 500: false, 307: false,
	} {
		url, requests := answering(t, answer(status, "text/plain", []byte("no")))
		c := collectorFor(t, forAll+"ENDPOINT="+url)
		c.tries = 1
		err := c.UploadTraces(t.Context(), spans("one"))
		if _, later := errors.AsType[*laterError](err); err == nil || later != again || len(requests()) != 1 {
			t.Errorf("%d: %v, %d requests", status, err, len(requests()))
		}
	}
	c := collectorFor(t, forAll+"ENDPOINT=http://user:secret@127.0.0.1:1/secret")
	c.tries = 1
	err := c.UploadTraces(t.Context(), spans("one"))
	if _, later := errors.AsType[*laterError](err); !later || strings.Contains(err.Error(), "secret") {
		t.Errorf("without a collector: %v", err)
	}
}

func TestACollectorsReasonsAreTold(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answer func(http.ResponseWriter)
		want   string // empty for no error
	}{
		"an answer without a body": {fine, ""},
		"nothing rejected":         {answer(200, protobuf, partial(0, "")), ""},
		"some rejected": {answer(200, protobuf, partial(3, "too \x1b old")),
			`rejected 3 spans: "too \x1b old"`},
		"a warning": {answer(200, protobuf+"; charset=x", partial(0, "soon full")),
			`warns: "soon full"`},
		"no protobuf":       {answer(200, "text/html", partial(3, "x")), ""},
		"a message cut off": {answer(200, protobuf, partial(3, "xxxxxxxxxxxx")[:5]), ""},
		"a refusal": {answer(401, protobuf, message(16, "who are you")),
			`answered 401: "who are you"`},
		"a refusal that is no status": {answer(400, "text/html", []byte("<html>")), "answered 400"},
	} {
		url, _ := answering(t, test.answer)
		err := collectorFor(t, forAll+"ENDPOINT="+url).UploadTraces(t.Context(), spans("one"))
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func TestSendingEnds(t *testing.T) {
	t.Parallel()
	hangs := make(chan struct{})
	url, _ := answering(t, func(http.ResponseWriter) { <-hangs })
	t.Cleanup(func() { close(hangs) }) // before the server closes
	impatient := collectorFor(t, forAll+"ENDPOINT="+url, forAll+"TIMEOUT=20")
	impatient.tries = 1
	if err := impatient.UploadTraces(t.Context(), spans("one")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a collector that hangs: %v", err)
	}
	switches, _ := answering(t, func(w http.ResponseWriter) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { _ = conn.Close() })
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
	})
	if err := collectorFor(t, forAll+"ENDPOINT="+switches).UploadTraces(t.Context(), spans("one")); err == nil {
		t.Error("a collector that speaks another protocol took the spans")
	}
	stopped := collectorFor(t, forAll+"ENDPOINT="+url)
	time.AfterFunc(20*time.Millisecond, func() { _ = stopped.Stop(context.Background()) })
	if err := stopped.UploadTraces(t.Context(), spans("one")); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that was stopped: %v", err)
	}
}

// Both sides show a certificate, and the client checks the collector's.
func TestSpansGoByTLS(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) != 1 {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	t.Cleanup(server.Close)
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	ca, pair := write("ca.pem", "CERTIFICATE", server.Certificate().Raw), write("key.pem", "PRIVATE KEY", key)
	to, shown := forAll+"ENDPOINT="+server.URL, []string{forAll + "CLIENT_CERTIFICATE=" + ca, forAll + "CLIENT_KEY=" +
		pair}
	for name, test := range map[string]struct {
		vars []string
		ok   bool
	}{
		"both":             {append(shown, to, forAll+"CERTIFICATE="+ca), true},
		"no certificate":   {[]string{to, forTraces + "CERTIFICATE=" + ca}, false},
		"unknown":          {[]string{to}, false},
		"insecure is void": {[]string{to, forAll + "INSECURE=true"}, false},
	} {
		c := collectorFor(t, test.vars...)
		c.tries = 1
		if err := c.UploadTraces(t.Context(), spans("one")); (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
