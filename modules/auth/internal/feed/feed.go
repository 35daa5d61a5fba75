package feed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/toppira/authctl/platform/database"
)

// What a follower may be refused for.
var (
	// ErrGone says that the database cannot go on from a cursor: it is another one, was restored
	// or promoted, or its clock was set back. The follower starts again without one.
	ErrGone = errors.New("the cursor is of another database, or of one that was restored or whose clock was set " +
		"back since")
	// ErrCursor says that a text is no cursor.
	ErrCursor = errors.New("not a cursor")
	// ErrCrowded says that this process has as many followers as it takes.
	ErrCrowded = errors.New("too many followers")
	// ErrBehind says that the database does not answer, so that nothing can be said of what has
	// ended since.
	ErrBehind = errors.New("the database does not answer")
)

const (
	// lookEvery is how often the reader looks while somebody follows. What ends in this process
	// it sees at once, but looks apart of lookLeast.
	lookEvery = 200 * time.Millisecond
	lookLeast = 10 * time.Millisecond
	// lookTimeout bounds one look, and how old the last one may be for an answer that says that
	// nothing has ended.
	lookTimeout = 5 * time.Second
	// linger is how long the reader goes on when the last follower has gone: those that poll come
	// back.
	linger = 10 * time.Second
	// clockSlack is by how much the database's clock may be set back before cursors are gone.
	clockSlack = time.Second
	// pageSize is how many facts an answer holds at the most, and of what has just ended no more than that and what
	// one look has found.
	pageSize = 1000
	// memory is how many facts the reader keeps.
	memory = 16 * pageSize
	// maxFollowers is how many may wait in one process.
	maxFollowers = 8192
	// pageKept is how long a page of a snapshot is good for others who begin at the same time.
	pageKept = 10 * time.Second
	pageSame = lookEvery
)

// Options are what else a [Feed] needs.
type Options struct {
	Log      *zap.Logger
	Registry prometheus.Registerer // nil: no metrics
	Now      func() time.Time      // nil: time.Now
}

// Page is one answer. Its JSON is shared: it must not be changed.
type Page struct {
	Cursor string
	AsOf   time.Time
	More   bool // another page is ready
	Facts  int
	JSON   []byte
}

// Feed tells followers what has ended. It does nothing while there are none. It is safe for
// concurrent use.
type Feed struct {
	store    store
	log      *zap.Logger
	answers  *prometheus.CounterVec // by kind
	registry registry

	ctx  context.Context // of the reader; ends with [Feed.Close]
	stop context.CancelFunc
	done sync.WaitGroup
	poke chan struct{} // something ended in this process

	looking *semaphore.Weighted // of one who looks

	mu        sync.Mutex
	closed    bool
	followers int
	reading   bool
	begun     time.Time     // when the reader began
	left      time.Time     // when the last follower went
	changed   chan struct{} // closed when there is news
	known     bool          // what follows is that of a look
	last      look          // without rows
	lookedAt  time.Time     // when the last look began, by the monotonic clock
	failed    error         // of the last look
	floor     position      // what rows hold begins after it
	batches   []batch
	rows      int
	memo      map[string]Page

	pages pages
}

// batch is what one look found, and what had been seen with it.
type batch struct {
	rows     []row
	contains position
	asOf, at time.Time
}

// New makes a feed. [Feed.Close] ends what it begins.
func New(db *database.DB, opt Options) (*Feed, error) {
	f := &Feed{
		log: opt.Log, poke: make(chan struct{}, 1), looking: semaphore.NewWeighted(1), changed: make(chan struct{}),
		memo: make(map[string]Page),
	}
	now := opt.Now
	if now == nil {
		now = time.Now
	}
	if f.log == nil {
		f.log = zap.NewNop()
	}
	f.store = store{db: db, now: now, process: rand.Uint64()}
	f.registry.db = db
	f.pages.list = make(map[string]*shared)
	f.pages.turns = semaphore.NewWeighted(2)
	f.ctx, f.stop = context.WithCancel(context.Background())
	return f, f.measure(opt.Registry)
}

// Close ends the reader, and answers those who wait.
func (f *Feed) Close() error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.stop()
	f.done.Wait()
	return nil
}

// Wake says that something may have ended in this process. It does not block.
func (f *Feed) Wake() {
	select {
	case f.poke <- struct{}{}:
	default:
	}
}

// Enter counts a follower in until the func that it returns is called.
func (f *Feed) Enter() (leave func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.followers >= maxFollowers {
		f.answers.WithLabelValues("crowded").Inc()
		return nil, ErrCrowded
	}
	if f.closed {
		return nil, ErrBehind
	}
	f.followers++
	if !f.reading {
		f.reading, f.begun = true, time.Now()
		f.done.Go(f.read)
	}
	return sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.followers--
		f.left = time.Now()
	}), nil
}

// Followers is how many follow now.
func (f *Feed) Followers() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.followers
}

