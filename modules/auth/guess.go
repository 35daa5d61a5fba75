package auth

import (
	"context"
	"errors"
	"net/netip"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/throttle"
)

// Guess is the leave to compare a code that may be guessed. End it with one of its methods.
type Guess struct {
	service *Service
	ticket  *throttle.Ticket
	owner   string
}

// kindCodes counts wrong codes apart from wrong passwords: neither delays the other.
const kindCodes = "codes"

// KnowsDevice reports whether the device has the token of an earlier sign-in to the account, with the
// password that the account still has. It does the same work for an id that no account has.
func (s *Service) KnowsDevice(ctx context.Context, userID uuid.UUID, dev Device) (bool, error) {
	a, err := s.guessed(ctx, userID)
	if err != nil {
		return false, err
	}
	return s.limiter.Known(throttle.Attempt{Account: a.canonical, DeviceToken: dev.Token}, a.owner()), nil
}

// guessed returns the account, or one with a name that no account has.
func (s *Service) guessed(ctx context.Context, userID uuid.UUID) (account, error) {
	a, err := accountByID(ctx, s.db, userID)
	if errors.Is(err, ErrUserNotFound) {
		return account{canonical: "\x00" + userID.String()}, nil
	}
	return a, err
}

// BeginGuess asks for leave to compare a code of an account, by the limits of sign-in but with
// counters of their own. It is the same for an id that no account has. caller is who is signed in;
// nil: nobody is. The error is [ErrTooManyAttempts] or [ErrOverloaded].
func (s *Service) BeginGuess(ctx context.Context, userID uuid.UUID, caller *Caller, dev Device) (*Guess, error) {
	a, err := s.guessed(ctx, userID)
	if err != nil {
		return nil, err
	}
	try := throttle.Attempt{Account: a.canonical, Kind: kindCodes, Address: dev.IP, DeviceToken: dev.Token}
	if caller != nil {
		try.DeviceToken, try.Session, try.Owner = "", caller.SessionID.String(), a.owner()
	}
	ticket, err := s.admit(ctx, try)
	if err == nil && !s.limiter.Trusts(ticket, a.owner()) {
		s.limiter.Cancel(ctx, ticket)
		try.Session, try.Owner, try.Stranger = "", "", true
		ticket, err = s.admit(ctx, try)
	}
	if err != nil {
		return nil, err
	}
	return &Guess{service: s, ticket: ticket, owner: a.owner()}, nil
}

// Wrong says that the code was wrong.
func (g *Guess) Wrong(ctx context.Context) { g.service.limiter.Failed(ctx, g.ticket) }

// Right says that the code was right.
func (g *Guess) Right(ctx context.Context) { g.service.limiter.Succeeded(ctx, g.ticket, g.owner) }

// Cancel says that nothing was compared.
func (g *Guess) Cancel(ctx context.Context) { g.service.limiter.Cancel(ctx, g.ticket) }

// CountRequest counts a request that everybody may send and that costs somebody else something,
// such as a mail, as a failure of its address. The error is [ErrTooManyAttempts].
func (s *Service) CountRequest(ctx context.Context, from netip.Addr) error {
	// Each has an account of its own: the limits of accounts are not what it is to be held to.
	ticket, err := s.admit(ctx, throttle.Attempt{Account: "\x00" + uuid.NewString(), Kind: kindCodes, Address: from})
	if err != nil {
		return err
	}
	s.limiter.Failed(ctx, ticket)
	return nil
}
