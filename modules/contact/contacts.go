package contact

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/tracing"
)

// Contacts lists the contacts of an account, the oldest first.
func (s *Service) Contacts(ctx context.Context, userID uuid.UUID) ([]Contact, error) {
	rows, err := contactsOf(ctx, s.db, userID)
	list := make([]Contact, len(rows))
	for i, c := range rows {
		list[i] = c.Contact
	}
	return list, err
}

// ContactByEmail returns the contact of an account with the address, in capitals or not, or
// [ErrContactNotFound]. strasse@ is not found by straße@, although they are compared as one: they may be two
// mailboxes, and whoever asks means one of them.
func (s *Service) ContactByEmail(ctx context.Context, userID uuid.UUID, email string) (Contact, error) {
	c, err := scanContact(s.db.QueryRowContext(ctx, "SELECT "+contactColumns+` FROM contact WHERE user_id = ? AND kind = ?
		AND canonical = ?`, userID, KindEmail, canonicalOf(email)))
	if err != nil {
		return Contact{}, err
	}
	if typed, _, err := parseAddress(strings.TrimSpace(email)); err != nil || !isSameMailbox(typed, c.Address) {
		return Contact{}, ErrContactNotFound
	}
	return c.Contact, nil
}

// isSameMailbox reports whether people, and mail servers, mean one mailbox by two addresses, which differ in capitals
// alone.
func isSameMailbox(a, b string) bool {
	return strings.ToLower(a) == strings.ToLower(b) //nolint:staticcheck // EqualFold takes ſ for s
}

// NewContact is an address that an account is to get.
type NewContact struct {
	Email    string
	Language string // that the person prefers, as a browser says it; may be anything
}

// Add gives an account an address and sends a challenge to it. If the account has the address already,
// unverified, it sends another challenge, to the address as it is written now: to its mail server, alice and
// Alice may be two mailboxes. It does not tell whether the address belongs to somebody else.
// challengeID is the id of the challenge.
func (s *Service) Add(ctx context.Context, userID uuid.UUID, n NewContact,
	dev auth.Device) (added Contact, challengeID uuid.UUID, err error) {
	address, canonical, err := parseAddress(n.Email)
	if r, ok := errors.AsType[*fault.Refusal](err); ok {
		return Contact{}, uuid.Nil, auth.ErrValidation.Field("email", r.Code, r.Detail)
	}
	news, replaced := false, uuid.Nil
	err = s.transact(ctx, func(ctx context.Context, tx database.Tx) error {
		u, err := lockUser(ctx, tx, userID)
		if err != nil {
			return err
		}
		list, err := contactsOf(ctx, tx, userID)
		if err != nil {
			return err
		}
		c := s.newContact(userID, address, canonical, languageOf(n.Language))
		same := slices.IndexFunc(list, func(one contactRow) bool { return one.canonical == canonical })
		if same >= 0 && list[same].Verified() {
			return ErrContactExists
		}
		if news = same < 0 || list[same].Address != address; !news {
			c, replaced = list[same], uuid.Nil
		} else if replaced, err = s.insertInPlace(ctx, tx, c, list, same); err != nil {
			return err
		}
		next := toVerify(u, &c, dev.IP)
		next.language = languageOf(n.Language)
		id, outcome, err := s.issue(ctx, tx, next)
		if err != nil {
			return err
		}
		if outcome == requestLimited {
			return ErrTooManyMessages.After(countedFor)
		}
		added, challengeID = c.Contact, id
		return nil
	})
	if err == nil && replaced != uuid.Nil {
		s.logRemoved(ctx, userID, replaced, byUser, dev, false)
	}
	if err == nil && news {
		s.security.Info("contact_added", tracing.ID(ctx), zap.Stringer("user_id", userID),
			zap.Stringer("contact_id", added.ID), zap.String("by", byUser), zap.String("ip", dev.IPText()))
	}
	return added, challengeID, err
}

// insertInPlace inserts a contact of an account that has those of the list. Another mailbox with the same canonical
// form, which nobody has verified, makes room: it is number same, or there is none.
func (s *Service) insertInPlace(ctx context.Context, tx database.Tx, c contactRow, list []contactRow,
	same int) (replaced uuid.UUID, err error) {
	if same < 0 && len(list) >= maxContacts {
		return uuid.Nil, ErrTooManyContacts
	}
	if same >= 0 {
		replaced = list[same].ID
		if err := s.drop(ctx, tx, list[same]); err != nil {
			return uuid.Nil, err
		}
	}
	return replaced, s.insert(ctx, tx, c)
}

