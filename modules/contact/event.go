package contact

import (
	"context"
	"encoding/json"
	"fmt"
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

// envelope begins the data of every event.
type envelope struct {
	UserID     uuid.UUID `json:"user_id"`
	OccurredAt time.Time `json:"occurred_at"`
}

// contactChanged is the data of Added, Verified and Removed.
type contactChanged struct {
	envelope
	ContactID uuid.UUID `json:"contact_id"`
	Kind      string    `json:"kind"`
	Address   string    `json:"address"`
	// By is how it was verified: challenge, admin, import or undo. Added has it if the contact was
	// verified when it was added.
	By string `json:"verified_by,omitempty"`
}

type passwordResetRequested struct {
	envelope
	ContactID uuid.UUID `json:"contact_id"` // to which a code was sent
	IP        string    `json:"ip,omitempty"`
	UserAgent string    `json:"user_agent,omitempty"`
}

type undeliverable struct {
	envelope
	Address string  `json:"address"`
	Purpose Purpose `json:"purpose"`
	Reason  string  `json:"reason"` // as the mail server says it
}

// event makes the outbox event of a type. Its key is the user, so that it is in order with the events
// of the account.
func event(eventType, issuer string, env envelope, data any) (outbox.Event, error) {
	body, err := json.Marshal(data)
	if err != nil {
		return outbox.Event{}, fmt.Errorf("encode %s: %w", eventType, err)
	}
	user := env.UserID.String()
	return outbox.Event{Type: eventType, Key: user, Subject: user, Source: issuer,
		DataSchema: auth.SchemaURL(issuer, eventType), Time: env.OccurredAt, Data: body}, nil
}

// Undeliverable makes the event of a message that the mail server refuses for good. reason is the
// server's answer.
func Undeliverable(m Message, issuer, reason string, now time.Time) (outbox.Event, error) {
	env := envelope{UserID: m.UserID, OccurredAt: now.UTC().Truncate(time.Microsecond)}
	return event(EventUndeliverable, issuer, env, undeliverable{envelope: env, Address: m.Recipient,
		Purpose: m.Purpose, Reason: reason})
}

// announce adds the event of a change of a contact to the transaction.
func (s *Service) announce(ctx context.Context, tx database.Tx, eventType string, c contactRow, now time.Time) error {
	env := envelope{UserID: c.userID, OccurredAt: now}
	by := c.verifiedBy
	if eventType == EventRemoved {
		by = ""
	}
	e, err := event(eventType, s.auth.Issuer(), env, contactChanged{
		envelope: env, ContactID: c.ID, Kind: c.Kind, Address: c.Address, By: by,
	})
	if err != nil {
		return err
	}
	return outbox.Add(ctx, tx, e)
}
