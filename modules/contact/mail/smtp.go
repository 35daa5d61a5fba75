package mail

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	netmail "net/mail"
	"net/textproto"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/wneessen/go-mail/smtp"
	"golang.org/x/net/idna"

	"github.com/toppira/authctl/modules/outbox/delivery"
	"github.com/toppira/authctl/platform/config"
)

// How long to wait for the server, and how connections are reused. A connection is closed after
// some mails because servers limit their number.
const (
	beginTimeout = 30 * time.Second // connect, greeting, TLS and AUTH together
	stepTimeout  = 30 * time.Second
	endTimeout   = 2 * time.Minute  // for the answer to the whole mail: giving up early makes duplicates
	firstRest    = 30 * time.Second // without a sign-in after all were refused; it doubles
	lastRest     = 5 * time.Minute
	stopTimeout  = 2 * time.Second // the same once the process waits no longer
	idleTimeout  = 20 * time.Second
	maxMails     = 100
	maxConns     = 8
	maxAnswer    = 256 << 10 // bytes at a step, the handshake of TLS included
)

// attemptTimeout bounds an attempt until the whole mail is sent, and slotTimeout, within it, the
// wait for one of the connections.
const (
	attemptTimeout = 2 * time.Minute
	slotTimeout    = time.Minute
)

// smtpSender hands mails to an SMTP server, over a few connections.
type smtpSender struct {
	server
	tls   *tls.Config
	helo  string
	slots chan struct{} // one for each connection in use
	turn  chan struct{} // of the one that signs in
	stop  time.Duration // stopTimeout, except in a test

	mu      sync.Mutex
	idle    []*connection // used last: at the end
	works   string        // the mechanism of AUTH that was last signed in with
	refused int           // how many sign-ins were since
	rest    time.Time     // until when there is none
	because error         // the last one was refused
}

func newSMTPSender(cfg Config, from *netmail.Address) (*smtpSender, error) {
	named, err := parseServer(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("mail.url: %w", err)
	}
	machine, _ := os.Hostname()
	s := &smtpSender{server: named, helo: heloName(machine, from), slots: make(chan struct{}, maxConns),
		turn: make(chan struct{}, 1), stop: stopTimeout,
		tls: &tls.Config{ServerName: named.host, MinVersion: tls.VersionTLS12}}
	if cfg.CAFile != "" {
		if s.tls.RootCAs, err = readCAs(cfg.CAFile); err != nil {
			return nil, fmt.Errorf("mail.ca_file: %w", err)
		}
	}
	return s, nil
}

// heloName is what the server is greeted as: the name of the machine, or the domain of mail.from if that name
// is in no domain, as in a container. Some servers take no mail from localhost.
func heloName(machine string, from *netmail.Address) string {
	if strings.Contains(machine, ".") {
		return machine
	}
	_, domain, _ := strings.Cut(from.Address, "@")
	return domain
}

func readCAs(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("has no certificate in PEM form")
	}
	return pool, nil
}

func (s *smtpSender) describe() string { return net.JoinHostPort(s.host, s.port) }

// connection is a conversation with the server that can go on after a mail.
type connection struct {
	client *smtp.Client
	raw    net.Conn // below TLS
	bounds *bounded // the same
	stop   time.Duration
	mails  int
	expiry *time.Timer // while it is idle
}

// send hands over one mail. It calls owned right before it ends the mail, and told with each step.
func (s *smtpSender) send(ctx context.Context, m envelope, owned func() bool, told func(string)) error {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-time.After(slotTimeout): // the server is slow: other mails use all connections
		return delivery.ErrNotOwned
	case <-ctx.Done():
		return ctx.Err()
	}
	c, err := s.take(ctx, told)
	if err != nil {
		return err
	}
	err = c.hand(ctx, m, owned, told)
	answer, refused := errors.AsType[*textproto.Error](err)
	if err == nil || refused && answer.Code != 421 {
		s.release(c)
	} else {
		_ = c.raw.Close()
	}
	return err
}

