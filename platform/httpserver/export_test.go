package httpserver

import (
	"slices"

	"github.com/gofiber/fiber/v2"
)

// App is Fiber's application, for calls and measurements without a socket.
func (s *Server) App() *fiber.App { return s.app }

// Waiting returns since when each connection has waited for its client, in Unix nanoseconds, except
// for those whose request is being answered.
func (s *Server) Waiting() (since []int64) {
	l := s.listener.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		if waits := c.waits.Load(); waits != 0 {
			since = append(since, waits)
		}
	}
	return since
}

// ReadAhead reports whether a byte of the next request was read while one waits.
func (s *Server) ReadAhead() bool {
	return slices.ContainsFunc(s.listener.Load().list(), func(c *conn) bool { return c.hasAhead.Load() })
}
