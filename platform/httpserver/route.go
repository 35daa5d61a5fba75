package httpserver

import (
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/toppira/authctl/platform/fault"
)

// Route is one line of the surface: what it is called, what it does and all that its
// documentation says beyond the types of its function. The OpenAPI document is made of it,
// and both ways of serving follow it.
type Route struct {
	Method string   // GET also answers HEAD; see AnyMethod
	Path   string   // /sessions/{id}: whole segments in braces are parameters
	Do     Function // see [Public] and [As]

	ID          string         // operationId, unique
	Group       string         // the tag under which it is documented
	Summary     string         // a few words
	Description string         // CommonMark
	Status      int            // of success; 0: 200, or 204 for a function that returns nothing
	Success     string         // what the success means
	Faults      []*fault.Fault // what the function may refuse; what follows from its parts and its identity comes by itself
	OAuthFaults []OAuthError   // the same for OAuth routes
	Accepts     []*Scheme      // identities that the function itself looks for; they may be missing
	Cache       string         // Cache-Control of a success
	Instead     string         // of a DELETE with a body, which some proxies drop: the route that does the same

	OAuth bool // errors are RFC 6749 §5.2 JSON; so are 404 and 405 beside it
	Quiet bool // logged at debug when it went well: probes
	// Waits says that the function may wait for something to happen, for longer than
	// app.http.request_timeout, and answer with [Events]. Its context ends when the server stops.
	// The connections of those whom its identity lets in do not count against their address.
	Waits bool

	// For gateways, which ask whether a request of their own may pass. They ask with its method,
	// and pass on what they are answered: every method does the same as Method, OPTIONS too, and
	// no answer of the route has a body. What the client did wrong is 401, whatever it was.
	Gateway bool

	page func(*exchange) error // serves files for people, in place of a function; not documented
}

// route is a Route as served, with what is the same for every request to it.
type route struct {
	Route
	segments []string
	duration prometheus.Observer
}

// Documented reports whether programs call the route, rather than people.
func (r Route) Documented() bool { return r.page == nil }

// SuccessStatus is the status of a success.
func (r Route) SuccessStatus() int {
	switch {
	case r.Status != 0:
		return r.Status
	case r.Do.Out() == nil:
		return http.StatusNoContent
	}
	return http.StatusOK
}

// routedMethods are those that Fiber's router finds routes for.
var routedMethods = []string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
}

// add takes a route and, for GET, its HEAD into the table. It panics when nobody may call the
// route or its path is none: such a table is a mistake of whoever wrote it.
func (s *core) add(definition Route) (added []*route) {
	if definition.Do.run == nil && definition.page == nil {
		panic(fmt.Sprintf("httpserver: %s %s does nothing", definition.Method, definition.Path))
	}
	methods := []string{definition.Method}
	switch {
	case definition.Gateway:
		methods = append(slices.Clone(routedMethods), http.MethodOptions, otherMethod)
	case definition.Method == http.MethodGet:
		methods = append(methods, http.MethodHead)
	}
	definition.Status = definition.SuccessStatus()
	for _, method := range methods {
		r := &route{Route: definition, segments: strings.Split(definition.Path, "/"), duration: s.metrics.duration.WithLabelValues(definition.Path, method)}
		r.Method = method
		s.table, added = append(s.table, r), append(added, r)
	}
	if dir := path.Dir(definition.Path) + "/"; definition.OAuth && !slices.Contains(s.oauthDirs, dir) {
		s.oauthDirs = append(s.oauthDirs, dir)
	}
	s.ownHeaders = appendNames(s.ownHeaders, definition.Do.input.headers()...)
	if !definition.Gateway { // pages do not call it
		s.shownHeaders = appendNames(s.shownHeaders, definition.Do.output.headerNames()...)
	}
	return added
}

// appendNames adds to a list in the form of Access-Control-Allow-Headers those that are not
// on it yet.
func appendNames(list []string, names ...string) []string {
	for _, name := range names {
		if !slices.ContainsFunc(list, func(n string) bool { return strings.EqualFold(n, name) }) {
			list = append(list, name)
		}
	}
	return list
}

// find returns the route for a request, nil when there is none.
func (s *core) find(method, path string) *route {
	method = knownMethod(method)
	segments := strings.Split(path, "/")
	for _, r := range s.table {
		if r.Method == method && matches(r.segments, segments) {
			return r
		}
	}
	return nil
}

// allowed lists the methods of a path in the order of the table, as Allow wants them;
// nothing when there is no such path.
func (s *core) allowed(path string) string {
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
	return strings.Join(append(methods, http.MethodOptions), ", ")
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
		case isParam(want):
			if path[i] == "" {
				return false
			}
		case want != path[i]:
			return false
		}
	}
	return len(pattern) == len(path)
}

func isParam(segment string) bool {
	return strings.HasPrefix(segment, "{") && strings.HasSuffix(segment, "}")
}

// param returns a parameter of a path that matches the route.
func (r *route) param(name, path string) string {
	i := slices.Index(r.segments, "{"+name+"}")
	if segments := strings.Split(path, "/"); i >= 0 && i < len(segments) {
		return segments[i]
	}
	return ""
}

// speaksOAuth reports whether errors at a path are OAuth's: it is a route's or lies beside one.
func (s *core) speaksOAuth(path string) bool {
	return slices.ContainsFunc(s.oauthDirs, func(dir string) bool { return strings.HasPrefix(path, dir) })
}
