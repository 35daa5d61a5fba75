package webhook

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/delivery"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/testenv"
)

const serviceSecret = config.Secret("a secret of the service, long enough for all")

func seals(t testing.TB, secrets ...config.Secret) *Seals {
	t.Helper()
	s, err := NewSeals(append(secrets, serviceSecret)...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// open makes a sink that may send to the tests' receivers.
func open(t testing.TB, opt Options) *Sink {
	t.Helper()
	if opt.Seals == nil {
		opt.Seals = seals(t)
	}
	opt.Version = "1.2.3"
	s := New(Config{AllowPrivate: true}, opt)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

const knownSecret = config.Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")

func target(t testing.TB, url string) outbox.Subscription {
	t.Helper()
	return outbox.Subscription{ID: 1, Name: "hook", Kind: outbox.KindWebhook, URL: url, Types: []string{"*"},
		Secrets: []outbox.Secret{{Sealed: seals(t).Seal("hook", knownSecret)}}}
}

func record(key string, n int64) outbox.Record {
	return outbox.Record{ID: n, Seq: n, EventID: fmt.Sprintf("0199b7f2-6f3e-7c1d-9a55-%012d", n),
		Type: "test.Happened.v1",
		Key:  key, Subject: key, Source: "https://auth.example", Time: "2026-10-06T09:12:44.031277Z",
		Data: []byte(`{"text":"<&> é","n":` + strconv.FormatInt(n, 10) + `}`)}
}

func first() delivery.Attempt {
	return delivery.Attempt{Number: 1, Owned: func() bool { return true }}
}

func receiver(t testing.TB, do http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(do)
	t.Cleanup(s.Close)
	return s.URL + "/hooks?team=a"
}

func TestARequestIsTheCloudEventWithASignature(t *testing.T) {
	t.Parallel()
	type seen struct {
		method, uri, body string
		header            http.Header
	}
	var got []seen
	url := receiver(t, func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = append(got, seen{r.Method, r.RequestURI, string(body), r.Header})
	})
	now := time.Unix(1_700_000_000, 5)
	s := open(t, Options{Now: func() time.Time { return now }})
	const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	traced := record("k", 7)
	traced.TraceParent, traced.Generation = traceparent, 3
	for range 2 {
		if err := s.Deliver(t.Context(), target(t, url), traced, first()); err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Hour)
	}
	want := `{"specversion":"1.0","id":"0199b7f2-6f3e-7c1d-9a55-000000000007","source":"https://auth.example",` +
		`"type":"test.Happened.v1","subject":"k","time":"2026-10-06T09:12:44.031277Z","sequence":"7","generation":"3",` +
		`"traceparent":"` + traceparent + `","datacontenttype":"application/json","data":{"text":"<&> é","n":7}}`
	for i, r := range got {
		if r.method != "POST" || r.uri != "/hooks?team=a" || r.body != want {
			t.Errorf("request %d: %s %s %s", i, r.method, r.uri, r.body)
		}
		for name, value := range map[string]string{
			"Content-Type": "application/cloudevents+json; charset=utf-8", "User-Agent": "authctl/1.2.3",
			"Webhook-Id":        "0199b7f2-6f3e-7c1d-9a55-000000000007",
			"Webhook-Timestamp": strconv.Itoa(1_700_000_000 + i*3600), "Content-Length": strconv.Itoa(len(want)),
			"Traceparent":     traceparent,
			"Idempotency-Key": "", "Accept-Encoding": "", "Authorization": "", "Cookie": "",
		} {
			if r.header.Get(name) != value {
				t.Errorf("request %d: %s is %q, want %q", i, name, r.header.Get(name), value)
			}
		}
	}
	if len(got) != 2 || got[0].header.Get("Webhook-Signature") == got[1].header.Get("Webhook-Signature") {
		t.Errorf("%d requests; the signature must cover the time", len(got))
	}
}

// The example in the specification of Standard Webhooks.
func TestASignatureIsThatOfTheSpecification(t *testing.T) {
	t.Parallel()
	keys, err := seals(t).keys(target(t, ""), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	got := sign(keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("signed %s, want %s", got, want)
	}
}

func TestBothSecretsSignWhileOneIsReplaced(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	other := NewSecret()
	both := target(t, "")
	both.Secrets[0].Until = now.Add(time.Hour)
	both.Secrets = append([]outbox.Secret{{Sealed: seals(t).Seal("hook", other)}}, both.Secrets...)
	signed := func(at time.Time) []string {
		keys, err := seals(t).keys(both, at)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(sign(keys, "id", now, nil), " ")
	}
	if got := signed(now); len(got) != 2 || got[0] == got[1] {
		t.Errorf("before the end of the former secret: %q", got)
	}
	if got, late := signed(now), signed(now.Add(time.Hour)); len(late) != 1 || late[0] != got[0] {
		t.Errorf("after the end of the former secret: %q", late)
	}
}

func TestSecretsOfAWebhookAreItsOwnAndSealed(t *testing.T) {
	t.Parallel()
	if a, b := NewSecret(), NewSecret(); a == b || !strings.HasPrefix(a.Reveal(), "whsec_") || len(a.Reveal()) != 50 {
		t.Errorf("two secrets are %q and %q", a.Reveal(), b.Reveal())
	}
	hook := target(t, "")
	if strings.Contains(string(hook.Secrets[0].Sealed), "MfKQ") {
		t.Error("the secret is stored as it is")
	}
	another := hook
	another.Name = "another"
	if _, err := seals(t).keys(another, time.Now()); err == nil {
		t.Error("the secret opens for another target")
	}
	stranger, err := NewSeals("another secret of the service, long enough")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.keys(hook, time.Now()); err == nil ||
		!strings.Contains(err.Error(), "AUTH_TOKEN_PREVIOUS_SECRETS") {
		t.Errorf("with another secret of the service: %v", err)
	}
	hook.Secrets = nil
	if _, err := seals(t).keys(hook, time.Now()); err == nil || !strings.Contains(err.Error(), "rotate-secret") {
		t.Errorf("without a secret: %v", err)
	}
}

func TestASecretIsReplacedWithAnOverlap(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0).UTC()
	hook := target(t, "")
	secrets, made, err := seals(t).Rotate(hook, now)
	if err != nil || len(secrets) != 2 || !secrets[0].Until.IsZero() || !secrets[1].Until.Equal(now.Add(24*time.Hour)) {
		t.Fatalf("after a rotation: %+v, %v", secrets, err)
	}
	if plain, _, err := seals(t).box.Open(secrets[0].Sealed, "hook"); err != nil || string(plain) != made.Reveal() {
		t.Errorf("the new secret is not the first: %v", err)
	}
	// A second rotation does not change the end of the first secret.
	hook.Secrets = secrets
	secrets, _, err = seals(t).Rotate(hook, now.Add(time.Hour))
	if err != nil || len(secrets) != 3 || !secrets[2].Until.Equal(now.Add(24*time.Hour)) {
		t.Errorf("after another rotation: %+v, %v", secrets, err)
	}
	// A secret that has ended is removed.
	secrets, _, err = seals(t).Rotate(hook, now.Add(25*time.Hour))
	if err != nil || len(secrets) != 2 {
		t.Errorf("a day later: %+v, %v", secrets, err)
	}
	// So is one that nobody can open.
	const other = config.Secret("another secret of the service, long enough")
	stranger, err := NewSeals(other)
	if err != nil {
		t.Fatal(err)
	}
	if secrets, _, err = stranger.Rotate(hook, now); err != nil || len(secrets) != 1 {
		t.Errorf("with another secret of the service: %+v, %v", secrets, err)
	}
	for range maxSecrets {
		if hook.Secrets, _, err = seals(t).Rotate(hook, now); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrTooManySecrets) {
		t.Errorf("after many rotations: %v", err)
	}
}

func TestSecretsAreSealedAgainUnderANewSecretOfTheService(t *testing.T) {
	t.Parallel()
	hook := target(t, "")
	same, changed, err := seals(t).Reseal(hook, time.Now())
	if err != nil || changed || string(same[0].Sealed) != string(hook.Secrets[0].Sealed) {
		t.Errorf("under the same secret: changed %v, %v", changed, err)
	}
	const next = config.Secret("the next secret of the service, long enough")
	again, changed, err := seals(t, next).Reseal(hook, time.Now())
	if err != nil || !changed {
		t.Fatalf("under the next secret: changed %v, %v", changed, err)
	}
	hook.Secrets = again
	alone, err := NewSeals(next)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := alone.keys(hook, time.Now()); err != nil {
		t.Errorf("the next secret alone does not open it: %v", err)
	}
	// A secret that no longer signs and that nobody can open does not prevent sealing the others
	// again.
	hook = target(t, "")
	hook.Secrets = append(hook.Secrets,
		outbox.Secret{Sealed: []byte("of a lost secret"), Until: time.Now().Add(-time.Hour)})
	if again, changed, err := seals(t, next).Reseal(hook, time.Now()); err != nil || !changed || len(again) != 1 {
		t.Errorf("with a secret that has ended: %d, changed %v, %v", len(again), changed, err)
	}
}

func TestWhatAnAnswerMeans(t *testing.T) {
	t.Parallel()
	const taken, later, gone = "taken", "later", "gone"
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		status     int
		retryAfter string
		want       string
		after      time.Duration
	}{
		{200, "", taken, 0}, {201, "5", taken, 0}, {204, "", taken, 0}, {299, "", taken, 0},
		{410, "", gone, 0},
		{300, "", later, 0}, {301, "", later, 0}, {302, "", later, 0}, {303, "", later, 0}, {304, "", later, 0},
		{307, "", later, 0}, {308, "", later, 0},
		{400, "", later, 0}, {401, "", later, 0}, {404, "", later, 0}, {409, "", later, 0}, {422, "", later, 0},
		{500, "", later, 0}, {599, "", later, 0}, {999, "", later, 0},
		{429, "17", later, 17 * time.Second}, {503, "0", later, 0},
		{503, "Sun, 29 Nov 2026 12:01:30 GMT", later, 90 * time.Second},
		{503, "Sun, 29 Nov 2026 11:00:00 GMT", later, 0},
		{503, "Wed, 01 Jan 2099 00:00:00 GMT", later, time.Hour},
		{503, "86400", later, time.Hour}, {503, "18446744073709551615", later, time.Hour},
		{503, "99999999999999999999", later, time.Hour}, {503, "-5", later, 0}, {503, "soon", later, 0},
	} {
		url := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "http://169.254.169.254/")
			if test.retryAfter != "" {
				w.Header().Set("Retry-After", test.retryAfter)
			}
			w.WriteHeader(test.status)
		})
		err := open(t, Options{Now: func() time.Time {
			return now
		}}).Deliver(t.Context(), target(t, url), record("k", 1), first())
		got, after := taken, time.Duration(0)
		if wait, is := errors.AsType[*delivery.Later](err); is {
			got, after = later, wait.After
		} else if _, is := errors.AsType[*delivery.Gone](err); is {
			got = gone
		} else if err != nil {
			got = err.Error()
		}
		if got != test.want || after != test.after {
			t.Errorf("%d, Retry-After %q: %s, %s; want %s, %s", test.status, test.retryAfter, got, after, test.want,
				test.after)
		}
		if err != nil && !strings.Contains(err.Error(), strconv.Itoa(test.status)) {
			t.Errorf("the error does not name the status: %v", err)
		}
	}
}

