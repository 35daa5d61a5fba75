package throttle

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/metric"
)

// ErrTooManyAttempts refuses an attempt before any hashing. The fault returned tells when
// to come back; it is the same whether the account exists or not.
var ErrTooManyAttempts = fault.New(fault.TooMany, "too_many_attempts", "Too many attempts")

// ErrCrowded refuses an attempt for which those in flight leave no room, although
// nothing has failed yet: it is the service that is busy, not the client that is suspect.
var ErrCrowded = errors.New("too many attempts of this kind are in flight")

// ErrNotShared is returned by [Limiter.Unlock] and [Limiter.State] when the shared counters are away:
// what they would do or tell here would not hold for the other processes.
var ErrNotShared = errors.New("the shared counters of sign-in attempts cannot be reached")

// Options are what New needs besides the settings.
type Options struct {
	// Redis, of platform/cache, which heeds deadlines, has the counters of all processes. Without it DB has
	// them if it is PostgreSQL. Otherwise they are those of this process.
	Redis           cache.Client
	DB              *database.DB
	Secret          config.Secret         // AUTH_TOKEN_SECRET; device tokens and counters hang on it
	PreviousSecrets []config.Secret       // others in use: their device tokens are good, Unlock clears their counters
	Now             func() time.Time      // nil: time.Now
	Registry        prometheus.Registerer // nil: no metrics
	Log             *zap.Logger           // nil: silent
}

// Limiter limits failed sign-ins. It is safe for concurrent use.
type Limiter struct {
	cfg        Config
	now        func() time.Time
	nameKeys   [][]byte // the first names what is counted; other processes may count by the others
	deviceKeys [][]byte // the first makes tokens, all are accepted
	local      *memory
	shared     store // nil: there are only the counters of this process
	gates      gates
	tooLate    atomic.Int64 // when one in a hurry was last refused, in milliseconds

	refused  *prometheus.CounterVec
	finished *prometheus.CounterVec
	lockout  prometheus.Counter
}

// store keeps the counters of all processes. The error of begin, finish and take is [errAway] when the
// caller must go on without, and that of ctx when the caller has left; that of begin is [ErrCrowded] when
// too many ask at once.
type store interface {
	begin(ctx context.Context, k keys) (verdict, error)
	finish(ctx context.Context, k keys, in tier, how outcome, known, owner id) (result, error)
	take(ctx context.Context, i id) (time.Duration, error)
	clear(ctx context.Context, k keys) error
	state(ctx context.Context, k keys) (failures int64, wait time.Duration, err error)
	up() bool
	gauge() prometheus.GaugeOpts // of up
	close()
}

// New makes a limiter. It does not ask for shared counters yet: that they are away is no reason not
// to start.
func New(cfg Config, opt Options) (*Limiter, error) {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	opt.Log = cmp.Or(opt.Log, zap.NewNop())
	if opt.Secret == "" {
		return nil, errors.New("throttle: no secret")
	}
	cfg.Limits = cfg.Limits.withDefaults()
	l := &Limiter{cfg: cfg, now: opt.Now, gates: gates{patience: patience, recheckEvery: recheckEvery}}
	for _, secret := range append([]config.Secret{opt.Secret}, opt.PreviousSecrets...) {
		name, err := derive(secret, "counter")
		if err != nil {
			return nil, err
		}
		device, err := derive(secret, "device")
		if err != nil {
			return nil, err
		}
		l.nameKeys, l.deviceKeys = append(l.nameKeys, name), append(l.deviceKeys, device)
	}
	l.local = newMemory(cfg.rules(), cfg.MemoryEntries, opt.Now)
	switch {
	case opt.Redis != nil:
		l.shared = newShared(opt.Redis, cfg.rules(), cfg.RedisTimeout, opt.Now, opt.Log)
	case opt.DB != nil && opt.DB.IsPostgres():
		l.shared = newPostgres(opt.DB, cfg.rules(), cfg.PostgresTimeout, opt.Now, opt.Log)
	}
	return l, l.measure(opt.Registry)
}

// Close waits for what is being asked of the shared counters, for a moment at most.
func (l *Limiter) Close() {
	if l.shared != nil {
		l.shared.close()
	}
}

