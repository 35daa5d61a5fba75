package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/retry"
)

// MaxWebhooks limits the number of webhooks: each costs every event a row.
const MaxWebhooks = 16

// The kinds of [Subscription].
const (
	KindWebhook = "webhook"
	KindMail    = "mail"
)

var (
	// ErrNoTarget says that there is no target of a name.
	ErrNoTarget = errors.New("there is no target")
	// ErrTargetExists says that another target has the name.
	ErrTargetExists = errors.New("there is a target of this name already")
	// ErrTooManyTargets says that [MaxWebhooks] is reached.
	ErrTooManyTargets = fmt.Errorf("there are %d webhooks, the most allowed: remove one first", MaxWebhooks)
	// ErrInvalidTarget says what is wrong with a target that is to be added.
	ErrInvalidTarget = errors.New("invalid target")
	// ErrBuiltIn says that a target belongs to every installation.
	ErrBuiltIn = errors.New("this target is part of every installation: it can be paused, not removed")
)

// Subscription is a target besides the log, which gets events one by one: a webhook, or mail.
type Subscription struct {
	ID      int       `json:"id"` // never used again
	Name    string    `json:"name"`
	Kind    string    `json:"kind"`             // webhook or mail
	State   string    `json:"state"`            // active or paused
	Types   []string  `json:"types"`            // see [CheckPattern]; none: it gets only what names it, see [Event]
	URL     string    `json:"url,omitempty"`    // of a webhook
	Secrets []Secret  `json:"-"`                // newest first
	Reason  string    `json:"reason,omitempty"` // why it is paused
	Created time.Time `json:"created"`
	Since   time.Time `json:"since"` // of the state
}

// Secret is a secret of a target. The sink seals it and opens it.
type Secret struct {
	Sealed []byte    `json:"sealed"`
	Until  time.Time `json:"until,omitzero"` // not used after that; zero: no end is known
}

const (
	paused  = "paused"
	removed = "removed"
)

// Active reports whether the target gets events now.
func (s Subscription) Active() bool { return s.State == active }

// CheckPattern returns what is wrong with a pattern of event types. In a pattern * stands for any
// text: auth.Session* means all types that begin with auth.Session.
func CheckPattern(pattern string) error {
	if len(pattern) == 0 || len(pattern) > 255 {
		return fmt.Errorf("%w: a pattern of types has 1 to 255 characters", ErrInvalidTarget)
	}
	for _, r := range pattern {
		if !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_*", r) {
			return fmt.Errorf("%w: the pattern %q has a %q; letters, digits, dots, hyphens, underscores and * are "+
				"allowed, as in auth.Session*", ErrInvalidTarget, pattern, r)
		}
	}
	return nil
}

const subscriptionColumns = `id, name, kind, state, types, url, secrets, reason, created_ms, since_ms`

func scanSubscription(row database.Row) (s Subscription, err error) {
	var types, secrets string
	var created, since int64
	err = row.Scan(&s.ID, &s.Name, &s.Kind, &s.State, &types, &s.URL, &secrets, &s.Reason, &created, &since)
	if err != nil {
		return s, err
	}
	s.Created, s.Since = time.UnixMilli(created).UTC(), time.UnixMilli(since).UTC()
	if err := json.Unmarshal([]byte(types), &s.Types); err != nil {
		return s, fmt.Errorf("the types of the target %s: %w", s.Name, err)
	}
	if err := json.Unmarshal([]byte(secrets), &s.Secrets); err != nil {
		return s, fmt.Errorf("the secrets of the target %s: %w", s.Name, err)
	}
	return s, nil
}

// Subscriptions lists the targets besides the log, the oldest first.
func Subscriptions(ctx context.Context, db database.IDB) ([]Subscription, error) {
	return database.Collect(ctx, db, "list the targets", scanSubscription,
		`SELECT `+subscriptionColumns+` FROM outbox_subscription WHERE state <> 'removed' ORDER BY id`)
}

