package password

import (
	"cmp"
	"os"
	"runtime"
	"time"
)

// Config is auth.password.*: how passwords are hashed, what they may be, and how much of
// the machine hashing may take.
type Config struct {
	Algorithm     string `config:"auth.password.algorithm" default:"bcrypt" oneof:"bcrypt,argon2id" doc:"How new passwords are hashed. Older hashes are upgraded when their owner signs in."`
	BcryptCost    int    `config:"auth.password.bcrypt_cost" default:"12" min:"4" max:"20" doc:"Rounds of bcrypt as a power of two. Below 10 is refused in prod mode. See: authctl password calibrate."`
	Argon2Memory  int    `config:"auth.password.argon2_memory_mib" default:"46" min:"7" max:"256" doc:"Memory of one argon2id hash in MiB. The process takes up to three times as much for each worker."`
	Argon2Time    int    `config:"auth.password.argon2_time" default:"1" min:"1" max:"16" doc:"Passes of argon2id over its memory."`
	Argon2Threads int    `config:"auth.password.argon2_threads" default:"1" min:"1" max:"16" doc:"Lanes of argon2id."`

	MinLength    int    `config:"auth.password.min_length" default:"8" min:"1" max:"64" doc:"Fewest characters (Unicode code points) of a new password."`
	Blocklist    bool   `config:"auth.password.blocklist" default:"true" doc:"Refuse new passwords that are among the most common ones (the list is built in)."`
	BreachedFile string `config:"auth.password.breached_file" doc:"File of SHA-1 hashes of breached passwords, sorted, one a line in hexadecimal, whole or cut to their first 16 digits or more, as published by Have I Been Pwned. Read in place, never loaded."`

	Workers   int           `config:"auth.password.hash_workers" default:"0" min:"0" max:"256" doc:"Hashes computed at once. 0: one for each CPU."`
	Queue     int           `config:"auth.password.hash_queue" default:"1024" min:"1" max:"65536" doc:"Sign-ins that may wait for a worker. Registrations have a quarter as many places of their own. More are answered 503 at once."`
	QueueWait time.Duration `config:"auth.password.hash_wait" default:"5s" min:"100ms" max:"60s" doc:"Longest a sign-in waits for a worker; then it is answered 503."`
}

// Validate reports what single values cannot show.
func (c Config) Validate(report func(path, problem string)) {
	if c.Argon2Memory*c.Argon2Time > maxArgon2Work>>10 {
		report("auth.password.argon2_time", "times argon2_memory_mib is more than is accepted of any hash (2048)")
	}
	if c.BreachedFile != "" {
		if _, err := os.Stat(c.BreachedFile); err != nil {
			report("auth.password.breached_file", "cannot be read")
		}
	}
}

func (c Config) withDefaults() Config {
	c.Algorithm = cmp.Or(c.Algorithm, "bcrypt")
	c.BcryptCost = cmp.Or(c.BcryptCost, 12)
	c.Argon2Memory = cmp.Or(c.Argon2Memory, 46)
	c.Argon2Time = cmp.Or(c.Argon2Time, 1)
	c.Argon2Threads = cmp.Or(c.Argon2Threads, 1)
	c.MinLength = cmp.Or(c.MinLength, 8)
	c.Queue = cmp.Or(c.Queue, 1024)
	c.QueueWait = cmp.Or(c.QueueWait, 5*time.Second)
	return c
}

// workers is how many hashes run at once: as set, or one for each CPU the process may use.
func (c Config) workers() int {
	if c.Workers > 0 {
		return c.Workers
	}
	return min(runtime.NumCPU(), runtime.GOMAXPROCS(0))
}

// reserveProcs gives the Go scheduler one P more for each hashing worker, so that a worker
// never occupies the P that a request needs: the kernel, which knows that workers have the
// lowest priority, decides who runs, and not Go's scheduler, which does not.
//
// Who set GOMAXPROCS in the environment has chosen, and is left alone.
func reserveProcs(workers int) {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + workers)
	}
}
