package httpserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"strings"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
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

// decorate sets what every answer carries. Handlers may override it.
func (s *Server) decorate(fctx *fasthttp.RequestCtx, x *exchange) {
	h := &fctx.Response.Header
	h.Set(fiber.HeaderXRequestID, x.id)
	h.Set(fiber.HeaderXContentTypeOptions, "nosniff")
	h.Set(fiber.HeaderReferrerPolicy, "no-referrer")
	h.Set(fiber.HeaderContentSecurityPolicy, apiPolicy)
	if s.hsts != "" {
		h.Set(fiber.HeaderStrictTransportSecurity, s.hsts)
	}
	s.allowOrigin(fctx)
}

// pagePolicy is the content security policy of one HTML page: what comes from this server,
// and of scripts in the page exactly those that are in it now.
func pagePolicy(page []byte) string {
	var policy strings.Builder
	policy.WriteString("default-src 'none'; img-src 'self' data:; font-src 'self'; connect-src 'self'; " +
		"style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; script-src 'self'")
	for rest := page; ; {
		_, after, found := bytes.Cut(rest, []byte("<script>"))
		if !found {
			return policy.String()
		}
		script, after, _ := bytes.Cut(after, []byte("</script>"))
		sum := sha256.Sum256(script)
		policy.WriteString(" 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'")
		rest = after
	}
}
