package contact

import (
	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/fault"
)

// Errors that a client may see. The codes are stable; docs/errors.md explains each.
var (
	ErrContactNotFound = fault.New(fault.NotFound, "contact_not_found", "There is no such contact")
	ErrContactExists   = fault.New(fault.Conflict, "contact_exists", "The account has this contact already")
	ErrContactTaken    = fault.New(fault.Conflict, "contact_taken", "The address belongs to another account")
	ErrContactNeeded   = fault.New(fault.Conflict, "contact_needed", "The account needs this contact")
	ErrTooManyContacts = fault.New(fault.Forbidden, "too_many_contacts", "The account has as many contacts as it may")
	ErrTooManyMessages = fault.New(fault.TooMany, "too_many_messages", "Too many messages were sent")
	ErrInvalidCode     = fault.New(fault.Forbidden, "invalid_code", "The code or link is not valid")
)

// Faults lists every fault of this module, for the documentation and the tests that keep it complete.
func Faults() []*fault.Fault {
	return []*fault.Fault{ErrContactNotFound, ErrContactExists, ErrContactTaken, ErrContactNeeded, ErrTooManyContacts,
		ErrTooManyMessages, ErrInvalidCode, auth.ErrContactUnverified}
}
