package auth

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sync/errgroup"

	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/testenv"
)

// Each campaign does what attackers do, against the real service: real hashes, real counters. The
// limits that protect the whole service are lowered, so that a campaign reaches them in seconds.
// Those that protect an account are the defaults, except for delays too long to wait for; package
// throttle tests how they double, with a clock that it can move.
const (
	siegeGlobal  = 300 // failures of all strangers together
	siegeAddress = 60  // of one address
	siegePrefix  = 150 // of an IPv6 /48
	leak         = 5   // these refill by one a minute, and no campaign takes that long
)

// attempts is how many guesses an attack makes: ten thousand in long campaigns. Every limit is
// reached within the first few hundred.
func attempts() int {
	if os.Getenv("AUTHCTL_CAMPAIGN") == "long" {
		return 10_000
	}
	return 2_000
}

// siege is one or more servers under attack.
type siege struct {
	*testEnv
	hashes *prometheus.Registry
}

func underSiege(t *testing.T, test func(t *testing.T, s *siege)) {
	t.Helper()
	t.Run("sqlite_memory", func(t *testing.T) {
		t.Parallel()
		test(t, newSiege(t, siegeConfig(t), dbtest.SQLite(t), nil))
	})
	t.Run("postgres_redis", func(t *testing.T) {
		t.Parallel()
		test(t, newSiege(t, siegeConfig(t), dbtest.Postgres(t), redisClient(t)))
	})
}

// siegeConfig uses its own secret, because the secret is part of the counters' keys in Redis.
func siegeConfig(t testing.TB) Config {
	t.Helper()
	cfg := testConfig()
	if err := config.Load(&cfg.Throttle, config.Options{}); err != nil {
		t.Fatal(err)
	}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	cfg.Token.Secret = config.Secret(hex.EncodeToString(secret))
	cfg.Throttle.BaseDelay, cfg.Throttle.MaxDelay = time.Hour, time.Hour // longer than any campaign takes
	cfg.Throttle.GlobalBurst, cfg.Throttle.GlobalPerMinute = siegeGlobal, 1
	cfg.Throttle.AddressBurst, cfg.Throttle.AddressPerMinute = siegeAddress, 1
	cfg.Throttle.PrefixBurst, cfg.Throttle.PrefixPerMinute = siegePrefix, 1
	cfg.Throttle.PostgresTimeout, cfg.Throttle.RedisTimeout = time.Minute, time.Minute // for a busy machine
	return cfg
}

func newSiege(t testing.TB, cfg Config, db *database.DB, rc cache.Client) *siege {
	t.Helper()
	s := &siege{&testEnv{db: db, redis: rc, log: &logBuffer{}, cfg: cfg}, prometheus.NewRegistry()}
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), s.log, zap.DebugLevel))
	var err error
	if s.Service, err = New(t.Context(), cfg, Deps{DB: db, Redis: rc, Log: log, Registry: s.hashes}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// hashed is the number of computed hashes.
func (s *siege) hashed(t testing.TB) int {
	t.Helper()
	families, err := s.hashes.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "authctl_password_hash_seconds" {
			return int(f.GetMetric()[0].GetHistogram().GetSampleCount())
		}
	}
	t.Fatal("no metric counts hashes")
	return 0
}

// counter is the sum of the counters of this name that have the label value.
func (s *siege) counter(t testing.TB, name, value string) (sum int) {
	t.Helper()
	families, err := s.hashes.Gather()
	testenv.Must(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, label := range m.GetLabel() {
				if f.GetName() == name && label.GetValue() == value {
					sum += int(m.GetCounter().GetValue())
				}
			}
		}
	}
	return sum
}

// guess tries a wrong password and reports whether the service compared it.
func (s *siege) guess(t testing.TB, name string, from netip.Addr) bool {
	t.Helper()
	_, err := s.Login(t.Context(), Credentials{name, "not the password"}, Device{IP: from})
	switch {
	case errors.Is(err, ErrInvalidCredentials):
		return true
	case !errors.Is(err, ErrTooManyAttempts):
		t.Fatalf("a guess at %s: %v", name, err)
	}
	if f, ok := errors.AsType[*fault.Fault](err); !ok || f.RetryAfter <= 0 {
		t.Fatalf("a refusal does not say when to try again: %v", err)
	}
	return false
}