// Next returns what has ended since a cursor: at once when there is something, else nothing
// after the wait, or when ctx ends. Without a cursor it returns the first page of everything
// that has ended and has not expired. The caller has entered.
func (f *Feed) Next(ctx context.Context, after string, wait time.Duration) (Page, error) {
	page, kind, err := f.next(ctx, after, wait)
	if err != nil {
		kind = "unavailable"
		if errors.Is(err, ErrGone) || errors.Is(err, ErrCursor) {
			kind = "gone"
		}
	}
	f.answers.WithLabelValues(kind).Inc()
	return page, err
}

func (f *Feed) next(ctx context.Context, after string, wait time.Duration) (page Page, kind string, err error) {
	// A query goes on when the follower hangs up: others share it, and each is bounded by lookTimeout.
	query := context.WithoutCancel(ctx)
	if after == "" {
		page, err = f.shared(query, "", cursor{}, pageSame)
		return page, "snapshot", err
	}
	c, err := decodeCursor(after)
	if err != nil {
		return Page{}, "", err
	}
	if c.paging {
		page, err = f.shared(query, after, c, pageKept)
		return page, "snapshot", err
	}
	over := time.NewTimer(wait)
	defer over.Stop()
	if err := f.fresh(query, time.Now().Add(-2*lookEvery)); err != nil {
		return Page{}, "", err
	}
	for waited, looked := false, false; ; {
		answer, page, changed := f.answer(after, c)
		switch answer {
		case hasNews:
			return page, "news", nil
		case isGone:
			return Page{}, "", ErrGone
		case isAhead: // of this process: its last look is older than the one that the cursor is of
			if looked {
				return Page{}, "", ErrGone
			}
			if err := f.fresh(query, time.Now()); err != nil {
				return Page{}, "", err
			}
			// A look that was made later has an earlier time only if the clock was set back. What the
			// follower forgot by the time before may count again, and is in a new snapshot.
			looked, c.asOf = true, c.asOf-clockSlack.Microseconds()
			continue
		case isEarlier:
			far, err := f.reach(query, c)
			if err != nil {
				return Page{}, "", err
			}
			if far {
				page, err = f.shared(query, after, cursor{paging: true, incarnation: c.incarnation, since: c.seen},
					pageSame)
				return page, "snapshot", err
			}
			continue
		}
		if waited || wait <= 0 {
			if page.JSON == nil {
				return Page{}, "", ErrBehind
			}
			return page, "nothing", nil
		}
		select {
		case <-changed:
		case <-over.C:
			waited = true
		case <-ctx.Done():
			waited = true
		case <-f.ctx.Done():
			waited = true
		}
	}
}

// verdict is what is known of a cursor.
type verdict int

const (
	hasNothing verdict = iota // nothing has ended since
	hasNews
	isGone    // of another incarnation
	isAhead   // of what this process has seen, or of the clock
	isEarlier // than what this process remembers
)

// answer looks for what a cursor does not contain in what is remembered. With [hasNothing] comes
// a page that says so, unless that is not known, and what closes when there is news.
func (f *Feed) answer(text string, c cursor) (verdict, Page, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case !f.known: // the database does not answer
		return hasNothing, Page{}, f.changed
	case c.incarnation != f.last.incarnation:
		return isGone, Page{}, nil
	case c.seen.next > f.last.contains.next, c.asOf > f.last.asOf.UnixMicro():
		return isAhead, Page{}, nil
	case !f.floor.within(c.seen):
		return isEarlier, Page{}, nil
	}
	if page, known := f.memo[text]; known {
		if page.Facts > 0 {
			return hasNews, page, nil
		}
		return hasNothing, f.ifCurrent(page), f.changed
	}
	first := len(f.batches)
	for first > 0 && !f.batches[first-1].contains.within(c.seen) { // else all before it is, too
		first--
	}
	var news []row
	upTo, more := batch{contains: f.last.contains, asOf: f.last.asOf, at: f.last.at}, false
	for i, b := range f.batches[first:] {
		for _, r := range b.rows {
			if !c.seen.contains(r.xid) {
				news = append(news, r)
			}
		}
		// After a mass revocation followers come with many cursors. Pages that end with a batch lead them together.
		if len(news) >= pageSize && first+i+1 < len(f.batches) {
			upTo, more = b, true
			break
		}
	}
	head := cursor{incarnation: f.last.incarnation, asOf: upTo.asOf.UnixMicro(), seen: upTo.contains}
	page := pageOf(head.encode(), upTo.asOf, upTo.at, more, news)
	if len(f.memo) < 256 { // it is emptied with each look
		f.memo[text] = page
	}
	if len(news) > 0 {
		return hasNews, page, nil
	}
	return hasNothing, f.ifCurrent(page), f.changed
}

// ifCurrent is a page that says that nothing has ended, as long as that is known.
func (f *Feed) ifCurrent(page Page) Page {
	if f.failed != nil && time.Since(f.lookedAt) > lookTimeout {
		return Page{}
	}
	return page
}

