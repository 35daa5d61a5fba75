package signingkey

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/token"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/logging"
)

// byAdmin says in the security log who did it.
const byAdmin = "admin"

// Keys manages the signing keys on an operator's behalf, beside running servers, which
// notice a change within seconds. It needs no service, and works also when the secret that
// sealed the active key is lost: that key can then be revoked.
type Keys struct {
	ring     *Ring
	security *zap.Logger
}

// OpenKeys returns the signing keys that are kept in the database. It does no I/O. With
// HS256 every method returns [ErrUnused], but [Keys.Check], which is content.
func OpenKeys(db *database.DB, cfg token.Config, log *zap.Logger) *Keys {
	return &Keys{ring: openRing(db, cfg, nil), security: logging.Security(log)}
}

// List returns every key there ever was, oldest first.
func (k *Keys) List(ctx context.Context) ([]Info, error) { return k.ring.List(ctx) }

// Stage makes a key of the configured algorithm and publishes it. It signs nothing yet.
func (k *Keys) Stage(ctx context.Context) (Info, error) {
	info, err := k.ring.Stage(ctx)
	return k.noted("signing_key_staged", info, err)
}

// Promote makes a staged key the one that signs; the one that did is retiring from then on.
// It returns [ErrTooNew] while verifiers may not know the key, unless force.
func (k *Keys) Promote(ctx context.Context, kid string, force bool) (Info, error) {
	if err := k.correct(ctx); err != nil {
		return Info{}, err
	}
	info, err := k.ring.Promote(ctx, kid, force)
	return k.noted("signing_key_promoted", info, err)
}

// Retire takes a retiring key out of use for good. It returns [ErrInUse] while tokens
// that it signed can live, unless force.
func (k *Keys) Retire(ctx context.Context, kid string, force bool) (Info, error) {
	if err := k.correct(ctx); err != nil {
		return Info{}, err
	}
	info, err := k.ring.Retire(ctx, kid, force)
	return k.noted("signing_key_retired", info, err)
}

// Revoke takes any key out of use at once; one that was revoked before stays as it is. It
// returns [ErrInUse] for a key whose tokens can live, unless force: they are refused from
// then on. successor is the key that signs instead when the active one was revoked, else it is
// zero.
func (k *Keys) Revoke(ctx context.Context, kid string, force bool) (revoked, successor Info, err error) {
	if err := k.correct(ctx); err != nil {
		return Info{}, Info{}, err
	}
	if !force {
		if err := k.unused(ctx, kid); err != nil {
			return Info{}, Info{}, err
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
		case info.Status == Active:
			return ErrInUse.Detail("It is the key that signs now. Forced, every access token it signed is refused from now on, their clients must refresh, and another key signs that verifiers may not know for " + JWKSMaxAge.String() + ".")
		case info.Status == Retiring && now.Before(info.RetirableAt):
			return ErrInUse.Detail(fmt.Sprintf("Access tokens it signed can live until %s. Forced, they are refused from now on and their clients must refresh.", info.RetirableAt.Format(time.RFC3339)))
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

func (k *Keys) noted(event string, info Info, err error) (Info, error) {
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
		if errors.Is(err, token.ErrSealed) && r.Status == Active {
			err = fmt.Errorf("%w (%w)", ErrWrongSecret, err)
		}
		problems = append(problems, err)
		if k.ring.info(r, now).ClockWasAhead {
			problems = append(problems, fmt.Errorf("the signing key %s has a time that is yet to come, written by a clock that was ahead; authctl key promote or retire puts it right", r.KID))
		}
	}
	return errors.Join(problems...)
}
