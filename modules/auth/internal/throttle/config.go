package throttle

import (
	"cmp"
	"time"
)

// Config is auth.throttle.*, and the limits.
type Config struct {
	Enabled bool `config:"auth.throttle.enabled" default:"true" doc:"Limit failed sign-ins. Turn it off only if a proxy in front does it."`

	RegisterPerMinute int `config:"auth.throttle.register_per_minute" default:"0" min:"0" max:"1000000" doc:"Registrations a minute from one address, and as many at once. 0 sets no limit: hashing is bounded anyway, and a whole office or school registers from one address."`

	Limits `config:"-"`
}

// Limits are no settings: they only work together, and docs/security.md says what they give. Tests
// set them. Zero means the value that withDefaults has.
type Limits struct {
	AccountFree int           // failures from unknown devices that an account takes before delays start
	PairFree    int           // failures of one address at one account before delays start; guesses of a known address
	DeviceFree  int           // failures with one device token before it counts for nothing
	BaseDelay   time.Duration // the first delay; each further failure doubles it
	MaxDelay    time.Duration // the longest delay below MaxFailures
	MaxFailures int           // consecutive failures at an account; a fifth is for its known devices and addresses
	// Lock is how long unknown devices are refused after their share of MaxFailures, and again after each
	// further failure.
	Lock time.Duration

	AddressBurst     int // failures of one address (IPv4 /32, IPv6 /64) at once, over all accounts
	AddressPerMinute int
	PrefixBurst      int // the same for an IPv6 /48, which often belongs to one customer
	PrefixPerMinute  int
	GlobalBurst      int // failures of all unknown devices together
	GlobalPerMinute  int // also bounds the memory that throttling takes in Redis, or the space in PostgreSQL

	Forget    time.Duration // a streak of failures is forgotten when none was added for this long times its length
	Remember  time.Duration // how long an address that signed in to an account is known to it
	DeviceTTL time.Duration // how long a device token marks a known device

	PostgresTimeout time.Duration // how long counters in PostgreSQL may hold up a sign-in
	RedisTimeout    time.Duration // the same of counters in Redis

	// MemoryEntries are the counters kept in the process, some 200 bytes each, where there are no shared ones or
	// they are away.
	MemoryEntries int
}

func (l Limits) withDefaults() Limits {
	l.AccountFree = cmp.Or(l.AccountFree, 20)
	l.PairFree = cmp.Or(l.PairFree, 5)
	l.DeviceFree = cmp.Or(l.DeviceFree, 5)
	l.BaseDelay = cmp.Or(l.BaseDelay, time.Second)
	l.MaxDelay = cmp.Or(l.MaxDelay, 15*time.Minute)
	l.MaxFailures = cmp.Or(l.MaxFailures, 100) // NIST SP 800-63B-4 allows no more
	l.Lock = cmp.Or(l.Lock, 24*time.Hour)
	l.AddressBurst = cmp.Or(l.AddressBurst, 200)
	l.AddressPerMinute = cmp.Or(l.AddressPerMinute, 10)
	l.PrefixBurst = cmp.Or(l.PrefixBurst, 800)
	l.PrefixPerMinute = cmp.Or(l.PrefixPerMinute, 40)
	l.GlobalBurst = cmp.Or(l.GlobalBurst, 2000)
	l.GlobalPerMinute = cmp.Or(l.GlobalPerMinute, 600)
	l.Forget = cmp.Or(l.Forget, 24*time.Hour)
	l.Remember = cmp.Or(l.Remember, 30*24*time.Hour)
	l.DeviceTTL = cmp.Or(l.DeviceTTL, 180*24*time.Hour)
	l.PostgresTimeout = cmp.Or(l.PostgresTimeout, 250*time.Millisecond)
	l.RedisTimeout = cmp.Or(l.RedisTimeout, redisTimeout)
	l.MemoryEntries = cmp.Or(l.MemoryEntries, 100_000)
	return l
}
