package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	netmail "net/mail"
	"net/textproto"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/contact"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/modules/outbox/webhook"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

const campaignSecret = config.Secret("the secret of the service in the campaign of targets")

// campaignTime is how long faults go on: AUTHCTL_CAMPAIGN is a duration, or long.
func campaignTime(t *testing.T) time.Duration {
	t.Helper()
	switch text := os.Getenv("AUTHCTL_CAMPAIGN"); text {
	case "":
		return 0 // enough for each fault to happen once
	case "long":
		return 5 * time.Minute
	default:
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("AUTHCTL_CAMPAIGN: %v", err)
		}
		return d
	}
}

// Two processes write, and two relays send: to Kafka, to three webhooks, one of which never
// answers, and to a mail server. Then the relays, Kafka and PostgreSQL are killed in turn, while
// one receiver and the mail server misbehave in every way that they can.
func TestEveryTargetGetsEveryEventInOrder(t *testing.T) {
	t.Parallel()
	kafka, postgres := outboxtest.StartKafka(t, 1), outboxtest.StartPostgres(t)
	db := dbtest.Open(t, postgres.URL)
	if _, err := migrations.Up(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	_, err := db.ExecContext(t.Context(), `CREATE TABLE mail_count (key text PRIMARY KEY, seq bigint NOT NULL)`)
	testenv.Must(t, err)
	f := &targetField{t: t, db: db, url: postgres.URL, kafka: kafka, hooks: map[string]*campaignHook{}}
	for _, name := range []string{"calm", "restless", "dead"} {
		f.addHook(name)
	}
	f.mail = startMailbox(t, &f.faulty)
	// Their leases do not end on a machine that is busy for seconds, which would be a fault.
	relays := []*outboxtest.Process{f.relay("1m"), f.relay("1m")}
	writers := []*outboxtest.Process{f.writer(), f.writer()}

	f.progress(150)
	if n := duplicates(f.readKafka()) + duplicates(f.mail.all()) + duplicates(f.hooks["calm"].all()) +
		duplicates(f.hooks["restless"].all()); n != 0 {
		t.Errorf("%d duplicates without a fault", n)
	}
	for _, calm := range relays {
		calm.Signal(t, syscall.SIGTERM)
	}
	for i, calm := range relays {
		if err := calm.Wait(); err != nil {
			t.Fatalf("a relay: %v", err)
		}
		relays[i] = f.relay("2s")
	}

	f.faulty.Store(true)
	faults := 0
	kill := func(n int) {
		relays[n].Kill()
		faults++
		f.progress(50)   // the other relay takes over
		var killed int64 // not too late: the leases of the killed relay end within 2 s
		err := db.QueryRowContext(t.Context(),
			`SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint`).Scan(&killed)
		testenv.Must(t, err)
		relays[n] = f.relay("2s")
		testenv.Eventually(t, "two relays share the work", func() bool {
			var owners int
			err := db.QueryRowContext(t.Context(), `SELECT count(DISTINCT owner) FROM outbox_delivery_lease
				WHERE until_ms > ?`, killed+2000).Scan(&owners)
			return err == nil && owners == 2
		})
	}
	for end := time.Now().Add(campaignTime(t)); faults == 0 || time.Now().Before(end); {
		kill(0)
		kafka.Signal(t, 1, syscall.SIGKILL)
		f.calmProgress(100) // a dead log holds up no other target
		kafka.Restart(t, 1)
		faults++
		f.progress(50)
		kill(1)
		postgres.Crash(t)
		postgres.Start(t)
		faults++
		f.progress(50)
	}
	f.faulty.Store(false)
	var events, mails []outboxtest.Written
	for i, w := range writers {
		w.Signal(t, syscall.SIGTERM)
		if err := w.Wait(); err != nil {
			t.Fatalf("a writer: %v", err)
		}
		e, m := f.written(i)
		events, mails = append(events, e...), append(mails, m...)
	}
	f.drained()

	for name, r := range map[string]outboxtest.Report{
		"kafka": outboxtest.Check(events, f.readKafka()), "calm": outboxtest.Check(events, f.hooks["calm"].all()),
		"restless": outboxtest.Check(events, f.hooks["restless"].all()), "mail": outboxtest.Check(mails, f.mail.all()),
	} {
		// Duplicates come from what was in flight at a kill, and from what PostgreSQL had not
		// written when it crashed.
		most := 2000 * faults
		if !r.Sound(most) || r.Written == 0 {
			t.Errorf("%s after %d faults: %s", name, faults, r)
		}
		t.Logf("%s after %d faults: %s", name, faults, r)
	}
	for name, hook := range f.hooks {
		if hook.forged.Load() > 0 {
			t.Errorf("%s got %d requests with wrong signatures", name, hook.forged.Load())
		}
	}
	var written int64
	testenv.Must(t, db.QueryRowContext(t.Context(), `SELECT count(*) FROM outbox_event`).Scan(&written))
	list, err := outbox.Deliveries(t.Context(), db)
	testenv.Must(t, err)
	for _, s := range list {
		if s.Name == "dead" && s.Waiting != written || s.Name != "dead" && s.Waiting != 0 || s.ParkedKeys > 0 {
			t.Errorf("%s: %d of %d events wait, %d keys are parked", s.Name, s.Waiting, written, s.ParkedKeys)
		}
	}
}

func duplicates(seen []outboxtest.Seen) (n int) {
	have := map[string]bool{}
	for _, s := range seen {
		if have[s.ID] {
			n++
		}
		have[s.ID] = true
	}
	return n
}

// targetField is an installation with targets of every kind.
type targetField struct {
	t      *testing.T
	db     *database.DB
	url    string
	kafka  *outboxtest.Cluster
	hooks  map[string]*campaignHook
	mail   *mailbox
	faulty atomic.Bool // makes the restless receiver and the mail server misbehave
	files  []string    // what each writer did
}

const campaignTopic = "campaign"

func (f *targetField) start(program string, args []string, env ...string) *outboxtest.Process {
	f.t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		f.t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = f.t.TempDir()
	return outboxtest.Start(f.t, cmd, append(env, "DATABASE_URL="+f.url,
		"AUTH_TOKEN_SECRET="+campaignSecret.Reveal())...)
}

func (f *targetField) relay(lease string) *outboxtest.Process {
	f.t.Helper()
	return f.start("authctl", []string{"relay"}, "APP_DATA_DIR="+f.t.TempDir(), "APP_OPERATOR_ADDR=off",
		"KAFKA_BROKERS="+strings.Join(f.kafka.Brokers, ","), "KAFKA_TOPIC="+campaignTopic, "OUTBOX_LEASE="+lease,
		"OUTBOX_WEBHOOK_ALLOW_PRIVATE=true", "MAIL_URL=smtp://"+f.mail.address, "MAIL_FROM=no-reply@example.com",
		"LOG_LEVEL=error")
}

// writer starts a process that writes events and mails until it is told to stop.
func (f *targetField) writer() *outboxtest.Process {
	f.t.Helper()
	path := filepath.Join(f.t.TempDir(), "written")
	f.files = append(f.files, path)
	return f.start("writeevents", []string{path})
}

// written reads what a writer did, once it has ended.
func (f *targetField) written(n int) (events, mails []outboxtest.Written) {
	f.t.Helper()
	text, err := os.ReadFile(f.files[n])
	if err != nil {
		f.t.Fatal(err)
	}
	var both [2][]outboxtest.Written
	if err := json.Unmarshal(text, &both); err != nil {
		f.t.Fatal(err)
	}
	return both[0], both[1]
}

// writeEvents is the program of a writer: it writes what it did to the file of its argument.
func writeEvents() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := func() error {
		db, err := dbtest.Connect(ctx, os.Getenv("DATABASE_URL"), 0)
		if err != nil {
			return err
		}
		defer db.Close()
		sealer, err := contact.NewSealer(campaignSecret)
		if err != nil {
			return err
		}
		events, mails := &outboxtest.Log{}, &outboxtest.Log{}
		w := outboxtest.Workload{DB: db, Log: events, Writers: 2, Keys: 30, Pause: 30 * time.Millisecond}
		var all sync.WaitGroup
		all.Go(func() { w.Run(ctx) })
		all.Go(func() { writeMails(ctx, db, sealer, mails) })
		all.Wait()
		text, err := json.Marshal([2][]outboxtest.Written{events.All(), mails.All()})
		if err != nil {
			return err
		}
		return os.WriteFile(os.Args[1], text, 0o600)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "writer:", err)
		os.Exit(1)
	}
}

