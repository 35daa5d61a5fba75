package deploy

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/alicebob/miniredis/v2"
	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/testenv"
	"github.com/toppira/authctl/platform/tracing/tracingtest"
)

// traced sends a request as part of a trace and returns the status.
func tracedRequest(t *testing.T, method, url, parent, token string, body any) (status int, answer map[string]any) {
	t.Helper()
	var payload io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		payload = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, payload)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("traceparent", parent)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	_ = json.NewDecoder(res.Body).Decode(&answer)
	return res.StatusCode, answer
}

// A trace that begins elsewhere continues through the request to the database, to Redis and to the
// hashing workers. The log and the histograms name it.
func TestATraceGoesThroughAServer(t *testing.T) {
	t.Parallel()
	for name, env := range map[string]func(*testing.T) []string{
		"embedded": func(*testing.T) []string { return nil },
		"postgres and redis": func(t *testing.T) []string {
			return []string{"DATABASE_URL=" + newRolesDatabase(t).as("authctl_serve"), "OUTBOX_RELAY=off",
				"REDIS_URL=redis://" + miniredis.RunT(t).Addr()}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkTrace(t, name != "embedded", env(t))
		})
	}
}

// A trace that begins elsewhere continues through the request, the database and the event to the
// relay in another process, to the Kafka record, and to the consumer. docs/operations.md shows it.
func TestATraceGoesFromTheRequestToTheConsumer(t *testing.T) {
	t.Parallel()
	const (
		trace, client = "2af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
		parent        = "00-" + trace + "-" + client + "-01"
	)
	db, brokers := newRolesDatabase(t), testenv.Kafka(t)
	topic := "trace-" + uuid.NewString()
	collector := tracingtest.New(t)
	start := func(role, service string, env []string, args ...string) (log *lockedBuffer, stop func()) {
		cmd := db.command(t, t.TempDir(), role, args...)
		cmd.Env = append(cmd.Env, "KAFKA_BROKERS="+brokers, "KAFKA_TOPIC="+topic, "OTEL_SERVICE_NAME="+service,
			"OTEL_EXPORTER_OTLP_ENDPOINT="+collector.URL, "OTEL_EXPORTER_OTLP_COMPRESSION=gzip",
			"OTEL_BSP_SCHEDULE_DELAY=50")
		cmd.Env = append(cmd.Env, env...)
		return launch(t, cmd)
	}
	port := testenv.FreePort(t)
	log, _ := start("authctl_serve", "authctl", []string{"APP_HOST=127.0.0.1", fmt.Sprintf("APP_PORT=%d", port),
		"REDIS_URL=redis://" + miniredis.RunT(t).Addr()}, "serve")
	relayLog, stopRelay := start("authctl_relay", "authctl-relay", nil, "relay")
	base := fmt.Sprintf("http://127.0.0.1:%d", port)
	eventually(t, "the API answers", func() bool {
		res, err := http.Get(base + "/readyz")
		if err == nil {
			_ = res.Body.Close()
		}
		return err == nil && res.StatusCode == http.StatusOK
	})
	status, answer := tracedRequest(t, "POST", base+"/api/v1/auth/register", parent, "",
		map[string]any{"username": "alice", "password": "correct horse battery staple"})
	if status != http.StatusCreated {
		t.Fatalf("register: %d %v\n%s", status, answer, log)
	}
	// The consumer continues the trace from the headers of the record.
	headers := map[string]string{}
	testenv.Eventually(t, "the record is there", func() bool {
		records, err := outboxtest.ReadRecords(t.Context(), strings.Split(brokers, ","), topic)
		for _, r := range records {
			for _, h := range r.Headers {
				headers[h.Key] = string(h.Value)
			}
		}
		return err == nil && len(records) > 0
	})
	if headers["traceparent"] == "" || headers["traceparent"] != headers["ce_traceparent"] {
		t.Fatalf("the record has the headers %v\n%s", headers, relayLog)
	}
	if err := collector.Consume(t.Context(), "shop", "CloudEvents Process "+headers["ce_type"],
		headers["traceparent"]); err != nil {
		t.Fatal(err)
	}
	stopRelay() // the stop sends the last spans
	var added tracingtest.Span
	shown := func(s tracingtest.Span) (string, bool) {
		query := s.Attributes["db.query.text"]
		switch {
		case strings.Contains(query, "outbox_add_traced("):
			added = s
			return s.Name + " outbox_add_traced", true
		case strings.HasPrefix(s.Name, "send "):
			return strings.Replace(s.Name, topic, "auth.events", 1), true
		}
		return s.Name, s.Attributes["db.system.name"] == "" && s.Name != "password hash wait"
	}
	var tree string
	testenv.Eventually(t, "all spans have come", func() bool {
		var err error
		tree, err = drawn(collector, trace, client, shown)
		return err == nil && strings.Contains(tree, "send ") && strings.Contains(tree, "POST ")
	})
	t.Log("\n" + tree)
	var create, send tracingtest.Span
	for _, s := range collector.Spans() {
		switch {
		case strings.HasPrefix(s.Name, "CloudEvents Create "):
			create = s
		case strings.HasPrefix(s.Name, "send "):
			send = s
		}
	}
	if headers["traceparent"] != "00-"+trace+"-"+create.ID+"-01" {
		t.Errorf("the record has the traceparent %s, want the event span's, %s", headers["traceparent"], create.ID)
	}
	if create.Attributes["cloudevents.event_id"] != headers["ce_id"] ||
		create.Attributes["cloudevents.event_type"] != headers["ce_type"] {
		t.Errorf("the span of the event says %v", create.Attributes)
	}
	if send.Parent != create.ID || len(send.Links) != 1 || send.Links[0] != create.ID || send.Failed {
		t.Errorf("the span of sending is %+v, want a link to %s", send, create.ID)
	}
	for key, want := range map[string]string{
		"messaging.system": "kafka", "messaging.destination.name": topic, "messaging.operation.type": "send",
		"messaging.message.id": headers["ce_id"], "messaging.batch.message_count": "1",
	} {
		if send.Attributes[key] != want {
			t.Errorf("%s of sending is %q, want %q", key, send.Attributes[key], want)
		}
	}
	if send.Begun < added.Begun {
		t.Error("the event was sent before it was added")
	}
	if page := read(t, "../docs/operations.md"); !strings.Contains(page, "```text\n"+tree+"```\n") {
		t.Errorf("docs/operations.md does not show this trace:\n%s", tree)
	}
}