// victim is an owner who goes on signing in from known devices.
type victim struct {
	name   string
	id     uuid.UUID
	device string     // token of the phone, which changes its address
	home   netip.Addr // address of the old browser, which keeps no token
	seen   int
}

func (s *siege) newVictim(t testing.TB) *victim {
	t.Helper()
	v := &victim{name: "victim-" + strings.ReplaceAll(uuid.NewString(), "-", ""),
		home: netip.AddrFrom4([4]byte{198, 51, 100, byte(len(t.Name()))})}
	tokens, err := s.Register(t.Context(), Credentials{v.name, goodPassword}, Device{IP: v.home})
	if err != nil {
		t.Fatal(err)
	}
	v.id, v.device = s.caller(t, tokens).User.ID, tokens.DeviceToken
	return v
}

// signsIn signs in from a new address with the token, and from home without one.
func (v *victim) signsIn(t testing.TB, s *siege) {
	t.Helper()
	v.seen++
	tokens, err := s.Login(t.Context(), Credentials{v.name, goodPassword},
		Device{IP: netip.AddrFrom4([4]byte{203, 0, 113, byte(v.seen)}), Token: v.device})
	if err != nil {
		t.Fatalf("the owner's phone: %v", err)
	}
	v.device = tokens.DeviceToken
	if _, err := s.Login(t.Context(), Credentials{v.name, goodPassword}, Device{IP: v.home}); err != nil {
		t.Fatalf("the owner at home: %v", err)
	}
}

func bot(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}) }

// between checks a count against the limits. When Redis did not answer in time on a very busy
// machine, each process used its own limits meanwhile, as package throttle promises, so with two
// processes twice as many may have passed.
func (s *siege) between(t testing.TB, what string, n, low, high int) {
	t.Helper()
	if strings.Contains(s.log.String(), "throttle_redis_away") {
		high *= 2
	}
	if n < low || n > high {
		t.Errorf("%s: %d, want %d to %d", what, n, low, high)
	}
}

func TestOnePasswordFromTenThousandAddresses(t *testing.T) {
	t.Parallel()
	underSiege(t, func(t *testing.T, s *siege) {
		v, before := s.newVictim(t), s.hashed(t)
		guesses, own := 0, 0
		for n := range attempts() {
			name := fmt.Sprint("nobody-", n)
			if n%100 == 0 {
				name = v.name
			}
			if s.guess(t, name, bot(n)) {
				guesses++
			}
			if each := attempts() / 10; n%each == each-1 {
				v.signsIn(t, s)
				own += 2
			}
		}
		s.between(t, "guesses compared", guesses, siegeGlobal, siegeGlobal+leak)
		if got := s.hashed(t) - before; got != guesses+own {
			t.Errorf("%d hashes for %d guesses and %d sign-ins: refused guesses cost hashes", got, guesses, own)
		}
	})
}

func TestTenThousandNamesFromOneAddress(t *testing.T) {
	t.Parallel()
	underSiege(t, func(t *testing.T, s *siege) {
		v, before := s.newVictim(t), s.hashed(t)
		guesses, own := 0, 0
		for n := range attempts() {
			name := fmt.Sprint("nobody-", n)
			if n == 5 {
				name = v.name
			}
			if s.guess(t, name, v.home) { // the attacker shares the victim's router
				guesses++
			}
			if each := attempts() / 10; n%each == each-1 {
				v.signsIn(t, s)
				own += 2
			}
		}
		s.between(t, "guesses let through", guesses, siegeAddress, siegeAddress+leak+1) // one in the victim's own tier
		if got := s.hashed(t) - before; got != guesses+own {
			t.Errorf("%d hashes for %d guesses and %d sign-ins of the owner", got, guesses, own)
		}
		if !s.guess(t, "nobody-else", bot(1)) {
			t.Error("another address is refused too")
		}
	})
}

