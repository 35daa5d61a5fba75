package mail

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	netmail "net/mail"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
	gomail "github.com/wneessen/go-mail"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/contact"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/delivery"
	"github.com/toppira/authctl/platform/database"
)

// Options are what a [Mailer] needs besides its settings.
type Options struct {
	Issuer  string // auth.token.issuer
	BaseURL string // where the pages of this service are, if that is not the issuer
	DataDir string // mails go to the folder mail in it if there is no SMTP server
	Sealer  *contact.Sealer
	DB      *database.DB
	// Committed is called after each transaction that wrote an event. It must not block. It may be
	// nil.
	Committed func(keys ...string)
	Log       *zap.Logger
	Now       func() time.Time // nil: time.Now
}

// Mailer makes mails and sends them. It is a delivery.Sink. It is safe for concurrent use.
type Mailer struct {
	cfg       Config
	templates *Templates
	from      *netmail.Address
	sender    sender
	opt       Options
}

var (
	_ delivery.Sink    = (*Mailer)(nil)
	_ delivery.Patient = (*Mailer)(nil)
)

// sender is where mails go.
type sender interface {
	send(ctx context.Context, m envelope, owned func() bool, told func(step string)) error
	describe() string
	close()
}

// envelope is a mail as it is sent.
type envelope struct {
	id       uuid.UUID
	from, to string
	purpose  string
	at       time.Time
	text     []byte // RFC 5322
}

// New tries the templates and makes a Mailer. It connects to nothing yet.
func New(cfg Config, opt Options) (*Mailer, error) {
	m := &Mailer{cfg: cfg, opt: opt}
	if m.opt.Now == nil {
		m.opt.Now = time.Now
	}
	m.opt.Log = cmp.Or(m.opt.Log, zap.NewNop())
	if m.opt.Committed == nil {
		m.opt.Committed = func(...string) {}
	}
	var err error
	if m.templates, err = LoadTemplates(cfg.TemplatesDir, ServiceName(opt.Issuer)); err != nil {
		return nil, err
	}
	if m.from, err = parseFrom(cfg.From); err != nil {
		return nil, fmt.Errorf("mail.from: %w", err)
	}
	if !cfg.Sends() {
		m.sender = folder{Folder(opt.DataDir)}
		return m, nil
	}
	if m.sender, err = newSMTPSender(cfg, m.from); err != nil {
		return nil, err
	}
	return m, nil
}

// ServiceName is what mails and pages call the service: the issuer without its scheme.
func ServiceName(issuer string) string {
	u, err := url.Parse(issuer)
	if err != nil {
		return issuer
	}
	return u.Host + strings.TrimRight(u.Path, "/")
}

// Close ends the connections that are kept for the next mail. Deliveries must have ended.
func (m *Mailer) Close() error {
	m.sender.close()
	return nil
}

// Describe names the place that mails go to.
func (m *Mailer) Describe() string { return m.sender.describe() }

// Templates are the templates in use.
func (m *Mailer) Templates() *Templates { return m.templates }

// Preview makes a mail of sample data, with a link as it would be.
func (m *Mailer) Preview(p contact.Purpose, preferred string) (Mail, error) {
	d := Sample(p, ServiceName(m.opt.Issuer))
	d.Link = strings.Replace(d.Link, samplePages, m.pagesAt(m.opt.Issuer), 1)
	return m.templates.Make(preferred, d)
}

// AttemptTimeout implements [delivery.Patient]: a server that scans mails before it takes them may need
// long. Messages expire, so none is tried without end.
func (m *Mailer) AttemptTimeout() time.Duration { return attemptTimeout }

// Life implements [delivery.Patient].
func (m *Mailer) Life() time.Duration { return contact.LongestLife }

// AnswerTimeout implements [delivery.Sink].
func (m *Mailer) AnswerTimeout() time.Duration { return endTimeout }

