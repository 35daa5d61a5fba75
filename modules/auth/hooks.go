package auth

import (
	"context"
	"net/netip"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/userfile"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/fault"
)

// Hooks are how another module takes part in what happens to accounts, such as the one that keeps
// their contacts. Those with a transaction run in it, with the account locked: their error undoes
// the change. A nil one is not called.
type Hooks struct {
	// Waits says that the sign-in of a new account waits for something: [Service.Register] makes the
	// account, signs nobody in and returns what Admit does. An error that names a challenge does not
	// mean a refusal then: the account exists.
	Waits bool
	// CheckNew adds to the fault what is wrong with a new account, before anything is hashed.
	CheckNew func(invalid *fault.Fault, username string, contact NewContact) *fault.Fault
	// Added is called when an account has been made.
	Added func(ctx context.Context, tx database.Tx, u User, contact NewContact) error
	// Imported is called when accounts have been imported.
	Imported func(ctx context.Context, tx database.Tx, list []ImportedUser) error
	// NotImported returns the kinds of addresses that Imported would leave out, for the report.
	NotImported func(u ImportedUser) []string
	// Addresses returns the addresses of accounts, for an export. The first of an account is the one
	// that other systems are told.
	Addresses func(ctx context.Context, userIDs []uuid.UUID) (map[uuid.UUID][]Address, error)
	// Admit returns why a person who has shown the password may not sign in.
	Admit func(ctx context.Context, u User, dev Device) error
	// SignedIn is called when a session begins. known says that the device is known to the account.
	SignedIn func(ctx context.Context, tx database.Tx, u User, dev Device, known bool) error
	// PasswordChanged is called when the password of an account has been changed. dev is empty if an
	// operator did it.
	PasswordChanged func(ctx context.Context, tx database.Tx, u User, dev Device) error
	// Deleted is called when an account has been deleted.
	Deleted func(ctx context.Context, tx database.Tx, userID uuid.UUID) error
}

// NewContact is the address that came with a registration.
type NewContact struct {
	Email    string     // empty: none was given
	Language string     // that the person prefers, as a browser says it; may be anything
	ByAdmin  bool       // an operator makes the account
	From     netip.Addr // of the client; may be invalid: not known
}

// ImportedUser is an account from another system, with its address there.
type ImportedUser struct {
	User
	Address   string    // empty: there was none
	Confirmed *bool     // whether its owner had shown to have it; nil: the source does not say
	Addresses []Address // of an export of our own, which has all of them; Address is then one of them
}

// Address is an address of an account: its Address, and whether it was Confirmed.
type Address = userfile.Address

// Use sets the hooks. Call it before anything else uses the service.
func (s *Service) Use(h Hooks) { s.hooks = h }

// LockUser reads an account and locks it until the transaction ends: what is decided about it
// still holds at the commit.
func LockUser(ctx context.Context, tx database.Tx, id uuid.UUID) (User, error) {
	a, err := lockAccount(ctx, tx, id)
	return a.User, err
}

// Issuer is who signs tokens and announces events.
func (s *Service) Issuer() string { return s.cfg.Token.Issuer }