// raw is a receiver that speaks on the bare connection after it has read the request.
func raw(t testing.TB, do func(c net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				do(c)
			}()
		}
	}()
	return "http://" + l.Addr().String() + "/"
}

// request reads one request exactly, without a buffered reader that could read more.
func request(c net.Conn) {
	text := ""
	for b := make([]byte, 1); !strings.HasSuffix(text, `}}`); {
		if _, err := c.Read(b); err != nil {
			return
		}
		text += string(b)
	}
}

func TestReceiversThatDoNotAnswerAsTheyShould(t *testing.T) {
	t.Parallel()
	const planted = "planted-by-the-receiver"
	wait := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) } // until the other side gives up
	say := func(text string) func(c net.Conn) {
		return func(c net.Conn) {
			request(c)
			_, _ = io.WriteString(c, text)
		}
	}
	for _, test := range []struct {
		name    string
		do      func(c net.Conn)
		problem string // part of the error; empty if acknowledged
	}{
		{"hangs", func(c net.Conn) { request(c); wait(c) }, "no answer came within"},
		{"hangs in the middle of its header", func(c net.Conn) {
			say("HTTP/1.1 200 OK\r\nX-Slow: ")(c)
			wait(c)
		}, "no answer came within"},
		{"sends a header without an end", func(c net.Conn) {
			request(c)
			for _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n"); err == nil; {
				_, err = io.WriteString(c, "X-More: "+strings.Repeat("x", 1000)+"\r\n")
			}
		}, "is not HTTP/1.1"},
		{"sends 1xx without an end", func(c net.Conn) {
			request(c)
			for _, err := io.WriteString(c, "HTTP/1.1 102 Processing\r\n\r\n"); err == nil; {
				_, err = io.WriteString(c, "HTTP/1.1 102 Processing\r\n\r\n")
			}
		}, "is not HTTP/1.1"},
		{"closes before it answers", func(c net.Conn) { request(c) }, "closed the connection before it answered"},
		{"resets", func(c net.Conn) { request(c); _ = c.(*net.TCPConn).SetLinger(0) },
			"closed the connection before it answered"},
		{"closes in the middle of its header", say("HTTP/1.1 200 OK\r\nX-A: b\r\n"),
			"closed the connection before it answered"},
		{"speaks no HTTP", say("+" + planted + "\r\n"), "is not HTTP/1.1"},
		{"has no number for a status", say("HTTP/1.1 " + planted + "\r\n\r\n"), "is not HTTP/1.1"},
		{"has a reason of its own", say("HTTP/1.1 500 " + planted + "\r\nContent-Length: 0\r\n\r\n"), "answered 500"},
		{"switches protocols", say("HTTP/1.1 101 " + planted + "\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"),
			"answered 101"},
		{"switches protocols and hangs", func(c net.Conn) {
			say("HTTP/1.1 101 " + planted + "\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")(c)
			wait(c)
		}, "answered 101"},
		{"answers slowly", func(c net.Conn) {
			request(c)
			for _, b := range []byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") {
				_, _ = c.Write([]byte{b})
			}
		}, ""},
		{"closes in the middle of its body", say("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123"), ""},
		{"sends half of its body and hangs", func(c net.Conn) {
			say("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123")(c)
			wait(c)
		}, ""},
		{"sends a body without an end", func(c net.Conn) {
			say("HTTP/1.1 202 OK\r\n\r\n")(c)
			for _, err := io.WriteString(c, "x"); err == nil; {
				_, err = io.WriteString(c, strings.Repeat("x", 1<<10))
			}
		}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			timeout := testenv.Patience
			if strings.Contains(test.problem, "no answer") {
				timeout = 300 * time.Millisecond
			}
			err := open(t, Options{Timeout: timeout}).Deliver(t.Context(), target(t, raw(t, test.do)), record("k", 1),
				first())
			switch {
			case test.problem == "" && err != nil:
				t.Errorf("not acknowledged: %v", err)
			case test.problem != "" && (err == nil || !strings.Contains(err.Error(), test.problem)):
				t.Errorf("%v; want an error with %q", err, test.problem)
			case err != nil && strings.Contains(err.Error(), planted):
				t.Errorf("the error quotes the receiver: %v", err)
			}
		})
	}
}