// Deliver sends the message of an event. It implements [delivery.Sink].
func (m *Mailer) Deliver(ctx context.Context, _ outbox.Subscription, r outbox.Record, attempt delivery.Attempt) error {
	id, err := uuid.Parse(r.EventID)
	if err != nil {
		return &delivery.Refused{Err: fmt.Errorf("the event id: %w", err)}
	}
	// A mail that is dropped is lost. So it has expired only if it has by the clock of this machine and by that of
	// the database: either may be ahead.
	now := m.opt.Now()
	if !attempt.Now.IsZero() && attempt.Now.Before(now) {
		now = attempt.Now
	}
	message, err := m.opt.Sealer.Open(id, r.Data)
	if errors.Is(err, contact.ErrSealed) {
		// When it expires is sealed too.
		if at, bad := time.Parse(time.RFC3339, r.Time); bad == nil && now.After(at.Add(contact.LongestLife)) {
			return &delivery.Dropped{Err: fmt.Errorf("the message has expired: %w", err)}
		}
		return fmt.Errorf("%w: name it in auth.token.previous_secrets", err)
	}
	if err != nil {
		return &delivery.Refused{Err: err}
	}
	wanted, err := contact.Wanted(ctx, m.opt.DB, message, now)
	if err != nil {
		return err
	}
	if !wanted {
		return &delivery.Dropped{Err: errors.New("the message has expired, was answered or was replaced")}
	}
	err = m.attempt(ctx, id, message, r, attempt)
	if refused, ok := errors.AsType[*delivery.Refused](err); ok {
		failed := m.announce(ctx, r.ID, message, refused.Err.Error())
		if errors.Is(failed, outbox.ErrFinished) {
			return &delivery.Dropped{Err: errors.New("the account was deleted meanwhile")}
		}
		if failed != nil {
			return fmt.Errorf("announce that a mail was refused (%w): %w", refused.Err, failed)
		}
	}
	return err
}

// announce adds the event that an address does not take mails. A message that is tried again and refused again is
// announced again, by an event of its own: it has another time and sequence number.
func (m *Mailer) announce(ctx context.Context, row int64, message contact.Message, reason string) error {
	e, err := contact.Undeliverable(message, m.opt.Issuer, reason, m.opt.Now())
	if err != nil {
		return err
	}
	err = m.opt.DB.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		return outbox.AddUndeliverable(ctx, tx, row, e)
	})
	if database.IsForbidden(err) { // grants.sql was not run after the migration
		m.opt.Log.Warn("undeliverable_not_announced", zap.Stringer("user_id", message.UserID),
			zap.String("purpose", string(message.Purpose)), zap.String("reason", reason),
			zap.String("hint", "run authctl migrate grants: this database role may not announce that a message "+
				"is undeliverable"))
		return nil
	}
	if err != nil {
		return err
	}
	m.opt.Committed(e.Key)
	return nil
}

// attempt makes the mail and sends it.
func (m *Mailer) attempt(ctx context.Context, id uuid.UUID, message contact.Message, r outbox.Record,
	attempt delivery.Attempt) error {
	at, err := time.Parse(time.RFC3339, r.Time)
	if err != nil {
		return &delivery.Refused{Err: fmt.Errorf("the event's time: %w", err)}
	}
	mail, err := m.envelope(id, message, r.Source, at)
	if err != nil {
		return err
	}
	last := ""
	if err := m.sender.send(ctx, mail, attempt.Owned, func(step string) { last = step }); err != nil {
		return classify(err)
	}
	m.opt.Log.Info("mail_sent", zap.String("purpose", mail.purpose), zap.Stringer("event_id", id),
		zap.String("answer", last))
	return nil
}

// envelope makes the mail of a message: the same one every time. The issuer is that of the server that
// wrote the message, since a relay may have none in its settings.
func (m *Mailer) envelope(id uuid.UUID, message contact.Message, issuer string, at time.Time) (envelope, error) {
	words, err := m.templates.Make(message.Language, m.data(message, issuer, at))
	if err != nil {
		return envelope{}, fmt.Errorf("make the mail: %w", err)
	}
	to, err := address(message.Recipient)
	if err != nil {
		return envelope{}, &delivery.Refused{Err: err}
	}
	return m.compose(id, to, string(message.Purpose), at, words)
}

