package httpserver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	"github.com/toppira/authctl/platform/fault"
)

// The faults that are HTTP's own. Codes are stable; docs/errors.md explains each.
var (
	ErrMalformed        = fault.New(fault.Malformed, "malformed_request", "The request cannot be understood")
	ErrValidation       = fault.New(fault.Invalid, "validation_failed", "Some fields are not acceptable")
	ErrUnauthenticated  = fault.New(fault.Unauthenticated, "unauthenticated", "Authentication is needed")
	ErrForbidden        = fault.New(fault.Forbidden, "forbidden", "This is not allowed")
	ErrNotFound         = fault.New(fault.NotFound, "not_found", "There is nothing here")
	ErrMethodNotAllowed = fault.New(fault.MethodNotAllowed, "method_not_allowed", "The method does not apply here")
	ErrRequestTimeout   = fault.New(fault.Malformed, "request_timeout", "The request took too long to arrive")
	ErrBodyTooLarge     = fault.New(fault.TooLarge, "body_too_large", "The body is too large")
	ErrUnsupportedMedia = fault.New(fault.Unsupported, "unsupported_media_type", "The media type is not supported")
	ErrHeadersTooLarge  = fault.New(fault.HeadersTooLarge, "headers_too_large", "The headers are too large")
	ErrTooMany          = fault.New(fault.TooMany, "too_many_requests", "Too many requests")
	ErrUnavailable      = fault.New(fault.Unavailable, "unavailable", "The service cannot do this right now")
	ErrInternal         = fault.New(fault.Internal, "internal_error", "Something went wrong on our side")
)

// Faults lists every fault that this package answers by itself, for the documentation and
// the tests that hold it complete.
func Faults() []*fault.Fault {
	return []*fault.Fault{
		ErrMalformed, ErrValidation, ErrUnauthenticated, ErrForbidden, ErrNotFound, ErrMethodNotAllowed, ErrRequestTimeout,
		ErrBodyTooLarge, ErrUnsupportedMedia, ErrHeadersTooLarge, ErrTooMany, ErrUnavailable, ErrInternal,
	}
}

const (
	errorDocs = "https://github.com/toppira/authctl/blob/main/docs/errors.md#" // + code
	realm     = `realm="authctl"`
	retryAt   = time.Second // for 429 and 503 where the fault does not say
)

// OAuthError is an error of RFC 6749 §5.2, for routes marked OAuth.
type OAuthError struct {
	Status      int
	Code        string        // invalid_request, invalid_client, …
	Description string        // for a developer; ASCII, may be empty
	RetryAfter  time.Duration // for 429 and 503
}

func (e *OAuthError) Error() string { return e.Code + ": " + e.Description }

// Status is the HTTP status of a fault.
func Status(f *fault.Fault) int {
	if f.Code == ErrRequestTimeout.Code {
		return fiber.StatusRequestTimeout
	}
	switch f.Kind {
	case fault.Malformed, fault.Invalid:
		return fiber.StatusBadRequest
	case fault.Unauthenticated:
		return fiber.StatusUnauthorized
	case fault.Forbidden:
		return fiber.StatusForbidden
	case fault.NotFound:
		return fiber.StatusNotFound
	case fault.MethodNotAllowed:
		return fiber.StatusMethodNotAllowed
	case fault.Conflict:
		return fiber.StatusConflict
	case fault.TooLarge:
		return fiber.StatusRequestEntityTooLarge
	case fault.Unsupported:
		return fiber.StatusUnsupportedMediaType
	case fault.HeadersTooLarge:
		return fiber.StatusRequestHeaderFieldsTooLarge
	case fault.TooMany:
		return fiber.StatusTooManyRequests
	case fault.Unavailable:
		return fiber.StatusServiceUnavailable
	}
	return fiber.StatusInternalServerError
}

// panicked is a panic's value on its way to the log.
type panicked struct{ value any }

func (p panicked) Error() string { return fmt.Sprintf("panic: %v", p.value) }

// toFault makes of any error the fault to show for it. shown is false where the error says
// more than the client may know, and belongs into the log.
func (s *Server) toFault(err error) (f *fault.Fault, shown bool) {
	var router *fiber.Error
	switch {
	case errors.As(err, &f):
		// A fault that carries more than itself was wrapped with a cause on purpose.
		return f, f.Kind != fault.Internal && (f.Kind != fault.Unavailable || err == error(f))
	case errors.As(err, &router):
		return statusFault(router.Code)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), s.unavailable != nil && s.unavailable(err):
		return ErrUnavailable, false
	}
	return ErrInternal, false
}

// statusFault is the fault for the bare status that Fiber or a foreign handler gave.
func statusFault(status int) (f *fault.Fault, shown bool) {
	for _, f := range Faults() {
		if Status(f) == status && f != ErrInternal {
			return f, true
		}
	}
	if status >= 400 && status < 500 {
		return ErrMalformed, true
	}
	return ErrInternal, false
}

// problem is RFC 9457's object with our members.
type problem struct {
	Type      string        `json:"type"`
	Title     string        `json:"title"`
	Status    int           `json:"status"`
	Detail    string        `json:"detail"` // of this occasion, else the title
	Instance  string        `json:"instance"`
	Code      string        `json:"code"`
	RequestID string        `json:"request_id"`
	Errors    []fault.Field `json:"errors,omitempty"`
}