// FindSubscription returns the target of a name, or an error that wraps [ErrNoTarget].
func FindSubscription(ctx context.Context, db database.IDB, name string) (Subscription, error) {
	s, err := scanSubscription(db.QueryRowContext(ctx,
		`SELECT `+subscriptionColumns+` FROM outbox_subscription WHERE name = ? AND state <> 'removed'`, name))
	if database.IsNotFound(err) {
		return s, fmt.Errorf("%w %q", ErrNoTarget, name)
	}
	if err != nil {
		return s, fmt.Errorf("find the target %s: %w", name, err)
	}
	return s, nil
}

// Subscribe adds a target. It gets the events of transactions that write them from now on; [Replay]
// sends earlier ones. Its name is unique; without one it is the kind and the id.
func Subscribe(ctx context.Context, db *database.DB, s Subscription) (Subscription, error) {
	if err := s.check(); err != nil {
		return s, err
	}
	secrets, err := json.Marshal(append([]Secret{}, s.Secrets...))
	if err != nil {
		return s, fmt.Errorf("add a target: %w", err)
	}
	types, err := json.Marshal(append([]string{}, s.Types...))
	if err != nil {
		return s, fmt.Errorf("add a target: %w", err)
	}
	err = bounded(ctx, db, func(ctx context.Context, tx database.Tx) error {
		if err := lockTargets(ctx, tx); err != nil {
			return err
		}
		var taken, webhooks int
		err := tx.QueryRowContext(ctx, `SELECT (SELECT coalesce(max(id), 0) + 1 FROM outbox_subscription),
			(SELECT count(*) FROM outbox_subscription WHERE name = ? AND state <> 'removed'),
			(SELECT count(*) FROM outbox_subscription WHERE kind = 'webhook' AND state <> 'removed')`, s.Name).
			Scan(&s.ID, &taken, &webhooks)
		switch {
		case err != nil:
			return err
		case taken > 0:
			return fmt.Errorf("%w: %q", ErrTargetExists, s.Name)
		case s.Kind == KindWebhook && webhooks >= MaxWebhooks:
			return ErrTooManyTargets
		}
		if s.Name == "" {
			s.Name = fmt.Sprintf("%s-%d", s.Kind, s.ID)
		}
		if s.Created, err = moment(ctx, tx); err != nil {
			return err
		}
		s.Since, s.State = s.Created, active
		_, err = tx.ExecContext(ctx, `INSERT INTO outbox_subscription (id, name, kind, state, types, url, secrets, created_ms, since_ms)
			VALUES (?1, ?2, ?3, 'active', ?4, ?5, ?6, ?7, ?7)`,
			s.ID, s.Name, s.Kind, string(types), s.URL, string(secrets), s.Created.UnixMilli())
		if database.IsUnique(err) { // only a name that was made can be taken now
			return fmt.Errorf("%w: %q", ErrTargetExists, s.Name)
		}
		if err != nil {
			return err
		}
		return subscriptionsChanged(ctx, tx)
	})
	if err != nil && !errors.Is(err, ErrTargetExists) && !errors.Is(err, ErrTooManyTargets) {
		err = fmt.Errorf("add a target: %w", err)
	}
	return s, err
}

func (s Subscription) check() error {
	if s.Kind != KindWebhook {
		return fmt.Errorf("%w: only webhooks can be added", ErrInvalidTarget)
	}
	if len(s.Types) == 0 {
		return fmt.Errorf("%w: it wants no type of event", ErrInvalidTarget)
	}
	for _, pattern := range s.Types {
		if err := CheckPattern(pattern); err != nil {
			return err
		}
	}
	if len(s.Name) > 64 || strings.Trim(s.Name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
		return fmt.Errorf("%w: the name %q is not one of at most 64 small letters, digits, dots, hyphens and "+
			"underscores", ErrInvalidTarget, s.Name)
	}
	if s.Name == "kafka" || s.Name == "file" || s.Name == "log" {
		return fmt.Errorf("%w: the name %q means the log", ErrInvalidTarget, s.Name)
	}
	return nil
}

