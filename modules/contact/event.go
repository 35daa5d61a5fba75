package contact

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
)

// The events of this module that everybody may read. docs/events.md is their contract and
// docs/schemas their form. None holds a code or a link.
const (
	EventAdded                  = "contact.Added.v1"
	EventVerified               = "contact.Verified.v1"
	EventRemoved                = "contact.Removed.v1"
	EventPasswordResetRequested = "contact.PasswordResetRequested.v1"
	EventUndeliverable          = "contact.Undeliverable.v1"
)

// EventTypes lists every type this module emits to everybody.
func EventTypes() []string {
	return []string{EventAdded, EventVerified, EventRemoved, EventPasswordResetRequested, EventUndeliverable}
}

// contactChanged is the data of Added, Verified and Removed.
type contactChanged struct {
	auth.Envelope
	ContactID uuid.UUID `json:"contact_id"`
	Kind      string    `json:"kind"`
	Address   string    `json:"address"`
	// By is how it was verified: challenge, admin, import or undo. Added has it if the contact was
	// verified when it was added.
	By string `json:"verified_by,omitempty"`
}

type passwordResetRequested struct {
	auth.Envelope
	ContactID uuid.UUID `json:"contact_id"` // to which a code was sent
	IP        string    `json:"ip,omitempty"`
	UserAgent string    `json:"user_agent,omitempty"`
}

type undeliverable struct {
	auth.Envelope
	Address string  `json:"address"`
	Purpose Purpose `json:"purpose"`
	Reason  string  `json:"reason"` // as the mail server says it
}

// Undeliverable makes the event of a message that the mail server refuses for good. reason is the
// server's answer.
func Undeliverable(m Message, issuer, reason string, now time.Time) (outbox.Event, error) {
	env := auth.Envelope{UserID: m.UserID, OccurredAt: now.UTC().Truncate(time.Microsecond)}
	return env.Event(issuer, EventUndeliverable, undeliverable{Envelope: env, Address: m.Recipient, Purpose: m.Purpose,
		Reason: reason})
}

// changed makes the event of a change of a contact.
func (s *Service) changed(eventType string, c contactRow, at time.Time) (outbox.Event, error) {
	env := auth.Envelope{UserID: c.userID, OccurredAt: at}
	data := contactChanged{Envelope: env, ContactID: c.ID, Kind: c.Kind, Address: c.Address, By: c.verifiedBy}
	if eventType == EventRemoved {
		data.By = ""
	}
	return env.Event(s.auth.Issuer(), eventType, data)
}

// announce adds the event of a change of a contact to the transaction.
func (s *Service) announce(ctx context.Context, tx database.Tx, eventType string, c contactRow, now time.Time) error {
	e, err := s.changed(eventType, c, now)
	if err != nil {
		return err
	}
	return outbox.Add(ctx, tx, e)
}
