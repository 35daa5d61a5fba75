package relay

import (
	"context"
	"slices"
	"sync"
	"time"

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
	dirty  chan struct{}
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu    sync.Mutex
	local []chan<- struct{}
}

// NewWaker returns a waker for all relays of the database. The caller closes it.
func NewWaker(db *database.DB) *Waker {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Waker{db: db, dirty: make(chan struct{}, 1), cancel: cancel}
	if db.IsPostgres() {
		w.done.Go(func() { w.notify(ctx) })
	}
	return w
}

// Wake tells relays that events were committed. Call it after the commit; it never blocks. On a nil
// waker it does nothing.
func (w *Waker) Wake() {
	if w == nil {
		return
	}
	w.wakeLocal()
	poke(w.dirty)
}

func (w *Waker) wakeLocal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.local {
		poke(c)
	}
}

// Close stops the waker.
func (w *Waker) Close() {
	w.cancel()
	w.done.Wait()
}

// Subscribe has c receive when events may have been committed: by this process, and if a relay runs
// in it also by others.
func (w *Waker) Subscribe(c chan<- struct{}) (unsubscribe func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.local = append(w.local, c)
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.local = slices.DeleteFunc(w.local, func(other chan<- struct{}) bool { return other == c })
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
		_, _ = w.db.ExecContext(ctx, `SELECT pg_notify(?, '')`, schema.Channel)
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