// Verify verifies a contact of the caller by the code that was sent to it.
func (s *Service) Verify(ctx context.Context, caller auth.Caller, contactID uuid.UUID, code string,
	dev auth.Device) (Contact, error) {
	id, err := database.Value[uuid.UUID](s.db.QueryRowContext(ctx, `SELECT id FROM contact_challenge WHERE user_id = ? AND purpose = ?
		AND contact_id = ? AND state = 'live'`, caller.User.ID, PurposeVerify, contactID))
	if database.IsNotFound(err) {
		s.met.answered(PurposeVerify, invalidCode)
		if _, _, err = contactAmong(ctx, s.db, caller.User.ID, contactID); err == nil {
			err = ErrInvalidCode // it has no challenge
		}
		return Contact{}, err
	}
	if err != nil {
		return Contact{}, err
	}
	c, err := s.guess(ctx, PurposeVerify, id, code, &caller, dev)
	if err != nil {
		return Contact{}, err
	}
	return s.verify(ctx, c, dev)
}

// VerifyByProof verifies the contact to which a challenge was sent. The person need not be signed in: the code,
// or the link, shows that they can read what is sent there.
func (s *Service) VerifyByProof(ctx context.Context, p Proof, dev auth.Device) (Contact, error) {
	c, err := s.meet(ctx, PurposeVerify, p, dev)
	if err != nil {
		return Contact{}, err
	}
	return s.verify(ctx, c, dev)
}

// verify uses up a challenge that was met.
func (s *Service) verify(ctx context.Context, met challengeRow, dev auth.Device) (verified Contact, err error) {
	err = s.transact(ctx, func(ctx context.Context, tx database.Tx) error {
		u, err := auth.LockUser(ctx, tx, met.userID)
		if errors.Is(err, auth.ErrUserNotFound) {
			err = ErrInvalidCode // its challenges are gone with it
		}
		if err != nil {
			return err
		}
		if err := s.use(ctx, tx, met); err != nil {
			return err
		}
		verified, err = s.verifyContact(ctx, tx, u, met.contactID.UUID, byChallenge, dev, false)
		return err
	})
	s.metBy(PurposeVerify, met, err)
	if err == nil {
		s.security.Info("contact_verified", tracing.ID(ctx), zap.Stringer("user_id", met.userID),
			zap.Stringer("contact_id", verified.ID), zap.String("by", byChallenge), zap.String("ip", dev.IPText()))
	}
	return verified, err
}

// verifyContact marks a contact of a locked account as its owner's.
func (s *Service) verifyContact(ctx context.Context, tx database.Tx, u auth.User, contactID uuid.UUID, by string,
	dev auth.Device, final bool) (Contact, error) {
	before, c, err := contactAmong(ctx, tx, u.ID, contactID)
	if err != nil || c.Verified() {
		return c.Contact, err
	}
	now := s.timestamp()
	if err := setVerified(ctx, tx, c, by, now); err != nil {
		return Contact{}, err
	}
	c.VerifiedAt, c.verifiedBy = now, by
	if err := s.announce(ctx, tx, EventVerified, c, now); err != nil {
		return Contact{}, err
	}
	// Before it was verified it got no notices, and no change could be undone through it.
	before = slices.DeleteFunc(before, func(one contactRow) bool { return one.ID == c.ID })
	return c.Contact, s.notify(ctx, tx, u, before, dev,
		Message{Purpose: PurposeNoticeContact, Change: "added", Changed: c.Address}, final)
}

// contactAmong returns the contacts of an account, and one of them.
func contactAmong(ctx context.Context, db database.IDB, userID,
	contactID uuid.UUID) (all []contactRow, one contactRow, err error) {
	if all, err = contactsOf(ctx, db, userID); err != nil {
		return nil, contactRow{}, err
	}
	for _, c := range all {
		if c.ID == contactID {
			return all, c, nil
		}
	}
	return nil, contactRow{}, ErrContactNotFound
}

// Remove removes a contact of an account.
func (s *Service) Remove(ctx context.Context, userID, contactID uuid.UUID, dev auth.Device) error {
	return s.remove(ctx, userID, contactID, byUser, dev, false)
}

