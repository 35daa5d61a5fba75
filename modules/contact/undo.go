package contact

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/tracing"
)

// undoTTL is how long a change can be undone, and LongestLife how long a message can make sense.
const (
	undoTTL     = 72 * time.Hour
	LongestLife = undoTTL
)

// notify sends the verified contacts from before a change a notice of it, with a link that undoes
// it. A contact that the change has added gets none, and cannot undo it. As long as the verification of
// a contact can be undone, the contact gets notices of later changes without a link, unless there is no
// older contact: a thief who has added an address must not undo what the owner does about it. Nobody gets a
// link if the change is final.
func (s *Service) notify(ctx context.Context, tx database.Tx, u auth.User, before []contactRow, dev auth.Device,
	m Message, final bool) error {
	if len(verifiedOnly(before)) == 0 {
		return nil
	}
	now := s.now()
	m.ExpiresAt = time.UnixMilli(now.Add(undoTTL).UnixMilli()).UTC()
	if final {
		return s.send(ctx, tx, nil, s.notices(u, before, dev, m)...)
	}
	id, secret := uuid.New(), make([]byte, linkBytes)
	_, _ = rand.Read(secret) // never fails
	kept, err := json.Marshal(keep(before))
	if err != nil {
		return fmt.Errorf("encode contacts: %w", err)
	}
	// Undo ends what came later. The clock of the server that made the last one may be ahead of this one.
	last, err := database.Value[int64](tx.QueryRowContext(ctx,
		"SELECT coalesce(max(created_ms), 0) FROM contact_undo WHERE user_id = ?", u.ID))
	if err != nil {
		return fmt.Errorf("read when a change could last be undone: %w", err)
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO contact_undo (id, user_id, digest, contacts, state, created_ms, expires_ms)
		VALUES (?, ?, ?, ?, 'live', ?, ?)`, id, u.ID, s.digests.of(digestUndo, id, secret), string(kept),
		max(now.UnixMilli(), last+1), now.Add(undoTTL).UnixMilli())
	if err != nil {
		return fmt.Errorf("insert what a change can be undone to: %w", err)
	}
	m.LinkToken = linkToken(undoPrefix, id, secret)
	return s.send(ctx, tx, nil, s.notices(u, before, dev, m)...)
}

// notices makes a message to each verified contact.
func (s *Service) notices(u auth.User, before []contactRow, dev auth.Device, m Message) []Message {
	m.UserID, m.Username, m.At = u.ID, u.Username, s.timestamp()
	m.Address, m.Device = dev.IPText(), dev.Agent()
	verified := verifiedOnly(before)
	list := make([]Message, len(verified))
	for i, c := range verified {
		list[i] = m
		list[i].Recipient, list[i].ContactID, list[i].Language = c.Address, c.ID, c.language
		if !mayUndo(c, verified, s.now()) {
			list[i].LinkToken = ""
		}
	}
	return list
}

// mayUndo reports whether a contact, which is one of the verified ones, gets links that undo changes.
func mayUndo(c contactRow, verified []contactRow, now time.Time) bool {
	if !c.VerifiedAt.After(now.Add(-undoTTL)) {
		return true
	}
	return !slices.ContainsFunc(verified, func(other contactRow) bool { return other.VerifiedAt.Before(c.VerifiedAt) })
}

// keptContact is a contact from before a change.
type keptContact struct {
	Contact
	Canonical string `json:"canonical"`
	Language  string `json:"language,omitempty"`
}

func keep(list []contactRow) []keptContact {
	kept := make([]keptContact, len(list))
	for i, c := range list {
		kept[i] = keptContact{Contact: c.Contact, Canonical: c.canonical, Language: c.language}
	}
	return kept
}

// Undo undoes a change by the link of its notice: every session ends, the contacts are again those
// from before the change, and the password is closed until it is reset through one of them. The links of
// later notices end, since the person who made the change may have got those notices.
func (s *Service) Undo(ctx context.Context, token string, dev auth.Device) error {
	id, secret, ok := parseLink(undoPrefix, token)
	if !ok {
		s.met.answered(purposeUndo, invalidLink)
		return ErrInvalidCode
	}
	var userID uuid.UUID
	var stored []byte
	err := s.db.QueryRowContext(ctx, "SELECT user_id, digest FROM contact_undo WHERE id = ? AND state = 'live' "+
		"AND expires_ms > ?", id, s.now().UnixMilli()).Scan(&userID, &stored)
	if database.IsNotFound(err) || err == nil && !s.digests.fits(stored, digestUndo, id, secret) {
		s.met.answered(purposeUndo, invalidLink)
		return ErrInvalidCode
	}
	if err != nil {
		return fmt.Errorf("read what a change can be undone to: %w", err)
	}
	err = s.auth.ClosePassword(ctx, userID, dev, func(ctx context.Context, tx database.Tx) error {
		return s.undo(ctx, tx, userID, id)
	})
	if errors.Is(err, auth.ErrUserNotFound) {
		return ErrInvalidCode
	}
	if err == nil {
		s.met.answered(purposeUndo, metByLink)
		s.security.Warn("change_undone", tracing.ID(ctx), zap.Stringer("user_id", userID), zap.Stringer("undo_id", id),
			zap.String("ip", dev.IPText()))
	}
	return err
}

// undo uses the link up and restores the contacts, in a transaction that has locked the account.
func (s *Service) undo(ctx context.Context, tx database.Tx, userID, id uuid.UUID) error {
	var text string
	var made int64
	err := tx.QueryRowContext(ctx, `UPDATE contact_undo SET state = 'used' WHERE id = ? AND user_id = ? AND state = 'live' AND expires_ms > ?
		RETURNING contacts, created_ms`, id, userID, s.now().UnixMilli()).Scan(&text, &made)
	if database.IsNotFound(err) {
		return ErrInvalidCode
	}
	if err != nil {
		return fmt.Errorf("use a link that undoes: %w", err)
	}
	if err := endUndo(ctx, tx, userID, made); err != nil {
		return err
	}
	var kept []keptContact
	if err := json.Unmarshal([]byte(text), &kept); err != nil {
		return fmt.Errorf("read the contacts from before: %w", err)
	}
	return s.restore(ctx, tx, userID, kept)
}

// endUndo ends the links that undo changes made at a time, in milliseconds, or later.
func endUndo(ctx context.Context, tx database.IDB, userID uuid.UUID, from int64) error {
	return database.Exec(ctx, tx, "end links that undo", "UPDATE contact_undo SET state = 'ended' WHERE user_id = ? "+
		"AND state = 'live' AND created_ms >= ?", userID, from)
}

// restore gives an account its former contacts, and removes all others. An address that is
// another account's by now comes back unverified.
func (s *Service) restore(ctx context.Context, tx database.Tx, userID uuid.UUID, kept []keptContact) error {
	present, err := contactsOf(ctx, tx, userID)
	if err != nil {
		return err
	}
	now := s.timestamp()
	there := map[string]contactRow{}
	for _, c := range present {
		there[c.canonical] = c
	}
	wanted := map[string]keptContact{}
	for _, k := range kept {
		wanted[k.Canonical] = k
	}
	for _, c := range present {
		// Written in another way, it may be somebody else's mailbox (see Add).
		k, found := wanted[c.canonical]
		if found && k.Address == c.Address && (k.Verified() || !c.Verified()) {
			continue
		}
		delete(there, c.canonical) // also if it was verified since: it comes back unverified
		if err := s.drop(ctx, tx, c); err != nil {
			return err
		}
	}
	for _, k := range kept {
		c, found := there[k.Canonical]
		if !found {
			c = contactRow{Contact: k.Contact, userID: userID, canonical: k.Canonical, language: k.Language}
			c.VerifiedAt = time.Time{}
			if err := s.insert(ctx, tx, c); err != nil {
				return err
			}
		}
		if c.Verified() == k.Verified() {
			continue
		}
		// With the time of its verification: the order of contacts matters (see notify).
		err := setVerified(ctx, tx, c, byUndo, k.VerifiedAt)
		if errors.Is(err, ErrContactTaken) {
			continue
		}
		if err != nil {
			return err
		}
		c.VerifiedAt, c.verifiedBy = k.VerifiedAt, byUndo
		if err := s.announce(ctx, tx, EventVerified, c, now); err != nil {
			return err
		}
	}
	return nil
}
