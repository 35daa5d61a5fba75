package httpserver

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// Headers that pages may send and read, in addition to those that routes declare.
var (
	commonHeaders = []string{"Authorization", "Content-Type", "X-Request-Id"}
	commonShown   = []string{"ETag", "Retry-After", "WWW-Authenticate", "X-Request-Id"}
)

// passHeaders are request headers that tracing, caching and frameworks add without the author of
// the page knowing. This API ignores them, but a preflight that refuses one of them refuses the
// request. Names are in lower case; one that ends in * means every name that begins like it.
var passHeaders = []string{
	"accept", "accept-language", "cache-control", "content-language", "dnt", "if-match", "if-modified-since",
	"if-none-match", "if-unmodified-since", "pragma", "prefer", "priority", "range", "save-data", "sec-*",

	"idempotency-key", "x-client-*", "x-correlation-id", "x-csrf-token", "x-csrftoken", "x-http-method-override",
	"x-requested-with", "x-xsrf-token",

	"b3", "baggage", "correlation-context", "elastic-apm-traceparent", "newrelic", "request-context", "request-id",
	"sentry-*", "traceparent", "traceresponse", "tracestate", "uber-trace-id", "uberctx-*", "x-amzn-trace-id", "x-b3-*",
	"x-cloud-trace-context", "x-datadog-*", "x-dtc", "x-dtpc", "x-dtreferer", "x-dynatrace*", "x-honeycomb-trace",
	"x-instana-*", "x-newrelic-*", "x-ot-span-context", "x-rum-*", "x-trace-id", "x-tracking-id",
}

// allowOrigin answers CORS for the origins on the list. The answer depends on Origin whether or
// not the origin is on the list, and Vary says so to caches. Pages on the list may send their
// cookies; what a cookie may do is decided by the functions that read it, see [Browser].
func (x *exchange) allowOrigin() {
	origin := x.carrier.header("Origin")
	if len(x.origins) == 0 && origin == "" {
		return
	}
	x.carrier.add("Vary", "Origin")
	if x.originListed(origin) {
		x.carrier.set("Access-Control-Allow-Origin", origin)
		x.carrier.set("Access-Control-Allow-Credentials", "true")
		x.carrier.set("Access-Control-Expose-Headers", strings.Join(x.shownHeaders, ", "))
	}
}

func (x *exchange) originListed(origin string) bool {
	return slices.Contains(x.origins, origin) && len(x.carrier.headers("Origin")) == 1
}

// options answers OPTIONS for every path of the table, and with it CORS preflights.
func (x *exchange) options() {
	if x.carrier.path() == "*" { // the server as a whole (RFC 9110 §9.3.7)
		x.send(http.StatusNoContent, nil)
		return
	}
	methods := x.allowed(x.carrier.path())
	if methods == "" {
		x.answer(ErrNotFound)
		return
	}
	x.carrier.set("Allow", methods)
	if x.originListed(x.carrier.header("Origin")) && x.carrier.header("Access-Control-Request-Method") != "" {
		x.carrier.add("Vary", "Access-Control-Request-Headers")
		x.carrier.set("Access-Control-Allow-Methods", methods)
		x.carrier.set("Access-Control-Allow-Headers", x.passing())
		x.carrier.set("Access-Control-Max-Age", "600")
	}
	x.send(http.StatusNoContent, nil)
}

// passing lists the API's own request headers, and those of the preflight that are allowed.
func (x *exchange) passing() string {
	names := slices.Clone(x.ownHeaders)
	for _, line := range x.carrier.headers("Access-Control-Request-Headers") {
		for name := range strings.SplitSeq(line, ",") {
			name = strings.ToLower(strings.Trim(name, " \t"))
			if isToken(name) && (passes(passHeaders, name) || passes(x.corsHeaders, name)) {
				names = appendNames(names, name)
			}
		}
	}
	return strings.Join(names, ", ")
}

// passes reports whether a name in lower case is on a list in lower case.
func passes(list []string, name string) bool {
	return slices.ContainsFunc(list, func(entry string) bool {
		if start, all := strings.CutSuffix(entry, "*"); all {
			return strings.HasPrefix(name, start)
		}
		return entry == name
	})
}

// isToken reports whether text is a header's name (RFC 9110 §5.6.2).
func isToken(text string) bool {
	return text != "" && !strings.ContainsFunc(text, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
			strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	})
}

// webPorts are the ports that browsers leave out of an origin, by the schemes whose hosts they
// also write in lower case (the special schemes of the URL standard).
var webPorts = map[string]string{"http": "80", "https": "443", "ws": "80", "wss": "443"}

