package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/toppira/authctl/platform/database"
)

// ErrNotParked says that a key is not parked.
var ErrNotParked = errors.New("the key is not parked")

// ErrOtherRefused says that the refused event of a key is not the one that was named.
var ErrOtherRefused = errors.New("another event of the key is refused now")

// ParkedKey is a key whose events are not sent because one of them was refused.
type ParkedKey struct {
	Key      string    `json:"key"`
	Shard    int       `json:"shard"`
	Events   int       `json:"events"` // that wait: the refused one, and later ones found so far
	ID       int64     `json:"id"`     // of the refused one
	EventID  string    `json:"event_id"`
	Type     string    `json:"type"`
	Error    string    `json:"error"`
	ParkedAt time.Time `json:"parked_at,omitzero"`

	// Of targets besides the log, see [HeldKeys].
	Target   string    `json:"target,omitempty"`
	Attempts int       `json:"attempts,omitempty"`
	FailedAt time.Time `json:"failed_at,omitzero"` // when the first attempt failed
	NextAt   time.Time `json:"next_at,omitzero"`   // when it is tried again, if it is not parked; zero: when it can be
}

// Parked lists the parked keys, the oldest first.
func Parked(ctx context.Context, db *database.DB) ([]ParkedKey, error) {
	return database.Collect(ctx, db, "list parked keys", func(row database.Row) (k ParkedKey, err error) {
		var ms int64
		err = row.Scan(&k.Key, &k.Shard, &k.ID, &k.Error, &ms, &k.EventID, &k.Type, &k.Events)
		k.ParkedAt = time.UnixMilli(ms).UTC()
		return k, err
	}, `SELECT k.key, k.shard, k.event, k.error, k.parked_ms, e.event_id, e.type,
			(SELECT count(*) FROM outbox_dead d WHERE d.key = k.key)
		FROM outbox_parked_key k JOIN outbox_event e ON e.id = k.event ORDER BY k.parked_ms, k.key`)
}

// ParkedEvents returns the events that wait with a parked key, the refused one first.
func ParkedEvents(ctx context.Context, db *database.DB, key string) ([]Record, error) {
	list, err := database.Collect(ctx, db, "read parked events", func(row database.Row) (r Record, err error) {
		err = row.Scan(r.fields()...)
		return r, err
	}, `SELECT e.id, d.replay, `+recordColumns+` FROM outbox_parked_key k
		JOIN outbox_dead d ON d.key = k.key JOIN outbox_event e ON e.id = d.id WHERE k.key = ? ORDER BY e.id`, key)
	if err == nil && len(list) == 0 {
		err = ErrNotParked
	}
	return list, err
}

// RetryParked has the events of a parked key sent again, the refused one first, and returns how
// many. If the refused one is refused again, the key is parked again.
func RetryParked(ctx context.Context, db *database.DB, key string) (int64, error) {
	return unpark(ctx, db, key, false, 0)
}

// DiscardParked gives up the refused event of a key, has the later ones sent, and returns how
// many. When event is not 0 and the refused event is another one, nothing is done: [ErrOtherRefused].
// Consumers see a gap in the key's sequence. Until the retention drops the event, [Replay]
// can still send it.
func DiscardParked(ctx context.Context, db *database.DB, key string, event int64) (int64, error) {
	return unpark(ctx, db, key, true, event)
}

func unpark(ctx context.Context, db *database.DB, key string, discard bool, only int64) (n int64, err error) {
	err = bounded(ctx, db, func(ctx context.Context, tx database.Tx) error {
		shard, event, err := lockParked(ctx, tx, key)
		if err != nil {
			return err
		}
		if only != 0 && only != event {
			return ErrOtherRefused
		}
		if discard {
			if _, err := tx.ExecContext(ctx, `DELETE FROM outbox_dead WHERE id = ?`, event); err != nil {
				return err
			}
		}
		var first *int64
		if err := tx.QueryRowContext(ctx, `SELECT min(id) FROM outbox_dead WHERE key = ?`, key).Scan(&first); err != nil {
			return err
		}
		if first != nil && *first < event {
			event = *first
		}
		if err := lowerWatermarks(ctx, tx, map[int]int64{shard: event}); err != nil {
			return err
		}
		segment := ""
		if database.IsPostgres(tx) {
			segment = "segment, "
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO outbox_pending (shard, id, `+segment+`bytes, replay)
			SELECT ?, id, `+segment+`bytes, replay FROM outbox_dead WHERE key = ? ON CONFLICT DO NOTHING`, shard, key)
		if err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, `DELETE FROM outbox_dead WHERE key = ?`, key)
		if err != nil {
			return err
		}
		if n, err = res.RowsAffected(); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM outbox_parked_key WHERE key = ?`, key)
		return err
	})
	if err != nil && !errors.Is(err, ErrNotParked) && !errors.Is(err, ErrOtherRefused) {
		return 0, fmt.Errorf("unpark a key: %w", err)
	}
	return n, err
}

// lockParked locks the shard of a parked key and then the key. An owner locks them in the same
// order to park, so it parks nothing meanwhile, and sees all or nothing of what is done here.
func lockParked(ctx context.Context, tx database.Tx, key string) (shard int, event int64, err error) {
	err = tx.QueryRowContext(ctx, `SELECT shard FROM outbox_parked_key WHERE key = ?`, key).Scan(&shard)
	if err == nil {
		var one int
		err = tx.QueryRowContext(ctx, `SELECT 1 FROM outbox_shard WHERE shard = ?`+database.ForUpdate(tx), shard).Scan(&one)
	}
	if err == nil {
		err = tx.QueryRowContext(ctx, `SELECT event FROM outbox_parked_key WHERE key = ?`+database.ForUpdate(tx), key).Scan(&event)
	}
	if database.IsNotFound(err) {
		return 0, 0, ErrNotParked
	}
	return shard, event, err
}
