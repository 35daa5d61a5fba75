package httpserver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"

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
		ErrMalformed, ErrValidation, ErrUnauthenticated, ErrForbidden, ErrNotFound, ErrMethodNotAllowed,
		ErrRequestTimeout,
		ErrBodyTooLarge, ErrUnsupportedMedia, ErrHeadersTooLarge, ErrTooMany, ErrUnavailable, ErrInternal,
	}
}

const (
	errorDocs = "https://github.com/toppira/authctl/blob/main/docs/errors.md#" // + code
	realm     = `realm="authctl"`
	retryAt   = time.Second // for 429 and 503, unless the fault says otherwise
)

// OAuthError is an error of RFC 6749 §5.2, for routes marked OAuth.
type OAuthError struct {
	Status      int
	Code        string        // invalid_request, invalid_client, …
	Description string        // for a developer; ASCII, may be empty
	RetryAfter  time.Duration // for 429 and 503
}

func (e *OAuthError) Error() string { return e.Code + ": " + e.Description }

// statuses are those of the kinds of faults. Any other is an error of ours.
var statuses = map[fault.Kind]int{
	fault.Malformed:        http.StatusBadRequest,
	fault.Invalid:          http.StatusBadRequest,
	fault.Unauthenticated:  http.StatusUnauthorized,
	fault.Forbidden:        http.StatusForbidden,
	fault.NotFound:         http.StatusNotFound,
	fault.MethodNotAllowed: http.StatusMethodNotAllowed,
	fault.Conflict:         http.StatusConflict,
	fault.TooLarge:         http.StatusRequestEntityTooLarge,
	fault.Unsupported:      http.StatusUnsupportedMediaType,
	fault.HeadersTooLarge:  http.StatusRequestHeaderFieldsTooLarge,
	fault.TooMany:          http.StatusTooManyRequests,
	fault.Unavailable:      http.StatusServiceUnavailable,
}

// Status is the HTTP status of a fault.
func Status(f *fault.Fault) int {
	if f.Code == ErrRequestTimeout.Code {
		return http.StatusRequestTimeout
	}
	return cmp.Or(statuses[f.Kind], http.StatusInternalServerError)
}

// panicked is a panic's value on its way to the log.
type panicked struct{ value any }

func (p panicked) Error() string { return fmt.Sprintf("panic: %v", p.value) }

// toFault returns the fault to answer for an error. shown is false if the error says more than
// the client may know, so that it must be logged.
func (s *core) toFault(err error) (f *fault.Fault, shown bool) {
	var router *fiber.Error
	switch {
	case errors.As(err, &f):
		// A fault that carries more than itself was wrapped with a cause on purpose.
		return f, f.Kind != fault.Internal && (f.Kind != fault.Unavailable || err == error(f))
	case errors.As(err, &router):
		return statusFault(router.Code)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled),
		s.unavailable != nil && s.unavailable(err):
		return ErrUnavailable, false
	}
	return ErrInternal, false
}

// statusFault is the fault for a bare status that Fiber gave.
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

// Problem is RFC 9457's object with members of our own.
type Problem struct {
	Type      string        `json:"type" format:"uri" doc:"A page that explains the code."`
	Title     string        `json:"title" doc:"What the code means, always in the same words."`
	Status    int           `json:"status" doc:"The HTTP status."`
	Detail    string        `json:"detail" doc:"What happened this time, for people; otherwise the title."`
	Instance  string        `json:"instance" doc:"The path of the request; * if it could not be read."`
	Code      string        `json:"code" doc:"For programs. A code never changes its meaning."`
	RequestID string        `json:"request_id" doc:"The X-Request-Id of the answer: quote it when you ask for help."`
	Errors    []fault.Field `json:"errors,omitempty" doc:"The invalid fields, for validation_failed."`

	ChallengeID string `json:"challenge_id,omitempty" doc:"For contact_unverified: identifies the code that was sent."`
}

// ProblemOf is how a fault is answered.
func ProblemOf(f *fault.Fault, instance, requestID string) Problem {
	return Problem{
		Type: errorDocs + f.Code, Title: f.Title, Status: Status(f), Detail: cmp.Or(f.Message, f.Title+"."),
		Instance: instance, Code: f.Code, RequestID: requestID, Errors: f.Fields, ChallengeID: f.ChallengeID,
	}
}

