package auth

import (
	"context"
	"math"
	"time"

	"github.com/toppira/authctl/modules/auth/internal/password"
)

// HashCost is what hashing one password costs on one core of this machine: BcryptCost and BcryptTakes, Argon2Memory
// (MiB) and Argon2Takes.
type HashCost = password.Calibration

// CalibrateHashing measures this machine and returns the strongest settings with which one hash takes
// at most target, but never weaker ones than are safe. On a busy machine it errs on the low side.
func CalibrateHashing(ctx context.Context, target time.Duration) (HashCost, error) {
	return password.Calibrate(ctx, target)
}

// HashTime estimates how long one hash takes with the settings. It measures a cheap one and
// multiplies, so that it is quick also with a cost far too high.
func HashTime(ctx context.Context, cfg Config) (time.Duration, error) {
	least, err := CalibrateHashing(ctx, 0)
	if err != nil {
		return 0, err
	}
	set := cfg.Password
	if set.Algorithm == string(password.Argon2id) {
		work := float64(set.Argon2Memory) / float64(least.Argon2Memory)
		return time.Duration(float64(least.Argon2Takes) * work), nil
	}
	return time.Duration(float64(least.BcryptTakes) * math.Exp2(float64(set.BcryptCost-least.BcryptCost))), nil
}