func TestALongBodyIsNotReadToItsEnd(t *testing.T) {
	t.Parallel()
	left := make(chan struct{})
	url := raw(t, func(c net.Conn) {
		request(c)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"+strings.Repeat("x", maxBody))
		_, _ = io.Copy(io.Discard, c) // until the other side has closed
		close(left)
	})
	s := open(t, Options{Timeout: testenv.Patience, BodyTime: testenv.Patience})
	if err := s.Deliver(t.Context(), target(t, url), record("k", 1), first()); err != nil {
		t.Error(err)
	}
	<-left
}

func TestAnEndedContextEndsAnAttempt(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	url := raw(t, func(c net.Conn) { request(c); cancel(); _, _ = io.Copy(io.Discard, c) })
	if err := open(t, Options{Timeout: testenv.Patience}).Deliver(ctx, target(t, url), record("k", 1),
		first()); !errors.Is(err, context.Canceled) {
		t.Errorf("the attempt ended with %v", err)
	}
}

func TestNothingIsSentWithoutTheLease(t *testing.T) {
	t.Parallel()
	seen := make(chan string, 10)
	url := raw(t, func(c net.Conn) {
		text, _ := io.ReadAll(c)
		seen <- string(text)
	})
	lost := delivery.Attempt{Number: 1, Owned: func() bool { return false }}
	if err := open(t, Options{}).Deliver(t.Context(), target(t, url), record("k", 1),
		lost); err != delivery.ErrNotOwned {
		t.Errorf("the attempt ended with %v", err)
	}
	if text := <-seen; !strings.HasSuffix(text, "\r\n\r\n") || strings.Contains(text, "specversion") {
		t.Errorf("the receiver got more than headers: %s", text)
	}
}

