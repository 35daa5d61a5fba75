package tracing

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	wire "go.opentelemetry.io/proto/otlp/trace/v1"
	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/toppira/authctl/platform/retry"
)

const (
	protobuf  = "application/x-protobuf"
	maxAnswer = 64 << 10 // bytes of an answer that are read

	// How often a batch is sent, and the first pause between two attempts. The SDK gives up after
	// OTEL_BSP_EXPORT_TIMEOUT, 30 seconds.
	attempts   = 6
	firstPause = time.Second
)

// collector sends spans by OTLP over HTTP, in protobuf. It implements otlptrace.Client. The published
// client does the same, but adds gRPC to the binary: 95 packages that nothing calls.
type collector struct {
	url     string
	header  http.Header
	gzip    bool
	timeout time.Duration // of one request
	tries   int
	client  *http.Client

	stopped context.Context
	stop    context.CancelFunc
}

// newCollector reads the standard variables. It ignores OTEL_EXPORTER_OTLP_INSECURE: over HTTP the
// scheme of the endpoint decides.
func newCollector(version string, getenv func(string) string) (*collector, error) {
	env := exporterEnv(getenv)
	if name, protocol := env.get("PROTOCOL"); protocol != "" && protocol != "http/protobuf" {
		return nil, fmt.Errorf("%s=%s: only http/protobuf is supported; remove the variable, and name the "+
			"collector's port for HTTP, which is usually 4318", name, protocol)
	}
	c := &collector{header: http.Header{}, timeout: 10 * time.Second, tries: attempts}
	tlsConfig, err := env.tls()
	if err != nil {
		return nil, err
	}
	if c.url, err = env.endpoint(); err != nil {
		return nil, err
	}
	name, value := env.get("HEADERS")
	if err := readHeaders(c.header, value); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err) // without the value: it is a secret
	}
	c.header.Set("Content-Type", protobuf)
	c.header.Set("User-Agent", "authctl/"+version)
	switch name, value := env.get("COMPRESSION"); value {
	case "", "none":
	case "gzip":
		c.gzip = true
		c.header.Set("Content-Encoding", "gzip")
	default:
		return nil, fmt.Errorf("%s=%s: must be gzip or none", name, value)
	}
	if name, value := env.get("TIMEOUT"); value != "" {
		ms, err := strconv.Atoi(value)
		if err != nil || ms <= 0 {
			return nil, fmt.Errorf("%s=%s: write a number of milliseconds, such as 10000", name, value)
		}
		c.timeout = time.Duration(ms) * time.Millisecond
	}
	transport := http.DefaultTransport.(*http.Transport).Clone() // with the proxy of the environment
	transport.TLSClientConfig = tlsConfig
	c.client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // the headers are for this collector alone
	}}
	c.stopped, c.stop = context.WithCancel(context.Background())
	return c, nil
}

// exporterEnv looks up variables.
type exporterEnv func(string) string

// get returns the variable for traces, or else the one for all signals.
func (env exporterEnv) get(what string) (name, value string) {
	for _, prefix := range []string{"OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"} {
		if value = strings.TrimSpace(env(prefix + what)); value != "" {
			return prefix + what, value
		}
	}
	return "OTEL_EXPORTER_OTLP_" + what, ""
}

// endpoint is the URL to which spans are sent. The endpoint of all signals is the base of that of traces.
func (env exporterEnv) endpoint() (string, error) {
	name, value := env.get("ENDPOINT")
	to, err := url.Parse(value)
	if err != nil || to.Scheme != "http" && to.Scheme != "https" || to.Host == "" {
		return "", fmt.Errorf("%s is not a URL of http or https: write it like http://collector:4318", name)
	}
	if name == "OTEL_EXPORTER_OTLP_ENDPOINT" {
		to = to.JoinPath("v1", "traces")
	} else if to.Path == "" {
		to.Path = "/"
	}
	return to.String(), nil
}

// tls has the authorities that verify the collector and the certificate of this process.
func (env exporterEnv) tls() (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if name, file := env.get("CERTIFICATE"); file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s: %s has no certificate in PEM", name, file)
		}
	}
	certName, cert := env.get("CLIENT_CERTIFICATE")
	keyName, key := env.get("CLIENT_KEY")
	if cert == "" && key == "" {
		return out, nil
	}
	if cert == "" || key == "" {
		return nil, fmt.Errorf("%s and %s belong together: set both", certName, keyName)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("read %s and %s: %w", certName, keyName, err)
	}
	out.Certificates = []tls.Certificate{pair}
	return out, nil
}

// readHeaders reads name=value pairs between commas, with values encoded as in a URL.
func readHeaders(into http.Header, text string) error {
	for pair := range strings.SplitSeq(text, ",") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		name, value, found := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		decoded, err := url.PathUnescape(strings.TrimSpace(value))
		if !found || err != nil || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(decoded) {
			return errors.New("write headers as name=value,name=value, with values encoded as in a URL")
		}
		into.Set(name, decoded)
	}
	return nil
}

