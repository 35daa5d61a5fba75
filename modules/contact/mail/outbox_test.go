package mail

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/modules/contact"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/delivery"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// deliver runs a deliverer of mails until the returned function is called or the test ends.
func deliver(t *testing.T, db *database.DB, m *Mailer) (stop func()) {
	t.Helper()
	d, err := delivery.New(db, map[string]delivery.Sink{outbox.KindMail: m},
		// On a busy machine a shorter lease may end between a mail and the record that it was sent.
		delivery.Config{Lease: 30 * time.Second, Pause: 20 * time.Millisecond},
		delivery.Options{Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the deliverer ended with: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// queued adds a notice for each address, each to another person.
func queued(t *testing.T, db *database.DB, s *contact.Sealer, to ...string) {
	t.Helper()
	queuedUntil(t, db, s, time.Now().Add(72*time.Hour), to...)
}

// queuedUntil is queued for notices that expire at a time.
func queuedUntil(t *testing.T, db *database.DB, s *contact.Sealer, expires time.Time, to ...string) {
	t.Helper()
	events := make([]outbox.Event, len(to))
	for i, address := range to {
		var err error
		events[i], err = s.Event(contact.Message{Purpose: contact.PurposeNoticePassword, Recipient: address,
			UserID: uuid.New(), Username: "alice", LinkToken: "act_undo", ExpiresAt: expires}, testIssuer)
		if err != nil {
			t.Fatal(err)
		}
		events[i].Target = contact.TargetMail
	}
	for len(events) > 0 {
		n := min(len(events), 500)
		outboxtest.Add(t, db, events[:n]...)
		events = events[n:]
	}
}

// waiting returns the state of the target mail.
func waiting(t *testing.T, db *database.DB) outbox.DeliveryState {
	t.Helper()
	list, err := outbox.Deliveries(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.Name == contact.TargetMail {
			return s
		}
	}
	t.Fatal("there is no target mail")
	return outbox.DeliveryState{}
}

// Of many recipients the server refuses one, whose key is parked, and defers one, who gets the mail
// later. All others get their mails once.
func TestOneBadRecipientAmongManyHurtsNobody(t *testing.T) {
	t.Parallel()
	count := 100
	if os.Getenv("AUTHCTL_CAMPAIGN") == "long" {
		count = 10_000
	}
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := startSMTP(t)
		m := newMailer(t, s.config(), Options{DB: db})
		to := make([]string, count)
		for i := range to {
			to[i] = fmt.Sprintf("user%d@example.com", i)
		}
		const bad, slow = "rcpt-550.bad@example.com", "rcpt-451-once.slow@example.com"
		to[count/3], to[count/2] = bad, slow
		queued(t, db, m.opt.Sealer, to...)
		deliver(t, db, m)
		testenv.Eventually(t, "all but the parked one are sent", func() bool {
			w := waiting(t, db)
			return w.Waiting == 1 && w.ParkedKeys == 1
		})
		for _, address := range to {
			want := 1
			if address == bad {
				want = 0
			}
			if got := len(s.to(address)); got != want {
				t.Errorf("%s has %d mails", address, got)
			}
		}
		if most := maxConns + 2*count/maxMails; s.connected() > most {
			t.Errorf("%d connections, at most %d are needed", s.connected(), most)
		}
	})
}

// When the process is told to stop while a server checks a mail, it waits for the answer, so that
// the mail is sent once.
func TestAMailWhoseAnswerComesAfterTheStopIsSentOnce(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := startSMTP(t)
		m := newMailer(t, s.config(), Options{DB: db})
		const waits, unsent = "data-wait.alice@example.com", "rcpt-slow.bob@example.com"
		queued(t, db, m.opt.Sealer, waits, unsent)
		stop := deliver(t, db, m)
		for range 2 { // all of them are under way
			s.keepsWaiting(nil)
		}
		stopped := make(chan struct{})
		go func() { stop(); close(stopped) }()
		testenv.Eventually(t, "the stop has begun", func() bool {
			n, err := database.Value[int](db.QueryRowContext(t.Context(),
				"SELECT count(*) FROM outbox_deliverer WHERE kinds = '[]'"))
			return err == nil && n == 1
		})
		s.release()
		<-stopped
		if w := waiting(t, db); len(s.to(waits)) != 1 || w.Waiting != 1 || w.HeldKeys != 0 {
			t.Errorf("%d mails; %d wait, %d keys are held, want the unsent one and 0", len(s.to(waits)), w.Waiting,
				w.HeldKeys)
		}
	})
}