func TestOneAccountFromTenThousandAddresses(t *testing.T) {
	t.Parallel()
	underSiege(t, func(t *testing.T, s *siege) {
		v, before := s.newVictim(t), s.hashed(t)
		guesses, own, missing := 0, 0, 0
		for n := range attempts() {
			if s.guess(t, v.name, bot(n)) {
				guesses++
			}
			if n < 100 && s.guess(t, "nobody-at-all", bot(n)) {
				missing++
			}
			if each := attempts() / 10; n%each == each-1 {
				v.signsIn(t, s)
				own += 2
			}
		}
		// From the twentieth guess on there is a delay.
		s.between(t, "guesses let through", guesses, 20, 20)
		s.between(t, "guesses compared at a name that does not exist", missing, 20, 20)
		if got := s.hashed(t) - before; got != guesses+missing+own {
			t.Errorf("%d hashes for %d guesses and %d sign-ins of the owner", got, guesses+missing, own)
		}
		s.expectLockOuts(t, v, 1)

		// Strangers are refused with the right password too, until an operator unlocks the account.
		if _, err := s.Login(t.Context(), Credentials{v.name, goodPassword},
			Device{IP: bot(1 << 20)}); !errors.Is(err, ErrTooManyAttempts) {
			t.Errorf("a new device of the owner: %v", err)
		}
		u, err := s.FindUser(t.Context(), v.name)
		if err != nil {
			t.Fatal(err)
		}
		if failures, until, err := s.SignInState(t.Context(), u); err != nil || failures != guesses || until.IsZero() {
			t.Errorf("the state is %d failures, refused until %s, %v", failures, until, err)
		}
		if err := s.UnlockUser(t.Context(), u); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Login(t.Context(), Credentials{v.name, goodPassword}, Device{IP: bot(1 << 20)}); err != nil {
			t.Errorf("a new device after the unlock: %v", err)
		}
	})
}

// expectLockOuts counts the announced lock-outs. Names without an account have none.
func (s *siege) expectLockOuts(t testing.TB, v *victim, want int) {
	t.Helper()
	s.lockOuts.queued.Wait()
	of := func(list []told) int {
		return len(slices.DeleteFunc(list, func(e told) bool { return e.Type != EventUserLockedOut }))
	}
	var all int
	if err := s.db.QueryRowContext(t.Context(), "SELECT count(*) FROM outbox_event WHERE type = ?",
		EventUserLockedOut).Scan(&all); err != nil {
		t.Fatal(err)
	}
	if got := of(s.events(t, v.id)); got != want || all != want {
		t.Errorf("%d lock-outs of the account were announced, %d in all, want %d", got, all, want)
	}
}

func TestALockOutIsAnnouncedOnceForEachThreshold(t *testing.T) {
	t.Parallel()
	underSiege(t, func(t *testing.T, s *siege) {
		v := s.newVictim(t)
		for range 30 { // five from one address: that address is locked out
			s.guess(t, v.name, bot(1))
		}
		s.expectLockOuts(t, v, 1)
		for n := range 14 { // 19 in all
			s.guess(t, v.name, bot(2+n))
		}
		s.expectLockOuts(t, v, 1)
		for n := range 30 { // 20 in all: all strangers are locked out
			s.guess(t, v.name, bot(100+n))
		}
		s.expectLockOuts(t, v, 2)
		for n := range 30 { // the same at a name that does not exist
			s.guess(t, "nobody-at-all", bot(n))
		}
		s.expectLockOuts(t, v, 2)
		v.signsIn(t, s)
	})
}

