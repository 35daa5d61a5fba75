package config

import (
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Secret is text that must not be seen: printed, logged or encoded, it shows as [redacted]. Only
// [Secret.Reveal] returns the text, which makes every use easy to find.
//
// It cannot protect two places, which must not hold one: the keys of a map that is encoded as
// JSON, and an unexported field of a struct that is printed with fmt, which calls no methods
// there.
type Secret string

const redacted = "[redacted]"

// Reveal returns the text itself.
func (s Secret) Reveal() string { return string(s) }

// Fingerprint is a short tag that shows people whether two servers have the same secret. It does
// not help to guess the secret: it is 32 bits of a slow hash. It is empty for no secret.
func (s Secret) Fingerprint() string {
	if s == "" {
		return ""
	}
	tag, err := pbkdf2.Key(sha256.New, string(s), []byte("authctl secret fingerprint v1"), 100_000, 4)
	if err != nil { // only for lengths and hashes that are not allowed
		return ""
	}
	return hex.EncodeToString(tag)
}

// String shows whether there is a secret, but not the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// Format covers every verb of fmt, including %x and %q.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// MarshalText covers encoding/json, YAML and zap's reflection.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
