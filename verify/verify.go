package verify

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"
)

// Policy says what becomes of a good token while the verifier knows too little of what has
// ended: before the first snapshot is whole, and whenever [Verifier.Lag] is beyond
// [Config.MaxLag].
type Policy int

const (
	// Refuse refuses it with [ErrStale], which [Verifier.Middleware] answers with 503.
	Refuse Policy = iota
	// Accept accepts it, unless what is known says that it has ended.
	Accept
	// Introspect asks the issuer about this very token, and refuses it where that fails.
	Introspect
)

// Client is one of auth.clients of the issuer. It prints without its secret.
type Client struct {
	ID     string
	Secret string
}

// Format keeps the secret out of every print and log.
func (c Client) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "{%s [redacted]}", c.ID) }

// LogValue keeps the secret out of structured logs.
func (c Client) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(c)) }

// MarshalJSON keeps the secret out of JSON.
func (c Client) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, "%q", c.ID), nil }

// Config says whose tokens are checked, for whom, and how. Issuer and Audience are required.
type Config struct {
	// Issuer is auth.token.issuer of the service: iss of its tokens, to the letter. What the
	// verifier needs is found through its RFC 8414 metadata.
	Issuer string

	// Audience is which of the service's audiences this is: it must be among the token's.
	Audience string

	// Servers are base URLs at which the issuer is reached, in place of Issuer. The verifier
	// moves on to the next one when one fails, or is behind by more than MaxLag.
	Servers []string

	// Client lets the verifier follow what has ended. Without it, the verifier checks
	// signatures and claims alone, Lag is infinite, and Stale must be Accept.
	Client Client

	// Stale is what to do while too little is known of what has ended.
	Stale Policy

	// MaxLag is how old that knowledge may be; by default 10 seconds, at least 2.
	MaxLag time.Duration

	// Name and Version are how the verifier names itself to the issuer, whose operators see it
	// there. By default the name of the host, and the version of the main module. Several may share
	// a name: New makes a random instance id for each, which is sent too.
	Name, Version string

	// Transport sends the requests, for a private CA or client certificates. By default one
	// that takes proxies from the environment. Redirects are never followed.
	Transport http.RoundTripper

	// Metric, if set, is called with one of the Metric names and its value: quickly, please, and
	// by many goroutines at once.
	Metric func(name string, value float64)

	// Log, if set, gets a line when the issuer goes out of reach, and when it is back.
	Log *slog.Logger

	// Now is the clock, by default time.Now. For tests.
	Now func() time.Time
}

// The names that [Config.Metric] is called with. Those that end in _total are added up, the
// others replace what was there before.
const (
	MetricLag            = "lag_seconds"                // after each answer of the feed
	MetricEntries        = "revocations"                // known ends, after each answer of the feed
	MetricFeedErrors     = "feed_errors_total"          // rounds in which no server answered
	MetricSnapshots      = "feed_restarts_total"        // snapshots because a cursor was gone
	MetricUnknownTypes   = "unknown_revocations_total"  // entries or events that a newer version of this module knows
	MetricKeyFetches     = "key_fetches_total"          // requests for the key set
	MetricKeyErrors      = "key_errors_total"           // rounds in which no server gave it
	MetricStale          = "stale_total"                // tokens met while too little was known
	MetricIntrospections = "introspections_total"       // requests that Introspect made
	MetricIntrospectErr  = "introspection_errors_total" // those that failed
	MetricRefused        = "refused_total"              // tokens not accepted, for whatever reason
)

const (
	defaultMaxLag = 10 * time.Second
	minMaxLag     = 2 * time.Second
)

// Verifier checks access tokens. It is made by [New] and safe for concurrent use.
type Verifier struct {
	cfg      Config
	instance string // tells this verifier apart from others of the same name
	now      func() time.Time
	log      *slog.Logger
	http     *http.Client
	servers  []*server
	silent   sync.Map // hosts (string) that left the last request without an answer

	keys  *keyring
	known *knowledge
	clock *serverClock
	asker *introspector

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	synced  chan struct{} // closed when the first snapshot is whole, or the first try has failed
	syncing sync.Once
	mu      sync.Mutex
	syncErr error // of the last round of the feed
}

