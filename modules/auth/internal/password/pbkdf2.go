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

// pbkdf2 gives the hash, whose digest is known, its function, or says why its cost is
// not accepted.
//
// PBKDF2 computes each block of a digest separately, with all the iterations. An attacker computes only
// one to check a guess, and so do we: a password is compared with the first block.
func (r *reader) pbkdf2(h hash, iterations int) (hash, error) {
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
		r.refuse(errors.New("pbkdf2 iterations are lower than its specification allows"))
	case iterations > maxPBKDF2Work:
		r.refuse(fmt.Errorf("pbkdf2 iterations cost more than is accepted: %d", maxPBKDF2Work))
	}
	h.compared = min(sum().Size(), len(h.digest))
	return h, r.err
}

// parsePBKDF2 reads i=ITERATIONS,l=BYTES$SALT$DIGEST in base64, with or without the length, or
// passlib's ITERATIONS$SALT$DIGEST in its own.
func parsePBKDF2(scheme Scheme) parser {
	return func(prefix, rest string) (hash, error) {
		var r reader
		parts := r.split(rest, 3)
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
		iterations := r.numbers(parts[0], names...)[0]
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
		return r.pbkdf2(r.pair(h, enc, parts[1], parts[2]), iterations)
	}
}

// parseDjangoPBKDF2 reads ITERATIONS$SALT$DIGEST; the salt is used as it is written.
func parseDjangoPBKDF2(scheme Scheme) parser {
	return func(prefix, rest string) (hash, error) {
		var r reader
		parts := r.split(rest, 3)
		iterations := r.number(parts[0])
		h := hash{scheme: scheme, salt: []byte(parts[1]), encode: func(salt, digest []byte) string {
			return fmt.Sprintf("%s%d$%s$%s", prefix, iterations, salt, base64.StdEncoding.EncodeToString(digest))
		}}
		h.digest = r.base64(base64.StdEncoding, parts[2])
		return r.pbkdf2(h, iterations)
	}
}