// Mails wait while there is no server, and are sent once there is one.
func TestMailsWaitForTheServer(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		none := newMailer(t, Config{URL: "smtp://127.0.0.1:1", From: "no-reply@example.com"}, Options{DB: db})
		queued(t, db, none.opt.Sealer, "alice@example.com", "bob@example.com")
		stop := deliver(t, db, none)
		testenv.Eventually(t, "it was tried", func() bool { return waiting(t, db).HeldKeys == 2 })
		stop()
		if w := waiting(t, db); w.ParkedKeys != 0 || w.Waiting != 2 {
			t.Errorf("%+v", w)
		}
		s := startSMTP(t)
		m := newMailer(t, s.config(), Options{DB: db, Sealer: none.opt.Sealer})
		deliver(t, db, m)
		testenv.Eventually(t, "both are sent", func() bool { return waiting(t, db).Waiting == 0 })
		if len(s.to("alice@example.com")) != 1 || len(s.to("bob@example.com")) != 1 {
			t.Error("they did not arrive once each")
		}
	})
}

// An expired message is not sent late, and does not count as failed.
func TestAnExpiredMessageIsDropped(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		dir := t.TempDir()
		m := newMailer(t, Config{}, Options{DB: db, DataDir: dir})
		queuedUntil(t, db, m.opt.Sealer, time.Now().Add(-time.Second), "alice@example.com")
		deliver(t, db, m)
		testenv.Eventually(t, "it is dropped", func() bool { return waiting(t, db).Waiting == 0 })
		if entries, err := os.ReadDir(dir + "/mail"); !os.IsNotExist(err) {
			t.Errorf("it was sent: %v", entries)
		}
	})
}

// A relay whose clock is days ahead drops no mail that has not expired by the database's clock.
func TestAClockThatIsAheadDropsNoMail(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := startSMTP(t)
		ahead := func() time.Time { return time.Now().Add(73 * time.Hour) }
		m := newMailer(t, s.config(), Options{DB: db, Now: ahead})
		queued(t, db, m.opt.Sealer, "alice@example.com")
		deliver(t, db, m)
		testenv.Eventually(t, "it is sent", func() bool { return waiting(t, db).Waiting == 0 })
		if n := len(s.to("alice@example.com")); n != 1 {
			t.Errorf("it arrived %d times", n)
		}
	})
}

// A relay's role may only deliver, and may announce that an address takes no mails. Without the
// right to announce, which an operator may have forgotten to grant, the mail is still parked.
func TestARelayCanAnnounceARefusedMailAndNothingElse(t *testing.T) {
	t.Parallel()
	address := dbtest.PostgresURL(t)
	owner := dbtest.Open(t, address)
	role, secret := "mail_"+strings.ReplaceAll(uuid.NewString(), "-", ""), uuid.NewString()
	run := func(statement string) {
		t.Helper()
		if _, err := owner.Write(t.Context(), strings.ReplaceAll(statement, "WHO", role)); err != nil {
			t.Fatal(err)
		}
	}
	run("CREATE ROLE WHO LOGIN PASSWORD '" + secret + "'")
	run("GRANT SELECT (id, state) ON contact_challenge TO WHO")
	run("GRANT SELECT ON outbox_key, outbox_finished_key TO WHO")
	run("REVOKE EXECUTE ON FUNCTION outbox_add_undeliverable, outbox_add, outbox_add_message FROM PUBLIC")
	t.Cleanup(func() {
		if _, err := owner.Write(context.Background(), "DROP OWNED BY "+role+"; DROP ROLE "+role); err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, secret)
	relay := dbtest.Open(t, u.String())
	logged, logs := observer.New(zap.WarnLevel)
	s := startSMTP(t)
	m := newMailer(t, s.config(), Options{DB: relay, Log: zap.New(logged)})
	queued(t, owner, m.opt.Sealer, "rcpt-550@example.com")
	r := outbox.Record{}
	err = owner.QueryRowContext(t.Context(), "SELECT id, event_id, type, key, source, time, data FROM outbox_message").
		Scan(&r.ID, &r.EventID, &r.Type, &r.Key, &r.Source, &r.Time, &r.Data)
	if err != nil {
		t.Fatal(err)
	}
	announced := func() string {
		t.Helper()
		list, err := database.Collect(t.Context(), owner, "read events", database.Value[string],
			"SELECT type || ' ' || data FROM outbox_event")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(list, "\n")
	}
	err = m.Deliver(t.Context(), outbox.Subscription{}, r, always())
	if outcome(err) != "refused" || logs.FilterMessage("undeliverable_not_announced").Len() != 1 || announced() != "" {
		t.Errorf("without the right: %v, %v, %s", err, logs.All(), announced())
	}
	run("GRANT EXECUTE ON FUNCTION outbox_add_undeliverable TO WHO")
	err = m.Deliver(t.Context(), outbox.Subscription{}, r, always())
	if got := announced(); outcome(err) != "refused" || !strings.HasPrefix(got, contact.EventUndeliverable+" ") ||
		!strings.Contains(got, `"address":"rcpt-550@example.com"`) {
		t.Errorf("with the right: %v, %s", err, got)
	}
	before := announced()
	add := func(id int64, e outbox.Event) error {
		return relay.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
			return outbox.AddUndeliverable(ctx, tx, id, e)
		})
	}
	e := outboxtest.Event("x")
	if err := add(r.ID, e); err != nil {
		t.Error(err)
	}
	e.Type = contact.EventUndeliverable
	if err := add(r.ID+1, e); err != nil { // no waiting message has this id
		t.Error(err)
	}
	err = relay.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error { return outbox.Add(ctx, tx, e) })
	if !database.IsForbidden(err) {
		t.Errorf("a relay adds an event: %v", err)
	}
	if announced() != before {
		t.Errorf("a relay has added: %s", announced())
	}
}

