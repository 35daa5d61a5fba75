package password

import (
	"cmp"
	"os"
	"runtime"
	"time"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/tuning"
)

// Config is auth.password.*: how passwords are hashed, what they may be, and how much of
// the machine hashing may take.
type Config struct {
	Algorithm    string `config:"auth.password.algorithm" default:"bcrypt" oneof:"bcrypt,argon2id" doc:"How new passwords are hashed. Older hashes are upgraded when their owners sign in."`
	BcryptCost   int    `config:"auth.password.bcrypt_cost" default:"12" min:"4" max:"20" doc:"Rounds of bcrypt as a power of two. Prod mode refuses less than 10. See: authctl password calibrate."`
	Argon2Memory int    `config:"auth.password.argon2_memory_mib" default:"46" min:"7" max:"256" doc:"Memory of one argon2id hash in MiB. The process uses up to three times as much for each worker."`

	MinLength    int    `config:"auth.password.min_length" default:"8" min:"1" max:"64" doc:"Fewest characters (Unicode code points) of a new password."`
	BreachedFile string `config:"auth.password.breached_file" doc:"Sorted file of SHA-1 hashes of breached passwords, as published by Have I Been Pwned: one a line in hexadecimal, whole or cut to their first 16 digits or more. It is searched on disk and never loaded."`

	Workers int `config:"auth.password.hash_workers" default:"0" min:"0" max:"256" doc:"Hashes computed at once. 0 means one for each CPU, with argon2id no more than half of the memory allows."`

	// No settings; tests set them. Zero means what is said here.
	// Queue is how many sign-ins may wait for a worker. Registrations have the places that sign-ins leave free, and
	// a quarter as many of their own. It is 1024: their memory is small, and QueueWait ends them.
	Queue     int
	QueueWait time.Duration // 5s is the longest a sign-in waits: people have tried again by then
}

// Validate reports what single values cannot show.
func (c Config) Validate(report func(path, problem string)) {
	if c.BreachedFile != "" {
		if _, err := os.Stat(c.BreachedFile); err != nil {
			report("auth.password.breached_file", "cannot be read")
		}
	}
}

// CheckFiles reports a breached-set file that could not be used.
func (c Config) CheckFiles(report func(path, problem string)) {
	if c.BreachedFile == "" {
		return
	}
	b, err := openBreached(c.BreachedFile)
	if err != nil {
		report("auth.password.breached_file", "cannot be used: "+err.Error())
		return
	}
	_ = b.close()
}

// New argon2id hashes make one pass with one thread. What a hash may cost is better spent on
// memory (RFC 9106 §4), and threads would take CPUs from other sign-ins. Hashes with other
// parameters, as an import brings them, are verified all the same.
const (
	argon2Time    = 1
	argon2Threads = 1
)

func (c Config) withDefaults() Config {
	c = config.WithDefaults(c)
	c.Queue = cmp.Or(c.Queue, 1024)
	c.QueueWait = cmp.Or(c.QueueWait, 5*time.Second)
	return c
}

// argon2Room is how many times its own memory a hash takes, with what the collector has not freed yet.
const argon2Room = 3

// workers is how many hashes run at once: as set, or one for each CPU the process may use, as far as
// half of the memory goes.
func (c Config) workers() int {
	if c.Workers > 0 {
		return c.Workers
	}
	n := min(runtime.NumCPU(), runtime.GOMAXPROCS(0))
	if memory, known := tuning.Memory(); known {
		n = c.fit(n, memory)
	}
	return n
}

// fit returns how many of n workers half of the memory is enough for, at least one.
func (c Config) fit(n int, memory uint64) int {
	one := c.HashMemory(1)
	if one == 0 {
		return n
	}
	return max(1, int(min(uint64(n), memory/2/one)))
}

// HashMemory is the memory in bytes that so many workers take while all of them hash. Zero workers
// are as many as there will be. That of bcrypt is negligible.
func (c Config) HashMemory(workers int) uint64 {
	if c.Algorithm != string(Argon2id) {
		return 0
	}
	if workers == 0 {
		workers = c.workers()
	}
	return uint64(workers) * argon2Room * uint64(c.Argon2Memory) << 20
}

// reserveProcs gives the Go scheduler one P more for each hashing worker, so that a worker
// never occupies the P that a request needs: the kernel, which knows that workers have the
// lowest priority, decides who runs, and not Go's scheduler, which does not.
//
// Whoever has set GOMAXPROCS in the environment has chosen, and it is left alone.
func reserveProcs(workers int) {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + workers)
	}
}
