package session

import (
	"bytes"
	"cmp"
	"context"
	"crypto/subtle"
	"errors"
	"iter"
	"net/netip"
	"time"

	"github.com/google/uuid"
)

// The errors of a [Store]. Every other error is a fault of the program.
var (
	ErrNotFound = errors.New("no such session")                           // unknown, expired or stopped
	ErrTooMany  = errors.New("the user has as many sessions as allowed")  // with Start.RejectNew
	ErrConflict = errors.New("the session was refreshed in the meantime") // of Reissue: read it again
	// ErrUnavailable means that the store is away, too slow or read-only, or that the context ended.
	ErrUnavailable = errors.New("the session store cannot be used right now")
)

// Hash is the SHA-256 of a token's secret under a label of its own.
type Hash [32]byte

// Session is one device that is signed in.
type Session struct {
	ID     uuid.UUID
	UserID uuid.UUID
	Epoch  int64 // users.session_epoch when it began

	Generation uint32 // of the refresh token that is current
	Hash       Hash   // of its secret

	DeviceName string
	UserAgent  string // of the latest refresh, as is IP
	IP         string

	// Recorded says that its sign-in notes in the database that the session has begun.
	Recorded bool

	// By the store's clock, in UTC, to the millisecond.
	AuthTime      time.Time // when the password was last shown
	CreatedAt     time.Time
	LastUsedAt    time.Time
	ExpiresAt     time.Time // whatever is done
	IdleExpiresAt time.Time // unless it is refreshed before; never after ExpiresAt
}

// Accepts reports whether a refresh with the token would rotate it at once: it is the current
// one, or one that the store has forgotten in a fail-over. A token that would only be
// answered with its successor once more is not accepted.
func (s Session) Accepts(t Token) bool {
	if t.UserID() != s.UserID || t.SessionID() != s.ID {
		return false
	}
	h := t.Hash()
	return t.Generation() > s.Generation ||
		t.Generation() == s.Generation && subtle.ConstantTimeCompare(h[:], s.Hash[:]) == 1
}

// Tentative reports whether the session may not have begun: nobody has used a refresh token of
// it, and whether its sign-in has committed is to be read in the database.
func (s Session) Tentative() bool { return s.Recorded && s.Generation == 1 }

// NewestUse orders sessions by their last use, the latest first, for slices.SortFunc.
func NewestUse(a, b Session) int {
	return cmp.Or(b.LastUsedAt.Compare(a.LastUsedAt), bytes.Compare(b.ID[:], a.ID[:]))
}

// Start begins a session.
type Start struct {
	ID     uuid.UUID
	UserID uuid.UUID
	Epoch  int64
	Hash   Hash // of the secret of the token of generation 1

	// Texts of the client, which the caller has made printable and bounded.
	DeviceName string
	UserAgent  string
	IP         string

	MaxAge  time.Duration // to the absolute expiry
	IdleTTL time.Duration // to the idle expiry

	Max       int  // live sessions a user may have; 0 is no limit
	RejectNew bool // at the limit: refuse, instead of naming the oldest
}

// Started is a session begun.
type Started struct {
	Session Session
	// Excess lists the user's sessions above the limit, least recently used first. They are
	// still live: the caller commits their revocation and then deletes them.
	Excess []Excess
}

// Excess is a session that has to end for another one.
type Excess struct {
	ID        uuid.UUID
	Tentative bool // as Session.Tentative
}

// Memory says how far back a store remembers.
type Memory struct {
	// Since is from when on no record can have been lost; the zero time where none ever is.
	Since time.Time
	// Emptied says that the store knew nothing then: records of before are lost. Else it was
	// out of sight, and some may be.
	Emptied bool
}

// Ref names a session.
type Ref struct{ UserID, ID uuid.UUID }

// Rotation asks to put the successor of a presented token in its place. [Codec.Next] fills in
// what comes from the two tokens.
type Rotation struct {
	UserID        uuid.UUID
	SessionID     uuid.UUID
	Generation    uint32 // of the presented token; the successor's is one more
	PresentedHash Hash
	NextHash      Hash
	SealedNext    []byte

	Grace   time.Duration // how long the presented token still yields the newest one; 0 is never
	IdleTTL time.Duration

	UserAgent string // as in [Start]
	IP        string
}

// Reissue asks to replace the current token of a session without seeing it. The holder has
// proved who they are in another way, such as an access token and the password.
type Reissue struct {
	UserID     uuid.UUID
	SessionID  uuid.UUID
	Generation uint32 // of the new token: one more than the session's
	Hash       Hash   // of the new token
	// Sealed is the new token sealed by [Codec.SealReissued]: for the grace window, it is
	// what the holder of the old one gets.
	Sealed  []byte
	Grace   time.Duration
	IdleTTL time.Duration
	// Reauthenticated moves Session.AuthTime to now.
	Reauthenticated bool
}

// Outcome is what became of a rotation. doc.go draws how each comes about.
type Outcome int

