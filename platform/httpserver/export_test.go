package httpserver

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
