package signingkey

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/token"
	"github.com/toppira/authctl/platform/database"
)

// List returns all keys, retired and revoked ones too, oldest first.
func (k *Ring) List(ctx context.Context) ([]Info, error) {
	if k.shared() {
		return nil, ErrUnused
	}
	return k.infos(ctx, func(keyRow) bool { return true })
}

// Published returns the keys whose tokens are accepted, oldest first. With HS256 they are those of an
// algorithm that was used before.
func (k *Ring) Published(ctx context.Context) ([]Info, error) { return k.infos(ctx, keyRow.published) }

// read returns all keys as they are, and the moment.
func (k *Ring) read(ctx context.Context, db database.IDB) (rows []keyRow, now time.Time, err error) {
	if rows, err = readKeys(ctx, db); err == nil {
		now, err = k.moment(ctx, db)
	}
	return rows, now, err
}

func (k *Ring) infos(ctx context.Context, which func(keyRow) bool) ([]Info, error) {
	rows, now, err := k.read(ctx, k.db)
	if err != nil {
		return nil, err
	}
	list := make([]Info, 0, len(rows))
	for _, r := range rows {
		if which(r) {
			list = append(list, k.info(r, now))
		}
	}
	return list, nil
}

// Stage makes a key of the configured algorithm and publishes it. It signs nothing yet.
func (k *Ring) Stage(ctx context.Context) (Info, error) {
	row, err := k.generate(Staged)
	if err != nil {
		return Info{}, err
	}
	return k.change(ctx, "signing_key_staged", row.KID, func(ctx context.Context, tx database.Tx, _ []keyRow,
		now time.Time) error {
		row.StagedAt = now
		return insertKey(ctx, tx, row)
	})
}

// Promote makes a staged key the one that signs, and the one that did a retiring one. While
// verifiers may not know the key it returns [ErrTooNew], unless force.
func (k *Ring) Promote(ctx context.Context, kid string, force bool) (Info, error) {
	return k.change(ctx, "signing_key_promoted", kid, func(ctx context.Context, tx database.Tx, rows []keyRow,
		now time.Time) error {
		row, err := findKey(rows, kid)
		if err != nil {
			return err
		}
		if row.Status != Staged {
			return ErrStatus.Detail(fmt.Sprintf("The key is %s; only a staged key can be promoted.", row.Status))
		}
		if at := k.info(row, now).PromotableAt; now.Before(at) && !force {
			return ErrTooNew.Detail(fmt.Sprintf("Verifiers may hold a key set without it until %s. With --force they "+
				"refuse its tokens until then.", at.Format(time.RFC3339)))
		}
		if _, err := k.open(row); err != nil {
			return err // no server with this secret could sign
		}
		return k.activate(ctx, tx, kid, now)
	})
}

// Retire takes a retiring key out of the key set and destroys its private half. While tokens
// that it signed can live it returns [ErrInUse], unless force.
func (k *Ring) Retire(ctx context.Context, kid string, force bool) (Info, error) {
	return k.change(ctx, "signing_key_retired", kid, func(ctx context.Context, tx database.Tx, rows []keyRow,
		now time.Time) error {
		row, err := findKey(rows, kid)
		if err != nil {
			return err
		}
		if row.Status != Retiring {
			return ErrStatus.Detail(fmt.Sprintf("The key is %s; only a retiring key can be retired.", row.Status))
		}
		if err := k.checkUnused(row, now); err != nil && !force {
			return err
		}
		return endKey(ctx, tx, &row, Retired, now)
	})
}

