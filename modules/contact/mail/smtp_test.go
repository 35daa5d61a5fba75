package mail

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/mail"
	"net/textproto"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/contact"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/delivery"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

const testIssuer = "https://auth.example.com"

func newSealer(t *testing.T) *contact.Sealer {
	t.Helper()
	s, err := contact.NewSealer("0123456789abcdef0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newMailer(t *testing.T, cfg Config, opt Options) *Mailer {
	t.Helper()
	opt.Issuer = testIssuer
	if opt.Sealer == nil {
		opt.Sealer = newSealer(t)
	}
	if opt.DB == nil {
		opt.DB = dbtest.SQLite(t)
	}
	m, err := New(cfg, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// notice is an event for one recipient, as the outbox stores it.
func notice(t *testing.T, s *contact.Sealer, to string) outbox.Record {
	t.Helper()
	e, err := s.Event(contact.Message{Purpose: contact.PurposeNoticePassword, Recipient: to, UserID: uuid.New(),
		Username: "alice", LinkToken: "act_undo", At: time.Now(), Address: "203.0.113.7",
		ExpiresAt: time.Now().Add(72 * time.Hour)}, testIssuer)
	if err != nil {
		t.Fatal(err)
	}
	return outbox.Record{EventID: e.ID.String(), Type: e.Type, Key: e.Key, Source: e.Source, Data: e.Data,
		Time: time.Now().UTC().Format(time.RFC3339Nano)}
}

// always is an attempt with a lease that does not end.
func always() delivery.Attempt {
	return delivery.Attempt{Number: 1, Owned: func() bool { return true }}
}

// outcome names what happens to an event after an attempt.
func outcome(err error) string {
	var refused *delivery.Refused
	var dropped *delivery.Dropped
	switch {
	case err == nil:
		return "taken"
	case errors.As(err, &refused):
		return "refused"
	case errors.As(err, &dropped):
		return "dropped"
	case errors.Is(err, delivery.ErrNotOwned):
		return "not owned"
	}
	return "again"
}

func TestWhatAServerAnswersDecidesWhatBecomesOfAMail(t *testing.T) {
	t.Parallel()
	s := startSMTP(t)
	m := newMailer(t, s.config(), Options{})
	for _, test := range []struct {
		to    string
		want  string // of each attempt
		taken int    // mails that the server has at the end
	}{
		{"alice@example.com", "taken", 1},
		{"rcpt-550@example.com", "refused", 0},
		{"rcpt-553@example.com", "refused", 0},
		{"rcpt-501@example.com", "refused", 0},
		{"rcpt-530@example.com", "again", 0}, // a refusal of us, not of the recipient
		{"rcpt-policy@example.com", "again", 0},
		{"data-policy@example.com", "again", 0},
		{"rcpt-451-once@example.com", "again taken", 1},
		{"rcpt-452@example.com", "again again", 0},
		{"rcpt-421@example.com", "again", 0},
		{"data-554@example.com", "refused", 0},
		{"data-552@example.com", "again", 0}, // the mailbox is full
		{"data-451-once@example.com", "again taken", 1},
		// The server has the mail, but the answer is lost. The mail is sent again, with the same
		// Message-ID.
		{"data-lost-once@example.com", "again taken", 2},
		{"grüße@example.com", "taken", 1}, // SMTPUTF8
		{"alice@mail@example.com", "refused", 0},
		{"bob@example.com", "taken", 1}, // none of this affects the next mail
	} {
		r := notice(t, m.opt.Sealer, test.to)
		var got []string
		for range strings.Fields(test.want) {
			err := m.Deliver(t.Context(), outbox.Subscription{}, r, always())
			got = append(got, outcome(err))
			if unknown := err != nil && strings.Contains(err.Error(), "is not known"); unknown != (err != nil && test.taken == 2) {
				t.Errorf("%s: whether the mail was taken: %v", test.to, err)
			}
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: %s, want %s", test.to, got, test.want)
		}
		mails := s.to(test.to)
		if len(mails) != test.taken {
			t.Errorf("%s: the server has %d mails, want %d", test.to, len(mails), test.taken)
		}
		for _, mail := range mails {
			if mail.Text != mails[0].Text {
				t.Errorf("%s: two attempts differ:\n%s\n%s", test.to, mails[0].Text, mail.Text)
			}
			if id := mail.message(t).Header.Get("Message-ID"); id != "<"+r.EventID+"@example.com>" {
				t.Errorf("%s: the Message-ID is %s", test.to, id)
			}
			// Servers further on that lack SMTPUTF8 would refuse a mail that asks for it
			// needlessly.
			if mail.MailFrom != "no-reply@example.com" || mail.UTF8 != strings.Contains(test.to, "ü") {
				t.Errorf("%s: it is from %s, SMTPUTF8: %v", test.to, mail.MailFrom, mail.UTF8)
			}
		}
	}
	var announced []string
	err := outbox.Tail(t.Context(), m.opt.DB, outbox.TailOptions{Last: 100}, func(r outbox.Entry) error {
		announced = append(announced, r.Type+" "+string(r.Data))
		return nil
	})
	if err != nil || len(announced) != 5 || !strings.HasPrefix(announced[0], contact.EventUndeliverable) ||
		!strings.Contains(announced[0], `"address":"rcpt-550@example.com"`) ||
		!strings.Contains(announced[0], `"reason":"RCPT: the server answered 550 5.1.1 no such address"`) ||
		strings.Contains(strings.Join(announced, ""), "act_undo") {
		t.Errorf("announced: %q, %v", announced, err)
	}
}

// The answers are those of the servers named.
func TestARefusalOfUsIsNoneOfTheRecipient(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		step   string
		code   int
		answer string
		want   string
	}{
		{"RCPT", 550, "relay not permitted", "again"}, // Exim
		{"RCPT", 550, "Please turn on SMTP Authentication in your mail client\nhost [192.0.2.1] is not permitted to relay " +
			"through this server without authentication.", "again"}, // cPanel
		{"RCPT", 550, "Sender verify failed", "again"}, // Exim
		{"RCPT", 550, "5.1.0 <no-reply@example.com>: Sender address rejected: User unknown in local recipient table",
			"again"}, // Postfix
		{"RCPT", 550, "5.1.8 <no-reply@example.com>: Sender address rejected: Domain not found", "again"},         // Postfix
		{"RCPT", 553, "sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)", "again"},               // qmail
		{"RCPT", 554, "5.7.1 <alice@example.net>: Relay access denied", "again"},                                  // Postfix
		{"DATA", 550, "5.4.5 Daily user sending limit exceeded. For more information on Gmail", "again"},          // Gmail
		{"end of DATA", 550, "5.4.5 Daily SMTP quota exceeded", "again"},                                          // Gmail
		{"end of DATA", 553, "Relaying disallowed as no-reply@example.com", "again"},                              // Zoho
		{"end of DATA", 554, "5.2.252 SendAsDenied; a@example.com not allowed to send as b@example.com", "again"}, // Microsoft
		{"end of DATA", 554, "5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied",
			"again"}, // Microsoft
		{"end of DATA", 550, "The from address does not match a verified Sender Identity. Mail cannot be sent until " +
			"this error is resolved.", "again"}, // SendGrid
		{"end of DATA", 554, "Message rejected: Email address is not verified. The following identities failed the " +
			"check in region EU-WEST-1: no-reply@example.com", "again"}, // Amazon SES
		{"end of DATA", 550, "From header sender domain not verified.", "again"}, // SMTP2GO
		{"RCPT", 550, "5.1.1 <alice@example.net>: Recipient address rejected: User unknown in local recipient table",
			"refused"}, // Postfix
		{"RCPT", 550, "5.1.1 <sender.relay@example.net>: Recipient address rejected: User unknown in virtual table",
			"refused"}, // Postfix, and the word is one of the address
		{"RCPT", 550, "Unrouteable address", "refused"},                              // Exim
		{"RCPT", 550, "5.4.1 Recipient address rejected: Access denied.", "refused"}, // Microsoft
		{"RCPT", 550, "5.1.1 The email account that you tried to reach does not exist. Please try double-checking " +
			"the recipient's email address for typos or unnecessary spaces.", "refused"}, // Gmail
		{"end of DATA", 552, "5.3.4 Error: message file too big", "refused"},                         // Postfix
		{"end of DATA", 552, "5.2.3 Your message exceeded Google's message size limits.", "refused"}, // Gmail
		{"end of DATA", 552, "Quota exceeded", "again"},
		{"RCPT", 552, "5.2.2 The email account that you tried to reach is over quota.", "again"},         // Gmail
		{"end of DATA", 554, "delivery error: dd This user doesn't have a yahoo.com account", "refused"}, // Yahoo
	} {
		err := classify(&stepError{test.step, &textproto.Error{Code: test.code, Msg: test.answer}})
		if got := outcome(err); got != test.want {
			t.Errorf("%s, %d %s: %s", test.step, test.code, test.answer, got)
		}
	}
}

func TestAMailThatCannotBeAnnouncedAsRefusedIsTriedAgain(t *testing.T) {
	t.Parallel()
	s := startSMTP(t)
	m := newMailer(t, s.config(), Options{})
	if _, err := m.opt.DB.Write(t.Context(), "ALTER TABLE outbox_event RENAME TO outbox_event_away"); err != nil {
		t.Fatal(err)
	}
	err := m.Deliver(t.Context(), outbox.Subscription{}, notice(t, m.opt.Sealer, "rcpt-550@example.com"), always())
	if outcome(err) != "again" {
		t.Errorf("%v", err)
	}
}

// A name without a domain means nothing to the server. Google's relay hangs up on localhost.
func TestTheServerIsGreetedWithADomain(t *testing.T) {
	t.Parallel()
	from := &mail.Address{Address: "no-reply@example.com"}
	for machine, want := range map[string]string{"": "example.com", "0f5831cd80bb": "example.com",
		"localhost": "example.com", "auth.example.net": "auth.example.net"} {
		if got := heloName(machine, from); got != want {
			t.Errorf("on %q: %s", machine, got)
		}
	}
	s := startSMTP(t)
	m := newMailer(t, s.config(), Options{})
	if err := m.Test(t.Context(), "alice@example.com", io.Discard); err != nil {
		t.Fatal(err)
	}
	if got := s.to("alice@example.com")[0].Helo; !strings.Contains(got, ".") {
		t.Errorf("greeted as %s", got)
	}
}

// An answer about the sender, or an error before that, is no fault of a recipient.
func TestAServerThatTakesNothingParksNobody(t *testing.T) {
	t.Parallel()
	for name, arguments := range map[string][]string{
		"refuses the sender":     {"--mail", "550"},
		"refuses the connection": {"--greeting", "554"},
		"wants a password":       {"--user", "alice", "--password", "secret"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSMTP(t, arguments...)
			m := newMailer(t, s.config(), Options{})
			err := m.Deliver(t.Context(), outbox.Subscription{}, notice(t, m.opt.Sealer, "alice@example.com"), always())
			if outcome(err) != "again" {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("is not there", func(t *testing.T) {
		t.Parallel()
		m := newMailer(t, Config{URL: "smtp://127.0.0.1:1", From: "no-reply@example.com"}, Options{})
		err := m.Deliver(t.Context(), outbox.Subscription{}, notice(t, m.opt.Sealer, "alice@example.com"), always())
		if outcome(err) != "again" {
			t.Errorf("%v", err)
		}
	})
}

// When the context ends, a server that does not answer is left.
func TestASlowServerIsLeftWhenTheContextEnds(t *testing.T) {
	t.Parallel()
	s := startSMTP(t)
	m := newMailer(t, s.config(), Options{})
	for _, to := range []string{"rcpt-slow@example.com", "data-slow@example.com"} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		r := notice(t, m.opt.Sealer, to)
		go func() { done <- m.Deliver(ctx, outbox.Subscription{}, r, always()) }()
		s.keepsWaiting(done)
		cancel()
		if err := <-done; outcome(err) != "again" {
			t.Errorf("%s: %v", to, err)
		}
	}
	err := m.Deliver(t.Context(), outbox.Subscription{}, notice(t, m.opt.Sealer, "alice@example.com"), always())
	if err != nil || len(s.to("alice@example.com")) != 1 {
		t.Errorf("afterwards: %v", err)
	}
}

func TestAMailIsNotSentOnceItsLeaseHasEnded(t *testing.T) {
	t.Parallel()
	s := startSMTP(t)
	m := newMailer(t, s.config(), Options{})
	attempt := delivery.Attempt{Number: 1, Owned: func() bool { return false }}
	err := m.Deliver(t.Context(), outbox.Subscription{}, notice(t, m.opt.Sealer, "alice@example.com"), attempt)
	if outcome(err) != "not owned" || len(s.to("alice@example.com")) != 0 {
		t.Errorf("%v, %d mails", err, len(s.to("alice@example.com")))
	}
	err = m.Deliver(t.Context(), outbox.Subscription{}, notice(t, m.opt.Sealer, "alice@example.com"), always())
	if err != nil || len(s.to("alice@example.com")) != 1 {
		t.Errorf("the next one: %v, %d mails", err, len(s.to("alice@example.com")))
	}
}

func TestOneConnectionServesManyMails(t *testing.T) {
	t.Parallel()
	s := startSMTP(t)
	m := newMailer(t, s.config(), Options{})
	for i := range 50 {
		to := fmt.Sprintf("alice%d@example.com", i)
		if i%10 == 5 {
			to = fmt.Sprintf("rcpt-550.%d@example.com", i)
		}
		_ = m.Deliver(t.Context(), outbox.Subscription{}, notice(t, m.opt.Sealer, to), always())
	}
	if s.connected() != 1 || len(s.to("alice49@example.com")) != 1 {
		t.Errorf("%d connections", s.connected())
	}
}

func TestTLSAndSigningIn(t *testing.T) {
	t.Parallel()
	good, wrong := makeCertificates(t, "localhost"), makeCertificates(t, "mail.example.com")
	tls := func(c certificates) []string { return []string{"--cert", c.cert, "--key", c.key} }
	const user, secret = "mailer@example.com", "pa%s/word@1"
	const account = "mailer%40example.com:pa%25s%2Fword%401@"
	signsIn := func(more ...string) []string { return append([]string{"--user", user, "--password", secret}, more...) }
	type try struct {
		name      string
		arguments []string
		url       string // PORT is replaced by the server's
		ca        string
		problem   string // part of the error; empty if the mail arrives
		tls       bool
		user      string
	}
	byServer := map[string][]try{}
	for _, test := range []try{
		{"STARTTLS", tls(good), "smtp://localhost:PORT?starttls=required", good.ca, "", true, ""},
		{"STARTTLS of a wrong name", tls(wrong), "smtp://localhost:PORT?starttls=required", wrong.ca,
			"STARTTLS: name the server in mail.url as its certificate does", false, ""},
		{"STARTTLS of an unknown authority", tls(good), "smtp://localhost:PORT?starttls=required", "",
			"name a file with it in mail.ca_file", false, ""},
		{"a wrong name and STARTTLS optional", tls(wrong), "smtp://localhost:PORT?starttls=optional", wrong.ca,
			"STARTTLS: ", false, ""},
		{"no STARTTLS", nil, "smtp://localhost:PORT?starttls=required", "", "the server offers no STARTTLS", false, ""},
		{"no STARTTLS on this machine", nil, "smtp://localhost:PORT", "", "", false, ""},
		{"TLS from the start", append(tls(good), "--implicit"), "smtps://localhost:PORT", good.ca, "", true, ""},
		{"TLS from the start of a wrong name", append(tls(wrong), "--implicit"), "smtps://localhost:PORT", wrong.ca,
			"TLS: ", false, ""},
		{"PLAIN", signsIn(tls(good)...), "smtp://" + account + "localhost:PORT",
			good.ca, "", true, user},
		{"LOGIN", signsIn(append(tls(good), "--mechanism", "LOGIN")...), "smtp://" + account + "localhost:PORT",
			good.ca, "", true, user},
		{"SCRAM", signsIn(append(tls(good), "--mechanism", "SCRAM-SHA-256")...), "smtp://" + account + "localhost:PORT",
			good.ca, "", true, user},
		{"a wrong password", signsIn(tls(good)...), "smtp://mailer%40example.com:wrong@localhost:PORT", good.ca,
			"AUTH PLAIN: the server answered 535", false, ""},
		{"a wrong password by SCRAM", signsIn(append(tls(good), "--mechanism", "SCRAM-SHA-256")...),
			"smtp://mailer%40example.com:wrong@localhost:PORT", good.ca,
			"AUTH SCRAM-SHA-256: the server answered 535", false, ""},
	} {
		key := strings.Join(test.arguments, " ")
		byServer[key] = append(byServer[key], test)
	}
	for _, tries := range byServer {
		t.Run(tries[0].name, func(t *testing.T) {
			t.Parallel()
			s := startSMTP(t, tries[0].arguments...)
			for _, test := range tries {
				to := strings.ReplaceAll(test.name, " ", "-") + "@example.com"
				url := strings.Replace(test.url, "PORT", fmt.Sprint(s.port), 1)
				m := newMailer(t, Config{URL: config.Secret(url), From: "no-reply@example.com", CAFile: test.ca},
					Options{})
				err := m.Deliver(t.Context(), outbox.Subscription{}, notice(t, m.opt.Sealer, to), always())
				mails := s.to(to)
				switch {
				case test.problem == "":
					if err != nil || len(mails) != 1 || mails[0].TLS != test.tls || mails[0].User != test.user {
						t.Errorf("%s: %v, %+v", test.name, err, mails)
					}
				case outcome(err) != "again" || !strings.Contains(err.Error(), test.problem) || len(mails) > 0:
					t.Errorf("%s: %v, want %s", test.name, err, test.problem)
				case strings.Contains(err.Error(), "wrong@") || strings.Contains(err.Error(), secret):
					t.Errorf("%s: the error shows the password: %v", test.name, err)
				}
			}
		})
	}
}

// Postfix with saslauthd offers SCRAM and has nothing to check it with, and QQ offers PLAIN and refuses it.
func TestAfterAMechanismThatIsRefusedTheNextOneIsTried(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ broken, answer, works string }{
		{"SCRAM-SHA-256", "454 4.7.0", "PLAIN"}, {"PLAIN", "535 5.7.8", "LOGIN"},
	} {
		broken, works := test.broken, test.works
		s := startSMTP(t, "--user", "alice", "--password", "secret", "--broken", broken, "--mechanism", works)
		send := func(password string) (string, error) {
			m := newMailer(t, Config{URL: config.Secret("smtp://alice:" + password + "@" + s.address("127.0.0.1")),
				From: "no-reply@example.com"}, Options{})
			var said strings.Builder
			err := m.Test(t.Context(), "alice@example.com", &said)
			if err != nil {
				return said.String(), err
			}
			before := s.connected()
			m.sender.close()
			if err := m.Test(t.Context(), "bob@example.com", io.Discard); err != nil || s.connected() != before+1 {
				t.Errorf("%s: the second mail: %d connections, %v", works, s.connected()-before, err)
			}
			return said.String(), nil
		}
		said, err := send("secret")
		if err != nil || !strings.Contains(said, "AUTH "+broken+": the server answered "+test.answer) ||
			!strings.Contains(said, "signed in with "+works) {
			t.Errorf("%s: %v\n%s", works, err, said)
		}
		if _, err := send("wrong"); err == nil || !strings.Contains(err.Error(), "AUTH "+works+": the server answered 535") {
			t.Errorf("%s, a wrong password: %v", works, err)
		}
	}
}

// Many servers lock an account after some wrong passwords, and many mails may wait.
func TestAWrongPasswordIsTriedNowAndThen(t *testing.T) {
	t.Parallel()
	s := startSMTP(t, "--user", "alice", "--password", "secret", "--broken", "PLAIN", "--mechanism", "LOGIN")
	m := newMailer(t, Config{URL: config.Secret("smtp://alice:wrong@" + s.address("127.0.0.1")),
		From: "no-reply@example.com"}, Options{})
	sender := m.sender.(*smtpSender)
	deliver := func() {
		var all sync.WaitGroup
		for range 2 * maxConns {
			all.Go(func() {
				err := m.Deliver(t.Context(), outbox.Subscription{}, notice(t, m.opt.Sealer, "alice@example.com"), always())
				if outcome(err) != "again" || !strings.Contains(err.Error(), "the server answered 535") {
					t.Errorf("%v", err)
				}
			})
		}
		all.Wait()
	}
	tried := "PLAIN LOGIN" // each once, since servers offer what they cannot check
	for _, next := range []string{"PLAIN", "LOGIN"} {
		deliver()
		if got := s.signedIn(); got != tried {
			t.Errorf("it signs in with %s, want %s", got, tried)
		}
		sender.mu.Lock()
		sender.rest = time.Now()
		sender.mu.Unlock()
		tried += " " + next
	}
	sender.mu.Lock()
	sender.password = "secret" // set at the server
	sender.mu.Unlock()
	err := m.Deliver(t.Context(), outbox.Subscription{}, notice(t, m.opt.Sealer, "alice@example.com"), always())
	if err != nil || s.signedIn() != "PLAIN LOGIN PLAIN LOGIN" || sender.refused != 0 {
		t.Errorf("with the right one: %v, %s", err, s.signedIn())
	}
}

// A password is not sent to another machine without TLS, where others could read it. (0.0.0.0 does
// not count as this machine.)
func TestAPasswordIsNotSentWithoutTLS(t *testing.T) {
	t.Parallel()
	s := startSMTP(t, "--user", "alice", "--password", "secret")
	m := newMailer(t, Config{URL: config.Secret("smtp://alice:secret@" + s.address("0.0.0.0") + "?starttls=optional"),
		From: "no-reply@example.com"}, Options{})
	err := m.Deliver(t.Context(), outbox.Subscription{}, notice(t, m.opt.Sealer, "alice@example.com"), always())
	if outcome(err) != "again" || !strings.Contains(err.Error(), "the server offers none of") {
		t.Errorf("%v", err)
	}
}

func TestTheServerIsReachedWithoutAMail(t *testing.T) {
	t.Parallel()
	s := startSMTP(t, "--user", "alice", "--password", "secret")
	for url, want := range map[string]string{
		"smtp://alice:secret@" + s.address("127.0.0.1"): "",
		"smtp://alice:wrong@" + s.address("127.0.0.1"):  "AUTH",
		"smtp://127.0.0.1:1":                            "connect: ",
	} {
		m := newMailer(t, Config{URL: config.Secret(url), From: "no-reply@example.com"}, Options{})
		if err := m.Reach(t.Context()); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", url, err)
		}
	}
	if err := newMailer(t, Config{}, Options{DataDir: t.TempDir()}).Reach(t.Context()); err != nil {
		t.Errorf("a folder: %v", err)
	}
}

func TestATestSaysEachStep(t *testing.T) {
	t.Parallel()
	s := startSMTP(t)
	m := newMailer(t, s.config(), Options{})
	var said strings.Builder
	if err := m.Test(t.Context(), "alice@example.com", &said); err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"connected to 127.0.0.1", "greets as mx.example.test", "not encrypted",
		"accepts the sender no-reply@example.com", "accepts the recipient alice@example.com",
		"the whole mail is sent; the answer may take minutes", "has taken the mail: OK: queued"} {
		if !strings.Contains(said.String(), step) {
			t.Errorf("%q is not said:\n%s", step, &said)
		}
	}
	err := m.Test(t.Context(), "rcpt-550@example.com", &said)
	if err == nil || !strings.Contains(err.Error(), "RCPT: the server answered 550 5.1.1 no such address") {
		t.Errorf("refused: %v", err)
	}
	if err := m.Test(t.Context(), "alice@grüße.example", &said); err != nil || len(s.to("alice@xn--gre-6ka8l.example")) != 1 {
		t.Errorf("a domain that is not ASCII is sent as it is: %v", err)
	}
	if err := m.Test(t.Context(), "no address", &said); err == nil {
		t.Error("no address is no fault")
	}
	subject := s.to("alice@example.com")[0].message(t).Header.Get("Subject")
	if subject != "A test mail of auth.example.com" {
		t.Errorf("the subject is %s", subject)
	}
}

func TestWithoutAServerEachMailIsAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := newMailer(t, Config{}, Options{DataDir: dir})
	r := notice(t, m.opt.Sealer, "/x/y@example.com")
	for range 2 { // a duplicate overwrites the same file
		if err := m.Deliver(t.Context(), outbox.Subscription{}, r, always()); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(dir + "/mail")
	if err != nil || len(entries) != 1 {
		t.Fatalf("%v, %v", entries, err)
	}
	name := entries[0].Name()
	if !strings.HasSuffix(name, "-notice_password-_x_y@example.com.eml") {
		t.Errorf("the file is %s", name)
	}
	// Another message of the same moment, whose recipient gives the same file name, gets its own
	// file.
	other := notice(t, m.opt.Sealer, "/x?y@example.com")
	other.Time = r.Time
	if err := m.Deliver(t.Context(), outbox.Subscription{}, other, always()); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir + "/mail"); err != nil || len(entries) != 2 {
		t.Errorf("two messages are %v, %v", entries, err)
	} else {
		for _, e := range entries {
			if e.Name() != name {
				if err := os.Remove(dir + "/mail/" + e.Name()); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for path, mode := range map[string]os.FileMode{"": 0o700, "/" + name: 0o600} {
		info, err := os.Stat(dir + "/mail" + path)
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	f, err := os.Open(dir + "/mail/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if read, err := mail.ReadMessage(f); err != nil || read.Header.Get("Auto-Submitted") != "auto-generated" {
		t.Errorf("%v, %v", read, err)
	}
	lost := delivery.Attempt{Owned: func() bool { return false }}
	err = m.Deliver(t.Context(), outbox.Subscription{}, notice(t, m.opt.Sealer, "a@example.com"), lost)
	if outcome(err) != "not owned" {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(dir + "/mail"); len(entries) != 1 {
		t.Errorf("what remains: %v", entries)
	}
}

// hostile is no real server: it answers each line with the given answers in turn, and repeats the
// last one.
func hostile(t *testing.T, answers ...string) Config {
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
				lines := bufio.NewReader(c)
				for i := 0; ; i++ {
					if _, err := io.WriteString(c, answers[min(i, len(answers)-1)]); err != nil {
						return
					}
					if _, err := lines.ReadString('\n'); err != nil {
						return
					}
				}
			}()
		}
	}()
	return Config{URL: config.Secret("smtp://" + l.Addr().String()), From: "no-reply@example.com"}
}

// A server that sends nonsense costs no mail and no memory: the mail waits.
func TestAServerThatTalksNonsenseIsLeft(t *testing.T) {
	t.Parallel()
	const hello, endless = "220 hello\r\n", 8 << 20
	for name, answers := range map[string][]string{
		"no SMTP":             {"HTTP/1.1 400 Bad Request\r\n\r\n"},
		"a line without end":  {strings.Repeat("2", endless)},
		"lines without end":   {strings.Repeat("220-hello\r\n", endless/12)},
		"an answer half":      {hello, "250-mx\r\n250-"},
		"another code":        {hello, "250 mx\r\n", "354 go on\r\n"},
		"two codes":           {hello, "250-mx\r\n550 no\r\n"},
		"a code of one digit": {hello, "2 mx\r\n"},
		"NUL and escapes":     {hello, "250 mx\r\n", "550 \x00\x1b[31m\u202e\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMailer(t, hostile(t, answers...), Options{})
			ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
			defer cancel()
			if name == "an answer half" { // then the server is silent
				ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer cancel()
			}
			err := m.Deliver(ctx, outbox.Subscription{}, notice(t, m.opt.Sealer, "alice@example.com"), always())
			if got := outcome(err); got != "again" {
				t.Errorf("%s, %v", got, err)
			}
			if err != nil && (len(err.Error()) > 1000 || strings.ContainsFunc(err.Error(), unicode.IsControl)) {
				t.Errorf("the error is %.200q", err)
			}
		})
	}
}

// A server may check a mail for long after it has received all of it. The attempt waits, because
// giving up would send the mail again. Only the end of the process ends the wait.
func TestTheAnswerToAWholeMailIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := startSMTP(t)
	m := newMailer(t, s.config(), Options{})
	m.sender.(*smtpSender).stop = 0
	ctx := timedOut{t.Context(), make(chan struct{})}
	done := make(chan error, 1)
	r := notice(t, m.opt.Sealer, "data-wait.alice@example.com")
	go func() { done <- m.Deliver(ctx, outbox.Subscription{}, r, always()) }()
	s.keepsWaiting(done)
	close(ctx.done)
	s.hear() // the server continues
	s.release()
	if err := <-done; err != nil || len(s.to("data-wait.alice@example.com")) != 1 {
		t.Errorf("%v", err)
	}
}

