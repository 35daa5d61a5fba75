package httpserver

import (
	"context"
	"path"
	"slices"
	"strings"

	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"
)

// Route is one line of the surface.
type Route struct {
	Method  string        // GET also answers HEAD
	Path    string        // Fiber's pattern: /sessions/:id, /docs/*
	Handler fiber.Handler // returns errors; never writes one itself
	OAuth   bool          // errors are RFC 6749 §5.2 JSON; so are 404 and 405 beside it
	Quiet   bool          // logged at debug when it went well: probes
	Page    bool          // serves HTML: a content security policy under which its pages work
}

// route is a Route as served, with what is the same for every request to it.
type route struct {
	Route
	segments []string
	duration prometheus.Observer
}

// Handle adds routes. All of them are added before [Server.Run].
func (s *Server) Handle(routes ...Route) {
	for _, r := range routes {
		s.add(r)
		if r.Method == fiber.MethodGet {
			r.Method = fiber.MethodHead
			s.add(r)
		}
		if r.OAuth {
			if dir := path.Dir(r.Path) + "/"; !slices.Contains(s.oauthDirs, dir) {
				s.oauthDirs = append(s.oauthDirs, dir)
			}
		}
	}
}

// Routes returns the table as served, in the order it was given, HEAD included.
func (s *Server) Routes() []Route {
	routes := make([]Route, len(s.table))
	for i, r := range s.table {
		routes[i] = r.Route
	}
	return routes
}

func (s *Server) add(definition Route) {
	r := &route{
		Route:    definition,
		segments: strings.Split(definition.Path, "/"),
		duration: s.metrics.duration.WithLabelValues(definition.Path, definition.Method),
	}
	s.table = append(s.table, r)
	s.app.Add(r.Method, r.Path, func(c *fiber.Ctx) error {
		exchangeOf(c).route = r
		// Fiber does not notice that a client left, so the deadline is what ends the work.
		ctx, cancel := context.WithTimeout(s.base, s.cfg.HTTP.RequestTimeout)
		defer cancel()
		c.SetUserContext(ctx)
		if r.Page {
			return s.page(c, r)
		}
		return r.Handler(c)
	})
}

// page runs a handler that serves files and HTML, such as the Swagger UI: it may answer
// refusals in its own way, which are turned into ours.
func (s *Server) page(c *fiber.Ctx, r *route) error {
	// gofiber/swagger builds redirects and links for everybody from the first request's
	// X-Forwarded-Prefix.
	c.Request().Header.Del("X-Forwarded-Prefix")
	if err := r.Handler(c); err != nil {
		return err
	}
	if status := c.Response().StatusCode(); status >= fiber.StatusBadRequest {
		return fiber.NewError(status)
	}
	if strings.HasPrefix(string(c.Response().Header.ContentType()), "text/html") {
		c.Set(fiber.HeaderContentSecurityPolicy, pagePolicy(c.Response().Body()))
	}
	return nil
}

// allowed lists the methods of a path in the order of the table, as Allow wants them;
// nothing when there is no such path.
func (s *Server) allowed(path string) string {
	var methods []string
	segments := strings.Split(path, "/")
	for _, r := range s.table {
		if matches(r.segments, segments) && !slices.Contains(methods, r.Method) {
			methods = append(methods, r.Method)
		}
	}
	if methods == nil {
		return ""
	}
	return strings.Join(append(methods, fiber.MethodOptions), ", ")
}

// matches compares a path with a pattern as Fiber's router does for the patterns used here:
// literals, whole-segment parameters and one * at the end.
func matches(pattern, path []string) bool {
	for i, want := range pattern {
		switch {
		case want == "*":
			return i < len(path)
		case i >= len(path):
			return false
		case strings.HasPrefix(want, ":"):
			if path[i] == "" {
				return false
			}
		case want != path[i]:
			return false
		}
	}
	return len(pattern) == len(path)
}

// speaksOAuth reports whether errors at a path are OAuth's: it is a route's or lies beside one.
func (s *Server) speaksOAuth(path string) bool {
	return slices.ContainsFunc(s.oauthDirs, func(dir string) bool { return strings.HasPrefix(path, dir) })
}