// writeMails writes mails to ten people. Mails have no sequence number, so the address carries it:
// KEY.N@example.com gets the Nth mail to the person KEY.
func writeMails(ctx context.Context, db *database.DB, sealer *contact.Sealer, log *outboxtest.Log) {
	for ctx.Err() == nil {
		w := outboxtest.Written{Key: fmt.Sprintf("person-%d", rand.IntN(10))}
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		committing := false
		err := db.Tx(within, func(ctx context.Context, tx database.Tx) error {
			committing = false
			err := tx.QueryRowContext(ctx, `INSERT INTO mail_count AS c (key, seq) VALUES (?, 1)
				ON CONFLICT (key) DO UPDATE SET seq = c.seq + 1 RETURNING seq`, w.Key).Scan(&w.Seq)
			if err != nil {
				return err
			}
			e, err := sealer.Event(contact.Message{Purpose: contact.PurposeNoticePassword,
				Recipient: fmt.Sprintf("%s.%d@example.com", w.Key, w.Seq), UserID: uuid.NewSHA1(uuid.Nil,
					[]byte(w.Key)),
				Username: w.Key, LinkToken: "act_undo",
				ExpiresAt: time.Now().Add(72 * time.Hour)}, "https://auth.example")
			if err != nil {
				return err
			}
			e.Target, w.ID = contact.TargetMail, e.ID.String()
			if err := outbox.Add(ctx, tx, e); err != nil {
				return err
			}
			if rand.IntN(20) == 0 {
				return context.Canceled
			}
			committing = true
			return nil
		})
		cancel()
		switch {
		case err != nil && committing:
			w.Outcome = outboxtest.Unknown
		case err != nil:
			w.Outcome = outboxtest.Aborted
		}
		if w.ID != "" {
			log.Add(w)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// progress waits until every living target has at least n more events, a tenth of that for mails.
func (f *targetField) progress(n int) {
	f.t.Helper()
	f.calmProgress(n)
	before := len(f.hooks["restless"].all())
	testenv.Eventually(f.t, "restless goes on", func() bool { return len(f.hooks["restless"].all()) > before })
	mails := len(f.mail.all())
	testenv.Eventually(f.t, "mail goes on", func() bool { return len(f.mail.all()) >= mails+n/10 })
	var top int64
	testenv.Eventually(f.t, "events are written", func() bool {
		return f.db.QueryRowContext(f.t.Context(), `SELECT max(id) FROM outbox_event`).Scan(&top) == nil
	})
	testenv.Eventually(f.t, "the log goes on", func() bool {
		var left int64
		err := f.db.QueryRowContext(f.t.Context(), `SELECT count(*) FROM outbox_pending WHERE id <= ?`, top).Scan(&left)
		return err == nil && left == 0
	})
}

func (f *targetField) calmProgress(n int) {
	f.t.Helper()
	want := len(f.hooks["calm"].all()) + n
	testenv.Eventually(f.t, "calm goes on", func() bool { return len(f.hooks["calm"].all()) >= want })
}

// drained waits until nothing is waiting for a living target.
func (f *targetField) drained() {
	f.t.Helper()
	testenv.Eventually(f.t, "nothing waits for the log", func() bool {
		st, err := outbox.Status(f.t.Context(), f.db)
		return err == nil && st.Pending == 0
	})
	testenv.Eventually(f.t, "nothing waits for the targets", func() bool {
		list, err := outbox.Deliveries(f.t.Context(), f.db)
		return err == nil && !slices.ContainsFunc(list, func(s outbox.DeliveryState) bool {
			return s.Name != "dead" && s.Waiting > 0
		})
	})
}

func (f *targetField) readKafka() (seen []outboxtest.Seen) {
	f.t.Helper()
	testenv.Eventually(f.t, "the topic can be read", func() bool { // a new broker still elects leaders
		var err error
		seen, err = outboxtest.ReadKafka(f.t.Context(), f.kafka.Brokers, campaignTopic)
		return err == nil
	})
	return seen
}

// campaignHook is a receiver that keeps what it accepts.
type campaignHook struct {
	name   string
	key    []byte
	faulty *atomic.Bool
	n      atomic.Int64
	forged atomic.Int64

	mu   sync.Mutex
	seen []outboxtest.Seen
}

func (f *targetField) addHook(name string) {
	f.t.Helper()
	seals, err := webhook.NewSeals(campaignSecret)
	if err != nil {
		f.t.Fatal(err)
	}
	secret := webhook.NewSecret()
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret.Reveal(), "whsec_"))
	if err != nil {
		f.t.Fatal(err)
	}
	h := &campaignHook{name: name, key: key, faulty: &f.faulty}
	server := httptest.NewServer(h)
	f.t.Cleanup(server.Close)
	f.t.Cleanup(server.CloseClientConnections) // locked only now, because some requests hang
	_, err = outbox.Subscribe(f.t.Context(), f.db,
		outbox.Subscription{Name: name, Kind: outbox.KindWebhook, URL: server.URL,
			Types: []string{"*"}, Secrets: []outbox.Secret{{Sealed: seals.Seal(name, secret)}}})
	if err != nil {
		f.t.Fatal(err)
	}
	f.hooks[name] = h
}

func (h *campaignHook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the relay was killed or lost its lease
	}
	if h.name == "dead" {
		<-r.Context().Done()
		return
	}
	mac := hmac.New(sha256.New, h.key)
	fmt.Fprintf(mac, "%s.%s.%s", r.Header.Get("Webhook-Id"), r.Header.Get("Webhook-Timestamp"), body)
	seen, err := outboxtest.ParseLine(body)
	if err != nil || seen.ID != r.Header.Get("Webhook-Id") ||
		r.Header.Get("Webhook-Signature") != "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
		h.forged.Add(1)
	}
	seen.Body = string(body)
	loses := false
	if h.name == "restless" && h.faulty.Load() {
		switch n := h.n.Add(1); {
		case n%200 == 0:
			<-r.Context().Done()
			return
		case n%40 == 1:
			w.WriteHeader(http.StatusInternalServerError)
			return
		case n%40 == 11:
			panic(http.ErrAbortHandler) // closes the connection early
		case n%40 == 21:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		case n%40 == 31:
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
			return
		case n%40 == 36:
			loses = true
		case n%10 == 5:
			time.Sleep(100 * time.Millisecond)
		}
	}
	h.mu.Lock()
	h.seen = append(h.seen, seen)
	h.mu.Unlock()
	if loses {
		panic(http.ErrAbortHandler) // accepts the event, but the answer is lost
	}
}

