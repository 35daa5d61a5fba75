package password

import (
	"crypto/pbkdf2"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// passlibEncoding is base64 with a dot for the plus.
func passlibEncoding() *base64.Encoding {
	return base64.NewEncoding("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789./").WithPadding(
		base64.NoPadding)
}

// withPBKDF2 gives the hash, whose digest is known, its function, or says why its cost is
// not accepted.
//
// PBKDF2 computes each block of a digest separately, with all the iterations. An attacker computes only
// one to check a guess, and so do we: a password is compared with the first block.
func (h hash) withPBKDF2(iterations int) (hash, error) {
	sum := sumOf(h.scheme)
	h.derive = func(password, salt []byte, size int) []byte {
		key, err := pbkdf2.Key(sum, string(password), salt, iterations, size)
		if err != nil { // in FIPS mode a short salt is refused, and then no password matches
			return nil
		}
		return key
	}
	switch {
	case iterations < 1:
		return hash{}, errors.New("pbkdf2 iterations are lower than its specification allows")
	case iterations > maxPBKDF2Work:
		return hash{}, fmt.Errorf("pbkdf2 iterations cost more than is accepted: %d", maxPBKDF2Work)
	}
	h.compared = min(sum().Size(), len(h.digest))
	return h, nil
}

// parsePBKDF2 reads i=ITERATIONS,l=BYTES$SALT$DIGEST in base64, with or without the length, or
// passlib's ITERATIONS$SALT$DIGEST in its own.
func parsePBKDF2(scheme Scheme) parser {
	return func(prefix, rest string) (hash, error) {
		parts, err := split(rest, 3)
		if err != nil {
			return hash{}, err
		}
		phc := strings.HasPrefix(parts[0], "i=")
		withLength := strings.Contains(parts[0], ",l=")
		enc, names := passlibEncoding(), []string{"i"}
		if phc {
			enc = base64.RawStdEncoding
		} else {
			parts[0] = "i=" + parts[0]
		}
		if withLength {
			names = append(names, "l")
		}
		n, err := numbers(parts[0], names...)
		if err != nil {
			return hash{}, err
		}
		iterations := n[0]
		h := hash{scheme: scheme, encode: func(salt, digest []byte) string {
			params := strconv.Itoa(iterations)
			if phc {
				params = "i=" + params
			}
			if withLength {
				params += fmt.Sprintf(",l=%d", len(digest))
			}
			return prefix + params + "$" + enc.EncodeToString(salt) + "$" + enc.EncodeToString(digest)
		}}
		if h, err = h.decodePair(enc, parts[1], parts[2]); err != nil {
			return hash{}, err
		}
		return h.withPBKDF2(iterations)
	}
}

// parseDjangoPBKDF2 reads ITERATIONS$SALT$DIGEST; the salt is used as it is written.
func parseDjangoPBKDF2(scheme Scheme) parser {
	return func(prefix, rest string) (hash, error) {
		parts, err := split(rest, 3)
		if err != nil {
			return hash{}, err
		}
		iterations, err := number(parts[0])
		if err != nil {
			return hash{}, err
		}
		h := hash{scheme: scheme, salt: []byte(parts[1]), encode: func(salt, digest []byte) string {
			return fmt.Sprintf("%s%d$%s$%s", prefix, iterations, salt, base64.StdEncoding.EncodeToString(digest))
		}}
		if h.digest, err = decode(base64.StdEncoding, parts[2]); err != nil {
			return hash{}, err
		}
		return h.withPBKDF2(iterations)
	}
}
