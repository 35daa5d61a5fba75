package contact

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/seal"
)

// EventMessage is the type of a [Message] in the outbox. It goes to [TargetMail] alone.
const EventMessage = "contact.Message.v1"

// TargetMail is the target that sends messages.
const TargetMail = "mail"

// Purpose says what a message is for. Each has templates of its own.
type Purpose string

const (
	PurposeVerify          Purpose = "verify"            // shows that the address is its owner's
	PurposeReset           Purpose = "reset"             // sets a new password
	PurposeNoticePassword  Purpose = "notice_password"   // the password was changed
	PurposeNoticeContact   Purpose = "notice_contact"    // a contact was added or removed
	PurposeNoticeNewDevice Purpose = "notice_new_device" // somebody signed in on a device that is not known
	// PurposeNone is sent to nobody: a sink drops it. It is written where a message would be if the
	// account existed, so that the time of an answer does not tell.
	PurposeNone Purpose = "none"
)

// Purposes lists every purpose that is sent.
func Purposes() []Purpose {
	return []Purpose{PurposeVerify, PurposeReset, PurposeNoticePassword, PurposeNoticeContact, PurposeNoticeNewDevice}
}

// PurposeNames lists them as words.
func PurposeNames() []string {
	var names []string
	for _, p := range Purposes() {
		names = append(names, string(p))
	}
	return names
}

// Message is what is sent to one address. Fields that do not belong to its purpose are empty.
type Message struct {
	Purpose   Purpose   `json:"purpose"`
	Language  string    `json:"language,omitempty"` // BCP 47 tags that the person prefers, such as de-AT,en; empty: not known
	Recipient string    `json:"recipient,omitempty"`
	ContactID uuid.UUID `json:"contact_id,omitzero"` // of the recipient
	UserID    uuid.UUID `json:"user_id"`
	Username  string    `json:"username,omitempty"` // as typed

	// Code is what the person types, as it is shown: two groups of four with a hyphen.
	Code string `json:"code,omitempty"`
	// LinkToken goes into the fragment of the page: /account/verify or /account/reset by the purpose,
	// and /account/undo for a notice, where it may be empty.
	LinkToken string `json:"link_token,omitempty"`
	// ChallengeID is that of Code and LinkToken; zero for a notice.
	ChallengeID uuid.UUID `json:"challenge_id,omitzero"`
	// ExpiresAt is when Code and LinkToken stop working, and after which nothing is sent.
	ExpiresAt time.Time `json:"expires_at,omitzero"`

	// At is when the change that a notice is about happened, Address the IP address and Device the name
	// of the device that made it. They are empty if not known, such as for a command.
	At      time.Time `json:"at,omitzero"`
	Address string    `json:"address,omitempty"`
	Device  string    `json:"device,omitempty"`
	// Change is what a notice_contact is about: added or removed. Changed is the contact.
	Change  string `json:"change,omitempty"`
	Changed string `json:"changed,omitempty"`
}

// ErrSealed is returned by [Sealer.Open] when no secret opens a message.
var ErrSealed = seal.ErrOtherSecret

// Sealer seals messages, which hold codes and links, under a key derived from the service's secret.
type Sealer struct{ box *seal.Box }

// NewSealer derives the keys. The first secret is the current one, the others are those it replaces.
func NewSealer(secrets ...config.Secret) (*Sealer, error) {
	box, err := seal.New("authctl contact message v1", secrets...)
	if err != nil {
		return nil, fmt.Errorf("seal messages: %w", err)
	}
	return &Sealer{box: box}, nil
}

// sealedMessage is the data of the event.
type sealedMessage struct {
	Sealed []byte `json:"sealed"`
}

// Event makes the event of a message, sealed and bound to the event's id. source is the issuer. All
// messages to one address of a person have one key: they are sent in order, and an address that takes
// none does not delay the others.
func (s *Sealer) Event(m Message, source string) (outbox.Event, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return outbox.Event{}, fmt.Errorf("make an event id: %w", err)
	}
	plain, err := json.Marshal(m)
	if err != nil {
		return outbox.Event{}, fmt.Errorf("encode a message: %w", err)
	}
	data, err := json.Marshal(sealedMessage{Sealed: s.box.Seal(plain, id.String())})
	if err != nil {
		return outbox.Event{}, fmt.Errorf("encode a message: %w", err)
	}
	return outbox.Event{ID: id, Type: EventMessage, Key: messageKey(m), Source: source, Data: data}, nil
}

// messageKey is the key of the event. Messages to nobody share a few keys, since keys stay in
// the database.
func messageKey(m Message) string {
	if m.Purpose == PurposeNone {
		return fmt.Sprintf("mail:none:%02x", m.UserID[15])
	}
	return "mail:" + m.UserID.String() + ":" + m.ContactID.String()
}

// Open opens the data of an event with this id.
func (s *Sealer) Open(id uuid.UUID, data []byte) (Message, error) {
	var sealed sealedMessage
	if err := json.Unmarshal(data, &sealed); err != nil {
		return Message{}, fmt.Errorf("open the message %s: it is not a sealed message", id)
	}
	plain, _, err := s.box.Open(sealed.Sealed, id.String())
	if err != nil {
		return Message{}, fmt.Errorf("open the message %s: %w", id, err)
	}
	var m Message
	if err := json.Unmarshal(plain, &m); err != nil {
		return Message{}, fmt.Errorf("open the message %s: %w", id, err)
	}
	return m, nil
}

// Wanted reports whether the message should still be sent: not if it is for nobody, has expired, its
// challenge was used or replaced, or the account was deleted.
func Wanted(ctx context.Context, db database.IDB, m Message, now time.Time) (bool, error) {
	if m.Purpose == PurposeNone || !m.ExpiresAt.IsZero() && !now.Before(m.ExpiresAt) {
		return false, nil
	}
	if m.ChallengeID == uuid.Nil {
		deleted, err := outbox.IsFinished(ctx, db, m.UserID.String()) // a relay may not read accounts
		return !deleted, err
	}
	state, err := database.Value[string](db.QueryRowContext(ctx, "SELECT state FROM contact_challenge WHERE id = ?",
		m.ChallengeID))
	if database.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the challenge of a message: %w", err)
	}
	return state == stateLive, nil
}