// Attempt is one try to sign in.
type Attempt struct {
	Account     string     // canonical name, whether there is such an account or not
	Address     netip.Addr // of the client, as the proxies we trust tell it
	DeviceToken string     // what it presented; anything, or ""
	Kind        string     // of secret that is tried, each with counters of its own; "" is the password

	// Session is the live session in which somebody already signed in is asked for the password
	// again, and Owner whose it is (see [Limiter.Trusts]). It is a known device of its own.
	Session, Owner string
	// Stranger is set to try again without what [Limiter.Trusts] has refused.
	Stranger bool
	// Hurry is set where others wait for this one: it waits for no attempts in flight.
	Hurry bool
}

// Ticket is the leave to try, and a reservation. End it with Failed, Succeeded or Cancel;
// the first of these counts and later ones do nothing, so that Cancel can be deferred.
type Ticket struct {
	attempt  Attempt
	keys     keys
	tier     tier
	known    id // the counter of the owner to whom a device or an address is known
	finished atomic.Bool
}

// Begin asks for leave to check a password. Call it before any hashing. The error is
// [ErrTooManyAttempts] with the time after which to come back.
//
// When all room is taken by attempts in flight Begin waits for some to end, unless a is in a hurry, at most three
// seconds and no longer than ctx. The shared counters add a quarter of a second at most, and in a flood
// a second until they are asked; [ErrCrowded] when that is not enough.
func (l *Limiter) Begin(ctx context.Context, a Attempt) (*Ticket, error) {
	t := &Ticket{attempt: a}
	if !l.cfg.Enabled {
		return t, nil
	}
	t.keys = l.keysOf(a)
	v, err := l.begin(ctx, t.keys)
	if v.limit != limitNone && v.wait == 0 && !a.Hurry {
		l.gates.wait(ctx, t.keys.of(v.limit), func() bool {
			v, err = l.begin(ctx, t.keys)
			return v.limit != limitNone && v.wait == 0
		})
	}
	if err != nil {
		l.refused.WithLabelValues("in_flight").Inc()
		return nil, err
	}
	if v.limit == limitNone {
		t.tier, t.known = v.tier, v.known
		if a.Owner != "" && !l.Trusts(t, a.Owner) {
			l.Cancel(ctx, t)
			a.Session, a.Owner, a.Stranger = "", "", true
			return l.Begin(ctx, a)
		}
		return t, nil
	}
	if a.Hurry {
		l.tooLate.Store(l.now().UnixMilli())
	}
	if v.wait == 0 {
		l.refused.WithLabelValues("in_flight").Inc()
		return nil, ErrCrowded
	}
	l.refused.WithLabelValues(limitNames[v.limit]).Inc()
	return nil, tooMany(v.wait)
}

// MayHurry reports whether attempts may begin so late that others wait for them. That saves calls where each costs some
// of its own, as to Redis; PostgreSQL answers many at once. But whoever goes on above a limit would take the turns of
// all others, so none may for a second after one in a hurry was refused.
func (l *Limiter) MayHurry() bool {
	_, singly := l.shared.(*shared)
	since := l.now().UnixMilli() - l.tooLate.Load()
	return singly && (since < 0 || since >= 1000) // less than none: the clock was set back
}

// Trusts reports whether an attempt that was let through is what it was let through as. A
// device token and a known address are worth something for one owner only: the account they
// were made for, by its id and never by its name alone, with the password it had then. Ask it
// when the account has been looked up, before its password is compared; owner names the account
// and its present password, and is "" where there is no account. When it says no, cancel the
// ticket and begin again with Attempt.Stranger set.
func (l *Limiter) Trusts(t *Ticket, owner string) bool {
	if t.tier != tierDevice && t.tier != tierPair {
		return true
	}
	return owner != "" && t.known == l.known(fingerprint(owner))
}

// Known reports whether the attempt presents the device token of an earlier sign-in of the owner,
// with the password that the owner still has, whatever the counters say. A session or a known
// address is no such proof.
func (l *Limiter) Known(a Attempt, owner string) bool {
	d, ok := l.device(a)
	return ok && owner != "" && d.owner == fingerprint(owner)
}