// When a receiver or a proxy answers after the headers, it cannot have the event. The lease may
// have ended before the body was sent.
func TestWhatWasNotSentIsNotAcknowledged(t *testing.T) {
	t.Parallel()
	url := raw(t, func(c net.Conn) {
		text := ""
		for b := make([]byte, 1); !strings.HasSuffix(text, "\r\n\r\n"); text += string(b) {
			if _, err := c.Read(b); err != nil {
				return
			}
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		_, _ = io.Copy(io.Discard, c)
	})
	answered := make(chan struct{})
	attempt := delivery.Attempt{Number: 1, Owned: func() bool { <-answered; return false }}
	err := open(t, Options{Timeout: testenv.Patience}).Deliver(t.Context(), target(t, url), record("k", 1), attempt)
	close(answered)
	if err == nil {
		t.Error("the event is acknowledged")
	}
}

func TestAHandshakeThatHangsEndsInTime(t *testing.T) {
	t.Parallel()
	url := strings.Replace(raw(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }), "http:", "https:", 1)
	s := open(t, Options{Timeout: 300 * time.Millisecond})
	for what, err := range map[string]error{
		"an attempt": s.Deliver(t.Context(), target(t, url), record("k", 1), first()),
		"a look":     s.Reach(t.Context(), target(t, url)),
	} {
		if err == nil || !strings.Contains(err.Error(), "within 300ms") {
			t.Errorf("%s ends with %v", what, err)
		}
	}
}

