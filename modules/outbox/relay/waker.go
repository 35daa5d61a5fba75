package relay

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/retry"
)

// notifyEvery limits how often one process notifies. A NOTIFY in every business transaction would
// serialise commits, because PostgreSQL holds a lock of the whole cluster for it.
const notifyEvery = 5 * time.Millisecond

// Waker tells relays that events were committed, so that they need not wait until they poll: the
// relay in this process directly, the others through NOTIFY. It saves milliseconds; relays poll in
// any case.
type Waker struct {
	db     *database.DB
	mark   int32 // in its notifications: negative, so that no relay takes it for a hash
	dirty  chan struct{}
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu     sync.Mutex
	local  []*func(hashes []int32)
	hashes []int32 // of the keys that the next notification names
	all    bool    // it names none
}

// mostHashes is how many keys one notification names. With more it names none.
const mostHashes = 32

// NewWaker returns a waker for all relays of the database. The caller closes it.
func NewWaker(db *database.DB) *Waker {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Waker{db: db, mark: -1 - schema.Hash(uuid.NewString()), dirty: make(chan struct{}, 1), cancel: cancel}
	if db.IsPostgres() {
		w.done.Go(func() { w.notify(ctx) })
	}
	return w
}

// Wake tells relays that events of the keys were committed (see [outbox.WithKeys]). If none is named,
// they look at all keys, which takes them longer. Call it after the commit; it never blocks. On a nil
// waker it does nothing.
func (w *Waker) Wake(keys ...string) {
	if w == nil {
		return
	}
	hashes := make([]int32, len(keys))
	for i, key := range keys {
		hashes[i] = schema.Hash(key)
	}
	w.wakeLocal(hashes)
	w.mu.Lock()
	w.hashes = append(w.hashes, hashes...)
	if len(keys) == 0 || len(w.hashes) > mostHashes {
		w.hashes, w.all = nil, true
	}
	poke(w.dirty)
	w.mu.Unlock()
}

func (w *Waker) wakeLocal(hashes []int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, wake := range w.local {
		(*wake)(hashes)
	}
}

// payload returns what to notify of. Relays of previous releases look at everything, whatever it is.
func (w *Waker) payload() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.dirty: // what it stands for is in the payload
	default:
	}
	hashes, all := w.hashes, w.all
	if w.hashes, w.all = nil, false; all {
		return ""
	}
	return schema.JSON(append(hashes, w.mark))
}

// hear wakes for a notification, unless it is this process's own, for which all were woken when it was due.
func (w *Waker) hear(payload string) {
	var named []int32
	if json.Unmarshal([]byte(payload), &named) == nil && slices.Contains(named, w.mark) {
		return
	}
	w.wakeLocal(hashesIn(payload))
}

// hashesIn are the hashes of the keys that a notification names. It may name none.
func hashesIn(payload string) (hashes []int32) {
	if json.Unmarshal([]byte(payload), &hashes) != nil {
		return nil
	}
	return slices.DeleteFunc(hashes, func(h int32) bool { return h < 0 })
}

// Close stops the waker.
func (w *Waker) Close() {
	w.cancel()
	w.done.Wait()
}

// Subscribe has wake called when events may have been committed: by this process, and if a relay runs
// in it also by others. It gets the hashes of their keys, or none if that is not known. It must not block.
func (w *Waker) Subscribe(wake func(hashes []int32)) (unsubscribe func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.local = append(w.local, &wake)
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.local = slices.DeleteFunc(w.local, func(other *func([]int32)) bool { return other == &wake })
	}
}

func (w *Waker) notify(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.dirty:
		}
		// After an error relays learn of the events when they poll.
		_, _ = w.db.ExecContext(ctx, `SELECT pg_notify(?, ?)`, schema.Channel, w.payload())
		if !retry.Sleep(ctx, notifyEvery) {
			return
		}
	}
}

// listen calls hear with the payload of each notification until ctx ends, and reconnects when it
// must. A pooler that gives each transaction another connection delivers no notification; relays
// then poll.
func listen(ctx context.Context, db *database.DB, hear func(payload string)) {
	for ctx.Err() == nil {
		_ = listenOnce(ctx, db, hear)
		hear("lease") // a notification may have been missed
		retry.Sleep(ctx, time.Second)
	}
}

// listenOnce uses a connection outside the pool: a pooled connection that only listens would block
// anyone who closes a statement that was prepared on it.
func listenOnce(ctx context.Context, db *database.DB, hear func(payload string)) error {
	var cfg *pgx.ConnConfig
	err := db.Postgres(ctx, func(conn *pgx.Conn) error {
		cfg = conn.Config()
		return nil
	})
	if err != nil {
		return err
	}
	cfg.OnNotification = func(_ *pgconn.PgConn, n *pgconn.Notification) { hear(n.Payload) }
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+schema.Channel); err != nil {
		return err
	}
	for {
		if err := conn.PgConn().WaitForNotification(ctx); err != nil {
			return err
		}
	}
}

func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
