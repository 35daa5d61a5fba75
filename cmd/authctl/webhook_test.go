package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// hookReceiver keeps the events that it gets, each with the number of its secrets that signed the
// event.
type hookReceiver struct {
	mu      sync.Mutex
	secrets []string
	events  []hookEvent
	status  int // the status of its answers; 0 means 204
}

type hookEvent struct {
	ID, Type, Subject, Sequence string
	Signatures                  int // the secrets that it knows
}

func (h *hookReceiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var e hookEvent
	if err := json.Unmarshal(body, &e); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	signatures := strings.Fields(r.Header.Get("Webhook-Signature"))
	for _, secret := range h.secrets {
		key, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.%s", r.Header.Get("Webhook-Id"), r.Header.Get("Webhook-Timestamp"), body)
		if slices.Contains(signatures, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil))) {
			e.Signatures++
		}
	}
	// A delivery whose answer came too late on a busy machine is repeated.
	if !slices.ContainsFunc(h.events, func(former hookEvent) bool { return former.ID == e.ID }) {
		h.events = append(h.events, e)
	}
	if h.status != 0 {
		w.WriteHeader(h.status)
	}
}

// of returns the events of a type, each with its number of good signatures.
func (h *hookReceiver) of(eventType string) (signatures []int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if e.Type == eventType {
			signatures = append(signatures, e.Signatures)
		}
	}
	return signatures
}

func (h *hookReceiver) learn(secret string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.secrets = append(h.secrets, secret)
}

// answerOf runs a command and reads its result.
func answerOf(t *testing.T, wantCode int, line ...string) (answer struct {
	Secret, Error, Address string
	Status                 int
	OK                     bool
}) {
	t.Helper()
	var out, words bytes.Buffer
	if code := run(t.Context(), append(line, "-o", "json"), strings.NewReader(""), &out, &words); code != wantCode {
		t.Fatalf("%s: exit %d: %s", strings.Join(line, " "), code, words.String())
	}
	if err := json.Unmarshal(out.Bytes(), &answer); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(line, " "), err, out.String())
	}
	return answer
}

// The whole way from a registration to a verified event at a webhook, with every change of secrets.
func TestEventsReachAWebhook(t *testing.T) {
	for name, url := range map[string]func(*testing.T) string{
		"sqlite": func(*testing.T) string {
			return ""
		}, "postgres": func(t *testing.T) string { return dbtest.PostgresURL(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			const first, second = "the first secret of the service is long enough", "the second secret of the service is long enough"
			for name, value := range map[string]string{
				"DATABASE_URL": url(t), "APP_HOST": "127.0.0.1", "APP_PORT": "0", "APP_OPERATOR_ADDR": "127.0.0.1:0",
				"AUTH_PASSWORD_BCRYPT_COST": "4", "AUTH_TOKEN_SECRET": first, "OUTBOX_WEBHOOK_ALLOW_PRIVATE": "true",
				"OUTBOX_LEASE": "1s",
			} {
				if value != "" {
					t.Setenv(name, value)
				}
			}
			h := &hookReceiver{}
			server := httptest.NewServer(h)
			t.Cleanup(server.Close)
			served := runInBackground(t, "serve")
			port := served.await(t, `"port": (\d+)`)
			register := func(name string) {
				t.Helper()
				res, err := http.Post("http://127.0.0.1:"+port+"/api/v1/auth/register",
					"application/json", //nolint:noctx,gosec // in a test
					strings.NewReader(`{"username":"`+name+`","password":"correct horse battery staple"}`))
				testenv.Must(t, err)
				defer res.Body.Close()
				if res.StatusCode != http.StatusCreated {
					t.Fatalf("registering answers %d", res.StatusCode)
				}
			}
			// registers waits until the webhook has n registrations with the given number of good
			// signatures.
			registers := func(name string, signatures ...int) {
				t.Helper()
				register(name)
				testenv.Eventually(t, "the registration of "+name, func() bool {
					return slices.Equal(h.of("auth.UserRegistered.v1"), signatures)
				})
			}
			register("before") // it did not exist yet
			h.learn(answerOf(t, 0, "outbox", "target", "add", "webhook", server.URL, "--types", "auth.UserR*",
				"--name", "hook").Secret)
			tried := answerOf(t, 0, "outbox", "target", "test", "hook")
			if got := h.of("auth.Test.v1"); !slices.Equal(got, []int{1}) || !tried.OK || tried.Status != 200 ||
				tried.Address != server.Listener.Addr().String() {
				t.Fatalf("the receiver has %v tests, and the answer is %+v", got, tried)
			}
			registers("alice", 1)

			// After a rotation both secrets sign, later the new one alone.
			h.learn(answerOf(t, 0, "outbox", "target", "rotate-secret", "hook").Secret)
			testenv.Eventually(t, "two signatures", func() bool {
				answerOf(t, 0, "outbox", "target", "test", "hook")
				got := h.of("auth.Test.v1")
				return got[len(got)-1] == 2
			})
			served.stop()
			<-served.ended
			served.ended <- 0

			// A relay without the secret of the service leaves the webhook to other relays. With a
			// new secret, a relay that knows the former one delivers, and seals the webhook's
			// secrets again.
			t.Setenv("OUTBOX_RELAY", "off")
			served = runInBackground(t, "serve")
			port = served.await(t, `"port": (\d+)`)
			register("bob")
			t.Setenv("AUTH_TOKEN_SECRET", "")
			testenv.Must(t, os.Unsetenv("AUTH_TOKEN_SECRET"))
			without := runInBackground(t, "relay")
			without.await(t, `(webhooks_left_to_others)`)
			t.Setenv("AUTH_TOKEN_SECRET", second)
			t.Setenv("AUTH_TOKEN_PREVIOUS_SECRETS", first)
			with := runInBackground(t, "relay")
			with.await(t, `(webhook_secret_sealed_again)`)
			registers("carol", 1, 2, 2)
			testenv.Must(t, os.Unsetenv("AUTH_TOKEN_PREVIOUS_SECRETS"))
			if tried := answerOf(t, 0, "outbox", "target", "test", "hook"); !tried.OK {
				t.Errorf("with the second secret alone: %+v", tried)
			}
			answerOf(t, 0, "outbox", "target", "rotate-secret", "hook", "--drop-old", "--yes")
			testenv.Eventually(t, "one signature", func() bool {
				answerOf(t, 0, "outbox", "target", "test", "hook")
				got := h.of("auth.Test.v1")
				return got[len(got)-1] == 1
			})

			h.mu.Lock()
			h.status = http.StatusTeapot
			h.mu.Unlock()
			if tried := answerOf(t, 1, "outbox", "target", "test", "hook"); tried.OK || tried.Status != 418 ||
				!strings.Contains(tried.Error, "418") {
				t.Errorf("a receiver that refuses: %+v", tried)
			}
		})
	}
}