// answer is the one place where an error becomes an answer.
func (s *Server) answer(fctx *fasthttp.RequestCtx, x *exchange, err error) {
	var oauth *OAuthError
	if errors.As(err, &oauth) {
		x.code = oauth.Code
		s.answerOAuth(fctx, oauth)
		return
	}
	f, shown := s.toFault(err)
	if f.Kind == fault.Internal {
		f = ErrInternal
	}
	if !shown {
		x.cause = err
	}
	path := x.path
	if !x.unread {
		path = string(fctx.URI().PathOriginal())
	}
	if x.route == nil && f.Kind == fault.NotFound || f.Kind == fault.MethodNotAllowed {
		// The router's word for a method it does not know at a path that it does not know
		// either is not 405.
		if methods := s.allowed(path); methods != "" {
			f = ErrMethodNotAllowed.Detail("Allowed here: " + methods + ".")
			fctx.Response.Header.Set(fiber.HeaderAllow, methods)
		} else {
			f = ErrNotFound
			if bare := strings.TrimRight(path, "/"); bare != path && s.allowed(bare) != "" {
				f = ErrNotFound.Detail("There is nothing here. The path has no slash at its end.")
			}
			fctx.Response.Header.Del(fiber.HeaderAllow)
		}
	}
	x.code = f.Code
	if x.route != nil && x.route.OAuth || x.route == nil && s.speaksOAuth(path) {
		s.answerOAuth(fctx, oauthError(f))
		return
	}
	status := Status(f)
	h := &fctx.Response.Header
	switch status {
	case fiber.StatusUnauthorized:
		h.Set(fiber.HeaderWWWAuthenticate, bearerChallenge(&fctx.Request.Header))
	case fiber.StatusTooManyRequests, fiber.StatusServiceUnavailable:
		h.Set(fiber.HeaderRetryAfter, seconds(f.RetryAfter))
	}
	p := problem{Type: errorDocs + f.Code, Title: f.Title, Status: status, Detail: cmp.Or(f.Message, f.Title+"."), Instance: x.askedFor(fctx), Code: f.Code, RequestID: x.id, Errors: f.Fields}
	send(fctx, status, "application/problem+json", p)
}

// oauthError is the RFC 6749 form of a fault on an OAuth route.
func oauthError(f *fault.Fault) *OAuthError {
	e := &OAuthError{Status: Status(f), Code: "invalid_request", Description: f.Title, RetryAfter: f.RetryAfter}
	if f.Message != "" {
		e.Description += ": " + f.Message
	}
	switch f.Kind {
	case fault.Internal:
		e.Code = "server_error"
	case fault.Unauthenticated:
		e.Code = "invalid_client"
	case fault.Forbidden:
		e.Code = "unauthorized_client"
	case fault.TooMany, fault.Unavailable:
		e.Code = "temporarily_unavailable"
	}
	return e
}

func (s *Server) answerOAuth(fctx *fasthttp.RequestCtx, e *OAuthError) {
	h := &fctx.Response.Header
	switch e.Status {
	case fiber.StatusUnauthorized:
		h.Set(fiber.HeaderWWWAuthenticate, "Basic "+realm)
	case fiber.StatusTooManyRequests, fiber.StatusServiceUnavailable:
		h.Set(fiber.HeaderRetryAfter, seconds(e.RetryAfter))
	}
	h.Set(fiber.HeaderPragma, "no-cache") // RFC 6749 §5.1 asks for it beside no-store
	send(fctx, e.Status, fiber.MIMEApplicationJSON, struct {
		Error       string `json:"error"`
		Description string `json:"error_description,omitempty"`
	}{e.Code, describable(e.Description)})
}

// describable keeps the characters that error_description may have (RFC 6749 §5.2).
func describable(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '"':
			return '\''
		case r < ' ', r == '\\', r > '~':
			return -1
		}
		return r
	}, text)
}

// bearerChallenge is RFC 6750 §3: who sent no token is told nothing but the scheme.
func bearerChallenge(header *fasthttp.RequestHeader) string {
	scheme, _, _ := strings.Cut(string(header.Peek(fiber.HeaderAuthorization)), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return "Bearer " + realm + `, error="invalid_token"`
	}
	return "Bearer " + realm
}

// seconds is a Retry-After: whole, rounded up, at least one.
func seconds(d time.Duration) string {
	if d <= 0 {
		d = retryAt
	}
	return strconv.FormatInt(int64(math.Ceil(d.Seconds())), 10)
}

// send replaces whatever a handler had begun. Errors are never cached.
func send(fctx *fasthttp.RequestCtx, status int, contentType string, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		panic(err) // strings and numbers only
	}
	r := &fctx.Response
	r.ResetBody()
	r.Header.Del(fiber.HeaderETag)
	r.Header.Del(fiber.HeaderLastModified)
	r.Header.Del(fiber.HeaderContentEncoding)
	r.Header.Set(fiber.HeaderCacheControl, "no-store")
	r.Header.SetContentType(contentType)
	r.SetStatusCode(status)
	r.SetBodyRaw(text)
}