func TestRotatingIPv6AddressesGainsNothing(t *testing.T) {
	t.Parallel()
	underSiege(t, func(t *testing.T, s *siege) {
		v := s.newVictim(t)
		v6 := func(network, host int) netip.Addr {
			return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0xab, 0xcd, byte(network >> 8), byte(network),
				14: byte(host >> 8), 15: byte(host)})
		}
		guesses := 0
		for n := range 2000 { // one host's own /64
			if s.guess(t, fmt.Sprint("nobody-", n), v6(0, n)) {
				guesses++
			}
		}
		s.between(t, "guesses from one /64", guesses, siegeAddress, siegeAddress+leak)
		for n := range 2000 { // the whole /48 of a customer
			if s.guess(t, fmt.Sprint("somebody-", n), v6(1+n, n)) {
				guesses++
			}
		}
		s.between(t, "guesses from one /48", guesses, siegePrefix, siegePrefix+2*leak)
		v.signsIn(t, s)
		// An IPv4-mapped IPv6 address counts as the IPv4 address.
		mapped := 0
		for range 50 {
			if s.guess(t, v.name, netip.MustParseAddr("::ffff:10.9.9.9")) {
				mapped++
			}
			if s.guess(t, v.name, netip.MustParseAddr("10.9.9.9")) {
				mapped++
			}
		}
		s.between(t, "guesses from an address written in two ways", mapped, 5, 5)
	})
}

func TestTwoServersThatShareARedisShareTheLimits(t *testing.T) {
	t.Parallel()
	twoServersShareTheLimits(t, redisClient(t))
}

func TestTwoServersOnPostgresAloneShareTheLimits(t *testing.T) {
	t.Parallel()
	twoServersShareTheLimits(t, nil)
}