// take returns a connection that still works.
func (s *smtpSender) take(ctx context.Context, told func(string)) (*connection, error) {
	for {
		s.mu.Lock()
		var c *connection
		if n := len(s.idle); n > 0 {
			c, s.idle = s.idle[n-1], s.idle[:n-1]
		}
		s.mu.Unlock()
		if c == nil {
			return s.dial(ctx, told)
		}
		c.expiry.Stop()
		// The server may have closed it. RSET also discards a refused mail.
		if err := c.step(ctx, c.client.Reset); err == nil {
			return c, nil
		}
		_ = c.raw.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// release keeps a connection for the next mail for a while.
func (s *smtpSender) release(c *connection) {
	if c.mails >= maxMails {
		c.quit()
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.expiry = time.AfterFunc(idleTimeout, func() {
		s.mu.Lock()
		at := slices.Index(s.idle, c)
		if at >= 0 {
			s.idle = slices.Delete(s.idle, at, at+1)
		}
		s.mu.Unlock()
		if at >= 0 {
			c.quit()
		}
	})
	s.idle = append(s.idle, c)
}

// close ends the connections that are idle.
func (s *smtpSender) close() {
	s.mu.Lock()
	idle := s.idle
	s.idle = nil
	s.mu.Unlock()
	for _, c := range idle {
		c.expiry.Stop()
		c.quit()
	}
}

func (c *connection) quit() {
	_ = c.client.UpdateDeadline(stopTimeout)
	_ = c.client.Quit()
	_ = c.raw.Close()
}

// step makes one step with the server, at most for stepTimeout and until ctx ends.
func (c *connection) step(ctx context.Context, do func() error) error {
	stop := context.AfterFunc(ctx, func() { _ = c.raw.Close() })
	defer stop()
	if err := c.client.UpdateDeadline(stepTimeout); err != nil {
		return err
	}
	c.bounds.left.Store(maxAnswer)
	err := do()
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// dial connects and greets the server, with TLS and AUTH as set. Servers offer mechanisms that they cannot check,
// or that they refuse to everybody. So after one that was refused it tries the next one, over another connection.
func (s *smtpSender) dial(ctx context.Context, told func(string)) (*connection, error) {
	for {
		if err := s.resting(); err != nil {
			return nil, err
		}
		c, err := s.connect(ctx, told)
		if _, another := errors.AsType[*mechanismRefused](err); !another {
			return c, err
		}
		told(err.Error())
	}
}

// mechanismRefused is the error of a sign-in where the server has a mechanism that was not tried since it last worked.
type mechanismRefused struct{ stepError }

func (s *smtpSender) connect(ctx context.Context, told func(string)) (_ *connection, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, beginTimeout,
		fmt.Errorf("the server was not ready for a mail within %v", beginTimeout))
	defer cancel()
	bounds := &bounded{}
	bounds.left.Store(maxAnswer)
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		// Where only one side begins with TLS, each may wait for the other to say something.
		if err != nil && bounds.Conn != nil && bounds.left.Load() == maxAnswer {
			err = fmt.Errorf("the server has said nothing; %s: %w", s.otherScheme(), err)
		}
	}()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", s.describe())
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	told("connected to " + raw.RemoteAddr().String())
	bounds.Conn = raw
	defer func() {
		if err != nil {
			_ = raw.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	var talk net.Conn = bounds
	if s.implicit {
		encrypted := tls.Client(bounds, s.tls)
		if err := encrypted.HandshakeContext(ctx); err != nil {
			if _, other := errors.AsType[tls.RecordHeaderError](err); other {
				return nil, fmt.Errorf("the server does not begin with TLS on this port; %s: %w", s.otherScheme(), err)
			}
			return nil, fmt.Errorf("TLS: %w", handshakeFault(err))
		}
		talk = encrypted
	}
	client, err := smtp.NewClient(talk, s.host)
	if err != nil {
		return nil, &stepError{"greeting", err}
	}
	client.SkipSMTPUTF8(true)
	if err := client.Hello(s.helo); err != nil {
		return nil, &stepError{"EHLO", err}
	}
	told("the server greets as " + client.HelloResponse())
	if err := s.encrypt(client, told); err != nil {
		return nil, err
	}
	if err := s.authenticate(ctx, client, told); err != nil {
		return nil, err
	}
	return &connection{client: client, raw: raw, bounds: bounds, stop: s.stop}, nil
}

// otherScheme says what to do where the server begins in another way than mail.url says.
func (s *smtpSender) otherScheme() string {
	if s.implicit {
		return "if it has STARTTLS on this port, as most have on 587, write smtp:// in mail.url"
	}
	return "if it begins with TLS on this port, as most do on 465, write smtps:// in mail.url"
}

// bounded is a connection that limits the bytes that are read at a step: a server that
// never ends its line would fill the memory.
type bounded struct {
	net.Conn
	left atomic.Int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if b.left.Add(-int64(n)) < 0 && err == nil {
		err = errTooLong
	}
	return n, err
}

var errTooLong = errors.New("the server's answer does not end")

// encrypt starts TLS, or checks that the settings do without it.
func (s *smtpSender) encrypt(client *smtp.Client, told func(string)) error {
	if offered, _ := client.Extension("STARTTLS"); !s.implicit && offered {
		if err := client.StartTLS(s.tls); err != nil {
			return &stepError{"STARTTLS", handshakeFault(err)}
		}
	}
	state, encrypted := client.TLSConnectionState()
	switch {
	case encrypted:
		told(fmt.Sprintf("encrypted with %s, the certificate is valid for %s", tls.VersionName(state.Version), s.host))
	case !s.optional:
		return errors.New("the server offers no STARTTLS; if mails may go to it unencrypted, add " +
			"?starttls=optional to mail.url")
	default:
		told("not encrypted: the server offers no STARTTLS")
	}
	return nil
}

// handshakeFault says what to do about a certificate of an unknown authority, often the operator's own, or of another
// name, such as that of a server on this machine.
func handshakeFault(err error) error {
	if _, other := errors.AsType[x509.HostnameError](err); other {
		return fmt.Errorf("name the server in mail.url as its certificate does: %w", err)
	}
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown {
		return fmt.Errorf("the authority of the certificate is not known here; name a file with it in mail.ca_file: %w",
			err)
	}
	return err
}

// authenticate uses the best mechanism that the server has, or the one that has worked before, and after a refusal the
// next one. Without TLS it sends a password only to this machine. Many servers lock an account after some refusals: so
// one connection signs in at a time, and when all mechanisms were refused, as with a wrong password, one is tried now
// and then.
func (s *smtpSender) authenticate(ctx context.Context, client *smtp.Client, told func(string)) error {
	if s.user == "" {
		return nil
	}
	_, encrypted := client.TLSConnectionState()
	_, list := client.Extension("AUTH")
	offered := strings.Fields(strings.ToUpper(list))
	usable := []mechanism{
		{"SCRAM-SHA-256", false, smtp.ScramSHA256Auth(s.user, s.password)},
		{"SCRAM-SHA-1", false, smtp.ScramSHA1Auth(s.user, s.password)},
		{"PLAIN", true, smtp.PlainAuth("", s.user, s.password, s.host, false)},
		{"LOGIN", true, smtp.LoginAuth(s.user, s.password, s.host, false)},
	}
	usable = slices.DeleteFunc(usable, func(m mechanism) bool {
		return !slices.Contains(offered, m.name) || m.plain && !encrypted && !config.IsThisMachine(s.host)
	})
	if len(usable) == 0 {
		return fmt.Errorf("AUTH: the server offers none of SCRAM-SHA-256, SCRAM-SHA-1, PLAIN and LOGIN that may be "+
			"used here (encrypted: %v); it offers: %s", encrypted, cmp.Or(strings.Join(offered, " "), "nothing"))
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := s.resting(); err != nil {
		return err
	}
	s.mu.Lock()
	first := max(0, slices.IndexFunc(usable, func(m mechanism) bool { return m.name == s.works }))
	chosen := usable[(first+s.refused)%len(usable)]
	s.mu.Unlock()
	if err := client.Auth(chosen.auth); err != nil {
		return s.notSignedIn(stepError{"AUTH " + chosen.name, err}, len(usable))
	}
	s.mu.Lock()
	s.works, s.refused, s.because = chosen.name, 0, nil
	s.mu.Unlock()
	told("signed in with " + chosen.name)
	return nil
}

// notSignedIn remembers a sign-in that failed, of so many mechanisms that the server has.
func (s *smtpSender) notSignedIn(failed stepError, mechanisms int) error {
	answer, answered := errors.AsType[*textproto.Error](failed.err)
	if !answered || answer.Code == 421 {
		return &failed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refused++; s.refused < mechanisms {
		return &mechanismRefused{failed}
	}
	if answer.Code >= 500 {
		s.because = &failed
		s.rest = time.Now().Add(min(firstRest<<min(s.refused-mechanisms, 10), lastRest))
	}
	return &failed
}

// resting returns an error while no sign-in is tried, since all were refused.
func (s *smtpSender) resting() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if left := time.Until(s.rest); s.because != nil && left > 0 {
		return fmt.Errorf("the next sign-in is in %s, so that the server does not lock the account: %w",
			left.Round(time.Second), s.because)
	}
	return nil
}

// mechanism is a way to sign in.
type mechanism struct {
	name  string
	plain bool // an eavesdropper sees the password
	auth  smtp.Auth
}

// errNoUTF8 refuses an address that the server cannot take.
var errNoUTF8 = errors.New("the address is not ASCII and the server does not offer SMTPUTF8")

// stepError is what a server answered, or why it did not answer.
type stepError struct {
	step string // as SMTP names it
	err  error
}

func (e *stepError) Error() string { return e.step + ": " + saying(e.err) }
func (e *stepError) Unwrap() error { return e.err }

// saying is an error in the words of the server, if it answered: on one line, and bounded.
func saying(err error) string {
	answer, ok := errors.AsType[*textproto.Error](err)
	if !ok {
		return plain(err.Error())
	}
	return fmt.Sprintf("the server answered %d %s", answer.Code, plain(answer.Msg))
}

func plain(text string) string {
	const most = 300
	words := strings.Join(strings.FieldsFunc(text[:min(len(text), 4*most)], func(r rune) bool {
		return unicode.IsSpace(r) || !unicode.IsPrint(r)
	}), " ")
	if len(words) > most {
		words = strings.ToValidUTF8(words[:most], "") + "…"
	}
	return words
}

// hand sends one mail.
func (c *connection) hand(ctx context.Context, m envelope, owned func() bool, told func(string)) error {
	c.mails++
	if offered, _ := c.client.Extension("SMTPUTF8"); !isASCII(m.to) { // the sender is ASCII
		if !offered {
			return &stepError{"RCPT", errNoUTF8}
		}
		c.client.SkipSMTPUTF8(false)
		defer c.client.SkipSMTPUTF8(true)
	}
	if err := c.step(ctx, func() error { return c.client.Mail(bracket(m.from)) }); err != nil {
		return &stepError{"MAIL", err}
	}
	told("the server accepts the sender " + m.from)
	if err := c.step(ctx, func() error { return c.client.Rcpt(bracket(m.to)) }); err != nil {
		return &stepError{"RCPT", err}
	}
	told("the server accepts the recipient " + m.to)
	var data io.WriteCloser
	err := c.step(ctx, func() (err error) { data, err = c.client.Data(); return err })
	if err != nil {
		return &stepError{"DATA", err}
	}
	err = c.step(ctx, func() error { _, err := data.Write(m.text); return err })
	if err != nil {
		return &stepError{"DATA", err}
	}
	// A server discards a mail without an end. After the end it may have taken the mail, and without its
	// answer the mail is sent again: so wait for it even if the attempt has taken its time.
	if !owned() {
		return delivery.ErrNotOwned
	}
	if err := c.client.UpdateDeadline(endTimeout); err != nil {
		return &stepError{"end of DATA", err}
	}
	c.bounds.left.Store(maxAnswer)
	stop := context.AfterFunc(ctx, func() {
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			_ = c.raw.SetDeadline(time.Now().Add(c.stop))
		}
	})
	defer stop()
	told("the whole mail is sent; the answer may take minutes")
	if err := data.Close(); err != nil {
		failed := &stepError{"end of DATA", err}
		if _, answered := errors.AsType[*textproto.Error](err); !answered {
			return fmt.Errorf("the whole mail was sent, and whether the server has taken it is not known: %w", failed)
		}
		return failed
	}
	if closer, ok := data.(*smtp.DataCloser); ok {
		told("the server has taken the mail: " + closer.ServerResponse())
	}
	return nil
}

func bracket(address string) string { return "<" + address + ">" }

// passing matches an answer that the server would give for every recipient: it does not relay for us, does not
// know the sender, blocks our address, or has taken enough for today. And one that says that the mailbox is full, where
// its owner can make room. RFC 3463 has codes for that, which not every server uses. Taken wrongly for such an answer,
// one about the recipient only means that the mail is tried until it has expired.
var passing = regexp.MustCompile(`(?i)^5\.(7\.\d|1\.[78]\b|4\.5\b|2\.2\b)|\(#5\.7\.|\brelay|\bsend(er|as|ing)|\bnot verified\b`)

// tooLarge matches an answer that the mail has too many bytes (RFC 3463). 552 alone mostly means a full mailbox.
var tooLarge = regexp.MustCompile(`^5\.(3\.4|2\.3)\b`)

// addresses are those that an answer repeats: strangers choose them, and any word may be in them.
var addresses = regexp.MustCompile(`\S+@\S+`)

// classify says what happens to a mail that was not taken. If the server refuses the recipient
// or the mail for good, it is not tried again; faults of the sender or of the server can be corrected, so
// the mail waits.
func classify(err error) error {
	step, known := errors.AsType[*stepError](err)
	if !known || !slices.Contains([]string{"RCPT", "DATA", "end of DATA"}, step.step) {
		return err
	}
	if errors.Is(err, errNoUTF8) {
		return &delivery.Refused{Err: err}
	}
	answer, answered := errors.AsType[*textproto.Error](err)
	if !answered || answer.Code < 500 {
		return err
	}
	if answer.Code == 552 && !tooLarge.MatchString(answer.Msg) ||
		passing.MatchString(addresses.ReplaceAllString(answer.Msg, "")) {
		return err
	}
	switch answer.Code {
	case 500, 501, 502, 503, 504, 530, 534, 535, 538: // about the conversation, or who we are
		if step.step != "RCPT" || answer.Code != 501 { // 501 also says that a recipient is no address
			return err
		}
	}
	return &delivery.Refused{Err: err}
}

// address is an address as a server takes it: without a name or a comment, and with the ASCII form of the
// domain, as contacts have it.
func address(text string) (string, error) {
	a, err := netmail.ParseAddress(text)
	if err != nil || a.Name != "" {
		return "", fmt.Errorf("%q is no address", text)
	}
	if strings.Contains(text, `"`) { // a.Address has none, and is another address without them
		return "", fmt.Errorf("%q has quotes, which are not supported", text)
	}
	at := strings.LastIndexByte(a.Address, '@')
	local, domain := a.Address[:at+1], a.Address[at+1:]
	if !isASCII(domain) {
		if domain, err = idna.Lookup.ToASCII(domain); err != nil {
			return "", fmt.Errorf("%q has no valid domain after the @", text)
		}
	}
	return local + domain, nil
}
