package contact

// The events of this module that everybody may read. docs/events.md is their contract and
// docs/schemas their form. None holds a code or a link.
const (
	EventAdded                  = "contact.Added.v1"
	EventVerified               = "contact.Verified.v1"
	EventRemoved                = "contact.Removed.v1"
	EventPasswordResetRequested = "contact.PasswordResetRequested.v1"
	EventUndeliverable          = "contact.Undeliverable.v1"
)
