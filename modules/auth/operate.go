package auth

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/password"
	"github.com/toppira/authctl/modules/auth/internal/token"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/logging"
)

// Keys manages the signing keys on an operator's behalf, beside running servers, which
// notice a change within seconds. It needs no [Service], and works also when the secret that
// sealed the active key is lost: that key can then be revoked.
type Keys struct {
	ring     *keyring
	security *zap.Logger
}

// OpenKeys returns the signing keys that are kept in the database. It does no I/O. With
// HS256 every method returns [ErrKeysUnused], but [Keys.Check], which is content.
func OpenKeys(db *database.DB, cfg Config, log *zap.Logger) *Keys {
	return &Keys{ring: openKeyring(db, cfg.Token, nil), security: logging.Security(log)}
}

// List returns every key there ever was, oldest first.
func (k *Keys) List(ctx context.Context) ([]KeyInfo, error) { return k.ring.List(ctx) }

// Stage makes a key of the configured algorithm and publishes it. It signs nothing yet.
func (k *Keys) Stage(ctx context.Context) (KeyInfo, error) {
	info, err := k.ring.Stage(ctx)
	return k.noted("signing_key_staged", info, err)
}

// Promote makes a staged key the one that signs; the one that did is retiring from then on.
// It returns [ErrKeyTooNew] while verifiers may not know the key, unless force.
func (k *Keys) Promote(ctx context.Context, kid string, force bool) (KeyInfo, error) {
	if err := k.correct(ctx); err != nil {
		return KeyInfo{}, err
	}
	info, err := k.ring.Promote(ctx, kid, force)
	return k.noted("signing_key_promoted", info, err)
}

// Retire takes a retiring key out of use for good. It returns [ErrKeyInUse] while tokens
// that it signed can live, unless force.
func (k *Keys) Retire(ctx context.Context, kid string, force bool) (KeyInfo, error) {
	if err := k.correct(ctx); err != nil {
		return KeyInfo{}, err
	}
	info, err := k.ring.Retire(ctx, kid, force)
	return k.noted("signing_key_retired", info, err)
}

// Revoke takes any key out of use at once; one that was revoked before stays as it is. It
// returns [ErrKeyInUse] for a key whose tokens can live, unless force: they are refused from
// then on. successor is the key that signs instead when the active one was revoked, else it is
// zero.
func (k *Keys) Revoke(ctx context.Context, kid string, force bool) (revoked, successor KeyInfo, err error) {
	if err := k.correct(ctx); err != nil {
		return KeyInfo{}, KeyInfo{}, err
	}
	if !force {
		if err := k.unused(ctx, kid); err != nil {
			return KeyInfo{}, KeyInfo{}, err
		}
	}
	revoked, successor, err = k.ring.Revoke(ctx, kid)
	revoked, err = k.noted("signing_key_revoked", revoked, err)
	return revoked, successor, err
}

// unused refuses a key whose tokens can live. Between the look and the revocation it may
// become such a key; that takes somebody else who promotes it in the same moment.
func (k *Keys) unused(ctx context.Context, kid string) error {
	list, err := k.ring.List(ctx)
	if err != nil {
		return err
	}
	now, err := k.ring.moment(ctx, k.ring.db)
	if err != nil {
		return err
	}
	for _, info := range list {
		switch {
		case info.KID != kid:
		case info.Status == KeyActive:
			return ErrKeyInUse.Detail("It is the key that signs now. Forced, every access token it signed is refused from now on, their clients must refresh, and another key signs that verifiers may not know for " + JWKSMaxAge.String() + ".")
		case info.Status == KeyRetiring && now.Before(info.RetirableAt):
			return ErrKeyInUse.Detail(fmt.Sprintf("Access tokens it signed can live until %s. Forced, they are refused from now on and their clients must refresh.", info.RetirableAt.Format(time.RFC3339)))
		}
	}
	return nil
}

// correct puts times of keys right that are yet to come, and says so.
func (k *Keys) correct(ctx context.Context) error {
	kids, err := k.ring.Correct(ctx)
	for _, kid := range kids {
		k.security.Warn("signing_key_time_corrected", zap.String("kid", kid), zap.String("by", byAdmin))
	}
	return err
}

func (k *Keys) noted(event string, info KeyInfo, err error) (KeyInfo, error) {
	if err == nil {
		k.security.Info(event, zap.String("kid", info.KID), zap.String("by", byAdmin))
	}
	return info, err
}

// Check opens every published key with the secrets of the settings and reports those that
// do not open. The error is an [ErrWrongSecret] when the active one is among them. A
// database without a key is fine: the first server makes one.
func (k *Keys) Check(ctx context.Context) error {
	if k.ring.shared() {
		return nil
	}
	rows, err := readKeys(ctx, k.ring.db)
	if err != nil {
		return err
	}
	now, err := k.ring.moment(ctx, k.ring.db)
	if err != nil {
		return err
	}
	var problems []error
	for _, r := range rows {
		if !r.published() {
			continue
		}
		_, err := k.ring.open(r)
		if errors.Is(err, token.ErrSealed) && r.Status == KeyActive {
			err = fmt.Errorf("%w (%w)", ErrWrongSecret, err)
		}
		problems = append(problems, err)
		if k.ring.info(r, now).ClockWasAhead {
			problems = append(problems, fmt.Errorf("the signing key %s has a time that is yet to come, written by a clock that was ahead; authctl key promote or retire puts it right", r.KID))
		}
	}
	return errors.Join(problems...)
}

// HashCost is what hashing one password costs on one core of this machine.
type HashCost struct {
	BcryptCost  int           `json:"bcrypt_cost"`
	BcryptTakes time.Duration `json:"bcrypt_takes_ns"`

	Argon2Memory  int           `json:"argon2_memory_mib"`
	Argon2Time    int           `json:"argon2_time"`
	Argon2Threads int           `json:"argon2_threads"`
	Argon2Takes   time.Duration `json:"argon2_takes_ns"`
}

// CalibrateHashing measures this machine and returns the strongest settings with which one
// hash takes at most target, but never less than is safe: then it takes longer. On a busy
// machine the answer is a cautious one.
func CalibrateHashing(ctx context.Context, target time.Duration) (HashCost, error) {
	c, err := password.Calibrate(ctx, target)
	return HashCost(c), err
}

// HashTime estimates how long one hash takes with the settings. It measures a cheap one and
// multiplies, so that a cost that was set far too high does not hold it up.
func HashTime(ctx context.Context, cfg Config) (time.Duration, error) {
	least, err := CalibrateHashing(ctx, 0)
	if err != nil {
		return 0, err
	}
	set := cfg.Password
	if set.Algorithm == string(password.Argon2id) {
		work := float64(set.Argon2Memory*set.Argon2Time) / float64(least.Argon2Memory*least.Argon2Time)
		return time.Duration(float64(least.Argon2Takes) * work), nil
	}
	return time.Duration(float64(least.BcryptTakes) * math.Exp2(float64(set.BcryptCost-least.BcryptCost))), nil
}