// New checks the configuration and begins to work in the background; it asks nobody yet, and
// its error is a mistake in the configuration. The first call of Check waits for the keys.
func New(cfg Config) (*Verifier, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	v := &Verifier{
		cfg: cfg, instance: rand.Text()[:12], now: cfg.Now, log: cfg.Log, keys: newKeyring(), known: newKnowledge(),
		synced: make(chan struct{}),
	}
	if v.log == nil {
		v.log = slog.New(slog.DiscardHandler)
	}
	v.clock = newServerClock(v.now)
	v.http = &http.Client{
		Transport:     cfg.Transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if cfg.Transport == nil {
		v.http.Transport = newTransport()
	}
	for _, base := range cfg.Servers {
		v.servers = append(v.servers, newServer(base, false))
	}
	if len(v.servers) == 0 {
		v.servers = []*server{newServer(cfg.Issuer, true)}
	}
	v.ctx, v.cancel = context.WithCancel(context.Background())
	v.asker = newIntrospector(v)
	v.wg.Go(func() { v.keepKeys(v.ctx) })
	if v.follows() {
		v.wg.Go(func() { newFollower(v).follow(v.ctx) })
	} else {
		v.syncing.Do(func() { close(v.synced) })
	}
	return v, nil
}

// complete fills in the defaults, and says what is wrong.
func (c *Config) complete() error {
	if err := checkURL(c.Issuer); err != nil {
		return fmt.Errorf("the field Issuer: %w", err)
	}
	for _, base := range c.Servers {
		if err := checkURL(base); err != nil {
			return fmt.Errorf("the field Servers: %w", err)
		}
	}
	switch {
	case c.Audience == "":
		return errors.New("no Audience: name this service, by one of auth.token.audience of the issuer")
	case (c.Client.ID == "") != (c.Client.Secret == ""):
		return errors.New("half a Client: it needs an ID and a Secret")
	case c.Stale < Refuse || c.Stale > Introspect:
		return errors.New("unknown Stale: it is Refuse, Accept or Introspect")
	case c.Client.ID == "" && c.Stale != Accept:
		return errors.New("without Client nothing tells which sessions have ended: " +
			"set Client, or set Stale to verify.Accept to check signatures and claims alone")
	case c.MaxLag < 0 || c.MaxLag > 0 && c.MaxLag < minMaxLag:
		return fmt.Errorf("a MaxLag below %v", minMaxLag)
	}
	c.MaxLag = cmp.Or(c.MaxLag, defaultMaxLag)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Name == "" {
		host, _ := os.Hostname()
		c.Name = cmp.Or(host, c.Client.ID)
	}
	if c.Version == "" {
		if info, ok := debug.ReadBuildInfo(); ok {
			c.Version = info.Main.Version
		}
	}
	c.Name, c.Version = printable(c.Name), printable(c.Version)
	return nil
}

// printable keeps what may be sent as the name or version of a verifier.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), 100)]
}

func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil ||
		u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return errors.New("it must be a URL such as https://auth.example.com, without user, query or fragment")
	}
	return nil
}

// follows reports whether there is a feed to follow.
func (v *Verifier) follows() bool { return v.cfg.Client.ID != "" }

// Close ends everything that New began, and waits for it. The keys and the ends at hand stay
// in use; Lag grows from here on.
func (v *Verifier) Close() {
	v.cancel()
	v.asker.close()
	v.wg.Wait()
	if v.cfg.Transport == nil {
		v.http.CloseIdleConnections()
	}
}

// Check returns the claims of a token that is good now, else a [*Refusal] or, where its context
// ended first, the error of that. At the very start it waits up to 5 seconds for the keys and
// the first snapshot; later a known key never waits.
func (v *Verifier) Check(ctx context.Context, token string) (Claims, error) {
	claims, err := v.check(ctx, token)
	if err != nil {
		v.metric(MetricRefused, 1)
		return Claims{}, err
	}
	return claims, nil
}

