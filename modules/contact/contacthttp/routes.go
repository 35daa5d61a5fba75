// Package contacthttp puts modules/contact behind HTTP, as authhttp does modules/auth.
package contacthttp

import (
	"cmp"
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/auth/authhttp"
	"github.com/toppira/authctl/modules/contact"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/httpserver"
)

// Groups are the tags of the routes, with what they group.
var Groups = [][2]string{{"contact", "Addresses of an account, and the reset of a forgotten password"}}

// api holds the functions of the endpoints.
type api struct{ svc *contact.Service }

// Routes returns the surface.
func Routes(accounts *auth.Service, svc *contact.Service) []httpserver.Route {
	a := &api{svc: svc}
	bearer := authhttp.Bearer(accounts)
	const group, noStore = "contact", "no-store"
	guessing := []*fault.Fault{contact.ErrInvalidCode, auth.ErrTooManyAttempts, auth.ErrOverloaded}
	return []httpserver.Route{
		{
			Method: "GET", Path: "/api/v1/auth/contacts", ID: "listContacts", Group: group,
			Summary: "List my contacts", Success: "The addresses of the account, the oldest first.", Cache: noStore,
			Do: httpserver.As(bearer, a.list),
		}, {
			Method: "POST", Path: "/api/v1/auth/contacts", ID: "addContact", Group: group, Status: 201, Cache: noStore,
			Summary: "Add an address", Success: "The address is added, and a code and a link were sent to it.",
			Description: "The code and the link verify the address for 24 hours. If the account has the address " +
				"already, unverified, another code is sent, but not within a minute. If it is written with other " +
				"capitals now, it replaces the former one, under another id. The answer does not tell whether " +
				"the address belongs to somebody else.",
			Do:     httpserver.As(bearer, a.add),
			Faults: []*fault.Fault{contact.ErrContactExists, contact.ErrTooManyContacts, contact.ErrTooManyMessages},
		}, {
			Method: "DELETE", Path: "/api/v1/auth/contacts/{id}", ID: "removeContact", Group: group,
			Summary: "Remove an address", Success: "The address is removed.",
			Do:     httpserver.AsDo(bearer, a.remove),
			Faults: []*fault.Fault{contact.ErrContactNotFound, contact.ErrContactNeeded},
		}, {
			Method: "POST", Path: "/api/v1/auth/contacts/{id}/verify", ID: "verifyContact", Group: group,
			Cache:   noStore,
			Summary: "Verify an address with its code", Success: "The address is verified.",
			Do:     httpserver.As(bearer, a.verify),
			Faults: append([]*fault.Fault{contact.ErrContactNotFound, contact.ErrContactTaken}, guessing...),
		}, {
			Method: "POST", Path: "/api/v1/auth/verify", ID: "verifyChallenge", Group: group, Status: 204,
			Summary: "Verify an address with the code or the link", Success: "The address is verified.",
			Description: "Either `challenge_id` and `code`, or `token`, which is in the link. No access token is " +
				"needed, since some accounts can sign in only afterwards. A code has five tries. A GET of the page " +
				"that the link leads to must not send this.",
			Do:     httpserver.PublicDo(a.verifyChallenge),
			Faults: append([]*fault.Fault{contact.ErrContactTaken}, guessing...),
		}, {
			Method: "POST", Path: "/api/v1/auth/password/forgot", ID: "forgotPassword", Group: group, Status: 202,
			Cache:   noStore,
			Summary: "Ask for a code that resets the password",
			Success: "If there is such an account with a verified address, a code and a link were sent to it.",
			Description: "The answer is the same, in content and time, if there is none. With a username the code " +
				"goes to the address that was verified first, with an address to that one. The code and the link " +
				"work for 15 minutes. A second request within a minute gets the same answer, and nothing is sent.",
			Do: httpserver.Public(a.forgot), Faults: []*fault.Fault{auth.ErrTooManyAttempts, auth.ErrOverloaded},
		}, {
			Method: "POST", Path: "/api/v1/auth/password/reset", ID: "resetPassword", Group: group, Status: 204,
			Summary:     "Set a new password with the code or the link",
			Success:     "The password is set, and every session has ended.",
			Description: "Either `challenge_id` and `code`, or `token`, which is in the link. A code has five tries.",
			Do:          httpserver.PublicDo(a.reset), Faults: guessing,
		}, {
			Method: "POST", Path: "/api/v1/auth/undo", ID: "undoChange", Group: group, Status: 204,
			Summary: "Undo a change with the link of its notice", Success: "Everything is undone.",
			Description: "Every session ends, the contacts are those from before the change, and nobody can sign in " +
				"with a password until it is reset. A link works once, for 72 hours, and ends the links of later " +
				"notices.",
			Do: httpserver.PublicDo(a.undo), Faults: []*fault.Fault{contact.ErrInvalidCode},
		},
	}
}