func (h *campaignHook) all() []outboxtest.Seen {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.seen)
}

// mailbox is an SMTP server. It keeps the mails that it accepts in the form that outboxtest checks.
type mailbox struct {
	t       *testing.T
	address string
	faulty  *atomic.Bool
	n       atomic.Int64

	mu   sync.Mutex
	seen []outboxtest.Seen
}

func startMailbox(t *testing.T, faulty *atomic.Bool) *mailbox {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	testenv.Must(t, err)
	m := &mailbox{t: t, address: listener.Addr().String(), faulty: faulty}
	var all sync.WaitGroup
	var open sync.Map
	all.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			open.Store(c, true)
			all.Go(func() {
				defer c.Close()
				m.converse(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		open.Range(func(c, _ any) bool { _ = c.(net.Conn).Close(); return true })
		all.Wait()
	})
	return m
}

// converse speaks the part of RFC 5321 that a client needs to hand over mails.
func (m *mailbox) converse(c net.Conn) {
	lines := textproto.NewReader(bufio.NewReader(c))
	say := func(line string) bool { _, err := io.WriteString(c, line+"\r\n"); return err == nil }
	to := ""
	for ok := say("220 mail.example ESMTP"); ok; {
		line, err := lines.ReadLine()
		if err != nil {
			return
		}
		verb, rest, _ := strings.Cut(line, " ")
		switch strings.ToUpper(verb) {
		case "EHLO":
			ok = say("250-mail.example") && say("250-8BITMIME") && say("250 SMTPUTF8")
		case "RCPT":
			_, rest, _ = strings.Cut(rest, "<")
			to, _, _ = strings.Cut(rest, ">")
			ok = say("250 ok")
		case "DATA":
			if ok = say("354 go on"); !ok {
				return
			}
			text, err := lines.ReadDotBytes()
			if err != nil {
				return
			}
			ok = m.take(to, text, say)
		case "QUIT":
			say("221 bye")
			return
		default:
			ok = say("250 ok")
		}
	}
}

// take accepts a mail or refuses it, and reports whether the conversation goes on.
func (m *mailbox) take(to string, text []byte, say func(string) bool) bool {
	n := int64(-1)
	if m.faulty.Load() {
		n = m.n.Add(1) % 40
	}
	switch n {
	case 1:
		return say("451 try again later")
	case 11:
		return false // closes the connection early
	}
	mail, err := netmail.ReadMessage(bytes.NewReader(text))
	if err != nil {
		m.t.Errorf("a mail cannot be read: %v", err)
		return false
	}
	id, _, _ := strings.Cut(strings.Trim(mail.Header.Get("Message-Id"), "<>"), "@")
	local, _, _ := strings.Cut(to, "@")
	key, number, _ := strings.Cut(local, ".")
	seq, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		m.t.Errorf("a mail is to %s", to)
		return false
	}
	m.mu.Lock()
	m.seen = append(m.seen, outboxtest.Seen{ID: id, Key: key, Seq: seq, Body: string(text)})
	m.mu.Unlock()
	if n == 21 {
		return false // accepts the mail, but the answer is lost
	}
	return say("250 taken")
}

func (m *mailbox) all() []outboxtest.Seen {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.seen)
}
