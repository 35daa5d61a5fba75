package httpserver

import "github.com/gofiber/fiber/v2"

// App is Fiber's application, for what is measured or called without a socket.
func (s *Server) App() *fiber.App { return s.app }

// Ready tells a test that requests are served and no stop has begun.
func (s *Server) Ready() bool { return s.running.Load() && !s.stopping.Load() }

// Waiting tells a test since when each connection waits for its client, in Unix nanoseconds,
// but for those whose request is being answered.
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