// Revoke takes any key out of the key set at once and destroys its private half: every access
// token that it signed is refused from then on. While such tokens can live it returns
// [ErrInUse], unless force. When the key was the active one, the staged key that has been
// published the longest takes its place, or else a new one; successor is that key. Revoking
// twice changes nothing.
func (k *Ring) Revoke(ctx context.Context, kid string, force bool) (revoked, successor Info, err error) {
	// Made before the transaction, where a key takes time, and thrown away if not needed.
	spare, err := k.generate(Staged)
	if err != nil {
		return Info{}, Info{}, err
	}
	revoked, err = k.change(ctx, "signing_key_revoked", kid, func(ctx context.Context, tx database.Tx, rows []keyRow,
		now time.Time) error {
		row, err := findKey(rows, kid)
		if err != nil || row.Status == Revoked {
			return err
		}
		if err := k.checkUnused(row, now); err != nil && !force {
			return err
		}
		wasActive := row.Status == Active
		if err := endKey(ctx, tx, &row, Revoked, now); err != nil || !wasActive {
			return err
		}
		next := slices.IndexFunc(rows, func(r keyRow) bool { // oldest first
			if r.Status != Staged {
				return false
			}
			_, err := k.open(r)
			return err == nil
		})
		if next < 0 {
			next, spare.StagedAt = len(rows), now
			rows = append(rows, spare)
			if err := insertKey(ctx, tx, spare); err != nil {
				return err
			}
		}
		successor = rows[next].Info
		successor.Status, successor.ActiveAt = Active, now
		return k.activate(ctx, tx, successor.KID, now)
	})
	return revoked, successor, err
}

// Replace revokes every published key and lets a new one sign, in one transaction in which also runs as
// well: no access token that was signed before is accepted afterwards. successor is the new key; with
// HS256, where the secret signs, there is none.
func (k *Ring) Replace(ctx context.Context, also func(ctx context.Context, tx database.Tx) error) (revoked []Info,
	successor Info, err error) {
	var next keyRow
	if !k.shared() {
		if next, err = k.generate(Active); err != nil { // before the transaction: it may take time
			return nil, Info{}, err
		}
	}
	err = k.exclusively(ctx, func(ctx context.Context, tx database.Tx, rows []keyRow, now time.Time) error {
		revoked = nil
		for _, row := range rows {
			if !row.published() {
				continue
			}
			if err := endKey(ctx, tx, &row, Revoked, now); err != nil {
				return err
			}
			revoked = append(revoked, row.Info)
		}
		if !k.shared() {
			next.StagedAt, next.ActiveAt = now, now
			if err := insertKey(ctx, tx, next); err != nil {
				return err
			}
		} else if err := forgetSecrets(ctx, tx); err != nil { // the next one is another one
			return err
		}
		return also(ctx, tx)
	})
	if err != nil {
		return nil, Info{}, err
	}
	for _, one := range revoked {
		k.security.Info("signing_key_revoked", zap.String("kid", one.KID), zap.String("by", "admin"))
	}
	return revoked, next.Info, nil
}

// checkUnused refuses a key whose tokens can live.
func (k *Ring) checkUnused(row keyRow, now time.Time) error {
	switch at := k.info(row, now).RetirableAt; {
	case row.Status == Active:
		return ErrInUse.Detail("It is the key that signs now. With --force every access token that it signed is " +
			"refused from now on, their clients must refresh, and verifiers may not know the next key for " +
			JWKSMaxAge.String() + ".")
	case now.Before(at):
		return ErrInUse.Detail(fmt.Sprintf("Access tokens that it signed can live until %s. With --force they are "+
			"refused from now on, and their clients must refresh.", at.Format(time.RFC3339)))
	}
	return nil
}

// Check opens every published key with the secrets of the settings and reports those that do not
// open. The error is an [ErrWrongSecret] when the active one is among them. A database without a
// key is fine: the first server makes one. With HS256 it may be an [ErrOtherSecret].
func (k *Ring) Check(ctx context.Context) error {
	if k.shared() {
		return k.checkShared(ctx)
	}
	rows, now, err := k.read(ctx, k.db)
	if err != nil {
		return err
	}
	var problems []error
	for _, r := range rows {
		if !r.published() {
			continue
		}
		_, err := k.open(r)
		if errors.Is(err, token.ErrSealed) && r.Status == Active {
			err = fmt.Errorf("%w (%w)", ErrWrongSecret, err)
		}
		problems = append(problems, err)
		if k.info(r, now).ClockWasAhead {
			problems = append(problems, fmt.Errorf("the signing key %s has a time in the future, written by a clock "+
				"that was ahead; correct it with: authctl key promote, or authctl key retire", r.KID))
		}
	}
	return errors.Join(problems...)
}

