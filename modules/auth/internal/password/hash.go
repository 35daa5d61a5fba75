package password

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Scheme names how a hash was made.
type Scheme string

// The schemes that are verified. The first three are also made.
const (
	Bcrypt       Scheme = "bcrypt"        // $2a$, $2b$, $2y$, and Django's bcrypt$
	BcryptSHA256 Scheme = "bcrypt-sha256" // passlib's, HMAC form (v=2) and the older one, and Django's bcrypt_sha256$
	Argon2id     Scheme = "argon2id"      // PHC string, also behind Django's argon2$

	Argon2i        Scheme = "argon2i"         // PHC string, also behind Django's argon2$
	BcryptSHA384   Scheme = "bcrypt-sha384"   // $wp$2y$, WordPress from 6.8 on
	Scrypt         Scheme = "scrypt"          // PHC string as passlib writes it, Django's scrypt$, better-auth's
	FirebaseScrypt Scheme = "firebase-scrypt" // $fbscrypt$, as Supabase writes it
	PBKDF2SHA1     Scheme = "pbkdf2-sha1"     // PHC string, passlib's, Django's
	PBKDF2SHA256   Scheme = "pbkdf2-sha256"   // PHC string, passlib's, Django's
	PBKDF2SHA512   Scheme = "pbkdf2-sha512"   // PHC string, passlib's
	SaltedSHA1     Scheme = "salted-sha1"     // {SSHA}, RFC 2307 style
	SaltedSHA256   Scheme = "salted-sha256"   // {SSHA256}
	SaltedSHA384   Scheme = "salted-sha384"   // {SSHA384}
	SaltedSHA512   Scheme = "salted-sha512"   // {SSHA512}
)

// Fast reports that the scheme costs an attacker almost nothing. Such a hash is accepted
// because its owner's next sign-in replaces it; until then it is as weak as it was where it
// came from.
func (s Scheme) Fast() bool {
	return s == SaltedSHA1 || s == SaltedSHA256 || s == SaltedSHA384 || s == SaltedSHA512
}

// What one hash may cost, at the most some seconds of one core and a quarter of a GiB. A
// hash comes from a database or a file, and must not be able to stop the service.
const (
	maxEncoded = 1024 // bytes of the whole string

	maxBcryptCost       = 20 // the highest that can be set
	maxImportBcryptCost = 16 // of a hash made elsewhere
	maxArgon2Memory     = 256 << 10
	maxArgon2Work       = 2048 << 10 // KiB times passes
	maxArgon2Threads    = 16
	maxScryptMemory     = 256 << 20 // bytes
	maxScryptWork       = 1 << 30   // bytes times lanes
	maxPBKDF2Work       = 5_000_000 // iterations

	minSalt, maxSalt     = 1, 128
	minDigest, maxDigest = 16, 128
)

// hash is a stored hash taken apart, or, without salt and digest, the way to make one.
type hash struct {
	scheme       Scheme
	salt, digest []byte
	bcryptCost   int // of the schemes made of bcrypt
	compared     int // bytes of the digest that a password is compared with; 0: all

	// derive computes the digest of so many bytes; it never equals one when the scheme
	// cannot take the password, and takes as long all the same.
	derive func(password, salt []byte, size int) []byte
	// encode writes scheme, parameters, salt and digest as they are stored.
	encode func(salt, digest []byte) string
	// current reports whether the settings would make a hash no stronger than this one; nil
	// for schemes that are never made here.
	current func(Config) bool
}

func (h hash) String() string { return h.encode(h.salt, h.digest) }

func (h hash) matches(password []byte) bool {
	digest := h.digest
	if h.compared > 0 {
		digest = digest[:h.compared]
	}
	return subtle.ConstantTimeCompare(h.derive(password, h.salt, len(digest)), digest) == 1
}

// seal returns the hash of the password under a fresh salt.
func (h hash) seal(password []byte, digestSize int) hash {
	h.salt = make([]byte, 16)
	_, _ = rand.Read(h.salt) // never fails
	h.digest = h.derive(password, h.salt, digestSize)
	return h
}

// kind is the same for all hashes that cost the same: scheme, parameters and lengths.
func (h hash) kind() string { return h.encode(make([]byte, len(h.salt)), make([]byte, len(h.digest))) }

// likeness is a hash that costs the same and that no password matches.
func (h hash) likeness() hash {
	h.salt, h.digest = make([]byte, len(h.salt)), make([]byte, len(h.digest))
	_, _ = rand.Read(h.salt)
	_, _ = rand.Read(h.digest)
	return h
}

var errMalformed = errors.New("hash is not in the form of its scheme")