// resolver answers every name with the given addresses, and counts the questions.
func resolver(t testing.TB, answer func(name string, question int) netip.Addr) *net.Resolver {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	go func() {
		questions := 0
		for buf := make([]byte, 1500); ; {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if err := m.Unpack(buf[:n]); err != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Response, m.Authoritative, m.Additionals = true, true, nil
			if q.Type == dnsmessage.TypeA {
				addr := answer(strings.TrimSuffix(q.Name.String(), "."), questions)
				questions++
				if addr.IsValid() {
					m.Answers = []dnsmessage.Resource{{
						Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
						Body:   &dnsmessage.AResource{A: addr.As4()},
					}}
				} else {
					m.RCode = dnsmessage.RCodeNameError
				}
			}
			if text, err := m.Pack(); err == nil {
				_, _ = server.WriteTo(text, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
}

// A name server answers with a public address first and a private one later. No request reaches the
// private address, because the check is made on the address of the connection.
func TestANameThatLiesLeadsNowhere(t *testing.T) {
	t.Parallel()
	public, private := netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("127.0.0.1")
	reached := make(chan struct{}, 10)
	inside := raw(t, func(net.Conn) { reached <- struct{}{} })
	_, port, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(inside, "http://"), "/"), ":")
	for _, publicFirst := range []bool{true, false} {
		var mu sync.Mutex
		var connected []string
		s := New(Config{}, Options{Seals: seals(t), Resolver: resolver(t, func(_ string, n int) netip.Addr {
			if (n%2 == 0) == publicFirst {
				return public
			}
			return private
		}), Connect: func(address string) error {
			mu.Lock()
			defer mu.Unlock()
			connected = append(connected, address)
			if strings.HasPrefix(address, public.String()) {
				return errors.New("not from a test")
			}
			return nil
		}})
		for range 6 {
			if err := s.Deliver(t.Context(), target(t, "http://receiver.example:"+port+"/"), record("k", 1),
				first()); err == nil {
				t.Error("the event was acknowledged")
			} else if _, is := errors.AsType[*AddressError](err); !is &&
				!strings.Contains(err.Error(), "not from a test") {
				t.Errorf("refused with %v", err)
			}
		}
		if len(connected) == 0 || len(connected) == 6 {
			t.Errorf("public first %v: %d of 6 attempts were to connect", publicFirst, len(connected))
		}
		for _, address := range connected {
			if address != public.String()+":"+port {
				t.Errorf("public first %v: connects to %s", publicFirst, address)
			}
		}
	}
	select {
	case <-reached:
		t.Error("a request reached the private address")
	default:
	}
}

// The check is made at each attempt, so it notices when a name moves.
func TestPrivateAddressesAreRefusedUnlessAllowed(t *testing.T) {
	t.Parallel()
	url := receiver(t, func(http.ResponseWriter, *http.Request) {})
	strict := New(Config{}, Options{Seals: seals(t)})
	for _, err := range []error{strict.Deliver(t.Context(), target(t, url), record("k", 1), first()),
		strict.Reach(t.Context(), target(t, url))} {
		if refused, is := errors.AsType[*AddressError](err); !is || !refused.Remedy {
			t.Errorf("a loopback address: %v", err)
		}
	}
	if err := open(t, Options{}).Deliver(t.Context(), target(t, url), record("k", 1), first()); err != nil {
		t.Errorf("with allow_private: %v", err)
	}
	prod := open(t, Options{Prod: true})
	if err := prod.Deliver(t.Context(), target(t, url), record("k", 1), first()); err == nil ||
		!strings.Contains(err.Error(), "https") {
		t.Errorf("http in prod mode: %v", err)
	}
}

func TestNoProxyOfTheEnvironmentIsUsed(t *testing.T) { // not parallel: it sets the environment
	proxied := make(chan struct{}, 10)
	proxy := receiver(t, func(http.ResponseWriter, *http.Request) { proxied <- struct{}{} })
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"} {
		t.Setenv(name, proxy)
	}
	received := 0
	url := receiver(t, func(http.ResponseWriter, *http.Request) { received++ })
	_, port, _ := strings.Cut(strings.TrimPrefix(url, "http://"), ":")
	s := open(t, Options{Resolver: resolver(t, func(string, int) netip.Addr {
		return netip.MustParseAddr("127.0.0.1")
	})})
	if err := s.Deliver(t.Context(), target(t, "http://receiver.example:"+port), record("k", 1), first()); err != nil {
		t.Fatal(err)
	}
	if received != 1 || len(proxied) > 0 {
		t.Errorf("the receiver got %d requests, the proxy %d", received, len(proxied))
	}
}

// authority makes certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func (a authority) issue(t testing.TB, name string, until time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestOnlyTheRightCertificateIsAccepted(t *testing.T) {
	t.Parallel()
	trusted, stranger := newAuthority(t), newAuthority(t)
	roots := x509.NewCertPool()
	roots.AddCert(trusted.cert)
	soon := time.Now().Add(time.Hour)
	for _, test := range []struct {
		name    string
		config  *tls.Config // nil: plain HTTP
		problem string      // part of the error; empty if acknowledged
	}{
		{"right", &tls.Config{Certificates: []tls.Certificate{trusted.issue(t, "receiver.example", soon)}}, ""},
		{"of another name", &tls.Config{Certificates: []tls.Certificate{trusted.issue(t, "planted.example", soon)}},
			`it is not for "receiver.example"`},
		{"of another authority",
			&tls.Config{Certificates: []tls.Certificate{stranger.issue(t, "receiver.example", soon)}},
			"its authority is not known"},
		{"expired", &tls.Config{Certificates: []tls.Certificate{trusted.issue(t, "receiver.example",
			time.Now().Add(-time.Minute))}},
			"it has expired"},
		{"old TLS", &tls.Config{Certificates: []tls.Certificate{trusted.issue(t, "receiver.example", soon)},
			MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, "cannot agree on TLS"},
		{"no TLS", nil, "cannot agree on TLS"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var received atomic.Int64
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				received.Add(1)
			}))
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			if test.config != nil {
				server.TLS = test.config
				server.StartTLS()
			} else {
				server.Start()
			}
			t.Cleanup(server.Close)
			_, port, err := net.SplitHostPort(server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			s := open(t, Options{Prod: true, RootCAs: roots, Resolver: resolver(t, func(string, int) netip.Addr {
				return netip.MustParseAddr("127.0.0.1")
			})})
			hook := target(t, "https://receiver.example:"+port+"/")
			err = s.Reach(t.Context(), hook)
			if (err == nil) != (test.problem == "") || err != nil && !strings.Contains(err.Error(), test.problem) {
				t.Errorf("the check ends with %v", err)
			}
			err = s.Deliver(t.Context(), hook, record("k", 1), first())
			switch {
			case test.problem == "" && (err != nil || received.Load() != 1):
				t.Errorf("received %d, %v", received.Load(), err)
			case test.problem != "" &&
				(err == nil || !strings.Contains(err.Error(), test.problem) || received.Load() != 0):
				t.Errorf("received %d, %v; want an error with %q", received.Load(), err, test.problem)
			case err != nil && strings.Contains(err.Error(), "planted"):
				t.Errorf("the error quotes the receiver: %v", err)
			}
		})
	}
}

