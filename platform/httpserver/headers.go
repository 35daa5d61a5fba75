package httpserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"strings"
)

// apiPolicy forbids everything: an answer that a browser is tricked into showing as a page
// can load, run and be framed by nothing.
const apiPolicy = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

// strictTransport is the HSTS header: none for plain HTTP, which must not carry it.
func strictTransport(https, subdomains bool) string {
	switch {
	case !https:
		return ""
	case subdomains:
		return "max-age=31536000; includeSubDomains"
	}
	return "max-age=31536000"
}

// decorate sets what every answer carries. Routes may override it.
func (x *exchange) decorate() {
	x.carrier.set("X-Request-Id", x.id)
	x.carrier.set("X-Content-Type-Options", "nosniff")
	x.carrier.set("Referrer-Policy", "no-referrer")
	x.carrier.set("Content-Security-Policy", apiPolicy)
	if x.hsts != "" {
		x.carrier.set("Strict-Transport-Security", x.hsts)
	}
	x.allowOrigin()
}

// pagePolicy is the content security policy of one HTML page: what comes from this server,
// and of scripts in the page exactly those that are in it now.
func pagePolicy(page []byte) string {
	return "default-src 'none'; img-src 'self' data:; font-src 'self'; connect-src 'self'; " +
		"style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; " +
		"script-src 'self'" + hashesOf(page, "script")
}

// closedPolicy is that of a page that loads nothing: it runs and looks like what is in it now, and
// its script talks to this server alone.
func closedPolicy(page []byte) string {
	return "default-src 'none'; img-src data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; " +
		"form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'; style-src" +
		hashesOf(page, "style") +
		"; script-src" + hashesOf(page, "script")
}

// hashesOf are the sources of a policy for what elements without attributes hold.
func hashesOf(page []byte, element string) string {
	var sources strings.Builder
	for rest := page; ; {
		_, after, found := bytes.Cut(rest, []byte("<"+element+">"))
		if !found {
			return sources.String()
		}
		content, after, _ := bytes.Cut(after, []byte("</"+element+">"))
		sum := sha256.Sum256(content)
		sources.WriteString(" 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'")
		rest = after
	}
}