// subscriptionsChanged tells writers whether any target wants events, and deliverers to look. The
// caller holds the lock of lockTargets, so that it sees every other change.
func subscriptionsChanged(ctx context.Context, tx database.Tx) error {
	if !database.IsPostgres(tx) {
		return nil
	}
	_, err := tx.ExecContext(ctx, `UPDATE outbox_setting SET deliver =
		EXISTS (SELECT 1 FROM outbox_subscription WHERE state <> 'removed' AND types <> '[]')`)
	if err != nil {
		return err
	}
	return schema.NotifyLeases(ctx, tx)
}

// ReplaceSecrets changes the secrets of a target, in the order newest first.
func ReplaceSecrets(
	ctx context.Context, db *database.DB, name string, change func(Subscription) ([]Secret, error),
) error {
	return changeSubscription(ctx, db, name, "change the secrets of", func(
		ctx context.Context, tx database.Tx, s Subscription,
	) error {
		list, err := change(s)
		if err != nil {
			return err
		}
		secrets, err := json.Marshal(append([]Secret{}, list...))
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE outbox_subscription SET secrets = ? WHERE id = ?`, string(secrets), s.ID)
		return err
	})
}

// PauseTarget stops deliveries to a target, and reports whether there were any. Its events wait until [ResumeTarget].
func PauseTarget(ctx context.Context, db *database.DB, name, reason string) (changed bool, err error) {
	return setState(ctx, db, name, "pause", paused, reason)
}

// ResumeTarget starts deliveries again, in order, beginning with what waits. Keys that were to be
// tried later are tried at once, as if for the first time: the pause counts for none of them. It reports whether the
// target was paused.
func ResumeTarget(ctx context.Context, db *database.DB, name string) (changed bool, err error) {
	return setState(ctx, db, name, "resume", active, "")
}

func setState(ctx context.Context, db *database.DB, name, verb, state, reason string) (changed bool, err error) {
	err = changeSubscription(ctx, db, name, verb, func(ctx context.Context, tx database.Tx, s Subscription) error {
		if changed = s.State != state; !changed {
			return nil
		}
		_, err := tx.ExecContext(ctx, `UPDATE outbox_subscription SET state = ?, reason = ?, since_ms = `+schema.Now(tx)+`
			WHERE id = ?`, state, reason, s.ID)
		if err != nil || state != active {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE outbox_held_key SET `+unparked+` WHERE target = ? AND parked_ms IS NULL`, s.ID)
		return err
	})
	return changed && err == nil, err
}

func changeSubscription(ctx context.Context, db *database.DB, name, verb string,
	change func(context.Context, database.Tx, Subscription) error) error {
	err := bounded(ctx, db, func(ctx context.Context, tx database.Tx) error {
		if err := lockTargets(ctx, tx); err != nil {
			return err
		}
		s, err := FindSubscription(ctx, tx, name)
		if err != nil {
			return err
		}
		if err := change(ctx, tx, s); err != nil {
			return err
		}
		return subscriptionsChanged(ctx, tx)
	})
	if err != nil && !errors.Is(err, ErrNoTarget) && !errors.Is(err, ErrBuiltIn) {
		err = fmt.Errorf("%s the target %s: %w", verb, name, err)
	}
	return err
}

// Removal is what [RemoveTarget] did.
type Removal struct {
	Subscription
	Deleted int64 `json:"deleted"` // deliveries that waited
	Left    bool  `json:"left"`    // a transaction from before is still open; deliverers delete what it leaves
}