// of returns the counter whose room the limit guards, as far as attempts reserve there.
func (k keys) of(n limit) id {
	switch n {
	case limitAddress:
		return k.address
	case limitPrefix:
		return k.prefix
	}
	return k.account
}

func (l *Limiter) begin(ctx context.Context, k keys) (v verdict, err error) {
	if l.shared != nil {
		v, err = l.shared.begin(ctx, k)
		if err == nil || errors.Is(err, ErrCrowded) {
			return v, err
		}
	}
	l.local.decide(func(d decision) { v = d.begin(k) })
	return v, nil
}

// Failed says that the password was wrong, or that there is no such account. lockedOut is
// true once for each threshold that a streak of failures crosses: when the delays begin for
// this address or for all unknown devices, and when unknown devices are shut out for long.
// Attempts like this one are refused until then; the zero time when they are not.
func (l *Limiter) Failed(ctx context.Context, t *Ticket) (lockedOut bool, until time.Time) {
	s := l.finish(ctx, t, failed, "")
	if s.crossed {
		l.lockout.Inc()
	}
	if s.wait > 0 {
		until = l.now().Add(s.wait)
	}
	return s.crossed, until
}

// Succeeded says that the password was right. It remembers the address for the owner (see
// [Limiter.Trusts]) and returns a device token for the client to keep and to present at its
// next sign-in, in place of the one it has.
func (l *Limiter) Succeeded(ctx context.Context, t *Ticket, owner string) (deviceToken string) {
	l.finish(ctx, t, succeeded, owner)
	return mintDevice(l.deviceKeys[0], t.attempt.Account, owner, l.now())
}

// Cancel says that the password was not compared: there was no capacity, or an error came
// first. An attempt whose password was compared must not be cancelled, even when its client has left.
func (l *Limiter) Cancel(ctx context.Context, t *Ticket) {
	l.finish(ctx, t, cancelled, "")
}

// DeviceTTL is how long a device token marks a known device.
func (l *Limiter) DeviceTTL() time.Duration { return l.cfg.DeviceTTL }

// Remember makes the client known to the owner without a sign-in, after it registered or changed
// the password, and returns its device token.
func (l *Limiter) Remember(ctx context.Context, account, owner string, address netip.Addr) (deviceToken string) {
	a := Attempt{Account: account, Address: address}
	return l.Succeeded(ctx, &Ticket{attempt: a, keys: l.keysOf(a)}, owner)
}

func (l *Limiter) finish(ctx context.Context, t *Ticket, how outcome, owner string) (s result) {
	if !l.cfg.Enabled || !t.finished.CompareAndSwap(false, true) {
		return s
	}
	next := l.known(fingerprint(owner))
	// The counters in this process follow all that it sees, to be of use when the shared ones go.
	l.local.decide(func(d decision) { s = d.finish(t.keys, t.tier, how, t.known, next) })
	if l.shared != nil {
		// Ended even when the caller has left; the time it takes is bounded all the same.
		if common, err := l.shared.finish(context.WithoutCancel(ctx), t.keys, t.tier, how, t.known, next); err == nil {
			s = common
		}
	}
	if t.tier != tierNone {
		l.finished.WithLabelValues(tierNames[t.tier], outcomeNames[how]).Inc()
	}
	for _, at := range []id{t.keys.account, t.keys.address, t.keys.prefix} {
		l.gates.finished(at)
	}
	return s
}

// Register asks for leave to register an account from the address. The error is
// [ErrTooManyAttempts]. There is no limit by default.
func (l *Limiter) Register(ctx context.Context, address netip.Addr) error {
	if !l.cfg.Enabled || l.cfg.RegisterPerMinute == 0 {
		return nil
	}
	network, _ := networks(address)
	at := l.id(classRegister, network, "")
	wait, err := time.Duration(0), errAway
	if l.shared != nil {
		wait, err = l.shared.take(ctx, at)
	}
	if err != nil {
		l.local.decide(func(d decision) { wait = d.take(at) })
	}
	if wait > 0 {
		l.refused.WithLabelValues("register").Inc()
		return tooMany(wait)
	}
	return nil
}