// pagesAt is the URL of the pages for the issuer that an event names, which may be an earlier one.
func (m *Mailer) pagesAt(issuer string) string {
	if issuer == m.opt.Issuer && m.opt.BaseURL != "" {
		issuer = m.opt.BaseURL
	}
	return m.cfg.PagesAt(issuer)
}

// data is the data of a message for its template. at is when the event was written.
func (m *Mailer) data(message contact.Message, issuer string, at time.Time) Data {
	d := Data{
		Purpose: string(message.Purpose), Service: ServiceName(issuer), Username: message.Username, Code: message.Code,
		Address: message.Address, Device: deviceName(message.Device), Change: message.Change, Changed: message.Changed,
	}
	if !message.At.IsZero() {
		d.Time = message.At.UTC().Format("2006-01-02 15:04 UTC")
	}
	if message.LinkToken != "" {
		page := "undo"
		if hasCode(message.Purpose) {
			page = string(message.Purpose)
		}
		d.Link = m.pagesAt(issuer) + "/" + page + "#token=" + message.LinkToken
	}
	if !message.ExpiresAt.IsZero() {
		// The event was written a moment after the lifetime of the code began.
		valid := message.ExpiresAt.Sub(at).Round(time.Minute)
		d.Minutes, d.Hours = int(valid/time.Minute), int(valid.Round(time.Hour)/time.Hour)
	}
	return d
}

// compose writes a mail with a text part and an HTML part. The result depends only on its arguments and the
// settings.
func (m *Mailer) compose(id uuid.UUID, to, purpose string, at time.Time, words Mail) (envelope, error) {
	_, domain, _ := strings.Cut(m.from.Address, "@")
	msg := gomail.NewMsg(gomail.WithNoDefaultUserAgent(), gomail.WithEncoding(gomail.EncodingQP),
		gomail.WithBoundary("part-"+id.String()))
	msg.FromMailAddress(m.from)
	msg.ToMailAddress(&netmail.Address{Address: to})
	msg.Subject(words.Subject)
	msg.SetMessageIDWithValue(id.String() + "@" + domain)
	msg.SetDateWithValue(at)
	msg.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: no automatic replies
	msg.SetGenHeader("X-Auto-Response-Suppress", "All")
	msg.SetBodyString(gomail.TypeTextPlain, words.Text)
	msg.AddAlternativeString(gomail.TypeTextHTML, words.HTML)
	var text bytes.Buffer
	if _, err := msg.WriteTo(&text); err != nil {
		return envelope{}, fmt.Errorf("write the mail: %w", err)
	}
	return envelope{id: id, from: m.from.Address, to: to, purpose: purpose, at: at, text: text.Bytes()}, nil
}

// Reach connects to the SMTP server and signs in, and sends nothing. A folder is always reached.
func (m *Mailer) Reach(ctx context.Context) error {
	server, ok := m.sender.(*smtpSender)
	if !ok {
		return nil
	}
	c, err := server.dial(ctx, func(string) {})
	if err == nil {
		c.quit()
	}
	return err
}

// Test sends a mail to an address at once, without the outbox, and writes each step to w.
func (m *Mailer) Test(ctx context.Context, to string, w io.Writer) error {
	to, err := address(to)
	if err != nil {
		return err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("make an id: %w", err)
	}
	mail, err := m.compose(id, to, "test", m.opt.Now(), Mail{
		Subject: "A test mail of " + ServiceName(m.opt.Issuer),
		Text:    "This is a test. Mails of " + ServiceName(m.opt.Issuer) + " arrive here.\n",
		HTML:    `<!doctype html><html lang="en"><title>A test mail</title><p>This is a test. Mails arrive here.</p></html>`,
	})
	if err != nil {
		return err
	}
	return m.sender.send(ctx, mail, func() bool { return true }, func(step string) { fmt.Fprintln(w, plain(step)) })
}
