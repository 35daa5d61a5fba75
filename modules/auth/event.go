package auth

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
)

// The events of this module. docs/events.md is their contract and docs/schemas their form.
const (
	EventUserRegistered            = "auth.UserRegistered.v1"
	EventUserLoggedIn              = "auth.UserLoggedIn.v1"
	EventPasswordChanged           = "auth.PasswordChanged.v1"
	EventSessionRevoked            = "auth.SessionRevoked.v1"
	EventAllSessionsRevoked        = "auth.AllSessionsRevoked.v1"
	EventRefreshTokenReuseDetected = "auth.RefreshTokenReuseDetected.v1"
	EventUserLockedOut             = "auth.UserLockedOut.v1"
	EventUserDisabled              = "auth.UserDisabled.v1"
	EventUserEnabled               = "auth.UserEnabled.v1"
	EventUserDeleted               = "auth.UserDeleted.v1"
)

// EventTypes lists every type this module emits.
func EventTypes() []string {
	return []string{EventUserRegistered, EventUserLoggedIn, EventPasswordChanged, EventSessionRevoked,
		EventAllSessionsRevoked,
		EventRefreshTokenReuseDetected, EventUserLockedOut, EventUserDisabled, EventUserEnabled, EventUserDeleted}
}

// SchemaPath is where JSON Schemas of events are, below the issuer: each with the name of its type,
// and .json.
const SchemaPath = "/.well-known/schemas/"

// SchemaURL is the ce_dataschema of a type: where an issuer serves its JSON Schema.
func SchemaURL(issuer, eventType string) string {
	return strings.TrimRight(issuer, "/") + SchemaPath + eventType + ".json"
}

// Reason says why a session ended.
type Reason string

const (
	ReasonLogout         Reason = "logout"          // its owner signed out
	ReasonEndedByUser    Reason = "ended_by_user"   // its owner ended it from another session
	ReasonEndedByAdmin   Reason = "ended_by_admin"  // an operator
	ReasonPasswordChange Reason = "password_change" //
	ReasonDisabled       Reason = "user_disabled"   //
	ReasonDeleted        Reason = "user_deleted"    //
	ReasonEvicted        Reason = "evicted"         // the oldest, when the account had too many
	ReasonReuse          Reason = "refresh_token_reuse"
	ReasonTokenRevoked   Reason = "token_revoked" // by a client, RFC 7009
)

// Envelope begins the data of every event about an account.
type Envelope struct {
	UserID     uuid.UUID `json:"user_id"`
	OccurredAt time.Time `json:"occurred_at"`
}

// Event makes the outbox event of a type. The key is the user, so that all events of one user stay in order.
func (env Envelope) Event(issuer, eventType string, data any) (outbox.Event, error) {
	body, err := json.Marshal(data)
	if err != nil {
		return outbox.Event{}, fmt.Errorf("encode %s: %w", eventType, err)
	}
	user := env.UserID.String()
	return outbox.Event{
		Type: eventType, Key: user, Subject: user, Source: issuer, DataSchema: SchemaURL(issuer, eventType),
		Time: env.OccurredAt, Data: body,
	}, nil
}

type userRegistered struct {
	Envelope
	Username string `json:"username"`
	// SessionID is the session that the registration began; absent when an operator made
	// the account.
	SessionID uuid.NullUUID `json:"sid,omitzero"`
}

type userLoggedIn struct {
	Envelope
	SessionID  uuid.UUID `json:"sid"`
	DeviceName string    `json:"device_name,omitempty"`
	IP         string    `json:"ip,omitempty"`
	UserAgent  string    `json:"user_agent,omitempty"`
	// KnownDevice: the client showed the device token of an earlier sign-in.
	KnownDevice bool `json:"known_device"`
}

type passwordChanged struct {
	Envelope
	By string `json:"by"` // user, admin, reset or undo
}

type sessionRevoked struct {
	Envelope
	SessionID uuid.UUID `json:"sid"`
	Reason    Reason    `json:"reason"`
	// ExpiresAt is when the last access token of the session has expired: a denylist may
	// forget the session then.
	ExpiresAt time.Time `json:"expires_at"`
}

type allSessionsRevoked struct {
	Envelope
	Reason Reason `json:"reason"`
	// SessionEpoch: access tokens of the user with a lower session_epoch have ended, except those of
	// KeptSessionID.
	SessionEpoch  int64         `json:"session_epoch"`
	KeptSessionID uuid.NullUUID `json:"kept_sid,omitzero"`
	ExpiresAt     time.Time     `json:"expires_at"`
}

type refreshTokenReuseDetected struct {
	Envelope
	SessionID  uuid.UUID `json:"sid"`
	Generation uint32    `json:"generation"` // of the token that was presented again
	IP         string    `json:"ip,omitempty"`
	UserAgent  string    `json:"user_agent,omitempty"`
}

type userLockedOut struct {
	Envelope
	IP         string    `json:"ip,omitempty"`
	RetryAfter time.Time `json:"retry_after"`
}

// userChanged is the data of UserDisabled, UserEnabled and UserDeleted.
type userChanged struct {
	Envelope
	By string `json:"by"` // user or admin
}

// Who did something to an account, in events and in the security log.
const (
	byUser  = "user"
	byAdmin = "admin"
	byReset = "reset" // who could read what was sent to a verified contact
	byUndo  = "undo"  // who could read the notice of a change
)

func (s *Service) announce(ctx context.Context, tx database.IDB, eventType string, env Envelope, data any) error {
	e, err := env.Event(s.Issuer(), eventType, data)
	if err != nil {
		return err
	}
	return outbox.Add(ctx, tx, e)
}

func (s *Service) newEnvelope(userID uuid.UUID) Envelope {
	return Envelope{UserID: userID, OccurredAt: s.timestamp()}
}
