package httpserver

import (
	"net/url"
	"slices"
	"strings"
)

// Browser is what a request says about the page that sends it, in headers that no page can set
// (the forbidden request-headers of the Fetch standard), and its cookies. A function that
// authenticates by a cookie must ask [Browser.From] first, because browsers send cookies with
// requests of any page.
type Browser struct {
	origins []string // one for each Origin header
	sites   []string // one for each Sec-Fetch-Site header
	listed  bool     // there is one Origin, and it is in app.origins
	cookies []string // one for each Cookie header
	json    bool     // Content-Type is application/json
}

// browser returns the Browser of the request.
func (x *exchange) browser() Browser {
	return Browser{
		origins: x.carrier.headers("Origin"), sites: x.carrier.headers("Sec-Fetch-Site"),
		listed:  x.originListed(x.carrier.header("Origin")),
		cookies: x.carrier.headers("Cookie"), json: mediaFault(x, "application/json") == nil,
	}
}

// Sends reports whether the request has headers that show that a browser sent it.
func (b Browser) Sends() bool { return len(b.origins) > 0 || len(b.sites) > 0 }

// From reports whether a browser sends the request for a page of app.origins, or of one of these
// origins of the service itself. Browsers leave Origin out of some requests to the page's own
// origin; Sec-Fetch-Site must then say that it is one.
func (b Browser) From(own ...string) bool {
	switch len(b.origins) {
	case 0:
		return len(b.sites) == 1 && b.sites[0] == "same-origin"
	case 1:
		return b.listed || b.origins[0] != "" && slices.Contains(own, b.origins[0])
	}
	return false
}

// JSON reports whether Content-Type is application/json, which a page of another origin cannot
// send without a preflight.
func (b Browser) JSON() bool { return b.json }

// Cookies returns the values of the cookies of exactly this name. A browser sends several if they
// were set for several paths or domains, without telling which is which.
func (b Browser) Cookies(name string) (values []string) {
	for _, line := range b.cookies {
		for pair := range strings.SplitSeq(line, ";") {
			if key, value, found := strings.Cut(strings.Trim(pair, " \t"), "="); found && key == name {
				values = append(values, value)
			}
		}
	}
	return values
}

// MountOf is the path of a URL, without a slash at its end: that of the issuer is where a proxy has mounted
// the service.
func MountOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return strings.TrimRight(u.EscapedPath(), "/")
}

// OriginOf is the origin of a URL as browsers send it; empty when there is none.
func OriginOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	origin, err := parseOrigin(u.Scheme + "://" + u.Host)
	if err != nil {
		return ""
	}
	return origin
}
