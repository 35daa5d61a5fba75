package httpserver

import (
	"context"
	"sync/atomic"
	"time"
)

// watch notices that the client has gone while its request waits, when fasthttp does not read: it
// reads ahead. A byte that comes belongs to the next request, which [conn.Read] begins with it; from
// then on nothing is noticed, as with net/http.
type watch struct {
	ctx    context.Context // ends when the client has gone
	cancel context.CancelFunc
	over   atomic.Bool
	read   chan struct{} // closed when nothing reads any more
	kept   bool          // a stream goes on with it when the function of the route has returned
}

// watch begins. Until [conn.unwatch] nobody else may read.
func (c *conn) watch(ctx context.Context) *watch {
	w := &watch{read: make(chan struct{})}
	w.ctx, w.cancel = context.WithCancel(ctx)
	c.watched = w
	_ = c.Conn.SetReadDeadline(time.Time{}) // if that fails, so does the read
	go func() {
		defer close(w.read)
		n, err := c.Conn.Read(c.ahead[:])
		c.hasAhead.Store(n > 0)
		if err != nil && !w.over.Load() {
			w.cancel()
		}
	}()
	return w
}

// unwatch ends what watch began, and waits for it.
func (c *conn) unwatch(w *watch) {
	w.over.Store(true)
	_ = c.Conn.SetReadDeadline(time.Unix(1, 0))
	<-w.read
	_ = c.Conn.SetReadDeadline(time.Time{}) // fasthttp sets one for the next request
	w.cancel()
	c.watched = nil
}