func TestWhereNobodyListens(t *testing.T) {
	t.Parallel()
	closed := net.JoinHostPort("127.0.0.1", strconv.Itoa(testenv.FreePort(t)))
	nobody := resolver(t, func(string, int) netip.Addr { return netip.Addr{} })
	for url, problem := range map[string]string{
		"http://" + closed + "/?token=in-the-url": "connect to " + closed,
		"http://receiver.example/in-the-url":      "resolve receiver.example",
	} {
		answer, err := open(t, Options{Resolver: nobody}).Send(t.Context(), target(t, url), record("k", 1), nil)
		if err == nil || !strings.Contains(err.Error(), problem) || strings.Contains(err.Error(), "in-the-url") {
			t.Errorf("%s: %v", url, err)
		}
		if answer.Address != "" || answer.Status != 0 {
			t.Errorf("%s: the answer is %+v", url, answer)
		}
	}
}

// One connection serves many requests in turn, and there are as many connections as keys at once.
func TestConnectionsAreUsedAgain(t *testing.T) {
	t.Parallel()
	var connections atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("x", 1000))
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	s := open(t, Options{})
	for n := range int64(20) {
		answer, err := s.Send(t.Context(), target(t, server.URL), record("k", n+1), nil)
		if err != nil || answer.Address != server.Listener.Addr().String() || answer.Status != 200 {
			t.Fatalf("%+v, %v", answer, err)
		}
	}
	if n := connections.Load(); n > 5 { // one, unless the machine paused for longer than connections are kept
		t.Errorf("20 requests took %d connections", n)
	}
	s.mu.Lock()
	s.since = s.since.Add(-2 * connectionAge)
	s.mu.Unlock()
	before := connections.Load()
	if _, err := s.Send(t.Context(), target(t, server.URL), record("k", 21), nil); err != nil {
		t.Fatal(err)
	}
	if connections.Load() != before+1 {
		t.Error("an old connection is used again")
	}
}

