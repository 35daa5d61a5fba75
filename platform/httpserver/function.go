package httpserver

import (
	"context"
	"reflect"

	"github.com/toppira/authctl/platform/fault"
)

// Function is what a route does: a plain function between decoding and encoding. Make one
// with [Public], [PublicDo], [As] or [AsDo], which say in the declaration who may call it.
//
// The input is a struct. Its tags say where each part comes from:
//
//	type endInput struct {
//		ID     string  `path:"id" format:"uuid" doc:"The session's id."`
//		Except string  `query:"except" enum:"current"` // a query parameter that is not declared is refused
//		Known  string  `header:"Auth-Device"`
//		Mark   string  `cookie:"device"`
//		Token  string  `form:"token"` // of a form, on OAuth routes
//		Peer   Peer                   // where the request comes from
//		Page   Browser                // what a browser says of the page that sends it, and all cookies
//		Body   endBody                // JSON, strictly decoded; `body:"optional"` lets it be missing
//	}
//
// In a body, pointers without omitempty are required members.
//
// The output becomes the JSON of the answer, or is a struct with a field Body and the rest of the
// answer:
//
//	type signedIn struct {
//		Status int                                  // another than the route's
//		Known  string       `header:"Auth-Device"`  // not sent when empty
//		Cookie *http.Cookie `cookie:"device"`       // not sent when nil; with an error as well
//		Events Events                               // when not nil, in place of the body
//		Waits  *waiting     `status:"202" doc:"…"`  // the same, with a status and a type of its own
//		Body   tokens
//	}
//
// Of what a function returns with an error, only the cookies are sent: a refusal may delete one,
// and the tag refused:"401" documents the status that does.
//
// The tags doc, example, format, enum, minLength, maxLength, minimum and pattern document a field, and
// required:"true" a form's field or a header of the answer. They check nothing, except the enum of a
// query parameter.
type Function struct {
	input  input
	output output
	scheme *Scheme
	faults []*fault.Fault // added by the identity
	run    func(context.Context, *exchange) error
}

// In is the type of the input.
func (f Function) In() reflect.Type { return f.input.of }

// Out is the type of the output; nil when there is none.
func (f Function) Out() reflect.Type { return f.output.of }

// Scheme is how callers show who they are; nil for everybody.
func (f Function) Scheme() *Scheme { return f.scheme }

// IdentityFaults are the faults that the identity may answer with.
func (f Function) IdentityFaults() []*fault.Fault { return f.faults }

// Scheme is how a caller shows who it is, as OpenAPI names it.
type Scheme struct {
	Name        string // of the security scheme: bearer
	HTTP        string // the scheme of the Authorization header: bearer, basic
	Format      string // of a bearer token, for people
	Description string
	InForm      bool   // the proof may be in the form instead
	Cookie      string // the proof is the cookie of this name instead of Authorization
}

// Credentials are what a request has to show who sends it.
type Credentials struct{ x *exchange }

// Authorization is the header's value.
func (c Credentials) Authorization() string { return c.x.carrier.header("Authorization") }

// Form is the form in the body.
func (c Credentials) Form() (Form, error) { return c.x.form() }

// Peer is where the request comes from.
func (c Credentials) Peer() Peer { return c.x.peer() }

// Identity finds out who calls, before anything else of the request is read.
type Identity[Who any] struct {
	Scheme *Scheme
	Faults []*fault.Fault // that Of may return
	Of     func(context.Context, Credentials) (Who, error)
	User   func(Who) string // the account's id for the log; may be nil
}

// Public makes a function that everybody may call.
func Public[In, Out any](f func(context.Context, In) (Out, error)) Function {
	return As(Identity[struct{}]{}, func(ctx context.Context, _ struct{}, in In) (Out, error) { return f(ctx, in) })
}

// PublicDo is [Public] for a function without an output.
func PublicDo[In any](f func(context.Context, In) error) Function {
	return AsDo(Identity[struct{}]{}, func(ctx context.Context, _ struct{}, in In) error { return f(ctx, in) })
}

// As makes a function for callers that the identity accepts.
func As[Who, In, Out any](id Identity[Who], f func(context.Context, Who, In) (Out, error)) Function {
	out := outputOf(reflect.TypeFor[Out]())
	fn := forIdentity(id, func(ctx context.Context, x *exchange, who Who, in In) error {
		answer, err := f(ctx, who, in)
		if err != nil {
			out.writeCookies(x, reflect.ValueOf(&answer).Elem())
			return err
		}
		return out.write(x, reflect.ValueOf(&answer))
	})
	fn.output = out
	return fn
}

// AsDo is [As] for a function without an output.
func AsDo[Who, In any](id Identity[Who], f func(context.Context, Who, In) error) Function {
	return forIdentity(id, func(ctx context.Context, x *exchange, who Who, in In) error {
		if err := f(ctx, who, in); err != nil {
			return err
		}
		x.success(x.route.Status, "", nil)
		return nil
	})
}

func forIdentity[Who, In any](id Identity[Who], do func(context.Context, *exchange, Who, In) error) Function {
	plan := inputOf(reflect.TypeFor[In]())
	return Function{input: plan, scheme: id.Scheme, faults: id.Faults, run: func(
		ctx context.Context, x *exchange,
	) error {
		var who Who
		if id.Of != nil {
			var err error
			if who, err = id.Of(ctx, Credentials{x}); err != nil {
				return err
			}
			if id.User != nil {
				x.user = id.User(who)
			}
			if x.route.Waits {
				x.carrier.trust()
			}
		}
		var in In
		if len(plan.parts) > 0 {
			if err := plan.read(x, reflect.ValueOf(&in).Elem()); err != nil {
				return err
			}
		}
		return do(ctx, x, who, in)
	}}
}
