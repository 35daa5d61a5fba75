package auth

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/session"
)

// Session is a device session as its owner sees it.
type Session struct {
	ID         uuid.UUID `json:"id"`
	UserID     uuid.UUID `json:"-"`
	Username   string    `json:"-"`
	DeviceName string    `json:"device_name"`
	UserAgent  string    `json:"user_agent"`
	IP         string    `json:"ip"`
	CreatedAt  time.Time `json:"created_at"`
	LastUsedAt time.Time `json:"last_used_at"`
	ExpiresAt  time.Time `json:"expires_at"` // unless it is refreshed before
	Current    bool      `json:"current"`    // the one that asks

	epoch   int64     // of the account when it began
	ends    time.Time // whatever is done
	expired bool      // see [Service.mayRefresh]
}

// SessionFilter selects among the sessions in the store. Zero fields select everything.
type SessionFilter struct {
	// Everybody is for [Service.RevokeSessions] alone: every session of every account, also those
	// that the store does not have. AfterAccount continues what was interrupted. The other fields
	// are ignored.
	Everybody    bool
	AfterAccount uuid.UUID

	UserID uuid.NullUUID
	ID     uuid.NullUUID
	IP     netip.Prefix // of the latest use
	Before time.Time    // last used before

	// Expired adds those that a lowered auth.session_max_age has ended since they began: their access tokens can live.
	Expired bool
}

// foundBatch is how many records are compared with the database at a time.
const foundBatch = 200

// FindSessions passes the live sessions that the filter selects to fn, some at a time, in no particular
// order and in bounded memory, until fn returns an error.
func (s *Service) FindSessions(ctx context.Context, f SessionFilter, fn func([]Session) error) error {
	filter := session.Filter{ID: f.ID, IP: f.IP, Before: f.Before}
	pass := func(records []session.Session) error {
		live, err := s.live(ctx, records)
		if err != nil {
			return err
		}
		return fn(slices.DeleteFunc(live, func(one Session) bool { return one.expired && !f.Expired }))
	}
	if f.UserID.Valid {
		records, err := s.sessions.List(ctx, f.UserID.UUID)
		if err != nil {
			return err
		}
		return pass(slices.DeleteFunc(records, func(r session.Session) bool { return !filter.Match(r) }))
	}
	return s.inPortions(ctx, filter, pass)
}

// inPortions passes the records that the filter selects to fn, until it returns an error.
func (s *Service) inPortions(ctx context.Context, f session.Filter, fn func([]session.Session) error) error {
	portion := make([]session.Session, 0, foundBatch)
	for r, err := range s.sessions.Walk(ctx, f) {
		if err != nil {
			return err
		}
		if portion = append(portion, r); len(portion) == cap(portion) {
			if err := fn(portion); err != nil {
				return err
			}
			portion = portion[:0]
		}
	}
	return fn(portion)
}

func (s *Service) live(ctx context.Context, records []session.Session) ([]Session, error) {
	live, _, err := s.compare(ctx, records)
	return live, err
}

// compare asks the database which of the records are of live sessions. It also returns the ids of
// those that have ended, by user. A record whose user is unknown is neither: another database may
// share the store.
func (s *Service) compare(ctx context.Context,
	records []session.Session) (live []Session, ended map[uuid.UUID][]uuid.UUID, err error) {
	var users, ids, tentative []uuid.UUID
	known := make(map[uuid.UUID]bool)
	for _, r := range records {
		ids = append(ids, r.ID)
		if r.Tentative() {
			tentative = append(tentative, r.ID)
		}
		if !known[r.UserID] {
			known[r.UserID] = true
			users = append(users, r.UserID)
		}
	}
	accounts, err := accountsByID(ctx, s.db, users)
	if err != nil {
		return nil, nil, err
	}
	revoked, err := revokedAmong(ctx, s.db, ids)
	if err != nil {
		return nil, nil, err
	}
	begun, err := begunAmong(ctx, s.db, tentative)
	if err != nil {
		return nil, nil, err
	}
	live, ended = make([]Session, 0, len(records)), make(map[uuid.UUID][]uuid.UUID)
	for _, r := range records {
		a, found := accounts[r.UserID]
		st := a.sessionState(revoked[r.ID])
		_, announced := begun[r.ID]
		switch {
		case !found:
		case r.Tentative() && !announced: // its sign-in is still running, or has died
			if s.now().Sub(began(r.ID)) > tentativeFor {
				ended[r.UserID] = append(ended[r.UserID], r.ID)
			}
		case !st.live(r.ID, r.Epoch):
			ended[r.UserID] = append(ended[r.UserID], r.ID)
		default:
			live = append(live, Session{
				ID: r.ID, UserID: r.UserID, Username: a.Username, DeviceName: r.DeviceName, UserAgent: r.UserAgent,
				IP: r.IP, CreatedAt: r.CreatedAt, LastUsedAt: r.LastUsedAt, ExpiresAt: r.IdleExpiresAt,
				epoch: r.Epoch, ends: r.ExpiresAt, expired: s.mayRefresh(st, r.ID) != nil,
			})
		}
	}
	return live, ended, nil
}
