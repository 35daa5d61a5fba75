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

// Route declares one endpoint: method and path, its function, and what its documentation says
// beyond the types of the function. The OpenAPI document is made from it, and both ways of serving
// use it.
type Route struct {
	Method string   // GET also answers HEAD
	Path   string   // /sessions/{id}: whole segments in braces are parameters
	Do     Function // see [Public] and [As]

	ID          string         // operationId, unique
	Group       string         // the tag under which it is documented
	Summary     string         // a few words
	Description string         // CommonMark
	Status      int            // of success; 0: 200, or 204 for a function that returns nothing
	Success     string         // what the success means
	Faults      []*fault.Fault // of the function; those of its input and its identity are added
	OAuthFaults []OAuthError   // the same for OAuth routes
	Accepts     []*Scheme      // identities that the function itself looks for; they may be missing
	Cache       string         // Cache-Control of a success
	Instead     string         // for a DELETE with a body, which some proxies drop: a route that does the same

	OAuth bool // errors are RFC 6749 §5.2 JSON, also 404 and 405 in the same folder
	Quiet bool // a success is logged at debug: for probes
	// Waits says that the function may wait for something to happen, for longer than
	// app.http.request_timeout, and answer with [Events]. Its context ends when the server stops.
	// The connections of those whom its identity lets in do not count against their address.
	Waits bool

	// Gateway is for gateways, which ask whether a request that they received may pass. They use
	// its method and pass the answer on: so every method does the same as Method, also OPTIONS,
	// no answer of the route has a body, and every mistake of the client is 401.
	Gateway bool

	page func(*exchange) error // serves files for people, instead of a function; not documented
}

// route is a Route as it is served, with what is the same for all requests to it.
type route struct {
	Route
	segments []string
	duration prometheus.Observer
}

// Documented reports whether programs call the route, rather than people.
func (r Route) Documented() bool { return r.page == nil }

// takesBearer reports whether a bearer token may show who calls.
func (r Route) takesBearer() bool {
	return slices.ContainsFunc(append([]*Scheme{r.Do.Scheme()}, r.Accepts...), func(s *Scheme) bool {
		return s != nil && strings.EqualFold(s.HTTP, "bearer")
	})
}

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

// add adds a route to the table and, for GET, its HEAD. It panics on a route that does nothing,
// which is a mistake in the declaration.
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
		r := &route{Route: definition, segments: strings.Split(definition.Path, "/"),
			duration: s.metrics.duration.WithLabelValues(definition.Path, method)}
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

// appendNames adds the names of headers that are not on the list yet.
func appendNames(list []string, names ...string) []string {
	for _, name := range names {
		if !slices.ContainsFunc(list, func(n string) bool { return strings.EqualFold(n, name) }) {
			list = append(list, name)
		}
	}
	return list
}

// find returns the route for a request, or nil.
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

// allowed lists the methods of a path in the order of the table, for Allow. It is empty if there is
// no such path.
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
// literals and whole-segment parameters.
func matches(pattern, path []string) bool {
	for i, want := range pattern {
		switch {
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

// speaksOAuth reports whether errors at a path are OAuth's: its folder has an OAuth route.
func (s *core) speaksOAuth(path string) bool {
	return slices.ContainsFunc(s.oauthDirs, func(dir string) bool { return strings.HasPrefix(path, dir) })
}