// Contact is an address of an account.
type Contact struct {
	ID         uuid.UUID `json:"id" example:"0199b7f2-6f40-7000-8000-5b1f6a100c8c"`
	Kind       string    `json:"kind" example:"email" enum:"email"`
	Address    string    `json:"address" example:"alice@example.com" doc:"Where messages are sent: as typed before the @, in ASCII and lower case after it."`
	Verified   bool      `json:"verified" example:"true"`
	VerifiedAt time.Time `json:"verified_at,omitzero" example:"2026-01-02T15:04:05Z" doc:"Absent if it is not verified."`
	CreatedAt  time.Time `json:"created_at" example:"2026-01-02T15:04:05Z"`
}

func contactOf(c contact.Contact) Contact {
	return Contact{ID: c.ID, Kind: c.Kind, Address: c.Address, Verified: c.Verified(), VerifiedAt: c.VerifiedAt,
		CreatedAt: c.CreatedAt}
}

// Contacts are the addresses of an account.
type Contacts struct {
	Contacts []Contact `json:"contacts"`
}

func (a *api) list(ctx context.Context, who auth.Caller, _ struct{}) (Contacts, error) {
	found, err := a.svc.Contacts(ctx, who.User.ID)
	list := make([]Contact, len(found))
	for i, c := range found {
		list[i] = contactOf(c)
	}
	return Contacts{Contacts: list}, err
}

// ContactRequest is an address to add.
type ContactRequest struct {
	Email *string `json:"email" example:"alice@example.com" maxLength:"254"`
}

type addInput struct {
	Peer     httpserver.Peer
	Language string `header:"Accept-Language" example:"de-AT,de;q=0.9" doc:"Messages are in the first of these languages that has templates."`
	Body     ContactRequest
}

// AddedContact is an address that was added.
type AddedContact struct {
	ID          uuid.UUID `json:"id" example:"0199b7f2-6f40-7000-8000-5b1f6a100c8c"`
	Kind        string    `json:"kind" example:"email" enum:"email"`
	Address     string    `json:"address" example:"alice@example.com"`
	CreatedAt   time.Time `json:"created_at" example:"2026-01-02T15:04:05Z"`
	ChallengeID uuid.UUID `json:"challenge_id" example:"7d3e8a52-98a5-4a0b-9d53-2ed8a2a0c7f1" doc:"Identifies the code that was sent."`
}

func (a *api) add(ctx context.Context, who auth.Caller, in addInput) (AddedContact, error) {
	c, id, err := a.svc.Add(ctx, who.User.ID, contact.NewContact{Email: *in.Body.Email, Language: in.Language},
		deviceOf(in.Peer))
	return AddedContact{ID: c.ID, Kind: c.Kind, Address: c.Address, CreatedAt: c.CreatedAt, ChallengeID: id}, err
}

type contactInput struct {
	Peer httpserver.Peer
	ID   string `path:"id" format:"uuid" example:"0199b7f2-6f40-7000-8000-5b1f6a100c8c" doc:"The contact's id, from the list of contacts."`
}

func (a *api) remove(ctx context.Context, who auth.Caller, in contactInput) error {
	id, err := idOf(in.ID)
	if err != nil {
		return err
	}
	return a.svc.Remove(ctx, who.User.ID, id, deviceOf(in.Peer))
}

// Code is what was sent to an address.
type Code struct {
	Code *string `json:"code" example:"7KQM-X2PD" doc:"The code of the message. Case and the hyphen do not matter."`
}

type verifyInput struct {
	contactInput
	Body Code
}

func (a *api) verify(ctx context.Context, who auth.Caller, in verifyInput) (Contact, error) {
	id, err := idOf(in.ID)
	if err != nil {
		return Contact{}, err
	}
	c, err := a.svc.Verify(ctx, who, id, *in.Body.Code, deviceOf(in.Peer))
	return contactOf(c), err
}

// fromDevice is what a request says of the device that it comes from.
type fromDevice struct {
	Peer        httpserver.Peer
	DeviceToken string `header:"Auth-Device" example:"adt_AQ" doc:"The token that an earlier sign-in on this device returned. With it, what strangers do neither delays the owner nor uses up the owner's messages."`
	Cookie      string `cookie:"authctl_device" example:"adt_AQ" doc:"The same token, as browsers send it."`
}

func (f fromDevice) device() auth.Device {
	d := deviceOf(f.Peer)
	d.Token = cmp.Or(f.DeviceToken, f.Cookie)
	return d
}

// ChallengeAnswer shows that somebody can read what was sent to an address.
type ChallengeAnswer struct {
	ChallengeID *string `json:"challenge_id,omitempty" format:"uuid" example:"7d3e8a52-98a5-4a0b-9d53-2ed8a2a0c7f1" doc:"The one of the answer that announced the code."`
	Code        *string `json:"code,omitempty" example:"7KQM-X2PD" doc:"The code of the message. Case and the hyphen do not matter."`
	Token       *string `json:"token,omitempty" doc:"What follows token= in the fragment of the link. Give it instead of the other two."`
}

