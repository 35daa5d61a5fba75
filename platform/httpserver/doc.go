// Package httpserver is the public HTTP listener: Fiber for routing, and around it everything
// that must hold for every answer, whatever the function of a route does. [Handler] serves the same
// routes in a net/http server that a host already has, without the first two steps.
//
//	accept      connection limits; more than allowed is refused before a byte is read
//	frame       fasthttp reads a request; what is ambiguous on the wire is refused
//	serve       request id, security headers, CORS; a panic ends here
//	route       one table: 404, 405 with Allow and OPTIONS are computed from it
//	function    gets a context with a deadline and its input; returns its output or an error
//	answer      the one place where an error becomes a status and a body
//	end         one log line and the metrics
//
// Functions return errors and never write one themselves: a fault.Fault is shown to the client as
// application/problem+json (RFC 9457), on routes marked OAuth as RFC 6749 §5.2 JSON; anything else is
// a bare 500, and the log keeps the cause.
//
// The client's address is [Peer].IP and nothing else. Fiber's c.IP, c.Hostname, c.Protocol,
// c.BaseURL and c.Secure believe headers that the client writes.
package httpserver