// Unlock forgets the failures of the account in every tier, so that anyone may try at once: also those that
// were counted under another secret, as some processes do while it is being replaced.
func (l *Limiter) Unlock(ctx context.Context, account string) error {
	for _, key := range l.nameKeys {
		k := keys{account: idUnder(key, classAccount, netip.Prefix{}, account)}
		l.local.decide(func(d decision) { d.clear(k) })
		if l.shared != nil {
			if err := l.shared.clear(ctx, k); err != nil {
				return errors.Join(ErrNotShared, ctx.Err())
			}
		}
	}
	return nil
}

// State is what unknown devices meet at an account.
type State struct {
	Failures     int       // consecutive
	RefusedUntil time.Time // zero: not refused
}

// State tells what unknown devices meet at the account: under any of the secrets, the most failures and the longest
// refusal. Without shared counters it only knows of this process.
func (l *Limiter) State(ctx context.Context, account string) (worst State, err error) {
	for _, key := range l.nameKeys {
		k := keys{account: idUnder(key, classAccount, netip.Prefix{}, account)}
		var failures int64
		var wait time.Duration
		if l.shared == nil {
			l.local.decide(func(d decision) { failures, wait = d.state(k) })
		} else if failures, wait, err = l.shared.state(ctx, k); err != nil {
			return State{}, errors.Join(ErrNotShared, ctx.Err())
		}
		worst.Failures = max(worst.Failures, int(failures))
		if until := l.now().Add(wait).UTC(); wait > 0 && until.After(worst.RefusedUntil) {
			worst.RefusedUntil = until
		}
	}
	return worst, nil
}

// tooMany rounds up to whole seconds, the unit of Retry-After.
func tooMany(wait time.Duration) error {
	return ErrTooManyAttempts.After(max(time.Second, (wait + time.Second - 1).Truncate(time.Second)))
}

func (l *Limiter) measure(reg prometheus.Registerer) error {
	l.refused = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "authctl_throttle_refused_total", Help: "Attempts refused before hashing, by the limit that refused.",
	}, []string{"limit"})
	l.finished = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "authctl_throttle_attempts_total", Help: "Attempts let through, by tier and by how they ended.",
	}, []string{"tier", "outcome"})
	l.lockout = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "authctl_throttle_lockouts_total", Help: "Thresholds crossed by streaks of failures.",
	})
	for _, name := range limitNames {
		l.refused.WithLabelValues(name)
	}
	l.refused.WithLabelValues("in_flight")
	l.refused.WithLabelValues("register")
	for _, in := range tierNames {
		for _, how := range outcomeNames {
			l.finished.WithLabelValues(in, how)
		}
	}
	collectors := []prometheus.Collector{l.refused, l.finished, l.lockout,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "authctl_throttle_entries", Help: "Counters kept in this process.",
		}, func() float64 { n, _ := l.local.stats(); return float64(n) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "authctl_throttle_evicted_total", Help: "Counters in this process dropped for want of room.",
		}, func() float64 { _, n := l.local.stats(); return float64(n) }),
	}
	if l.shared != nil {
		collectors = append(collectors, prometheus.NewGaugeFunc(l.shared.gauge(), func() float64 {
			if !l.shared.up() {
				l.look()
			}
			if l.shared.up() {
				return 1
			}
			return 0
		}))
	}
	return metric.Register(reg, "throttle metrics", collectors...)
}

// look finds out whether the shared counters are back, as a sign-in does, since there may be none for hours: on
// counters that nobody has, it begins an attempt, which writes, and cancels it, which leaves nothing there. An engine
// that only answers, such as a full Redis, is still away.
func (l *Limiter) look() {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout) // each call has a shorter one of its own
	defer cancel()
	nobodys := keys{account: id{'l', 1}, pair: id{'l', 2}, address: id{'l', 3}, global: id{'l', 4}}
	// They note whether the engine answers.
	if v, err := l.shared.begin(ctx, nobodys); err == nil && v.limit == limitNone {
		_, _ = l.shared.finish(ctx, nobodys, v.tier, cancelled, id{}, id{})
	}
}
