package httpserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"strings"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
)

// Headers of our own that browsers may read; X-Request-Id and Retry-After besides.
const (
	HeaderRefreshReplayed = "Auth-Refresh-Replayed" // of a refresh: the successor again
	HeaderDevice          = "Auth-Device"           // of a sign-in, both ways: the device is known

	// apiPolicy forbids everything: an answer that a browser is tricked into showing as a
	// page can load, run and be framed by nothing.
	apiPolicy = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

	strictTransport = "max-age=31536000; includeSubDomains"

	corsHeaders = "Authorization, Content-Type, X-Request-Id, " + HeaderDevice
	corsExpose  = "X-Request-Id, Retry-After, " + HeaderRefreshReplayed + ", " + HeaderDevice
)

// decorate sets what every answer carries. Handlers may override it.
func (s *Server) decorate(fctx *fasthttp.RequestCtx, x *exchange) {
	h := &fctx.Response.Header
	h.Set(fiber.HeaderXRequestID, x.id)
	h.Set(fiber.HeaderXContentTypeOptions, "nosniff")
	h.Set(fiber.HeaderReferrerPolicy, "no-referrer")
	h.Set(fiber.HeaderContentSecurityPolicy, apiPolicy)
	if s.https {
		h.Set(fiber.HeaderStrictTransportSecurity, strictTransport)
	}
	s.allowOrigin(fctx)
}

// allowOrigin answers CORS by an exact list. What is sent back is the list's own text, never
// the request's. The answer differs by Origin whether or not the origin is on the list, and
// says so to caches. Cookies play no part in this API, so credentials are not allowed.
func (s *Server) allowOrigin(fctx *fasthttp.RequestCtx) {
	origin := fctx.Request.Header.Peek(fiber.HeaderOrigin)
	if len(s.cfg.Origins) == 0 && len(origin) == 0 {
		return
	}
	h := &fctx.Response.Header
	h.Add(fiber.HeaderVary, fiber.HeaderOrigin)
	i := slices.Index(s.cfg.Origins, string(origin))
	if i < 0 || len(fctx.Request.Header.PeekAll(fiber.HeaderOrigin)) > 1 {
		return
	}
	h.Set(fiber.HeaderAccessControlAllowOrigin, s.cfg.Origins[i])
	h.Set(fiber.HeaderAccessControlExposeHeaders, corsExpose)
}

// options answers OPTIONS for every path of the table, and with it CORS preflights.
func (s *Server) options(fctx *fasthttp.RequestCtx, x *exchange) {
	methods := s.allowed(string(fctx.URI().PathOriginal()))
	if methods == "" {
		s.answer(fctx, x, fiber.ErrNotFound)
		return
	}
	h := &fctx.Response.Header
	h.Set(fiber.HeaderAllow, methods)
	if len(h.Peek(fiber.HeaderAccessControlAllowOrigin)) > 0 && len(fctx.Request.Header.Peek(fiber.HeaderAccessControlRequestMethod)) > 0 {
		h.Set(fiber.HeaderAccessControlAllowMethods, methods)
		h.Set(fiber.HeaderAccessControlAllowHeaders, corsHeaders)
		h.Set(fiber.HeaderAccessControlMaxAge, "600")
	}
	fctx.SetStatusCode(fiber.StatusNoContent)
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
