package contact

// The states of a challenge. A live one may have expired.
const (
	stateLive  = "live"
	stateUsed  = "used"
	stateEnded = "ended" // by another challenge, or a change of the account
)