// answer is the only place where an error becomes an answer.
func (x *exchange) answer(err error) {
	if oauth, ok := errors.AsType[*OAuthError](err); ok {
		x.code = oauth.Code
		x.answerOAuth(oauth)
		return
	}
	f, shown := x.toFault(err)
	if f.Kind == fault.Internal {
		f = ErrInternal
	}
	if !shown {
		x.cause = err
	}
	path := x.asked
	if !x.unread {
		path = x.carrier.path()
	}
	if x.route == nil && f.Kind == fault.NotFound || f.Kind == fault.MethodNotAllowed {
		f = x.noSuchRoute(path)
	}
	x.code = f.Code
	if x.route != nil && x.route.OAuth && !x.route.Gateway || x.route == nil && x.speaksOAuth(path) {
		e := OAuthErrorOf(f)
		x.answerOAuth(&e)
		return
	}
	status := Status(f)
	gateway := x.route != nil && x.route.Gateway
	if gateway && status < http.StatusInternalServerError {
		status = http.StatusUnauthorized
	}
	switch status {
	case http.StatusUnauthorized:
		x.carrier.set("WWW-Authenticate", x.bearerChallenge())
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		x.carrier.set("Retry-After", seconds(f.RetryAfter))
	}
	if gateway {
		x.carrier.set("Cache-Control", "no-store")
		x.send(status, nil)
		return
	}
	x.refuse(status, "application/problem+json", ProblemOf(f, x.askedFor(), x.id))
}

// noSuchRoute tells an unknown path from a method that a known path does not have. The router
// itself does not tell them apart for methods that it does not know.
func (x *exchange) noSuchRoute(path string) *fault.Fault {
	if methods := x.allowed(path); methods != "" {
		x.carrier.set("Allow", methods)
		return ErrMethodNotAllowed.Detail("Allowed here: " + methods + ".")
	}
	if bare := strings.TrimRight(path, "/"); bare != path && x.allowed(bare) != "" {
		return ErrNotFound.Detail("There is nothing here. The path has no slash at its end.")
	}
	if rest, mounted := strings.CutPrefix(path, x.mount); x.mount != "" && mounted && x.allowed(rest) != "" {
		return ErrNotFound.Detail("There is nothing here. The proxy in front must take " + x.mount + " off the path.")
	}
	return ErrNotFound
}

// OAuthErrorOf is the RFC 6749 form of a fault on an OAuth route.
func OAuthErrorOf(f *fault.Fault) OAuthError {
	e := OAuthError{Status: Status(f), Code: "invalid_request", Description: f.Title, RetryAfter: f.RetryAfter}
	if f.Message != "" {
		e.Description += ": " + f.Message
	}
	for i, field := range f.Fields { // RFC 6749 has no member for them
		separator := ", "
		if i == 0 {
			separator = ": "
		}
		e.Description += separator + field.Field + " " + field.Detail
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

// OAuthProblem is the body of RFC 6749 §5.2.
type OAuthProblem struct {
	Error       string `json:"error" doc:"For programs."`
	Description string `json:"error_description,omitempty" doc:"What happened this time, for people."`
}

func (x *exchange) answerOAuth(e *OAuthError) {
	switch e.Status {
	case http.StatusUnauthorized:
		x.carrier.set("WWW-Authenticate", "Basic "+realm)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		x.carrier.set("Retry-After", seconds(e.RetryAfter))
	}
	x.carrier.set("Pragma", "no-cache") // RFC 6749 §5.1 asks for it beside no-store
	x.refuse(e.Status, "application/json", OAuthProblem{e.Code, describable(e.Description)})
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

// bearerChallenge is RFC 6750 §3: the error is for a token that was sent to a route that takes one. Clients
// send theirs to others as well, such as sign-in, where another token would not help.
func (x *exchange) bearerChallenge() string {
	sent := strings.Fields(x.carrier.header("Authorization"))
	if len(sent) > 1 && strings.EqualFold(sent[0], "Bearer") && x.route != nil && x.route.takesBearer() {
		return "Bearer " + realm + `, error="invalid_token"`
	}
	return "Bearer " + realm
}

// seconds formats a Retry-After: whole seconds, rounded up, at least one.
func seconds(d time.Duration) string {
	if d <= 0 {
		d = retryAt
	}
	return strconv.FormatInt(int64(math.Ceil(d.Seconds())), 10)
}

// refuse sends an error. Errors are never cached.
func (x *exchange) refuse(status int, contentType string, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		panic(err) // strings and numbers only
	}
	x.carrier.set("Cache-Control", "no-store")
	x.carrier.set("Content-Type", contentType)
	x.send(status, text)
}