func checkTrace(t *testing.T, apart bool, env []string) {
	const (
		sampled, not = "0af7651916cd43dd8448eb211c80319c", "1af7651916cd43dd8448eb211c80319c"
		client       = "b7ad6b7169203331"
		username     = "canary-name"
		password     = "canary password"
	)
	collector := tracingtest.New(t)
	api, operator := testenv.FreePort(t), testenv.FreePort(t)
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), binary(t), "serve")
	cmd.Dir = dir
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "APP_HOST=127.0.0.1", fmt.Sprintf("APP_PORT=%d", api),
		fmt.Sprintf("APP_OPERATOR_ADDR=127.0.0.1:%d", operator), "AUTH_PASSWORD_BCRYPT_COST=4",
		"AUTH_TOKEN_SECRET=" + strings.Repeat("s", 48),
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL, "OTEL_BSP_SCHEDULE_DELAY=50",
	}, env...)
	log, _ := launch(t, cmd)
	base := fmt.Sprintf("http://127.0.0.1:%d", api)
	eventually(t, "the API answers", func() bool {
		res, err := http.Get(base + "/readyz")
		if err == nil {
			_ = res.Body.Close()
		}
		return err == nil && res.StatusCode == http.StatusOK
	})
	in := func(trace, flags string) string { return "00-" + trace + "-" + client + "-" + flags }
	person := map[string]any{"username": username, "password": password}
	call := func(method, path, parent, token string, body any, want int) map[string]any {
		t.Helper()
		status, answer := tracedRequest(t, method, base+path, parent, token, body)
		if status != want {
			t.Fatalf("%s %s: %d %v\n%s", method, path, status, answer, log)
		}
		return answer
	}
	call("POST", "/api/v1/auth/register", in(sampled, "01"), "", person, 201)
	tokens := call("POST", "/api/v1/auth/login", in(sampled, "01"), "", person, 200)
	token, _ := tokens["access_token"].(string)
	call("GET", "/api/v1/auth/me", in(sampled, "01"), token, nil, 200)
	call("GET", "/nothing/here", in(sampled, "01"), "", nil, 404)
	call("GET", "/healthz", in(sampled, "01"), "", nil, 200)
	call("GET", "/api/v1/auth/me", in(not, "00"), token, nil, 200)
	call("GET", "/api/v1/auth/sessions", in(sampled, "01"), token, nil, 200) // the last one that is recorded

	find := func(name string) (found []tracingtest.Span) {
		for _, span := range collector.Spans() {
			if span.Name == name {
				found = append(found, span)
			}
		}
		return found
	}
	testenv.Eventually(t, "the spans have come", func() bool { return len(find("GET /api/v1/auth/sessions")) > 0 })
	for name, status := range map[string]string{
		"POST /api/v1/auth/register": "201", "POST /api/v1/auth/login": "200", "GET /api/v1/auth/me": "200",
		"GET": "404",
	} {
		spans := find(name)
		if len(spans) != 1 || spans[0].Parent != client || spans[0].Attributes["http.response.status_code"] != status ||
			spans[0].Failed ||
			spans[0].Attributes["http.route"] != strings.TrimPrefix(strings.TrimPrefix(name,
				spans[0].Attributes["http.request.method"]), " ") {
			t.Errorf("%s: %+v", name, spans)
		}
	}
	parents := map[string]bool{}
	for _, span := range collector.Spans() {
		parents[span.ID] = true
	}
	systems := map[string]int{}
	for _, span := range collector.Spans() {
		if span.Trace != sampled {
			if span.Trace == not {
				t.Errorf("%s is recorded, but its trace is not", span.Name)
			}
			continue
		}
		if span.Parent != client && !parents[span.Parent] {
			t.Errorf("%s has an unknown parent", span.Name)
		}
		if span.Failed {
			t.Errorf("%s failed, in a request that did not: %v", span.Name, span.Attributes)
		}
		systems[span.Attributes["db.system.name"]]++
		for key, value := range span.Attributes {
			if strings.Contains(value, "canary") || strings.Contains(value, token) {
				t.Errorf("%s reveals %s: %s", span.Name, key, value)
			}
		}
		if span.Ended < span.Begun {
			t.Errorf("%s ends before it begins", span.Name)
		}
	}
	hashes := len(find("password hash"))
	if hashes != 2 || len(find("password hash wait")) != 2 || len(find("transaction")) < 2 ||
		len(find("session check")) != 2 {
		t.Errorf("%d hashes, %d waits, %d transactions, %d session checks", hashes, len(find("password hash wait")),
			len(find("transaction")), len(find("session check")))
	}
	if apart != (systems["redis"] > 3) || apart != (systems["postgresql"] > 5) || apart == (systems["sqlite"] > 5) {
		t.Errorf("the operations were %v", systems)
	}
	for _, trace := range []string{sampled, not} {
		if !strings.Contains(log.String(), trace) {
			t.Errorf("the log does not name the trace %s", trace)
		}
	}

	req, err := http.NewRequestWithContext(t.Context(), "GET", fmt.Sprintf("http://127.0.0.1:%d/metrics", operator),
		nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, histogram := range []string{"authctl_http_request_duration_seconds_bucket",
		"authctl_password_hash_wait_seconds_bucket", "authctl_password_hash_seconds_bucket"} {
		found := false
		for line := range strings.Lines(string(text)) {
			found = found || strings.HasPrefix(line, histogram) && strings.Contains(line, `# {trace_id="`+sampled+`"}`)
		}
		if !found {
			t.Errorf("%s has no exemplar of the trace", histogram)
		}
	}
}

