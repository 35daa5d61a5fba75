package throttle

import (
	"cmp"
	"time"
)

// Config is auth.throttle.*.
type Config struct {
	Enabled bool `config:"auth.throttle.enabled" default:"true" doc:"Limit failed sign-ins. Off only where something in front does it."`

	AccountFree int           `config:"auth.throttle.account_free" default:"20" min:"1" max:"50" doc:"Failures from unknown devices that an account takes before delays start."`
	PairFree    int           `config:"auth.throttle.pair_free" default:"5" min:"1" max:"50" doc:"Failures of one address at one account before delays start. Also the guesses that an address known to the account has of its own."`
	DeviceFree  int           `config:"auth.throttle.device_free" default:"5" min:"1" max:"50" doc:"Failures with one device token before it counts for nothing. All tokens and addresses known to an account have a fifth of max_failures together."`
	BaseDelay   time.Duration `config:"auth.throttle.base_delay" default:"1s" min:"100ms" max:"1h" doc:"First delay; each further failure doubles it."`
	MaxDelay    time.Duration `config:"auth.throttle.max_delay" default:"15m" min:"1s" max:"24h" doc:"Longest delay below max_failures."`
	MaxFailures int           `config:"auth.throttle.max_failures" default:"100" min:"2" max:"100" doc:"Most consecutive failures at an account in all, however they are made. A fifth of them is for its known devices and addresses together; when strangers have used up the rest, they are refused for the time of lock. NIST SP 800-63B-4 allows no more than 100."`
	Lock        time.Duration `config:"auth.throttle.lock" default:"24h" min:"1m" max:"720h" doc:"How long unknown devices are refused after their share of max_failures, and again after each further failure."`

	AddressBurst     int `config:"auth.throttle.address_burst" default:"200" min:"1" max:"1000000" doc:"Failures that one address (IPv4 /32, IPv6 /64) may make at once, over all accounts."`
	AddressPerMinute int `config:"auth.throttle.address_per_minute" default:"10" min:"1" max:"1000000" doc:"Failures a minute that one address may make on and on."`
	PrefixBurst      int `config:"auth.throttle.prefix_burst" default:"800" min:"1" max:"1000000" doc:"The same for an IPv6 /48, which often belongs to one customer."`
	PrefixPerMinute  int `config:"auth.throttle.prefix_per_minute" default:"40" min:"1" max:"1000000" doc:"The same for an IPv6 /48."`
	GlobalBurst      int `config:"auth.throttle.global_burst" default:"2000" min:"1" max:"10000000" doc:"Failures that all unknown devices together may make at once."`
	GlobalPerMinute  int `config:"auth.throttle.global_per_minute" default:"600" min:"1" max:"10000000" doc:"Failures a minute of all unknown devices together. Bounds the memory that throttling takes in Redis, too."`

	RegisterPerMinute int `config:"auth.throttle.register_per_minute" default:"0" min:"0" max:"1000000" doc:"Registrations a minute from one address; as many at once. 0: no limit of their own. Hashing is bounded anyway, and an office or a school registers from one address."`

	Forget   time.Duration `config:"auth.throttle.forget" default:"24h" min:"1m" max:"720h" doc:"A streak of failures is forgotten when none was added for this long times its length. So whoever pauses gains one guess in this time."`
	Remember time.Duration `config:"auth.throttle.remember" default:"720h" min:"1h" max:"8760h" doc:"How long an address that signed in to an account is known to it."`
	Device   time.Duration `config:"auth.throttle.device_ttl" default:"4320h" min:"1h" max:"17520h" doc:"How long a device token marks a known device."`

	MemoryEntries int `config:"auth.throttle.memory_entries" default:"100000" min:"1000" max:"10000000" doc:"Counters kept in the process, where there is no Redis or it is away. Some 200 bytes each."`
}

// Validate reports what single values cannot show.
func (c Config) Validate(report func(path, problem string)) {
	if c.BaseDelay > c.MaxDelay {
		report("auth.throttle.base_delay", "is longer than max_delay")
	}
	if c.AccountFree > c.strangersFailures() {
		report("auth.throttle.account_free", "must be at most four fifths of max_failures, the share of unknown devices")
	}
	if c.Lock < c.MaxDelay {
		report("auth.throttle.lock", "is shorter than max_delay")
	}
	// A refusal that is forgotten before it ends would give a whole new budget.
	if c.Forget < c.MaxDelay || c.memory() < c.Lock {
		report("auth.throttle.forget", "must be at least max_delay, and times max_failures at least lock")
	}
	if c.PrefixBurst < c.AddressBurst || c.PrefixPerMinute < c.AddressPerMinute {
		report("auth.throttle.prefix_burst",
			"and prefix_per_minute must be at least those of an address, or the /48 is stricter than its /64s")
	}
}

// withDefaults fills what a config that was not loaded leaves out.
func (c Config) withDefaults() Config {
	c.AccountFree = cmp.Or(c.AccountFree, 20)
	c.PairFree = cmp.Or(c.PairFree, 5)
	c.DeviceFree = cmp.Or(c.DeviceFree, 5)
	c.BaseDelay = cmp.Or(c.BaseDelay, time.Second)
	c.MaxDelay = cmp.Or(c.MaxDelay, 15*time.Minute)
	c.MaxFailures = cmp.Or(c.MaxFailures, 100)
	c.Lock = cmp.Or(c.Lock, 24*time.Hour)
	c.AddressBurst = cmp.Or(c.AddressBurst, 200)
	c.AddressPerMinute = cmp.Or(c.AddressPerMinute, 10)
	c.PrefixBurst = cmp.Or(c.PrefixBurst, 800)
	c.PrefixPerMinute = cmp.Or(c.PrefixPerMinute, 40)
	c.GlobalBurst = cmp.Or(c.GlobalBurst, 2000)
	c.GlobalPerMinute = cmp.Or(c.GlobalPerMinute, 600)
	c.Forget = cmp.Or(c.Forget, 24*time.Hour)
	c.Remember = cmp.Or(c.Remember, 720*time.Hour)
	c.Device = cmp.Or(c.Device, 4320*time.Hour)
	c.MemoryEntries = cmp.Or(c.MemoryEntries, 100000)
	return c
}
