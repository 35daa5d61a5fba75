package contact

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/text/language"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/fault"
)

// hooks are what the module does when something happens to accounts.
func (s *Service) hooks() auth.Hooks {
	h := auth.Hooks{
		Waits: s.cfg.Required == requiredVerified, CheckNew: s.checkNew, Added: s.added, Imported: s.imported,
		NotImported: notImported, Addresses: s.addresses, PasswordChanged: s.passwordChanged,
	}
	if s.cfg.Required == requiredVerified {
		h.Admit = s.admit
	}
	if s.cfg.Notify == notifyNewDevice {
		h.SignedIn = s.signedIn
	}
	return h
}

// firstAddress is the address that a new account comes with: the one that was given, or the username
// if it is one.
func (s *Service) firstAddress(username, given string) (address, canonical string, found bool, err error) {
	if given != "" {
		address, canonical, err = parseAddress(given)
		return address, canonical, true, err
	}
	if !s.cfg.FromUsername || !strings.Contains(username, "@") {
		return "", "", false, nil
	}
	address, canonical, err = parseAddress(username)
	return address, canonical, err == nil, nil
}

func (s *Service) checkNew(invalid *fault.Fault, username string, given auth.NewContact) *fault.Fault {
	_, _, found, err := s.firstAddress(username, given.Email)
	if r, ok := errors.AsType[*fault.Refusal](err); ok {
		return invalid.Field("email", r.Code, r.Detail)
	}
	if !found && !given.ByAdmin && (s.cfg.Required == requiredRegister || s.cfg.Required == requiredVerified) {
		return invalid.Field("email", "required", "must be given")
	}
	return invalid
}

// added gives a new account its contact, and sends the challenge to it.
func (s *Service) added(ctx context.Context, tx database.Tx, u auth.User, given auth.NewContact) error {
	address, canonical, found, err := s.firstAddress(u.Username, given.Email)
	if err != nil || !found {
		return err
	}
	c := s.newContact(u.ID, address, canonical, languageOf(given.Language))
	if err := s.insert(ctx, tx, c); err != nil || given.ByAdmin {
		return err
	}
	// An address at its limit gets no more messages: its owner may be another person.
	_, _, err = s.issue(ctx, tx, toVerify(u, &c, given.From))
	return err
}

// newContact is a contact that nobody has verified.
func (s *Service) newContact(userID uuid.UUID, address, canonical, language string) contactRow {
	return contactRow{
		Contact: Contact{ID: uuid.Must(uuid.NewV7()), Kind: KindEmail, Address: address, CreatedAt: s.timestamp()},
		userID:  userID, canonical: canonical, language: language,
	}
}

// insert inserts a contact with its event.
func (s *Service) insert(ctx context.Context, tx database.Tx, c contactRow) error {
	inserted, err := insertContacts(ctx, tx, []contactRow{c})
	if err != nil {
		return err
	}
	if !inserted[c.ID] {
		return ErrContactExists
	}
	return s.announce(ctx, tx, EventAdded, c, s.timestamp())
}

// drop deletes a contact with its event.
func (s *Service) drop(ctx context.Context, tx database.Tx, c contactRow) error {
	if _, err := tx.ExecContext(ctx, "DELETE FROM contact WHERE id = ?", c.ID); err != nil {
		return fmt.Errorf("delete contact: %w", err)
	}
	return s.announce(ctx, tx, EventRemoved, c, s.timestamp())
}

// imported stores the addresses of accounts from another system, and whether they were confirmed
// there. An address that another account has verified is stored unverified.
func (s *Service) imported(ctx context.Context, tx database.Tx, list []auth.ImportedUser) error {
	var rows []contactRow
	seen := map[string]bool{} // verified ones of this batch
	add := func(u auth.ImportedUser, given string, confirmed bool) {
		address, canonical, found, err := s.firstAddress(u.Username, given)
		if err != nil || !found {
			return // such as a telephone number
		}
		c := s.newContact(u.ID, address, canonical, "")
		for _, other := range rows[max(0, len(rows)-maxContacts):] {
			if other.userID == u.ID && other.canonical == canonical {
				return
			}
		}
		if confirmed && !seen[canonical] {
			c.VerifiedAt, c.verifiedBy, seen[canonical] = c.CreatedAt, byImport, true
		}
		rows = append(rows, c)
	}
	for _, u := range list {
		// An export of ours has all addresses, in their order.
		for _, a := range u.Addresses[:min(len(u.Addresses), maxContacts)] {
			add(u, a.Address, a.Confirmed)
		}
		if len(u.Addresses) == 0 {
			add(u, u.Address, u.Address != "" && u.Confirmed != nil && *u.Confirmed)
		}
	}
	inserted, err := insertContacts(ctx, tx, rows)
	if err != nil {
		return err
	}
	var again []contactRow
	for i := range rows {
		if !inserted[rows[i].ID] {
			rows[i].VerifiedAt, rows[i].verifiedBy = Contact{}.VerifiedAt, ""
			again = append(again, rows[i])
		}
	}
	if _, err := insertContacts(ctx, tx, again); err != nil {
		return err
	}
	events := make([]outbox.Event, len(rows))
	for i, c := range rows {
		if events[i], err = s.changed(EventAdded, c, c.CreatedAt); err != nil {
			return err
		}
	}
	return outbox.Add(ctx, tx, events...)
}