// No two events have one id, and ids are UUIDv7: consumers pass over an event whose id they know.
func TestEachRefusalIsAnEventOfItsOwn(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := startSMTP(t)
		m := newMailer(t, s.config(), Options{DB: db})
		queued(t, db, m.opt.Sealer, "rcpt-550@example.com")
		announced := func() (ids []string) {
			err := outbox.Tail(t.Context(), db, outbox.TailOptions{Last: 9}, func(e outbox.Entry) error {
				ids = append(ids, e.EventID)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return ids
		}
		deliver(t, db, m)
		testenv.Eventually(t, "the address is parked", func() bool { return waiting(t, db).ParkedKeys == 1 })
		mail, err := outbox.FindSubscription(t.Context(), db, contact.TargetMail)
		if err == nil {
			_, err = outbox.RetryAllHeld(t.Context(), db, mail)
		}
		if err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, "it is parked again", func() bool {
			return len(announced()) == 2 && waiting(t, db).ParkedKeys == 1
		})
		ids := map[uuid.UUID]bool{}
		for _, text := range announced() {
			id, err := uuid.Parse(text)
			if err != nil || id.Version() != 7 || ids[id] {
				t.Errorf("an event has the id %s", text)
			}
			ids[id] = true
		}
	})
}

// An account may be deleted while the server thinks about a mail to it. Nothing follows its UserDeleted, and nobody is
// asked what to do about the mail.
func TestARefusalAfterTheAccountWasDeletedIsNotAnnounced(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		m := newMailer(t, startSMTP(t).config(), Options{DB: db})
		queued(t, db, m.opt.Sealer, "data-554@example.com")
		r := outbox.Record{}
		err := db.QueryRowContext(t.Context(), "SELECT id, event_id, source, time, data FROM outbox_message").
			Scan(&r.ID, &r.EventID, &r.Source, &r.Time, &r.Data)
		if err != nil {
			t.Fatal(err)
		}
		message, err := m.opt.Sealer.Open(uuid.MustParse(r.EventID), r.Data)
		if err != nil {
			t.Fatal(err)
		}
		attempt := always()
		attempt.Owned = func() bool { // when all but the last byte is sent
			err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
				key := message.UserID.String()
				return errors.Join(outbox.Add(ctx, tx, outboxtest.Event(key)), outbox.Finish(ctx, tx, key))
			})
			if err != nil {
				t.Error(err)
			}
			return true
		}
		if err := m.Deliver(t.Context(), outbox.Subscription{}, r, attempt); outcome(err) != "dropped" {
			t.Errorf("it is %v", err)
		}
		var events int
		if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM outbox_event").Scan(&events); err != nil || events != 1 {
			t.Errorf("there are %d events, %v", events, err)
		}
	})
}