const (
	// Gone: the session is unknown or expired. Nothing changed.
	Gone Outcome = iota
	// Rotated: the successor is now the current token.
	Rotated
	// Replayed: the token was already rotated, less than the window ago; Links lead from it to
	// the newest one.
	Replayed
	// Superseded: the token may have been rotated less than the window ago, but the way from it
	// to the newest one is not there: too many were rotated since ([MaxLinks]), or the store has
	// lost it. Nothing changed; the session goes on with its newest token.
	Superseded
	// Reused: the token was rotated long ago, so that someone else may hold the session. It is
	// stopped for good and waits, marked, for the caller to commit the revocation and then to
	// delete it. Every later use of the session is answered so.
	Reused
)

func (o Outcome) String() string {
	switch o {
	case Rotated:
		return "rotated"
	case Replayed:
		return "replayed"
	case Superseded:
		return "superseded"
	case Reused:
		return "reused"
	}
	return "gone"
}

// RotateResult is the answer to a [Rotation].
type RotateResult struct {
	Outcome Outcome
	Session Session  // as it is afterwards; zero when Gone
	Links   [][]byte // when Replayed, for [Codec.OpenChain]
}

// Marked is a session that was stopped because a token was used again.
type Marked struct {
	Session    Session
	StoppedAt  time.Time
	Generation uint32 // of the token that was used again
	UserAgent  string // who used it
	IP         string
}

// Filter chooses sessions for operators. The zero Filter chooses all.
type Filter struct {
	ID     uuid.NullUUID
	IP     netip.Prefix // of the latest refresh
	Before time.Time    // last used before
}

// Match reports whether the session is chosen.
func (f Filter) Match(s Session) bool {
	if f.ID.Valid && s.ID != f.ID.UUID || !f.Before.IsZero() && !s.LastUsedAt.Before(f.Before) {
		return false
	}
	if !f.IP.IsValid() {
		return true
	}
	ip, err := netip.ParseAddr(s.IP)
	return err == nil && f.IP.Contains(ip.Unmap())
}

// Store keeps the sessions. It is told what to do and decides only what has to be decided in
// one step: whether a token is the current one. Whether a session may go on at all is the
// database's to say (users.session_epoch, revoked_session), before and after.
//
// A store reads its own engine's clock, so that the clocks of several servers need not agree.
// Methods are safe for concurrent use and safe to run again after [ErrUnavailable], when
// the first run may or may not have happened.
type Store interface {
	// Create writes a session of generation 1. A session whose sign-in then fails to commit
	// is one whose token nobody has: the caller deletes it, or it expires unseen.
	Create(ctx context.Context, s Start) (Started, error)

	// Rotate exchanges a refresh token, in one step. What was asked is refused by an Outcome,
	// never by an error.
	Rotate(ctx context.Context, r Rotation) (RotateResult, error)

	// Reissue replaces the current token by one that its holder gets without showing the old
	// one, which yields the new one within the grace window and counts as reuse after it.
	// ErrNotFound, or ErrConflict when the generation is not the next one.
	Reissue(ctx context.Context, r Reissue) (Session, error)

	// Get returns a live session, or ErrNotFound.
	Get(ctx context.Context, userID, id uuid.UUID) (Session, error)

	// List returns the user's live sessions, the most recently used first.
	List(ctx context.Context, userID uuid.UUID) ([]Session, error)

	// Delete forgets sessions, marked ones too. Those that are not there are no error.
	Delete(ctx context.Context, userID uuid.UUID, ids ...uuid.UUID) error

	// DeleteAll forgets the user's sessions that began under an epoch below the given one, but
	// the kept one, and those marked, whose revocation is still to be committed. One that
	// begins meanwhile, under the epoch that ended the others, stays.
	DeleteAll(ctx context.Context, userID uuid.UUID, epoch int64, keep uuid.NullUUID) error

	// Reused returns at most limit marked sessions whose revocation was not committed: its
	// server died. On Redis a call looks at a part of the keys, for most of a minute at most, and the next one,
	// of any server, goes on there. It returns none while another server looks.
	Reused(ctx context.Context, limit int) ([]Marked, error)

	// Purge removes at most limit expired sessions, if the engine does not by itself, and
	// returns how many.
	Purge(ctx context.Context, limit int) (int64, error)

	// Forget drops the sealed successors of tokens whose windows are over, of at most limit
	// sessions, if the engine does not by itself. It returns of how many.
	Forget(ctx context.Context, limit int) (int64, error)

	// Missing returns those of the sessions of which there is no live record.
	Missing(ctx context.Context, refs []Ref) ([]Ref, error)

	// Memory reports how far back the store remembers. It has to be asked every minute, by any
	// server, to know.
	Memory(ctx context.Context) (Memory, error)

	// Count returns how many records there are, also of sessions that are marked or have expired.
	Count(ctx context.Context) (int, error)

	// Clear forgets every session of every user, marked ones too. It calls progress after each
	// portion with how many records are gone; some may count twice. Run again, it does the rest.
	Clear(ctx context.Context, progress func(gone int)) error

	// Walk yields the live sessions of all users that match, in no order, in bounded memory.
	// A session that is used meanwhile may come twice. The first error ends it.
	Walk(ctx context.Context, f Filter) iter.Seq2[Session, error]
}