// proof is what the answer shows, or what is wrong with it.
func (c ChallengeAnswer) proof() (contact.Proof, error) {
	switch {
	case c.Token != nil && (c.ChallengeID != nil || c.Code != nil):
		return contact.Proof{}, auth.ErrValidation.Field("token", "not_alone",
			"must not be given together with challenge_id and code")
	case c.Token != nil && *c.Token == "":
		return contact.Proof{}, contact.ErrInvalidCode
	case c.Token != nil:
		return contact.Proof{Token: *c.Token}, nil
	case c.ChallengeID == nil:
		return contact.Proof{}, auth.ErrValidation.Field("challenge_id", "required",
			"must be given with code, or else token")
	case c.Code == nil:
		return contact.Proof{}, auth.ErrValidation.Field("code", "required",
			"must be given with challenge_id, or else token")
	}
	id, _ := uuid.Parse(*c.ChallengeID) // another text is the id of no challenge, as Nil is
	return contact.Proof{ChallengeID: id, Code: *c.Code}, nil
}

type verifyChallengeInput struct {
	fromDevice
	Body ChallengeAnswer
}

// UndoToken is the secret of the link in a notice.
type UndoToken struct {
	Token *string `json:"token" example:"aut_AQ" doc:"What follows token= in the fragment of the link."`
}

type undoInput struct {
	Peer httpserver.Peer
	Body UndoToken
}

func (a *api) verifyChallenge(ctx context.Context, in verifyChallengeInput) error {
	p, err := in.Body.proof()
	if err != nil {
		return err
	}
	_, err = a.svc.VerifyByProof(ctx, p, in.device())
	return err
}

// ForgottenPassword says whose password was forgotten.
type ForgottenPassword struct {
	Username *string `json:"username,omitempty" doc:"Give either the username or email."`
	Email    *string `json:"email,omitempty" example:"alice@example.com" doc:"A verified address, in place of username."`
}

type forgotInput struct {
	fromDevice
	Language string `header:"Accept-Language" example:"de-AT,de;q=0.9" doc:"The language of the message, if that of the address is not known."`
	Body     ForgottenPassword
}

// Challenge is a code that may have been sent.
type Challenge struct {
	ChallengeID uuid.UUID `json:"challenge_id" example:"7d3e8a52-98a5-4a0b-9d53-2ed8a2a0c7f1" doc:"Send it with the code."`
}

func (a *api) forgot(ctx context.Context, in forgotInput) (Challenge, error) {
	who := contact.Forgotten{Language: in.Language}
	switch b := in.Body; {
	case b.Username != nil && b.Email != nil:
		return Challenge{}, auth.ErrValidation.Field("email", "not_alone", "must not be given together with username")
	case b.Username == nil && (b.Email == nil || *b.Email == ""):
		return Challenge{}, auth.ErrValidation.Field("username", "required", "must be given, or email")
	case b.Email != nil:
		who.Email = *b.Email
	default:
		who.Username = *b.Username
	}
	id, err := a.svc.Forgot(ctx, who, in.device())
	return Challenge{ChallengeID: id}, err
}

// PasswordReset is a new password, with the proof whose it is.
type PasswordReset struct {
	ChallengeID *string `json:"challenge_id,omitempty" format:"uuid" example:"7d3e8a52-98a5-4a0b-9d53-2ed8a2a0c7f1" doc:"The one of the answer to the request for a code."`
	Code        *string `json:"code,omitempty" example:"7KQM-X2PD" doc:"The code of the message. Case and the hyphen do not matter."`
	Token       *string `json:"token,omitempty" doc:"What follows token= in the fragment of the link. Give it instead of the other two."`
	NewPassword *string `json:"new_password" example:"staple battery horse correct" format:"password" minLength:"8" maxLength:"256" doc:"The rules of registration apply."`
}

type resetInput struct {
	fromDevice
	Body PasswordReset
}

func (a *api) reset(ctx context.Context, in resetInput) error {
	p, err := ChallengeAnswer{in.Body.ChallengeID, in.Body.Code, in.Body.Token}.proof()
	if err != nil {
		return err
	}
	return a.svc.Reset(ctx, p, *in.Body.NewPassword, in.device())
}

func (a *api) undo(ctx context.Context, in undoInput) error {
	return a.svc.Undo(ctx, *in.Body.Token, deviceOf(in.Peer))
}

func idOf(text string) (uuid.UUID, error) {
	id, err := uuid.Parse(text)
	if err != nil || text != id.String() {
		return uuid.Nil, contact.ErrContactNotFound
	}
	return id, nil
}

func deviceOf(p httpserver.Peer) auth.Device { return auth.Device{UserAgent: p.UserAgent, IP: p.IP} }