func twoServersShareTheLimits(t *testing.T, rc cache.Client) {
	t.Helper()
	cfg, url := siegeConfig(t), dbtest.PostgresURL(t)
	servers := []*siege{newSiege(t, cfg, dbtest.Open(t, url), rc), newSiege(t, cfg, dbtest.Open(t, url), rc)}
	v := servers[0].newVictim(t)
	before := servers[0].hashed(t) + servers[1].hashed(t)
	// All guesses run at once, because attempts in flight count too.
	var let atomic.Int64
	var group errgroup.Group
	group.SetLimit(32)
	for n := range 200 {
		group.Go(func() error {
			_, err := servers[n%2].Login(t.Context(), Credentials{v.name, "not the password"}, Device{IP: bot(n)})
			switch {
			case errors.Is(err, ErrInvalidCredentials):
				let.Add(1)
			case !errors.Is(err, ErrTooManyAttempts) && !errors.Is(err, ErrOverloaded):
				return fmt.Errorf("a guess: %w", err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	for _, s := range servers {
		s.between(t, "guesses let through by two servers", int(let.Load()), 20, 20)
	}
	if got := servers[0].hashed(t) + servers[1].hashed(t) - before; got != int(let.Load()) {
		t.Errorf("%d hashes for %d guesses", got, let.Load())
	}
	for n := range 6 {
		v.signsIn(t, servers[n%2])
	}
	u, err := servers[0].FindUser(t.Context(), v.name)
	if err != nil {
		t.Fatal(err)
	}
	if err := servers[0].UnlockUser(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	if !servers[1].guess(t, v.name, bot(9999)) {
		t.Error("unlocked on one server, locked on the other")
	}
	servers[1].lockOuts.queued.Wait()
	servers[0].expectLockOuts(t, v, 1)
}

// Whoever is refused for want of a worker would otherwise be counted as an attempt, and then taken back.
func TestTheLimitsAreNotAskedForThoseWhomAFloodRefuses(t *testing.T) {
	t.Parallel()
	cfg := siegeConfig(t)
	cfg.Password.Workers, cfg.Password.BcryptCost, cfg.Password.QueueWait = 1, 11, 2*time.Second
	s := newSiege(t, cfg, dbtest.SQLite(t), redisClient(t))
	flood := func(from, n int) (refused int) {
		var all errgroup.Group
		var overloaded atomic.Int64
		for i := range n {
			all.Go(func() error {
				_, err := s.Login(t.Context(), Credentials{fmt.Sprint("nobody", from+i), "not the password"},
					Device{IP: bot(from + i)})
				if errors.Is(err, ErrOverloaded) {
					overloaded.Add(1)
				} else if !errors.Is(err, ErrInvalidCredentials) {
					return err
				}
				return nil
			})
		}
		testenv.Must(t, all.Wait())
		return int(overloaded.Load())
	}
	var all sync.WaitGroup
	var early int
	all.Go(func() { early = flood(0, 32) })
	testenv.Eventually(t, "the workers cannot keep up", s.passwords.Behind)
	refused := flood(32, 120)
	all.Wait()
	refused += early
	// Those who came before the workers were behind are taken back, and few whose turn was near.
	if n := s.counter(t, "authctl_throttle_attempts_total", "cancelled"); refused < 40 || n > refused/2 {
		t.Errorf("of %d who were refused, %d attempts were taken back", refused, n)
	}
}

// Existing, missing and disabled accounts get the same refusals, before and after the limit.
func TestARefusalDoesNotTellWhatTheAccountIs(t *testing.T) {
	t.Parallel()
	underSiege(t, func(t *testing.T, s *siege) {
		active, disabled := s.newVictim(t), s.newVictim(t)
		if err := s.DisableUser(t.Context(), disabled.id); err != nil {
			t.Fatal(err)
		}
		names := []string{active.name, disabled.name, "nobody-at-all", "impossible name", "\xff\xfe",
			strings.Repeat("x", 10_000)}
		for n := range 8 {
			var first error
			for i, name := range names {
				_, err := s.Login(t.Context(), Credentials{name, "not the password"}, Device{IP: bot(42)})
				f, ok := errors.AsType[*fault.Fault](err)
				if !ok {
					t.Fatalf("%.20q: %v", name, err)
				}
				f = f.After(0) // Retry-After counts seconds, and the next one may have begun
				if i == 0 {
					first = f
				}
				if fmt.Sprintf("%+v", f) != fmt.Sprintf("%+v", first) {
					t.Errorf("attempt %d at %.20q: %+v, at the first name %+v", n, name, f, first)
				}
			}
			if limited := errors.Is(first, ErrTooManyAttempts); limited != (n >= 5) {
				t.Errorf("attempt %d: %v", n, first)
			}
		}
	})
}

// Any typed password costs one hash, and only the real one matches.
func TestALongPasswordCostsOneHashAndIsNotCutOff(t *testing.T) {
	t.Parallel()
	underSiege(t, func(t *testing.T, s *siege) {
		name, long := "long-"+strings.ReplaceAll(uuid.NewString(), "-", ""), strings.Repeat("long pass ", 20)
		if _, err := s.Register(t.Context(), Credentials{name, long}, phone()); err != nil {
			t.Fatal(err)
		}
		other, _ := s.newUser(t)
		if err := s.give72Bytes(t, other); err != nil {
			t.Fatal(err)
		}
		before := s.hashed(t)
		tries := []Credentials{
			{name, long[:72]}, {name, long + " "}, {name, strings.Repeat(long, 70)}, {name, "long pass\x00"},
			{other, strings.Repeat("7", 73)}, {other, strings.Repeat("7", 14_000)}, {other,
				strings.Repeat("7", 71)}, {other, strings.Repeat("7", 72) + "\x00"},
		}
		for n, cred := range tries {
			if _, err := s.Login(t.Context(), cred, Device{IP: bot(n)}); !errors.Is(err, ErrInvalidCredentials) {
				t.Errorf("%.10s… of %d bytes: %v", cred.Password, len(cred.Password), err)
			}
		}
		if got := s.hashed(t) - before; got != len(tries) {
			t.Errorf("%d hashes for %d attempts", got, len(tries))
		}
		for _, cred := range []Credentials{{name, long}, {other, strings.Repeat("7", 72)}} {
			if _, err := s.Login(t.Context(), cred, phone()); err != nil {
				t.Errorf("the right password of %d bytes: %v", len(cred.Password), err)
			}
		}
	})
}

// give72Bytes gives the account a password of 72 bytes, the most that plain bcrypt accepts.
func (s *siege) give72Bytes(t testing.TB, name string) error {
	u, err := s.FindUser(t.Context(), name)
	if err != nil {
		return err
	}
	hash, err := s.passwords.Hash(t.Context(), strings.Repeat("7", 72))
	if err == nil && !strings.HasPrefix(hash, "$2b$") {
		err = fmt.Errorf("it is hashed as %.8s", hash)
	}
	if err == nil {
		_, err = s.db.Write(t.Context(), "UPDATE users SET password_hash = ? WHERE id = ?", hash, u.ID)
	}
	return err
}