// The mails to a refused address are parked, and the same person's other address gets its mails.
func TestADeadAddressHoldsUpNoOtherOfThePerson(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := startSMTP(t)
		m := newMailer(t, s.config(), Options{DB: db})
		person := uuid.New()
		var events []outbox.Event
		for _, to := range []string{"rcpt-550.old@example.com", "new@example.com", "rcpt-550.old@example.com",
			"new@example.com"} {
			e, err := m.opt.Sealer.Event(contact.Message{Purpose: contact.PurposeNoticePassword, Recipient: to,
				UserID:    person,
				ContactID: uuid.NewSHA1(person, []byte(to)), Username: "alice"}, testIssuer)
			if err != nil {
				t.Fatal(err)
			}
			e.Target = contact.TargetMail
			events = append(events, e)
		}
		// A mail of the previous release, whose key was the person alone.
		again, err := m.opt.Sealer.Event(contact.Message{Purpose: contact.PurposeNoticePassword,
			Recipient: "new@example.com", UserID: person,
			Username: "alice"}, testIssuer)
		if err != nil {
			t.Fatal(err)
		}
		again.Target, again.Key = contact.TargetMail, "mail:"+person.String()
		outboxtest.Add(t, db, append(events, again)...)
		deliver(t, db, m)
		testenv.Eventually(t, "all but those to the dead address are sent", func() bool {
			w := waiting(t, db)
			return w.Waiting == 2 && w.ParkedKeys == 1
		})
		if got := len(s.to("new@example.com")); got != 3 {
			t.Errorf("%d mails to the other address", got)
		}
	})
}

// What is parked for an address ends by itself once nobody can want it: also when the account is gone, and nobody
// would look for it.
func TestAParkedMailEndsWithItsUse(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		s := startSMTP(t)
		m := newMailer(t, s.config(), Options{DB: db})
		deleted, live := uuid.New(), uuid.New()
		message := func(user uuid.UUID) {
			t.Helper()
			e, err := m.opt.Sealer.Event(contact.Message{Purpose: contact.PurposeNoticePassword, UserID: user,
				Recipient: "rcpt-550." + user.String() + "@example.com",
				ExpiresAt: time.Now().Add(contact.LongestLife)}, testIssuer)
			if err != nil {
				t.Fatal(err)
			}
			e.Target = contact.TargetMail
			outboxtest.Add(t, db, e)
		}
		message(deleted)
		message(deleted)
		message(live)
		stop := deliver(t, db, m)
		testenv.Eventually(t, "both are parked", func() bool { return waiting(t, db).ParkedKeys == 2 })
		stop()
		deliver(t, db, m)()
		if w := waiting(t, db); w.ParkedKeys != 2 || w.Waiting != 3 {
			t.Errorf("within their time: %+v", w)
		}
		err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
			e := outboxtest.Event(deleted.String())
			if err := outbox.Add(ctx, tx, e); err != nil {
				return err
			}
			return outbox.Finish(ctx, tx, deleted.String())
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = db.ExecContext(t.Context(), "UPDATE outbox_held_key SET parked_ms = parked_ms - ?",
			contact.LongestLife.Milliseconds())
		if err != nil {
			t.Fatal(err)
		}
		deliver(t, db, m)
		testenv.Eventually(t, "only what somebody may want is left", func() bool {
			w := waiting(t, db)
			return w.Waiting == 1 && w.HeldKeys == 0 && w.ParkedKeys == 1
		})
	})
}

// Mails wait for a server that is down for longer than outbox.webhook.retry_for: only refusals
// park.
func TestMailsAreNotParkedForBeingLate(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		m := newMailer(t, Config{URL: "smtp://127.0.0.1:1", From: "no-reply@example.com"}, Options{DB: db})
		queued(t, db, m.opt.Sealer, "alice@example.com")
		d, err := delivery.New(db, map[string]delivery.Sink{outbox.KindMail: m},
			delivery.Config{Lease: time.Second, Pause: time.Millisecond,
				RetryFor: time.Nanosecond}, delivery.Options{Log: zaptest.NewLogger(t)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		testenv.Eventually(t, "it was tried again", func() bool {
			n, err := database.Value[int](db.QueryRowContext(t.Context(),
				"SELECT coalesce(max(attempts), 0) FROM outbox_held_key"))
			return err == nil && n >= 3
		})
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if w := waiting(t, db); w.ParkedKeys != 0 || w.Waiting != 1 {
			t.Errorf("%+v", w)
		}
	})
}