// pageOf encodes an answer.
func pageOf(cursor string, asOf, at time.Time, more bool, rows []row) Page {
	list := make([]json.RawMessage, len(rows))
	for i, r := range rows {
		list[i] = r.json
	}
	body, err := json.Marshal(struct {
		Cursor string            `json:"cursor"`
		AsOf   time.Time         `json:"as_of"`
		At     time.Time         `json:"server_time"`
		More   bool              `json:"more"`
		Facts  []json.RawMessage `json:"revocations"`
	}{cursor, asOf, at, more, list})
	if err != nil {
		panic(err) // texts, times and what was encoded before
	}
	return Page{Cursor: cursor, AsOf: asOf, More: more, Facts: len(rows), JSON: body}
}

// read is the reader. It looks until nobody has followed for a while.
func (f *Feed) read() {
	told := false
	for {
		begun := time.Now()
		err := f.look(f.ctx, begun)
		if f.ctx.Err() != nil {
			return
		}
		if err != nil && !told {
			f.log.Warn("revocations_not_read", zap.Error(err))
		} else if err == nil && told {
			f.log.Info("revocations_read_again")
		}
		told = err != nil
		if f.idle() {
			return
		}
		// Whoever has locked rows of the followers does not hold up what has ended.
		if list := f.registry.due(); list != nil {
			f.done.Go(func() { f.registry.write(f.ctx, f.log, list) })
		}
		if !f.pause(begun) {
			return
		}
	}
}

// idle ends the reader when nobody has followed for a while, and what it remembers with it.
func (f *Feed) idle() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.followers > 0 || time.Since(f.left) < linger {
		return false
	}
	f.reading, f.known, f.failed = false, false, nil
	f.batches, f.rows = nil, 0
	clear(f.memo)
	return true
}

// pause waits until the next look is due; false: the feed is closed.
func (f *Feed) pause(begun time.Time) bool {
	select {
	case <-time.After(lookLeast):
	case <-f.ctx.Done():
		return false
	}
	rest := time.NewTimer(lookEvery - time.Since(begun))
	defer rest.Stop()
	select {
	case <-f.poke:
	case <-rest.C:
	case <-f.ctx.Done():
		return false
	}
	return true
}

// fresh returns when a look that began after a moment has been made.
func (f *Feed) fresh(ctx context.Context, after time.Time) error {
	f.mu.Lock()
	current := f.known && f.lookedAt.After(after)
	f.mu.Unlock()
	if current {
		return nil
	}
	if err := f.look(ctx, after); err != nil {
		return fmt.Errorf("%w: %w", ErrBehind, err)
	}
	return nil
}

// look reads what has been added since the last look, unless a look that began after the moment
// has been made meanwhile.
func (f *Feed) look(ctx context.Context, after time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if err := f.looking.Acquire(ctx, 1); err != nil {
		return err
	}
	defer f.looking.Release(1)
	f.mu.Lock()
	known, from := f.known, f.last
	current := known && f.failed == nil && f.lookedAt.After(after)
	f.mu.Unlock()
	if current {
		return nil
	}
	begun := time.Now()
	var l look
	var err error
	if known {
		l, err = f.store.since(ctx, from.contains, memory)
	} else {
		l, err = f.store.moment(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = err
	if err != nil {
		return err
	}
	f.lookedAt = begun
	f.take(l)
	return nil
}

// take remembers what a look found. The caller holds the lock.
func (f *Feed) take(l look) {
	clear(f.memo)
	rows := l.rows
	l.rows = nil
	news := len(rows) > 0
	switch {
	case !f.known, l.more,
		// Another database, or the same one as it was before: what is remembered is of no use.
		l.incarnation != f.last.incarnation, l.contains.next < f.last.contains.next:
		f.batches, f.rows, f.floor = nil, 0, l.contains
		news = true // those who wait are to learn where they are
	case len(rows) > 0:
		f.batches, f.rows = append(f.batches, batch{rows, l.contains, l.asOf, l.at}), f.rows+len(rows)
		for f.rows > memory {
			f.rows -= len(f.batches[0].rows)
			f.floor, f.batches = f.batches[0].contains, f.batches[1:]
		}
	}
	f.known, f.last = true, l
	if news {
		close(f.changed)
		f.changed = make(chan struct{})
	}
}

// reach makes the reader remember from a cursor on. far: that would be too much.
func (f *Feed) reach(ctx context.Context, c cursor) (far bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if err := f.looking.Acquire(ctx, 1); err != nil {
		return false, fmt.Errorf("%w: %w", ErrBehind, err)
	}
	defer f.looking.Release(1)
	f.mu.Lock()
	reached := !f.known || f.floor.within(c.seen)
	f.mu.Unlock()
	if reached { // with others
		return false, nil
	}
	begun := time.Now()
	l, err := f.store.since(ctx, c.seen, memory/2)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrBehind, err)
	}
	if l.more {
		return true, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lookedAt, f.failed = begun, nil
	if l.incarnation == f.last.incarnation {
		f.floor, f.batches, f.rows = c.seen, nil, 0
	}
	f.take(l)
	return false, nil
}
