package feed

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// pages keeps the pages of snapshots for a while: after a restart of the database all followers
// ask for them at once, and go from page to page together.
type pages struct {
	turns *semaphore.Weighted // how many are read at a time

	mu    sync.Mutex
	list  map[string]*shared
	order []string // of the list, from the one that was read first
}

// shared is a page that is being read, or was.
type shared struct {
	ready  chan struct{}
	at     time.Time // when reading it began
	forget *time.Timer
	page   Page
	err    error
}

// maxShared bounds what is kept: a page takes up to 200 KB.
const maxShared = 8

// shared returns a page of a snapshot, which others may have read for the same text. A page that
// was read before a follower asked does not make it miss anything: what ended since then is
// not contained in the position that the last page leads to.
func (f *Feed) shared(ctx context.Context, text string, c cursor, good time.Duration) (Page, error) {
	f.pages.mu.Lock()
	one := f.pages.list[text]
	if one == nil || time.Since(one.at) > good {
		one = &shared{ready: make(chan struct{}), at: time.Now()}
		f.pages.keep(text, one, pageKept)
		f.done.Go(func() {
			defer close(one.ready)
			one.page, one.err = f.readPage(f.ctx, c)
			if one.err != nil {
				f.pages.drop(text, one)
			}
		})
	}
	f.pages.mu.Unlock()
	select {
	case <-one.ready:
		return one.page, one.err
	case <-ctx.Done():
		return Page{}, fmt.Errorf("%w: %w", ErrBehind, ctx.Err())
	}
}

// keep remembers a page for a while, instead of the one that was read first if there are enough. The
// caller holds the lock.
func (p *pages) keep(text string, one *shared, kept time.Duration) {
	p.forget(text)
	if len(p.order) >= maxShared {
		p.forget(p.order[0])
	}
	p.list[text], p.order = one, append(p.order, text)
	one.forget = time.AfterFunc(kept, func() { p.drop(text, one) })
}

// forget lets go of a page; its timer would keep it in memory. The caller holds the lock.
func (p *pages) forget(text string) {
	if one := p.list[text]; one != nil {
		one.forget.Stop()
		delete(p.list, text)
		p.order = slices.DeleteFunc(p.order, func(other string) bool { return other == text })
	}
}

func (p *pages) drop(text string, one *shared) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.list[text] == one {
		p.forget(text)
	}
}

// readPage reads a page of a snapshot, or of what was missed since a position.
func (f *Feed) readPage(ctx context.Context, c cursor) (Page, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if err := f.pages.turns.Acquire(ctx, 1); err != nil {
		return Page{}, fmt.Errorf("%w: %w", ErrBehind, err)
	}
	defer f.pages.turns.Release(1)
	l, err := f.store.page(ctx, c.after, c.since, pageSize)
	if err != nil {
		return Page{}, fmt.Errorf("%w: %w", ErrBehind, err)
	}
	if c.asOf == 0 { // the first one
		if c.incarnation != 0 && c.incarnation != l.incarnation {
			return Page{}, ErrGone
		}
		c.incarnation, c.seen, c.asOf = l.incarnation, l.contains, l.asOf.UnixMicro()
	}
	if l.incarnation != c.incarnation || l.contains.next < c.seen.next {
		return Page{}, ErrGone
	}
	asOf := time.UnixMicro(c.asOf).UTC()
	if !l.more {
		return pageOf(cursor{incarnation: c.incarnation, seen: c.seen, asOf: c.asOf}.encode(), asOf, l.at, false,
			l.rows), nil
	}
	c.paging, c.after = true, l.rows[len(l.rows)-1].id
	return pageOf(c.encode(), asOf, l.at, true, l.rows), nil
}
