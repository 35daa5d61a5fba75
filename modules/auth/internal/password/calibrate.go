package password

import (
	"context"
	"time"
)

// Calibration suggests settings for this machine.
type Calibration struct {
	BcryptCost  int           `json:"bcrypt_cost"`
	BcryptTakes time.Duration `json:"bcrypt_takes_ns"` // one hash on one core

	Argon2Memory int           `json:"argon2_memory_mib"`
	Argon2Takes  time.Duration `json:"argon2_takes_ns"`
}

// The least that is suggested, however slow the machine: what OWASP's Password Storage
// Cheat Sheet asks for.
const (
	leastBcryptCost   = 10
	leastArgon2Memory = 46 // MiB
)

// Calibrate measures what hashes cost on this machine and returns the strongest settings
// with which one takes at most target, but never less than is safe: then it takes longer.
// It measures one hash at a time; a machine that is busy gives a cautious answer. When ctx ends
// what was measured until then counts. The error is that of a ctx that has ended before.
func Calibrate(ctx context.Context, target time.Duration) (Calibration, error) {
	c := Calibration{BcryptCost: leastBcryptCost, Argon2Memory: leastArgon2Memory}
	if err := ctx.Err(); err != nil {
		return Calibration{}, err
	}
	c.BcryptTakes = shortest(ctx, bcryptHash("$2b$", c.BcryptCost), bcryptDigest)
	// One more doubles the work, exactly.
	for c.BcryptTakes*2 <= target && c.BcryptCost < maxBcryptCost {
		c.BcryptCost++
		c.BcryptTakes *= 2
	}
	argon := argon2Hash(Argon2id, argon2idPrefix, c.Argon2Memory<<10, argon2Time, argon2Threads, argon2Order)
	c.Argon2Takes = shortest(ctx, argon, argon2Digest)
	// Each MiB costs the same.
	if memory := min(int(float64(leastArgon2Memory)*float64(target)/float64(max(c.Argon2Takes, 1))),
		maxArgon2Memory>>10); memory > leastArgon2Memory {
		c.Argon2Takes = c.Argon2Takes * time.Duration(memory) / leastArgon2Memory
		c.Argon2Memory = memory
	}
	return c, nil
}

// shortest is the least of some measurements: the one that was least disturbed. It makes one at
// least.
func shortest(ctx context.Context, maker hash, digestSize int) (least time.Duration) {
	const measurements = 5
	for i := range measurements {
		if i > 0 && ctx.Err() != nil {
			break
		}
		start := time.Now()
		maker.seal([]byte("correct horse battery staple"), digestSize)
		if took := time.Since(start); i == 0 || took < least {
			least = took
		}
	}
	return least
}