func (s *Service) remove(
	ctx context.Context, userID, contactID uuid.UUID, by string, dev auth.Device, final bool,
) error {
	err := s.transact(ctx, func(ctx context.Context, tx database.Tx) error {
		u, err := lockUser(ctx, tx, userID)
		if err != nil {
			return err
		}
		before, c, err := contactAmong(ctx, tx, userID, contactID)
		if err != nil {
			return err
		}
		if by == byUser && s.cfg.Required == requiredVerified && c.Verified() && len(verifiedOnly(before)) == 1 {
			return ErrContactNeeded
		}
		if final {
			if err := endUndo(ctx, tx, userID, 0); err != nil {
				return err
			}
		}
		if err := s.drop(ctx, tx, c); err != nil || !c.Verified() {
			return err
		}
		return s.notify(ctx, tx, u, before, dev,
			Message{Purpose: PurposeNoticeContact, Change: "removed", Changed: c.Address}, final)
	})
	if err == nil {
		s.logRemoved(ctx, userID, contactID, by, dev, final)
	}
	return err
}

func (s *Service) logRemoved(ctx context.Context, userID, contactID uuid.UUID, by string, dev auth.Device,
	final bool) {
	s.security.Info("contact_removed", tracing.ID(ctx), zap.Stringer("user_id", userID),
		zap.Stringer("contact_id", contactID), zap.String("by", by), zap.String("ip", dev.IPText()),
		zap.Bool("final", final))
}

// AddByOperator is [Service.Add] without a message: [Service.VerifyByOperator] or the owner does the
// rest.
func (s *Service) AddByOperator(ctx context.Context, userID uuid.UUID, email string) (added Contact, err error) {
	address, canonical, err := parseAddress(email)
	if err != nil {
		return Contact{}, err
	}
	c, replaced := s.newContact(userID, address, canonical, ""), uuid.Nil
	err = s.transact(ctx, func(ctx context.Context, tx database.Tx) error {
		if _, err := auth.LockUser(ctx, tx, userID); err != nil {
			return err
		}
		list, err := contactsOf(ctx, tx, userID)
		if err != nil {
			return err
		}
		same := slices.IndexFunc(list, func(one contactRow) bool { return one.canonical == canonical })
		if same >= 0 && (list[same].Verified() || isSameMailbox(list[same].Address, address)) {
			return ErrContactExists.Detail("The account has this contact already, as " + list[same].Address)
		}
		replaced, err = s.insertInPlace(ctx, tx, c, list, same)
		return err
	})
	if err == nil && replaced != uuid.Nil {
		s.logRemoved(ctx, userID, replaced, byAdmin, auth.Device{}, false)
	}
	if err == nil {
		s.security.Info("contact_added", tracing.ID(ctx), zap.Stringer("user_id", userID),
			zap.Stringer("contact_id", c.ID), zap.String("by", byAdmin))
	}
	return c.Contact, err
}

// VerifyByOperator marks an address of an account as its owner's. final is that of [Service.RemoveByOperator].
func (s *Service) VerifyByOperator(ctx context.Context, userID, contactID uuid.UUID,
	final bool) (verified Contact, err error) {
	err = s.transact(ctx, func(ctx context.Context, tx database.Tx) error {
		u, err := auth.LockUser(ctx, tx, userID)
		if err != nil {
			return err
		}
		if final {
			if err := endUndo(ctx, tx, userID, 0); err != nil {
				return err
			}
		}
		verified, err = s.verifyContact(ctx, tx, u, contactID, byAdmin, auth.Device{}, final)
		return err
	})
	if err == nil {
		s.security.Info("contact_verified", tracing.ID(ctx), zap.Stringer("user_id", userID),
			zap.Stringer("contact_id", contactID), zap.String("by", byAdmin), zap.Bool("final", final))
	}
	return verified, err
}

// RemoveByOperator removes a contact of an account, even the last one that sign-in needs. If it is final, nobody
// can undo it, nor any change before it: a stranger who had the account has links that would give it back.
func (s *Service) RemoveByOperator(ctx context.Context, userID, contactID uuid.UUID, final bool) error {
	return s.remove(ctx, userID, contactID, byAdmin, auth.Device{}, final)
}