func (v *Verifier) check(ctx context.Context, token string) (Claims, error) {
	c, err := split(token)
	if err != nil {
		return Claims{}, refuse(ErrMalformed, err.Error())
	}
	h, err := parseHeader(c.header)
	if err != nil {
		return Claims{}, refuse(ErrMalformed, "header: "+err.Error())
	}
	if !isAccessToken(h.typ) {
		return Claims{}, refuse(ErrType, "typ is not at+jwt")
	}
	known := v.known.list.Load()
	if known.hasKey(h.kid) {
		return Claims{}, refuse(ErrRevoked, "the key was revoked")
	}
	key, err := v.keys.find(ctx, h.kid)
	if err != nil {
		return Claims{}, err
	}
	if key.algorithm != h.alg {
		return Claims{}, refuse(ErrAlgorithm, "the key is for "+key.algorithm)
	}
	if !key.verify(c.signed, c.signature) {
		return Claims{}, refuse(ErrSignature, "")
	}
	claims, err := parseClaims(c.payload)
	if err != nil {
		return Claims{}, refuse(ErrClaims, err.Error())
	}
	now, _ := v.clock.issuerTime()
	if err := claims.check(v.cfg.Issuer, v.cfg.Audience, now); err != nil {
		return Claims{}, err
	}
	return claims, v.live(ctx, token, h.kid, claims)
}

// live says whether a good token has ended before its time.
func (v *Verifier) live(ctx context.Context, token, kid string, claims Claims) error {
	if err := v.awaitSync(ctx); err != nil {
		return err
	}
	// Knowing how old the knowledge is comes before looking into it: it may get better in
	// between, never worse.
	fresh := v.Lag() <= v.cfg.MaxLag
	known := v.known.list.Load()
	if known.hasKey(kid) {
		return refuse(ErrRevoked, "the key was revoked")
	}
	if why := known.has(claims); why != "" {
		return refuse(ErrRevoked, why)
	}
	if fresh || !v.follows() {
		return nil
	}
	v.metric(MetricStale, 1)
	switch v.cfg.Stale {
	case Accept:
		return nil
	case Introspect:
		return v.asker.ask(ctx, token)
	}
	return v.stale("")
}

// stale is a refusal for want of knowledge.
func (v *Verifier) stale(detail string) *Refusal {
	if detail == "" {
		if detail = "nothing is known yet"; v.Lag() != Infinite {
			detail = fmt.Sprintf("what is known is %v old", v.Lag().Round(time.Millisecond))
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.syncErr != nil {
			detail += ": " + v.syncErr.Error()
		}
	}
	return refuse(ErrStale, detail)
}

// awaitSync waits at the start until the first snapshot is whole, or could not be had.
func (v *Verifier) awaitSync(ctx context.Context) error {
	select {
	case <-v.synced:
		return nil
	default:
	}
	timer := time.NewTimer(firstWait)
	defer timer.Stop()
	select {
	case <-v.synced:
		return nil
	case <-timer.C:
		v.syncing.Do(func() { close(v.synced) })
		return nil
	case <-v.ctx.Done():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// syncState remembers how the last round of the feed ended.
func (v *Verifier) syncState(err error) {
	v.mu.Lock()
	v.syncErr = err
	v.mu.Unlock()
	if err != nil || v.Lag() != Infinite {
		v.syncing.Do(func() { close(v.synced) })
	}
}

// Lag is how old the knowledge of what has ended is at most: every end that the issuer
// committed longer ago is known. It is never below the half second by which an answer of the issuer
// may be older than the question. It is [Infinite] before the first snapshot is whole, and without
// credentials.
//
// If the clock of the issuer's database is set back by more than a second, Lag is too high by as
// much until the issuer notices, with the next answer. It then asks for a new snapshot.
func (v *Verifier) Lag() time.Duration { return v.clock.lag() }

// Ready waits until there are keys and, with credentials, Lag is within MaxLag.
func (v *Verifier) Ready(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if v.keys.set.Load() != nil && (!v.follows() || v.Lag() <= v.cfg.MaxLag) {
			return nil
		}
		select {
		case <-tick.C:
		case <-v.ctx.Done():
			return errors.New("verify: closed")
		case <-ctx.Done():
			v.keys.mu.Lock()
			keyErr := v.keys.lastErr
			v.keys.mu.Unlock()
			v.mu.Lock()
			defer v.mu.Unlock()
			return fmt.Errorf("verify: not ready: %w", errors.Join(context.Cause(ctx), keyErr, v.syncErr))
		}
	}
}

func (v *Verifier) metric(name string, value float64) {
	if v.cfg.Metric != nil {
		v.cfg.Metric(name, value)
	}
}
