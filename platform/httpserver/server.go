package httpserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
	"go.uber.org/zap"
)

// Server is the public listener. Routes are added with [Server.Handle], then it runs once.
type Server struct {
	*core
	tls      *tls.Config // nil for plain HTTP
	app      *fiber.App
	fiber    fasthttp.RequestHandler // Fiber's router
	listener atomic.Pointer[listener]
	stopping atomic.Bool
}

// New makes a server with no routes. It does not listen yet.
func New(cfg Config, opt Options) (*Server, error) {
	s := new(Server)
	var err error
	if s.core, err = newCore(cfg, opt, func() float64 { return float64(s.Connections()) }); err != nil {
		return nil, err
	}
	if s.tls, err = newTLS(cfg.TLS, s.log); err != nil {
		return nil, err
	}
	s.app = fiber.New(fiber.Config{
		CaseSensitive:                true,
		StrictRouting:                true,
		Immutable:                    true, // strings outlive the request's buffers
		DisableStartupMessage:        true,
		DisableDefaultContentType:    true,
		DisablePreParseMultipartForm: true, // no files are taken, so none are written
		BodyLimit:                    MaxBody,
		ReadBufferSize:               s.cfg.HTTP.MaxHeaderBytes,
		ReadTimeout:                  s.cfg.HTTP.ReadTimeout,
		WriteTimeout:                 s.cfg.HTTP.WriteTimeout,
		IdleTimeout:                  s.cfg.HTTP.IdleTimeout,
		ErrorHandler: func(c *fiber.Ctx, err error) error {
			exchangeOf(c.Context()).answer(err)
			return nil
		},
	})
	s.fiber = s.app.Handler()
	http := s.app.Server()
	http.Handler = s.serve
	http.ErrorHandler = s.unreadable
	http.ExpectHandler = s.expectation
	http.ConnState = waitsAnew
	http.SecureErrorLogMessage = true
	return s, nil
}

// Handle adds routes. It must not be called after [Server.Run].
func (s *Server) Handle(routes ...Route) {
	for _, definition := range routes {
		for _, r := range s.add(definition) {
			if !slices.Contains(routedMethods, r.Method) {
				continue // see beyondRouter
			}
			s.app.Add(r.Method, fiberPattern(r.segments), func(c *fiber.Ctx) error {
				return exchangeOf(c.Context()).run(r)
			})
		}
	}
}

// Listen opens the port. Connections wait until [Server.Run], which also opens it if needed.
func (s *Server) Listen() error {
	address := net.JoinHostPort(s.cfg.Host, strconv.Itoa(s.cfg.Port))
	raw, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("port %d is in use: stop what listens there, or set APP_PORT to another port", s.cfg.Port)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("port %d needs privileges: set APP_PORT to a port above 1023", s.cfg.Port)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("app.host %s is not an address of this machine", s.cfg.Host)
	case err != nil:
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	total := s.cfg.HTTP.MaxConnections
	if files := maxFiles(); files > 0 {
		// A quarter is left for databases, logs and connections about to be refused.
		total = min(total, max(16, files-max(64, files/4)))
	}
	if total < s.cfg.HTTP.MaxConnections {
		s.log.Warn("connection_limit_lowered", zap.Int("connections", total), zap.Int("files", maxFiles()),
			zap.String("hint", "the process may open too few files: raise its limit (LimitNOFILE)"))
	}
	s.listener.Store(&listener{
		Listener: raw,
		tls:      s.tls,
		total:    total,
		perIP:    s.cfg.HTTP.MaxConnectionsPerIP,
		idle:     max(s.cfg.HTTP.IdleTimeout, s.cfg.HTTP.ReadTimeout),
		read:     s.cfg.HTTP.ReadTimeout,
		trusted:  s.trusted,
		log:      s.log,
		refused:  func(limit string) { s.metrics.refused.WithLabelValues(limit).Inc() },
		closed:   make(chan struct{}),
		conns:    make(map[*conn]struct{}),
		clients:  make(map[netip.Prefix]map[*conn]struct{}),
	})
	return nil
}

// Addr is the address that the server listens on, nil before it does.
func (s *Server) Addr() net.Addr {
	if l := s.listener.Load(); l != nil {
		return l.Addr()
	}
	return nil
}

// Connections is the number of open connections.
func (s *Server) Connections() int {
	if l := s.listener.Load(); l != nil {
		return l.open()
	}
	return 0
}

// Stopping reports that a stop has begun, which readiness must show at once.
func (s *Server) Stopping() bool { return s.stopping.Load() }

// Run serves until ctx ends, then stops in order: it is not ready at once, accepts requests for the
// drain delay, and finishes those in progress for at most the shutdown timeout, after which it
// cancels them and closes their connections. After a stop it returns nil; an error means that the
// server could not serve.
func (s *Server) Run(ctx context.Context) error {
	if s.listener.Load() == nil {
		if err := s.Listen(); err != nil {
			return err
		}
	}
	l := s.listener.Load()
	defer s.abort()
	s.app.Handler() // builds the router from the routes given since New

	served := make(chan error, 1)
	go func() { served <- s.app.Server().Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	s.stopping.Store(true)
	if s.cfg.DrainDelay > 0 {
		select {
		case <-time.After(s.cfg.DrainDelay):
		case err := <-served:
			return fmt.Errorf("serve %s: %w", l.Addr(), err)
		}
	}
	s.stop(l)
	<-served
	return nil
}

func (s *Server) stop(l *listener) {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.ShutdownTimeout)
	defer cancel()
	begun := time.Now()
	_ = l.Close()
	s.letGo()
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		_ = s.app.ShutdownWithContext(ctx) // closes idle connections until none is left
	}()
	for {
		// A client that has connected may be about to send: half a second is enough for that,
		// and a client whose new connection closes unread tries again.
		l.closeSilent(time.Now().Add(-500 * time.Millisecond))
		tick, done := context.WithTimeout(ctx, 50*time.Millisecond)
		err := l.wait(tick)
		done()
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			s.cutOff(l)
			break
		}
	}
	cancel()
	<-idle
	s.log.Info("http_server_stopped", zap.Duration("took", time.Since(begun)))
}

// cutOff cancels the requests that are still in progress. They get a moment to answer with an
// error, then their connections close.
func (s *Server) cutOff(l *listener) {
	s.log.Warn("requests_cut_off", zap.Int("connections", l.open()),
		zap.String("hint", "app.shutdown_timeout is over"))
	s.abort()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if l.wait(ctx) != nil {
		l.closeAll()
	}
}