// drawn shows the spans of a trace as lines: each below its parent, in the order in which they
// began. Spans that shown does not name are left out with everything below them. It returns an
// error if a span's parent is neither in the trace nor the remote one.
func drawn(
	c *tracingtest.Collector, traceID, remote string, shown func(tracingtest.Span) (name string, ok bool),
) (string, error) {
	below := map[string][]tracingtest.Span{}
	ids := map[string]bool{remote: true}
	for _, span := range c.Spans() {
		if span.Trace == traceID {
			below[span.Parent] = append(below[span.Parent], span)
			ids[span.ID] = true
		}
	}
	for parent, spans := range below {
		if !ids[parent] {
			return "", fmt.Errorf("%s has the parent %q, which is not there", spans[0].Name, parent)
		}
		slices.SortFunc(spans, func(a, b tracingtest.Span) int { return cmp.Compare(a.Begun, b.Begun) })
	}
	type line struct{ name, about string }
	var lines []line
	var draw func(parent, before string, top bool)
	draw = func(parent, before string, top bool) {
		var list []tracingtest.Span
		var names []string
		for _, span := range below[parent] {
			if name, ok := shown(span); ok {
				list, names = append(list, span), append(names, name)
			}
		}
		for i, span := range list {
			branch, next := before+"├─ ", before+"│  "
			if i == len(list)-1 {
				branch, next = before+"└─ ", before+"   "
			}
			if top {
				branch, next = before, before
			}
			kind := strings.ToLower(strings.TrimPrefix(span.Kind.String(), "SPAN_KIND_"))
			lines = append(lines, line{branch + names[i], span.Service + ", " + kind})
			draw(span.ID, next, false)
		}
	}
	draw(remote, "", true)
	width := 0
	for _, l := range lines {
		width = max(width, utf8.RuneCountInString(l.name))
	}
	var out strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&out, "%s%s   %s\n", l.name, strings.Repeat(" ", width-utf8.RuneCountInString(l.name)), l.about)
	}
	return out.String(), nil
}