// Start implements otlptrace.Client. It does nothing, since a collector may become reachable later.
func (c *collector) Start(context.Context) error { return nil }

// Stop implements otlptrace.Client. It ends requests in progress.
func (c *collector) Stop(context.Context) error {
	c.stop()
	c.client.CloseIdleConnections()
	return nil
}

// UploadTraces implements otlptrace.Client. If the collector cannot take the spans at the moment, it sends
// them again, until ctx ends.
func (c *collector) UploadTraces(ctx context.Context, spans []*wire.ResourceSpans) error {
	// The message has the same form as a request of the trace service.
	body, err := proto.Marshal(&wire.TracesData{ResourceSpans: spans})
	if err != nil {
		return fmt.Errorf("write spans: %w", err)
	}
	if c.gzip {
		if body, err = compressed(body); err != nil {
			return fmt.Errorf("compress spans: %w", err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.stopped, cancel)()
	again := func(err error) bool {
		later, is := errors.AsType[*laterError](err)
		return is && retry.Sleep(ctx, later.after)
	}
	return retry.Do(ctx, c.tries, firstPause, again, func() error { return c.post(ctx, body) })
}

func compressed(body []byte) ([]byte, error) {
	var out bytes.Buffer
	to := gzip.NewWriter(&out)
	_, err := to.Write(body)
	if err = cmp.Or(err, to.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// laterError is a temporary error.
type laterError struct {
	error
	after time.Duration // what the collector asks for
}

func (e *laterError) Unwrap() error { return e.error }

// post makes one request.
func (c *collector) post(ctx context.Context, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ask the collector: %w", err)
	}
	req.Header = c.header.Clone()
	answer, err := c.client.Do(req)
	if failed, is := errors.AsType[*url.Error](err); is {
		err = failed.Err // without the URL, which may hold a secret
	}
	if err != nil {
		return &laterError{error: fmt.Errorf("reach the collector: %w", err)}
	}
	defer answer.Body.Close()
	if answer.StatusCode == http.StatusSwitchingProtocols { // no context ends reading what follows
		return refusal(answer, nil)
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	switch code := answer.StatusCode; {
	case code >= 200 && code <= 299 && err != nil:
		return nil // it has the spans; its remarks are lost
	case code >= 200 && code <= 299:
		return partly(answer.Header, text)
	case code == http.StatusTooManyRequests, code == http.StatusBadGateway, code == http.StatusServiceUnavailable,
		code == http.StatusGatewayTimeout:
		return &laterError{refusal(answer, text), retryAfter(answer.Header.Get("Retry-After"), time.Now())}
	default:
		return refusal(answer, text)
	}
}

// refusal says what the collector answered.
func refusal(answer *http.Response, text []byte) error {
	if isProtobuf(answer.Header) {
		if message := string(fields(text)[2].text); message != "" { // of a google.rpc.Status
			return fmt.Errorf("the collector answered %d: %q", answer.StatusCode, message)
		}
	}
	return fmt.Errorf("the collector answered %d", answer.StatusCode)
}

// partly returns an error if the collector took only some of the spans, or warns.
func partly(header http.Header, text []byte) error {
	if !isProtobuf(header) {
		return nil
	}
	partial := fields(fields(text)[1].text) // an ExportTracePartialSuccess
	rejected, message := partial[1].number, string(partial[2].text)
	switch {
	case rejected > 0:
		return fmt.Errorf("the collector rejected %d spans: %q", rejected, message)
	case message != "":
		return fmt.Errorf("the collector took the spans and warns: %q", message)
	}
	return nil
}

func isProtobuf(header http.Header) bool {
	kind, _, _ := strings.Cut(header.Get("Content-Type"), ";")
	return strings.TrimSpace(kind) == protobuf
}

// field is the last value of a field of a message.
type field struct {
	number uint64
	text   []byte
}

// fields are the fields of a message, by number. Of an invalid message they are what could be read.
func fields(text []byte) map[protowire.Number]field {
	out := map[protowire.Number]field{}
	for len(text) > 0 {
		number, kind, n := protowire.ConsumeTag(text)
		if n < 0 {
			return out
		}
		text = text[n:]
		var f field
		switch kind {
		case protowire.VarintType:
			f.number, n = protowire.ConsumeVarint(text)
		case protowire.BytesType:
			f.text, n = protowire.ConsumeBytes(text)
		default:
			n = protowire.ConsumeFieldValue(number, kind, text)
		}
		if n < 0 {
			return out
		}
		out[number], text = f, text[n:]
	}
	return out
}

// retryAfter reads a Retry-After in either form: seconds, or a date.
func retryAfter(text string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}
