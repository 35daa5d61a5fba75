package contact

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/retry"
	"github.com/toppira/authctl/platform/tracing"
)

// Forgotten says whose password was forgotten, by the username or the address.
type Forgotten struct {
	Username string
	Email    string
	Language string // that the person prefers, as a browser says it; may be anything
}

// Forgot sends a code and a link that set a new password to a verified contact: to the given address, or
// to the first verified one of the account. The answer is the same, in content
// and time, if there is no such account or contact: then nobody can meet the challenge.
func (s *Service) Forgot(ctx context.Context, who Forgotten, dev auth.Device) (challengeID uuid.UUID, err error) {
	if err := s.auth.CountRequest(ctx, dev.IP); err != nil {
		return uuid.Nil, err
	}
	// The work is the same, but its time differs by some tenths of a millisecond, which could be measured.
	defer inSteps(ctx, time.Now())
	c := challenge{purpose: PurposeReset, language: languageOf(who.Language), from: dev.IP}
	find, by, err := s.forgetful(ctx, who, &c)
	if err != nil {
		return uuid.Nil, err
	}
	if c.owner, err = s.auth.KnowsDevice(ctx, c.userID, dev); err != nil {
		return uuid.Nil, err
	}
	outcome := ""
	err = s.transact(ctx, func(ctx context.Context, tx database.Tx) error {
		u, err := auth.LockUser(ctx, tx, c.userID)
		if err != nil && !errors.Is(err, auth.ErrUserNotFound) {
			return err
		}
		to, err := scanContact(tx.QueryRowContext(ctx, find, c.userID, by))
		if err != nil && !errors.Is(err, ErrContactNotFound) {
			return err
		}
		c.username, c.contact, c.also = u.Username, nil, nil
		if err == nil && u.Status == auth.StatusActive {
			c.contact = &to
			env := auth.Envelope{UserID: u.ID, OccurredAt: s.timestamp()}
			requested, err := env.Event(s.auth.Issuer(), EventPasswordResetRequested, passwordResetRequested{
				Envelope: env, ContactID: to.ID, IP: dev.IPText(), UserAgent: dev.Agent(),
			})
			if err != nil {
				return err
			}
			c.also = []outbox.Event{requested}
		} else if c.also, err = s.forNobody(c.userID); err != nil {
			return err
		}
		challengeID, outcome, err = s.issue(ctx, tx, c)
		return err
	})
	if err == nil && outcome == requestSent {
		s.security.Info("password_reset_requested", tracing.ID(ctx), zap.Stringer("user_id", c.userID),
			zap.Stringer("contact_id", c.contact.ID), zap.String("ip", dev.IPText()))
	}
	return challengeID, err
}

// answerStep is the unit of the time that an answer to [Service.Forgot] takes. The work mostly needs a few
// milliseconds.
const answerStep = 25 * time.Millisecond

// inSteps waits until a whole number of steps has passed since a moment, or the caller has left.
func inSteps(ctx context.Context, since time.Time) {
	_ = retry.Sleep(ctx, answerStep-time.Since(since)%answerStep)
}

// forgetful finds out whose password was forgotten. find reads the contact to which the code goes, with
// the account and by as arguments. A username in the form of an address is found by the address too,
// unless somebody has verified that. All look-ups are made whatever the earlier ones find.
func (s *Service) forgetful(ctx context.Context, who Forgotten, c *challenge) (find, by string, err error) {
	find = "SELECT " + contactColumns + " FROM contact WHERE user_id = ?1 AND verified_at IS NOT NULL "
	const (
		first  = "AND CAST(?2 AS text) IS NOT NULL ORDER BY verified_at, id LIMIT 1"
		exact  = "AND canonical = ?2"
		byMail = "SELECT user_id FROM contact WHERE kind = ? AND canonical = ? AND verified_at IS NOT NULL"
	)
	typed, order := who.Username, first
	if who.Email != "" {
		typed = who.Email
	}
	u, err := s.auth.FindUserByName(ctx, typed)
	if err != nil && !errors.Is(err, auth.ErrUserNotFound) {
		return "", "", err
	}
	c.userID, c.asked = u.ID, "username "+auth.LookupName(typed)
	if who.Email != "" {
		by = canonicalOf(who.Email)
		c.asked = "email " + by
		id, err := database.Value[uuid.UUID](s.db.QueryRowContext(ctx, byMail, KindEmail, by))
		switch {
		case err == nil:
			c.userID, order = id, exact
		case !database.IsNotFound(err):
			return "", "", fmt.Errorf("look for a contact: %w", err)
		}
	}
	if c.userID == uuid.Nil {
		c.userID = s.digests.nobody(c.asked)
	}
	return find + order, by, nil
}

// canonicalOf is the canonical form of a typed address, or a text that is no address.
func canonicalOf(typed string) string {
	typed = strings.TrimSpace(typed)
	if _, canonical, err := parseAddress(typed); err == nil {
		return canonical
	}
	return " " + auth.Printable(strings.ToLower(typed), maxAddress)
}

