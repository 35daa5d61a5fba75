package auth

import (
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/signingkey"
	"github.com/toppira/authctl/platform/database"
)

// Keys are the signing keys. An operator has these methods:
//
//	List, Published  all keys, or those whose tokens are accepted
//	Stage            makes a key and publishes it; it signs nothing yet
//	Promote          makes a staged key the one that signs; see also PromoteKey
//	Retire           ends a retiring key, of which no token can be live
//	Revoke           ends any key at once; if it was the active one, another one signs
//	Check            whether the secret opens the keys
//
// They are documented at Ring of internal/signingkey.
type Keys = signingkey.Ring

// KeyInfo is what an operator sees of a key: KID, Algorithm and Status; StagedAt, ActiveAt and RetiredAt; from
// when on it can be promoted or retired, PromotableAt and RetirableAt; and ClockWasAhead if those count from a
// time that is yet to come.
type KeyInfo = signingkey.Info

// The status of a key. A staged one is published, the active one signs, and a retiring one only verifies. One that
// was retired or revoked is gone from the key set.
const (
	KeyStaged   = signingkey.Staged
	KeyActive   = signingkey.Active
	KeyRetiring = signingkey.Retiring
	KeyRevoked  = signingkey.Revoked
)

// JWKSMaxAge is how long a verifier may keep the key set that it fetched.
const JWKSMaxAge = signingkey.JWKSMaxAge

// What an operator may be told about keys.
var (
	ErrKeyNotFound = signingkey.ErrNotFound
	ErrKeyStatus   = signingkey.ErrStatus // the key is not at the stage that the change needs
	ErrKeyTooNew   = signingkey.ErrTooNew // verifiers may not know it
	ErrKeyInUse    = signingkey.ErrInUse  // tokens of it can be live
	ErrKeysUnused  = signingkey.ErrUnused // with HS256 the secret signs
	ErrWrongSecret = signingkey.ErrWrongSecret
	ErrOtherSecret = signingkey.ErrOtherSecret // the same with HS256
)

// OpenKeys returns the signing keys for an operator. It does no I/O.
func OpenKeys(db *database.DB, cfg Config, log *zap.Logger) *Keys {
	return signingkey.Open(db, cfg.Token, log, nil)
}