// A receiver that closes a connection on an event must not get it over all connections that are idle.
func TestAnEventThatClosesItsConnectionIsNotSentOverAllOfThem(t *testing.T) {
	t.Parallel()
	const idle = 10
	var all sync.WaitGroup
	all.Add(idle)
	var bad atomic.Int64
	url := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.Header.Get("webhook-id") == record("k", 100).EventID {
			bad.Add(1)
			panic(http.ErrAbortHandler)
		}
		all.Done()
		all.Wait() // so that each needs a connection of its own
	})
	s := open(t, Options{})
	errs := make(chan error, idle)
	for n := range int64(idle) {
		go func() { errs <- s.Deliver(t.Context(), target(t, url), record("k", n+1), first()) }()
	}
	for range idle {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	err := s.Deliver(t.Context(), target(t, url), record("k", 100), first())
	if err == nil || err.Error() != "the receiver closed the connection before it answered" {
		t.Errorf("%v", err)
	}
	if n := bad.Load(); n < 1 || n > maxTries {
		t.Errorf("the event was sent %d times in one attempt", n)
	}
}

// Requests of many keys are in flight at once, each on its own connection, and none waits for
// another.
func TestManyRequestsAreUnderWayAtOnce(t *testing.T) {
	t.Parallel()
	const keys = 50
	var together sync.WaitGroup
	together.Add(keys)
	url := receiver(t, func(http.ResponseWriter, *http.Request) {
		together.Done()
		together.Wait() // answers once all have arrived
	})
	s := open(t, Options{Timeout: testenv.Patience})
	failed := make(chan error, keys)
	for n := range keys {
		go func() {
			failed <- s.Deliver(t.Context(), target(t, url), record(fmt.Sprint("k", n), int64(n+1)), first())
		}()
	}
	for range keys {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}

func TestAnEventIsMadeIntoValidJSON(t *testing.T) {
	t.Parallel()
	var body []byte
	url := receiver(t, func(_ http.ResponseWriter, r *http.Request) { body, _ = io.ReadAll(r.Body) })
	again := record("k", 1)
	again.Replay = true
	if err := open(t, Options{}).Deliver(t.Context(), target(t, url), again, first()); err != nil {
		t.Fatal(err)
	}
	var event struct{ Replay bool }
	if err := json.Unmarshal(body, &event); err != nil || !event.Replay {
		t.Errorf("%s: %v", body, err)
	}
}