// correct puts the present moment in the place of times in the future, which only a clock that
// was ahead can have written: an operator would have to wait for them. It returns [ErrUnused]
// when there are no keys to operate on.
func (k *Ring) correct(ctx context.Context) error {
	list, err := k.List(ctx)
	if err != nil {
		return err
	}
	var kids []string
	for _, info := range list {
		if info.ClockWasAhead {
			kids = append(kids, info.KID)
		}
	}
	if len(kids) == 0 {
		return nil
	}
	now, err := k.moment(ctx, k.db)
	if err != nil {
		return err
	}
	for _, column := range []string{"staged_at", "active_at", "retired_at"} {
		if _, err := k.db.Write(ctx, "UPDATE signing_key SET "+column+" = ? WHERE "+column+" > ? AND kid IN (?)", now,
			now, database.List(kids)); err != nil {
			return fmt.Errorf("correct the times of signing keys: %w", err)
		}
	}
	for _, kid := range kids {
		k.security.Warn("signing_key_time_corrected", zap.String("kid", kid), zap.String("by", "admin"))
	}
	return nil
}

// changeKeys is done with the keys as they are, and the time.
type changeKeys func(ctx context.Context, tx database.Tx, rows []keyRow, now time.Time) error

// change runs fn in a transaction that excludes every other change of keys, notes the event in
// the security log and returns what the key has become.
func (k *Ring) change(ctx context.Context, event, kid string, fn changeKeys) (info Info, err error) {
	if err := k.correct(ctx); err != nil {
		return Info{}, err
	}
	err = k.exclusively(ctx, func(ctx context.Context, tx database.Tx, rows []keyRow, now time.Time) error {
		if err := fn(ctx, tx, rows, now); err != nil {
			return err
		}
		rows, err := readKeys(ctx, tx)
		if err != nil {
			return err
		}
		row, err := findKey(rows, kid)
		info = k.info(row, now)
		return err
	})
	if err != nil {
		return Info{}, err
	}
	k.security.Info(event, zap.String("kid", kid), zap.String("by", "admin"))
	// Other servers notice by themselves, and so does this one when it cannot read the keys now.
	_, _ = k.lookBriefly(ctx)
	return info, nil
}

// exclusively runs fn in a transaction that excludes every other change of keys.
func (k *Ring) exclusively(ctx context.Context, fn changeKeys) error {
	return k.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		if database.IsPostgres(tx) {
			// Readers go on; SQLite's transaction holds the whole database anyway.
			if _, err := tx.ExecContext(ctx, "LOCK TABLE signing_key IN SHARE ROW EXCLUSIVE MODE"); err != nil {
				return fmt.Errorf("lock the signing keys: %w", err)
			}
		}
		rows, now, err := k.read(ctx, tx)
		if err != nil {
			return err
		}
		return fn(ctx, tx, rows, now)
	})
}

// activate puts the key in the place of the active one, if there is one.
func (k *Ring) activate(ctx context.Context, tx database.Tx, kid string, now time.Time) error {
	if err := database.Exec(ctx, tx, "retire the active signing key",
		"UPDATE signing_key SET status = ?, retired_at = ? WHERE status = ?", Retiring, now, Active); err != nil {
		return err
	}
	return database.Exec(ctx, tx, "promote the signing key",
		"UPDATE signing_key SET status = ?, active_at = ? WHERE kid = ?", Active, now, kid)
}
