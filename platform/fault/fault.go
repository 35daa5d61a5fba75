// Package fault names the errors a caller of the service may see.
//
// A [Fault] is the only kind of error whose text leaves the process: it carries a stable
// code, what kind of refusal it is, and words for a person. Every other error is internal;
// the HTTP layer answers it with a bare 500 and the log keeps the cause.
//
// Declare faults as package variables and return them as they are, or refined for one
// occasion with [Fault.Detail], [Fault.Field] or [Fault.After]. A refined fault still
// matches its sentinel:
//
//	var ErrUsernameTaken = fault.New(fault.Conflict, "username_taken", "Username is taken")
//	errors.Is(ErrUsernameTaken.Detail("try another"), ErrUsernameTaken) // true
package fault

import (
	"errors"
	"slices"
	"time"
)

// Kind says what sort of refusal a fault is. The transport turns it into a status.
type Kind int

const (
	Internal         Kind = iota // our mistake; never shown in detail
	Malformed                    // the request cannot be understood
	Invalid                      // a value in the request is not acceptable
	Unauthenticated              // the caller is not known
	Forbidden                    // the caller is known and may not do this
	NotFound                     // there is no such thing, or not for this caller
	MethodNotAllowed             // the thing exists, but not with this method
	Conflict                     // it contradicts what exists
	TooLarge                     // the body is over the limit
	Unsupported                  // the media type is not supported
	HeadersTooLarge              // the headers are over the limit
	TooMany                      // the caller asks too often
	Unavailable                  // not possible now; a later try may succeed
)

// Field is one faulty field of a request.
type Field struct {
	Field  string `json:"field" doc:"The name of the field as in the request."`
	Code   string `json:"code" doc:"Stable: required, too_short, too_common, …"`
	Detail string `json:"detail" doc:"For people."`
}

// Fault is an error that a client may see. Values are immutable: the refining methods copy.
type Fault struct {
	Kind       Kind
	Code       string        // stable, snake_case; listed in docs/errors.md
	Title      string        // short and constant for the code
	Message    string        // this occasion, for a person; may be empty
	Fields     []Field       // for Invalid
	RetryAfter time.Duration // for TooMany and Unavailable; 0 lets the transport choose
	// ChallengeID is of what the client must meet first, such as by a code that was sent; "" for none.
	ChallengeID string
}

// New makes a sentinel.
func New(kind Kind, code, title string) *Fault {
	return &Fault{Kind: kind, Code: code, Title: title}
}

func (f *Fault) Error() string {
	if f.Message != "" {
		return f.Code + ": " + f.Message
	}
	return f.Code + ": " + f.Title
}

// Is makes errors.Is compare by code, so that a refined fault matches its sentinel.
func (f *Fault) Is(target error) bool {
	var t *Fault
	return errors.As(target, &t) && t.Code == f.Code
}

// Detail returns a copy that tells this occasion in words a client may read.
func (f *Fault) Detail(message string) *Fault {
	c := *f
	c.Message = message
	return &c
}

// Challenge returns a copy that tells the client what to meet before it comes back.
func (f *Fault) Challenge(id string) *Fault {
	c := *f
	c.ChallengeID = id
	return &c
}

// Field returns a copy with one more faulty field.
func (f *Fault) Field(name, code, detail string) *Fault {
	c := *f
	c.Fields = append(slices.Clip(f.Fields), Field{Field: name, Code: code, Detail: detail})
	return &c
}

// After returns a copy that tells the client when to come back.
func (f *Fault) After(d time.Duration) *Fault {
	c := *f
	c.RetryAfter = d
	return &c
}