// RemoveTarget removes a target and everything that waits for it, and nothing else. Transactions that
// began before may still write a delivery for it: RemoveTarget waits for them, but not longer than the
// given time, and deliverers look again later.
func RemoveTarget(ctx context.Context, db *database.DB, name string, wait time.Duration) (res Removal, err error) {
	err = changeSubscription(ctx, db, name, "remove", func(ctx context.Context, tx database.Tx, s Subscription) error {
		if s.Kind != KindWebhook {
			return ErrBuiltIn
		}
		res.Subscription = s
		_, err := tx.ExecContext(ctx, `UPDATE outbox_subscription
			SET state = 'removed', url = '', secrets = '[]', since_ms = `+schema.Now(tx)+` WHERE id = ?`, s.ID)
		return err
	})
	if err != nil {
		return res, err
	}
	res.State = removed
	deleted, err := sweepTarget(ctx, db, res.ID)
	res.Deleted = deleted
	if err != nil {
		return res, fmt.Errorf("the target %s is removed, but some of what waited for it is not deleted yet; "+
			"deliverers delete it within minutes: %w", name, err)
	}
	// All writers of now: what they added before they saw the change is committed once they are gone.
	res.Left, err = writersLeft(ctx, db, wait)
	if err == nil {
		deleted, err = sweepTarget(ctx, db, res.ID)
		res.Deleted += deleted
	}
	if err != nil {
		return res, fmt.Errorf("the target %s is removed, but transactions from before may have added to it; "+
			"deliverers delete that within minutes: %w", name, err)
	}
	return res, nil
}

// writersLeft waits until every transaction of now that has added an event has ended, and reports
// whether one was still open after the given time.
func writersLeft(ctx context.Context, db *database.DB, wait time.Duration) (bool, error) {
	if !db.IsPostgres() {
		return false, nil // nobody writes at the same time
	}
	last, err := schema.LastID(ctx, db)
	if err != nil {
		return false, err
	}
	stable := schema.StableWatermark{DB: db}
	for end := time.Now().Add(wait); ; {
		if _, err := stable.Advance(ctx, ""); err != nil {
			return false, err
		}
		if stable.ID >= last {
			return false, nil
		}
		if time.Now().After(end) {
			return true, nil
		}
		if !retry.Sleep(ctx, min(wait, 50*time.Millisecond)) {
			return false, ctx.Err()
		}
	}
}

// SweepRemoved deletes what transactions have added to targets that were removed meanwhile.
func SweepRemoved(ctx context.Context, db *database.DB) error {
	ids, err := database.Collect(ctx, db, "list removed targets", database.Value[int],
		`SELECT id FROM outbox_subscription WHERE state = 'removed' ORDER BY id`)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, err := sweepTarget(ctx, db, id); err != nil {
			return fmt.Errorf("delete what waits for a removed target: %w", err)
		}
	}
	return nil
}

// sweepTarget deletes what waits for a target, in steps, so that nobody waits for it long.
func sweepTarget(ctx context.Context, db *database.DB, id int) (deleted int64, err error) {
	for _, q := range []string{
		`DELETE FROM outbox_delivery_lease WHERE target = ?`, `DELETE FROM outbox_held_key WHERE target = ?`,
	} {
		if _, err := db.Write(ctx, q, id); err != nil {
			return 0, err
		}
	}
	const step = 2000
	for {
		var n int
		err := db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
			ids, err := database.Collect(ctx, tx, "list deliveries", database.Value[int64],
				`SELECT id FROM outbox_delivery WHERE target = ?1 AND NOT held UNION ALL
					SELECT id FROM outbox_delivery WHERE target = ?1 AND held LIMIT ?2`, id, step)
			if n = len(ids); err != nil || n == 0 {
				return err
			}
			return DeleteDeliveries(ctx, tx, id, ids)
		})
		if err != nil {
			return deleted, err
		}
		if deleted += int64(n); n < step {
			return deleted, nil
		}
	}
}

// DeleteDeliveries deletes deliveries of a target, and the messages among their events.
func DeleteDeliveries(ctx context.Context, tx database.Tx, target int, ids []int64) error {
	slices.Sort(ids)
	_, err := tx.ExecContext(ctx, `DELETE FROM outbox_message WHERE id IN
		(SELECT id FROM outbox_delivery WHERE target = ? AND segment = ? AND id IN (?))`,
		target, schema.MessageSegment, database.List(ids))
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM outbox_delivery WHERE target = ? AND id IN (?)`, target, database.List(ids))
	return err
}