// notImported are the kinds of addresses that [Service.imported] leaves out. A name that only looks like an
// address is none.
func notImported(u auth.ImportedUser) (kinds []string) {
	given := u.Addresses
	if len(given) == 0 && u.Address != "" {
		given = []auth.Address{{Address: u.Address}}
	}
	if len(given) > maxContacts {
		kinds, given = append(kinds, "too_many_addresses"), given[:maxContacts]
	}
	for _, a := range given {
		if _, _, err := parseAddress(a.Address); err != nil {
			kinds = append(kinds, "refused_address")
		}
	}
	return kinds
}

// admit refuses sign-in to an account without a verified contact, and sends the challenge again.
func (s *Service) admit(ctx context.Context, u auth.User, dev auth.Device) error {
	list, err := contactsOf(ctx, s.db, u.ID)
	if err != nil || len(verifiedOnly(list)) > 0 {
		return err
	}
	var refusal error
	err = s.transact(ctx, func(ctx context.Context, tx database.Tx) error {
		if _, err := auth.LockUser(ctx, tx, u.ID); err != nil {
			return err
		}
		list, err := contactsOf(ctx, tx, u.ID)
		switch {
		case err != nil:
			return err
		case len(verifiedOnly(list)) > 0: // just now
			refusal = nil
			return nil
		case len(list) == 0:
			refusal = auth.ErrContactUnverified.Detail("The account has no contact; an operator can add one.")
			return nil
		}
		id, _, err := s.issue(ctx, tx, toVerify(u, &list[0], dev.IP))
		refusal = auth.ErrContactUnverified.Challenge(id.String())
		return err
	})
	if err != nil {
		return err
	}
	return refusal
}

// addresses are those of accounts, for an export.
func (s *Service) addresses(ctx context.Context, userIDs []uuid.UUID) (map[uuid.UUID][]auth.Address, error) {
	rows, err := database.Collect(ctx, s.db, "list contacts", scanContact,
		"SELECT "+contactColumns+" FROM contact WHERE user_id IN (?) ORDER BY created_at, id", database.List(userIDs))
	found := make(map[uuid.UUID][]auth.Address, len(userIDs))
	for _, c := range rows {
		found[c.userID] = append(found[c.userID], auth.Address{Address: c.Address, Confirmed: c.Verified()})
	}
	return found, err
}

func (s *Service) passwordChanged(ctx context.Context, tx database.Tx, u auth.User, dev auth.Device) error {
	before, err := contactsOf(ctx, tx, u.ID)
	if err != nil {
		return err
	}
	return s.notify(ctx, tx, u, before, dev, Message{Purpose: PurposeNoticePassword}, false)
}

func (s *Service) signedIn(ctx context.Context, tx database.Tx, u auth.User, dev auth.Device, known bool) error {
	if known {
		return nil
	}
	list, err := contactsOf(ctx, tx, u.ID)
	if err != nil {
		return err
	}
	m := Message{Purpose: PurposeNoticeNewDevice, ExpiresAt: s.timestamp().Add(undoTTL)} // no longer news after that
	return s.send(ctx, tx, nil, s.notices(u, list, dev, m)...)
}

// Bounds of the languages that are kept: how much of a header is read, how many of them, and how long each
// may be.
const (
	maxHeader    = 200
	maxLanguages = 5
	maxLanguage  = 35
)

// languageOf lists the languages that a browser says the person prefers, the most preferred first, with
// commas between them. There may be no templates for the first one.
func languageOf(header string) string {
	if len(header) > maxHeader { // without the element that is cut
		header = header[:max(0, strings.LastIndexByte(header[:maxHeader], ','))]
	}
	tags, _, err := language.ParseAcceptLanguage(header)
	if err != nil {
		return ""
	}
	var list []string
	for _, tag := range tags[:min(len(tags), maxLanguages)] {
		if text := tag.String(); len(text) <= maxLanguage {
			list = append(list, text)
		}
	}
	return strings.Join(list, ",")
}