// timedOut is a context whose deadline passes when the test says so.
type timedOut struct {
	context.Context
	done chan struct{}
}

func (c timedOut) Done() <-chan struct{} { return c.done }

func (c timedOut) Err() error {
	select {
	case <-c.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// A message that no secret of this process can open waits for a process with the secret, but only
// until the message expires.
func TestAMessageUnderAnotherSecretWaitsWhileItMakesSense(t *testing.T) {
	t.Parallel()
	other, err := contact.NewSealer("another secret of at least 32 characters")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	m := newMailer(t, Config{}, Options{DataDir: t.TempDir(), Now: func() time.Time { return now }})
	r := notice(t, other, "alice@example.com")
	if err := m.Deliver(t.Context(), outbox.Subscription{}, r, always()); outcome(err) != "again" ||
		!strings.Contains(err.Error(), "auth.token.previous_secrets") {
		t.Errorf("%v", err)
	}
	now = now.Add(contact.LongestLife + time.Second)
	if err := m.Deliver(t.Context(), outbox.Subscription{}, r, always()); outcome(err) != "dropped" {
		t.Errorf("%v", err)
	}
}

// Without its quotes it would be another address, or more than one.
func TestAnAddressWithQuotesIsRefused(t *testing.T) {
	t.Parallel()
	for _, text := range []string{`"a b"@example.com`, `"eve@example.net"@example.com`, `"a> <b"@example.com`} {
		if got, err := address(text); err == nil {
			t.Errorf("%s: %s", text, got)
		}
	}
}

func TestTLSFromTheStartWhereTheServerHasNone(t *testing.T) {
	t.Parallel()
	s := startSMTP(t)
	m := newMailer(t, Config{URL: config.Secret("smtps://" + s.address("127.0.0.1")), From: "no-reply@example.com"},
		Options{})
	err := m.Test(t.Context(), "alice@example.com", io.Discard)
	if err == nil || !strings.Contains(err.Error(), "write smtp:// in mail.url") {
		t.Errorf("%v", err)
	}
}

// connected is a writer that is told of the steps of a test mail, of which the first is that it is connected.
type connected func()

func (do connected) Write(step []byte) (int, error) {
	do()
	return len(step), nil
}

// A server that waits for the other side to begin says nothing until the time is up, or hangs up.
func TestAServerThatSaysNothingMayNeedTheOtherScheme(t *testing.T) {
	t.Parallel()
	for scheme, other := range map[string]string{"smtp": "smtps", "smtps": "smtp"} {
		for _, hangsUp := range []bool{false, true} {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			ctx, timeIsUp := context.WithCancel(t.Context())
			defer timeIsUp()
			then := connected(timeIsUp)
			if hangsUp {
				then = func() {
					if c, err := l.Accept(); err == nil {
						_ = c.Close()
					}
				}
			}
			named := Config{URL: config.Secret(scheme + "://" + l.Addr().String()), From: "no-reply@example.com"}
			err = newMailer(t, named, Options{}).Test(ctx, "alice@example.com", then)
			if err == nil || !strings.Contains(err.Error(), "write "+other+":// in mail.url") {
				t.Errorf("%s, and the server hangs up (%v): %v", scheme, hangsUp, err)
			}
		}
	}
}
