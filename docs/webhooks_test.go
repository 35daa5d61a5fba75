package docs_test

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/webhook"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/testenv"
)

// webhookReceiver takes events from authctl. handle gets each event, and some more than once: see repeated.
// When it fails, the event comes again.
type webhookReceiver struct {
	secrets [][]byte // what comes after whsec_, decoded from base64
	now     func() time.Time
	handle  func(ctx context.Context, e webhookEvent) error
}

type webhookEvent struct {
	ID         string          `json:"id"`
	Type       string          `json:"type"`
	Subject    string          `json:"subject"`
	Sequence   int64           `json:"sequence,string"`
	Generation int64           `json:"generation,string"` // mostly absent, which is 0
	Replay     bool            `json:"replay"`
	Data       json.RawMessage `json:"data"`
}

// after reports whether an event comes after another one of its subject.
func (e webhookEvent) after(other webhookEvent) bool {
	return e.Generation > other.Generation || e.Generation == other.Generation && e.Sequence > other.Sequence
}

// repeated reports whether an event has been handled before. last is the one of its subject that was
// handled and comes after all others.
func (e webhookEvent) repeated(last webhookEvent) bool { return !e.Replay && !e.after(last) }

func (rc *webhookReceiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		http.Error(w, "the body cannot be read", http.StatusBadRequest)
		return
	}
	if !rc.genuine(r.Header, body) {
		http.Error(w, "the signature is wrong", http.StatusUnauthorized)
		return
	}
	var e webhookEvent
	if err := json.Unmarshal(body, &e); err != nil {
		http.Error(w, "this is no event", http.StatusBadRequest)
		return
	}
	if err := rc.handle(r.Context(), e); err != nil {
		http.Error(w, "try again", http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// genuine reports whether authctl has sent the request, and lately.
func (rc *webhookReceiver) genuine(h http.Header, body []byte) bool {
	id, at := h.Get("webhook-id"), h.Get("webhook-timestamp")
	seconds, err := strconv.ParseInt(at, 10, 64)
	if err != nil || rc.now().Sub(time.Unix(seconds, 0)).Abs() > 5*time.Minute {
		return false
	}
	for _, secret := range rc.secrets {
		mac := hmac.New(sha256.New, secret)
		fmt.Fprintf(mac, "%s.%s.%s", id, at, body)
		want := []byte("v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)))
		for signature := range strings.FieldsSeq(h.Get("webhook-signature")) {
			if hmac.Equal([]byte(signature), want) {
				return true
			}
		}
	}
	return false
}

// sender is what authctl sends webhooks with.
type sender struct {
	*webhook.Sink
	seals *webhook.Seals
}

func newSender(t *testing.T, now func() time.Time) sender {
	t.Helper()
	seals, err := webhook.NewSeals("a secret of the service, long enough for all")
	if err != nil {
		t.Fatal(err)
	}
	s := sender{webhook.New(webhook.Config{AllowPrivate: true}, webhook.Options{Seals: seals, Now: now,
		Timeout: testenv.Patience, BodyTime: testenv.Patience}), seals}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// send delivers an event, signed with the secrets, and returns the status of the answer.
func (s sender) send(t *testing.T, url string, r outbox.Record, secrets ...config.Secret) int {
	t.Helper()
	to := outbox.Subscription{Name: "hook", Kind: outbox.KindWebhook, URL: url}
	for _, secret := range secrets {
		to.Secrets = append(to.Secrets, outbox.Secret{Sealed: s.seals.Seal("hook", secret)})
	}
	answer, err := s.Send(t.Context(), to, r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return answer.Status
}

func happened(subject string, sequence int64) outbox.Record {
	return outbox.Record{
		Seq: sequence, EventID: uuid.NewString(), Type: "auth.SessionRevoked.v1", Key: subject, Subject: subject,
		Source: "https://auth.example.com", Time: "2026-10-06T09:12:44.031277Z",
		Data: []byte(`{"reason":"<logout> é"}`),
	}
}

func decoded(t *testing.T, secret config.Secret) []byte {
	t.Helper()
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret.Reveal(), "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestReceivingWebhooksInGo(t *testing.T) {
	t.Parallel()
	former, present := webhook.NewSecret(), webhook.NewSecret()
	now, busy := time.Now(), false
	last, handled := map[string]webhookEvent{}, []string{}
	rc := &webhookReceiver{secrets: [][]byte{decoded(t, present)}, now: func() time.Time { return now }}
	rc.handle = func(_ context.Context, e webhookEvent) error {
		if busy {
			return errors.New("busy")
		}
		if e.repeated(last[e.Subject]) {
			return nil
		}
		if e.after(last[e.Subject]) {
			last[e.Subject] = e
		}
		handled = append(handled, fmt.Sprint(e.Subject, e.Sequence))
		return nil
	}
	server := httptest.NewServer(rc)
	t.Cleanup(server.Close)
	sentAt := now
	s := newSender(t, func() time.Time { return sentAt })
	want := func(what string, status, expected int) {
		t.Helper()
		if status != expected {
			t.Errorf("%s: %d, want %d", what, status, expected)
		}
	}
	first := happened("alice", 1)
	busy = true
	want("a receiver that is busy", s.send(t, server.URL, first, present), 503)
	busy = false
	want("again", s.send(t, server.URL, first, present), 204)
	want("a repetition", s.send(t, server.URL, first, present), 204)
	want("the next, with two signatures", s.send(t, server.URL, happened("alice", 2), former, present), 204)
	want("another secret", s.send(t, server.URL, happened("alice", 3), former), 401)
	sentAt = now.Add(-6 * time.Minute)
	want("an old request", s.send(t, server.URL, happened("alice", 3), present), 401)
	sentAt = now
	again := first
	again.Replay = true
	want("a replay", s.send(t, server.URL, again, present), 204)
	want("of another subject", s.send(t, server.URL, happened("bob", 1), present), 204)
	restored := happened("alice", 1)
	restored.Generation = 1
	want("after a restore", s.send(t, server.URL, restored, present), 204)
	want("what was sent before it", s.send(t, server.URL, happened("alice", 2), present), 204)
	if expected := []string{"alice1", "alice2", "alice1", "bob1", "alice1"}; !slices.Equal(handled, expected) {
		t.Errorf("handled %q, want %q", handled, expected)
	}

	// A changed request is not genuine.
	header := http.Header{}
	header.Set("webhook-id", "1")
	header.Set("webhook-timestamp", strconv.FormatInt(now.Unix(), 10))
	mac := hmac.New(sha256.New, decoded(t, present))
	fmt.Fprintf(mac, "1.%d.{}", now.Unix())
	header.Set("webhook-signature", "v2,x v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	if !rc.genuine(header, []byte("{}")) || rc.genuine(header, []byte("{ }")) {
		t.Error("the signature is not that of the body")
	}
	header.Set("webhook-id", "2")
	if rc.genuine(header, []byte("{}")) {
		t.Error("the signature is not that of the id")
	}
}

// The published library of Standard Webhooks verifies what authctl sends.
func TestReceivingWebhooksInNode(t *testing.T) {
	t.Parallel()
	const from = "testdata/webhooks/node"
	node := testenv.Program(t, "install Node.js 20 or newer", "node")
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(testenv.NodeModules(t, from), "node_modules"),
		filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, b := range read(t, "webhooks.md").fence {
		if strings.HasPrefix(b.text, "// receiver.mjs\n") {
			found = true
			if err := os.WriteFile(filepath.Join(dir, "receiver.mjs"), []byte(b.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !found {
		t.Fatal("webhooks.md has no receiver.mjs")
	}
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	former, present := webhook.NewSecret(), webhook.NewSecret()
	cmd := exec.CommandContext(t.Context(), node, "try.mjs", present.Reveal())
	cmd.Dir, cmd.Stderr = dir, t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("the receiver does not say where it is")
	}
	url := lines.Text()
	s := newSender(t, nil)
	first, restored := happened("alice", 1), happened("alice", 1)
	restored.Generation = 1
	for _, test := range []struct {
		what    string
		event   outbox.Record
		secrets []config.Secret
		status  int
	}{
		{"the first", first, []config.Secret{present}, 204},
		{"a repetition", first, []config.Secret{present}, 204},
		{"with two signatures", happened("alice", 2), []config.Secret{former, present}, 204},
		{"with another secret", happened("alice", 3), []config.Secret{former}, 401},
		{"of another subject", happened("bob", 7), []config.Secret{present}, 204},
		{"after a restore", restored, []config.Secret{present}, 204},
		{"what was sent before it", happened("alice", 2), []config.Secret{present}, 204},
		{"one that fails", happened("trouble", 1), []config.Secret{present}, 503},
	} {
		if status := s.send(t, url, test.event, test.secrets...); status != test.status {
			t.Errorf("%s: %d, want %d", test.what, status, test.status)
		}
	}
	old := newSender(t, func() time.Time { return time.Now().Add(-6 * time.Minute) })
	if status := old.send(t, url, happened("alice", 3), present); status != 401 {
		t.Errorf("an old request: %d", status)
	}
	if err := in.Close(); err != nil { // ends the receiver
		t.Fatal(err)
	}
	var handled []string
	for lines.Scan() {
		handled = append(handled, lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	expected := []string{"alice 1 <logout> é", "alice 2 <logout> é", "bob 7 <logout> é", "alice 1 <logout> é"}
	if !slices.Equal(handled, expected) {
		t.Errorf("handled %q, want %q", handled, expected)
	}
}
