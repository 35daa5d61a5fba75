package password

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"slices"
)

// parseSaltedSHA reads the base64 of digest and salt; the digest is that of password and salt.
// Directories store passwords so.
func parseSaltedSHA(scheme Scheme, prefix string) func(string) (hash, error) {
	size, sum := sha1.Size, func(b []byte) []byte { s := sha1.Sum(b); return s[:] }
	switch scheme {
	case SaltedSHA256:
		size, sum = sha256.Size, func(b []byte) []byte { s := sha256.Sum256(b); return s[:] }
	case SaltedSHA512:
		size, sum = sha512.Size, func(b []byte) []byte { s := sha512.Sum512(b); return s[:] }
	}
	return func(rest string) (hash, error) {
		b, err := decode(base64.StdEncoding, rest)
		if err != nil {
			return hash{}, err
		}
		if len(b) < size {
			return hash{}, errMalformed
		}
		return hash{
			scheme: scheme,
			digest: b[:size],
			salt:   b[size:],
			derive: func(password, salt []byte, _ int) []byte { return sum(slices.Concat(password, salt)) },
			encode: func(salt, digest []byte) string {
				return prefix + base64.StdEncoding.EncodeToString(slices.Concat(digest, salt))
			},
		}, nil
	}
}