// forNobody is an event that takes the place of one that is not announced.
func (s *Service) forNobody(id uuid.UUID) ([]outbox.Event, error) {
	e, err := s.sealer.Event(Message{Purpose: PurposeNone, UserID: id}, s.auth.Issuer())
	e.Target = TargetMail
	return []outbox.Event{e}, err
}

// Proof shows that somebody can read what was sent to a contact: the code of a challenge, or the link.
type Proof struct {
	ChallengeID uuid.UUID
	Code        string
	Token       string // of a link; the others are empty then
}

// Reset sets a new password for the owner of a contact and ends every session. [ErrInvalidCode] does
// not tell whether the code was wrong, has expired, was used or replaced, or is nobody's.
func (s *Service) Reset(ctx context.Context, p Proof, replacement string, dev auth.Device) error {
	// Nobody should lose a try to a password that is too short.
	if err := s.auth.CheckNewPassword(replacement, ""); err != nil {
		return err
	}
	met, err := s.meet(ctx, PurposeReset, p, dev)
	if err != nil {
		return err
	}
	u, err := s.auth.FindUserByID(ctx, met.userID)
	if err == nil {
		err = s.auth.CheckNewPassword(replacement, u.Username)
	}
	if err == nil {
		err = s.auth.ResetPassword(ctx, met.userID, replacement, dev, func(ctx context.Context, tx database.Tx) error {
			return s.use(ctx, tx, met)
		})
	}
	if errors.Is(err, auth.ErrUserNotFound) || errors.Is(err, auth.ErrAccountDisabled) {
		err = ErrInvalidCode // its challenges have ended with it
	}
	s.metBy(PurposeReset, met, err)
	return err
}

// meet returns the challenge of a proof, or [ErrInvalidCode].
func (s *Service) meet(ctx context.Context, purpose Purpose, p Proof, dev auth.Device) (challengeRow, error) {
	if p.Token != "" {
		return s.followed(ctx, purpose, p.Token)
	}
	return s.guess(ctx, purpose, p.ChallengeID, p.Code, nil, dev)
}

// metBy counts a code or link that was right.
func (s *Service) metBy(purpose Purpose, met challengeRow, err error) {
	switch {
	case err == nil:
		s.met.answered(purpose, met.shown)
	case errors.Is(err, ErrContactTaken):
		s.met.answered(purpose, metButTaken)
	case errors.Is(err, ErrInvalidCode) && met.shown == metByLink: // somebody was faster
		s.met.answered(purpose, invalidLink)
	case errors.Is(err, ErrInvalidCode):
		s.met.answered(purpose, invalidCode)
	}
}

// guess counts a try of a code and compares the code, within the limits of guessing.
func (s *Service) guess(ctx context.Context, purpose Purpose, id uuid.UUID, code string, caller *auth.Caller,
	dev auth.Device) (challengeRow, error) {
	c, err := s.liveChallenge(ctx, purpose, id)
	user := c.userID
	if errors.Is(err, ErrInvalidCode) {
		user, err = id, nil
	}
	if err != nil {
		return challengeRow{}, err
	}
	g, err := s.auth.BeginGuess(ctx, user, caller, dev)
	if errors.Is(err, auth.ErrTooManyAttempts) {
		s.met.answered(purpose, notCompared)
	}
	if err != nil {
		return challengeRow{}, err
	}
	c, err = s.countTry(ctx, purpose, id)
	if err != nil && !errors.Is(err, ErrInvalidCode) {
		g.Cancel(ctx)
		return challengeRow{}, err
	}
	// Without a challenge the same comparison is made.
	fits := s.digests.fits(c.codeDigest, digestCode, c.id, []byte(typedCode(code)))
	if err != nil || !fits {
		g.Wrong(ctx)
		outcome := wrongCode
		if err != nil {
			outcome = invalidCode
		}
		s.met.answered(purpose, outcome)
		s.security.Warn("code_wrong", tracing.ID(ctx), zap.Stringer("user_id", user),
			zap.String("purpose", string(purpose)), zap.String("ip", dev.IPText()))
		return challengeRow{}, ErrInvalidCode
	}
	g.Right(ctx)
	c.shown = metByCode
	return c, nil
}

// followed returns the challenge of a link. Links are not counted, since nobody can guess one; so a
// stranger who uses up the tries of a code does not take the link from its owner.
func (s *Service) followed(ctx context.Context, purpose Purpose, token string) (challengeRow, error) {
	id, secret, ok := parseLink(challengePrefix, token)
	if !ok {
		s.met.answered(purpose, invalidLink)
		return challengeRow{}, ErrInvalidCode
	}
	c, err := s.liveChallenge(ctx, purpose, id)
	if err == nil && !s.digests.fits(c.linkDigest, digestLink, id, secret) {
		err = ErrInvalidCode
	}
	if errors.Is(err, ErrInvalidCode) {
		s.met.answered(purpose, invalidLink)
	}
	if err != nil {
		return challengeRow{}, err
	}
	c.shown = metByLink
	return c, nil
}
