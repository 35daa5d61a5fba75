package password

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	stdhash "hash"
	"slices"
)

// sumOf is the hash function that PBKDF2 repeats, and that directories use once.
func sumOf(scheme Scheme) func() stdhash.Hash {
	switch scheme {
	case PBKDF2SHA256, SaltedSHA256:
		return sha256.New
	case SaltedSHA384:
		return sha512.New384
	case PBKDF2SHA512, SaltedSHA512:
		return sha512.New
	}
	return sha1.New
}

// parseSaltedSHA reads the base64 of digest and salt; the digest is that of password and salt.
// Directories store passwords so.
func parseSaltedSHA(scheme Scheme) parser {
	return func(prefix, rest string) (hash, error) {
		sum := sumOf(scheme)
		size := sum().Size()
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
			derive: func(password, salt []byte, _ int) []byte {
				h := sum()
				h.Write(password)
				h.Write(salt)
				return h.Sum(nil)
			},
			encode: func(salt, digest []byte) string {
				return prefix + base64.StdEncoding.EncodeToString(slices.Concat(digest, salt))
			},
		}, nil
	}
}