// parseOrigin returns an entry of app.origins as browsers send it (RFC 6454 §6.2), or why no
// browser could send it. Hosts of schemes other than the web's are compared as they are, because
// case may matter there.
func parseOrigin(text string) (string, error) {
	switch text {
	case "":
		return "", errors.New("is empty")
	case "*":
		return "", errors.New("would allow any page; name the origins")
	case "null":
		return "", errors.New("is sent by any page in a sandboxed frame or a local file, so it would allow any page")
	}
	scheme, rest, found := strings.Cut(text, "://")
	scheme = strings.ToLower(scheme)
	switch {
	case !found || !isScheme(scheme):
		return "", errors.New("is not an origin: scheme, host and port, such as https://app.example.com")
	case scheme == "file":
		return "", errors.New("is not what browsers send for local files: they send null, which any page can send")
	case strings.ContainsAny(rest, "/?#\\"):
		return "", fmt.Errorf("must be scheme, host and port alone, without a path or a slash at the end: %s",
			originOnly(scheme, rest))
	case strings.Contains(rest, "@"):
		return "", errors.New("must be scheme, host and port alone, without a user")
	case strings.Contains(rest, "*"):
		return "", errors.New("wildcards are not supported; name each origin")
	}
	host, port, err := splitPort(rest)
	if err != nil {
		return "", err
	}
	if strings.ContainsFunc(host, func(r rune) bool { return r > '~' }) {
		ascii, err := idna.New(idna.MapForLookup(), idna.Transitional(false)).ToASCII(host)
		if err != nil {
			return "", errors.New("the host is not ASCII, and not a name that can be looked up")
		}
		return "", fmt.Errorf("the host is not ASCII; browsers send %s://%s", scheme,
			ascii+strings.TrimPrefix(rest, host))
	}
	ownPort, web := webPorts[scheme]
	if host, err = originHost(host, web); err != nil {
		return "", err
	}
	if port != "" && port != ownPort {
		host += ":" + port
	}
	return scheme + "://" + host, nil
}

func isScheme(text string) bool {
	return text != "" && text[0] >= 'a' && text[0] <= 'z' && !strings.ContainsFunc(text, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '+' || r == '-' || r == '.')
	})
}

// originOnly is the origin of an entry that continues after its host.
func originOnly(scheme, rest string) string {
	return scheme + "://" + rest[:strings.IndexAny(rest, "/?#\\")]
}

// splitPort splits host[:port], with the port as browsers write it.
func splitPort(text string) (host, port string, err error) {
	at := strings.LastIndexByte(text, ':')
	if at < 0 || strings.HasSuffix(text, "]") {
		return text, "", nil
	}
	n, err := strconv.ParseUint(text[at+1:], 10, 16)
	if err != nil || n == 0 {
		return "", "", fmt.Errorf("%q is not a port", text[at+1:])
	}
	return text[:at], strconv.FormatUint(n, 10), nil
}

// originHost returns a host as browsers write it.
func originHost(host string, web bool) (string, error) {
	if inner, bracket := strings.CutPrefix(host, "["); bracket {
		inner, closed := strings.CutSuffix(inner, "]")
		addr, err := netip.ParseAddr(inner)
		if err != nil || !closed || !addr.Is6() || addr.Zone() != "" {
			return "", fmt.Errorf("%q is not an IPv6 address", host)
		}
		if addr.Is4In6() {
			part := addr.As16()
			return fmt.Sprintf("[::ffff:%x:%x]", uint16(part[12])<<8|uint16(part[13]),
				uint16(part[14])<<8|uint16(part[15])), nil
		}
		return "[" + addr.String() + "]", nil
	}
	isBad := func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune("%:<>[]^`{|}\"", r) }
	if i := strings.IndexFunc(host, isBad); i >= 0 {
		return "", fmt.Errorf("the host has a character that is not allowed: %q", host[i:i+1])
	}
	if !web {
		if host == "" {
			return "", errors.New("names no host")
		}
		return host, nil
	}
	host = strings.ToLower(host)
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	if slices.Contains(labels, "") {
		return "", errors.New("names no host")
	}
	// To browsers, a host that ends in a number is an IPv4 address, which they write in one way.
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		if addr, err := netip.ParseAddr(host); err != nil || !addr.Is4() {
			return "", fmt.Errorf("%q is not an IPv4 address in four decimal parts", host)
		}
	}
	return host, nil
}