// parse takes a stored hash apart. Whatever it returns can be computed within the limits
// above, and writes itself exactly as it was read: one hash has one text.
func parse(encoded string) (hash, error) {
	if len(encoded) > maxEncoded {
		return hash{}, fmt.Errorf("hash is longer than %d bytes", maxEncoded)
	}
	h, err := parseScheme(encoded)
	if err != nil {
		return hash{}, err
	}
	switch {
	case len(h.salt) < minSalt, len(h.salt) > maxSalt:
		return hash{}, fmt.Errorf("salt is not of %d to %d bytes", minSalt, maxSalt)
	case len(h.digest) < minDigest, len(h.digest) > maxDigest:
		return hash{}, fmt.Errorf("digest is not of %d to %d bytes", minDigest, maxDigest)
	case h.String() != encoded:
		return hash{}, errMalformed
	}
	return h, nil
}

// parser reads what follows the prefix of a scheme.
type parser func(prefix, rest string) (hash, error)

func parseScheme(encoded string) (hash, error) {
	for _, known := range []struct {
		parse    parser
		prefixes []string
	}{
		{parseBcrypt(bcryptHash), []string{"$2a$", "$2b$", "$2y$"}},
		{parseBcrypt(wordPress), []string{"$wp$2y$"}},
		{parseBcrypt(djangoBcrypt), []string{"bcrypt$$2a$", "bcrypt$$2b$", "bcrypt$$2y$"}},
		{parseBcrypt(bcryptHMAC), []string{bcryptHMACPrefix}},
		{parseBcrypt(bcryptSHA256), []string{"$bcrypt-sha256$2a,", "$bcrypt-sha256$2b,"}},
		{parseBcrypt(djangoBcryptSHA256), []string{"bcrypt_sha256$$2a$", "bcrypt_sha256$$2b$", "bcrypt_sha256$$2y$"}},
		{parseArgon2(Argon2id), []string{argon2idPrefix, "argon2$argon2id$v=19$"}},
		{parseArgon2(Argon2i), []string{"$argon2i$v=19$", "argon2$argon2i$v=19$"}},
		{parseScrypt, []string{"$scrypt$"}},
		{parseDjangoScrypt, []string{"scrypt$"}},
		{parseFirebaseScrypt, []string{"$fbscrypt$"}},
		{parsePBKDF2(PBKDF2SHA1), []string{"$pbkdf2$", "$pbkdf2-sha1$"}},
		{parsePBKDF2(PBKDF2SHA256), []string{"$pbkdf2-sha256$"}},
		{parsePBKDF2(PBKDF2SHA512), []string{"$pbkdf2-sha512$"}},
		{parseDjangoPBKDF2(PBKDF2SHA1), []string{"pbkdf2_sha1$"}},
		{parseDjangoPBKDF2(PBKDF2SHA256), []string{"pbkdf2_sha256$"}},
		{parseSaltedSHA(SaltedSHA1), []string{"{SSHA}"}},
		{parseSaltedSHA(SaltedSHA256), []string{"{SSHA256}"}},
		{parseSaltedSHA(SaltedSHA384), []string{"{SSHA384}"}},
		{parseSaltedSHA(SaltedSHA512), []string{"{SSHA512}"}},
	} {
		for _, prefix := range known.prefixes {
			if rest, ok := strings.CutPrefix(encoded, prefix); ok {
				return known.parse(prefix, rest)
			}
		}
	}
	if betterAuthForm(encoded) {
		return parseBetterAuth(encoded)
	}
	return hash{}, unknown(encoded)
}

// numbers reads "a=1,b=2": exactly these names, in this order.
func numbers(text string, names ...string) ([]int, error) {
	fields := strings.Split(text, ",")
	if len(fields) != len(names) {
		return nil, errMalformed
	}
	values := make([]int, len(names))
	for i, field := range fields {
		name, digits, _ := strings.Cut(field, "=")
		n, err := number(digits)
		if name != names[i] || err != nil {
			return nil, errMalformed
		}
		values[i] = n
	}
	return values, nil
}

// number reads a number of one hash's parameters. What strconv says of it would quote it.
func number(digits string) (int, error) {
	n, err := strconv.ParseUint(digits, 10, 31)
	if err != nil {
		return 0, errMalformed
	}
	return int(n), nil
}

// split cuts the text at every $ into exactly n parts.
func split(text string, n int) ([]string, error) {
	parts := strings.Split(text, "$")
	if len(parts) != n {
		return nil, errMalformed
	}
	return parts, nil
}

// decode reads base64. It takes line breaks and stray bits that encoding would not write;
// parse refuses those when the whole is written again and differs.
func decode(enc *base64.Encoding, text string) ([]byte, error) {
	b, err := enc.DecodeString(text)
	if err != nil {
		return nil, errMalformed
	}
	return b, nil
}

// decodePair reads salt and digest, as most schemes end.
func (h hash) decodePair(enc *base64.Encoding, salt, digest string) (hash, error) {
	var err error
	if h.salt, err = decode(enc, salt); err != nil {
		return hash{}, err
	}
	if h.digest, err = decode(enc, digest); err != nil {
		return hash{}, err
	}
	return h, nil
}
