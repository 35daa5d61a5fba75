package auth

import (
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/signingkey"
	"github.com/toppira/authctl/platform/database"
)

// The signing keys, which package signingkey explains.
type (
	Keys    = signingkey.Ring
	KeyInfo = signingkey.Info
)

const (
	KeyStaged   = signingkey.Staged
	KeyActive   = signingkey.Active
	KeyRetiring = signingkey.Retiring
	KeyRevoked  = signingkey.Revoked

	JWKSMaxAge = signingkey.JWKSMaxAge
)

var (
	ErrKeyNotFound = signingkey.ErrNotFound
	ErrKeyStatus   = signingkey.ErrStatus
	ErrKeyTooNew   = signingkey.ErrTooNew
	ErrKeyInUse    = signingkey.ErrInUse
	ErrKeysUnused  = signingkey.ErrUnused
	ErrWrongSecret = signingkey.ErrWrongSecret
)

// OpenKeys returns the signing keys for an operator. It does no I/O.
func OpenKeys(db *database.DB, cfg Config, log *zap.Logger) *Keys {
	return signingkey.Open(db, cfg.Token, log, nil)
}
