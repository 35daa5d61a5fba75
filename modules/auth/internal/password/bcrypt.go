package password

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"

	"golang.org/x/crypto/blowfish" //nolint:staticcheck // deprecated as a cipher; bcrypt is made of it
)

const (
	bcryptSalt   = 16 // bytes
	bcryptDigest = 23
	bcryptMax    = 72 // bytes of a password that bcrypt uses
)

// bcryptEncoding is base64 in the order of the alphabet that bcrypt has always used.
func bcryptEncoding() *base64.Encoding {
	return base64.NewEncoding("./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789").WithPadding(base64.NoPadding)
}

// bcryptKey is the bcrypt function. It is computed here because x/crypto/bcrypt only makes
// hashes under a salt of its own choosing, and bcrypt-sha256 must know the salt first; a
// test holds the two against each other. The password is at most 72 bytes without NUL.
func bcryptKey(password, salt []byte, cost int) []byte {
	key := append(bytes.Clone(password), 0) // C strings end in NUL, and bcrypt hashes it too
	c, err := blowfish.NewSaltedCipher(key, salt)
	if err != nil {
		return nil // cannot be: the key is not empty
	}
	for range 1 << cost {
		blowfish.ExpandKey(key, c)
		blowfish.ExpandKey(salt, c)
	}
	text := []byte("OrpheanBeholderScryDoubt")
	for block := 0; block < len(text); block += blowfish.BlockSize {
		for range 64 {
			c.Encrypt(text[block:], text[block:])
		}
	}
	return text[:bcryptDigest]
}

// bcryptTakes reports whether plain bcrypt sees the whole password: it ignores what follows
// 72 bytes, and a NUL makes different passwords the same ("a" and "a\x00a").
func bcryptTakes(password []byte) bool {
	return len(password) <= bcryptMax && bytes.IndexByte(password, 0) < 0
}

// bcryptHash is the scheme. The prefix is what stands before the cost: "$2b$".
func bcryptHash(prefix string, cost int) hash {
	return hash{
		scheme:     Bcrypt,
		bcryptCost: cost,
		derive: func(password, salt []byte, _ int) []byte {
			if !bcryptTakes(password) {
				bcryptKey(password[:0], salt, cost) // as long as for any other password
				return nil
			}
			return bcryptKey(password, salt, cost)
		},
		encode: func(salt, digest []byte) string {
			enc := bcryptEncoding()
			return fmt.Sprintf("%s%02d$%s%s", prefix, cost, enc.EncodeToString(salt), enc.EncodeToString(digest))
		},
		current: bcryptCurrent(cost),
	}
}

// bcryptHMAC is passlib's bcrypt-sha256 of version 2: bcrypt of the base64 of
// HMAC-SHA-256(salt as text, password). It takes passwords of any length and any bytes, and
// the salt in the HMAC keeps unsalted SHA-256 hashes, stolen elsewhere, from being tried in
// place of passwords.
func bcryptHMAC(cost int) hash {
	return hash{
		scheme:     BcryptSHA256,
		bcryptCost: cost,
		derive: func(password, salt []byte, _ int) []byte {
			mac := hmac.New(sha256.New, []byte(bcryptEncoding().EncodeToString(salt)))
			mac.Write(password)
			return bcryptKey([]byte(base64.StdEncoding.EncodeToString(mac.Sum(nil))), salt, cost)
		},
		encode: func(salt, digest []byte) string {
			enc := bcryptEncoding()
			return fmt.Sprintf("$bcrypt-sha256$v=2,t=2b,r=%d$%s$%s", cost, enc.EncodeToString(salt), enc.EncodeToString(digest))
		},
		current: bcryptCurrent(cost),
	}
}

func bcryptCurrent(cost int) func(Config) bool {
	return func(c Config) bool { return c.Algorithm == string(Bcrypt) && cost >= c.BcryptCost }
}

// parseBcrypt reads what follows the prefix: 12$, 22 characters of salt, 31 of digest.
func parseBcrypt(prefix string) func(string) (hash, error) {
	return func(rest string) (hash, error) {
		cost, rest, err := cutBcryptCost(rest)
		if err != nil {
			return hash{}, err
		}
		h := bcryptHash(prefix, cost)
		if !strings.HasPrefix(prefix, "$") {
			h.current = nil // Django's
		}
		return h.decodeBcrypt(rest)
	}
}

func parseBcryptHMAC(rest string) (hash, error) {
	cost, rest, err := cutBcryptCost(rest)
	if err != nil {
		return hash{}, err
	}
	return bcryptHMAC(cost).decodeBcrypt(strings.Replace(rest, "$", "", 1))
}

// parseBcryptSHA256 is passlib's first version: bcrypt of the base64 of SHA-256.
func parseBcryptSHA256(prefix string) func(string) (hash, error) {
	return func(rest string) (hash, error) {
		cost, rest, err := cutBcryptCost(rest)
		if err != nil {
			return hash{}, err
		}
		h := hash{
			scheme:     BcryptSHA256,
			bcryptCost: cost,
			derive: func(password, salt []byte, _ int) []byte {
				sum := sha256.Sum256(password)
				return bcryptKey([]byte(base64.StdEncoding.EncodeToString(sum[:])), salt, cost)
			},
			encode: func(salt, digest []byte) string {
				enc := bcryptEncoding()
				return fmt.Sprintf("%s%d$%s$%s", prefix, cost, enc.EncodeToString(salt), enc.EncodeToString(digest))
			},
		}
		return h.decodeBcrypt(strings.Replace(rest, "$", "", 1))
	}
}

// parseDjangoBcryptSHA256 is bcrypt of the hexadecimal of SHA-256.
func parseDjangoBcryptSHA256(prefix string) func(string) (hash, error) {
	return func(rest string) (hash, error) {
		cost, rest, err := cutBcryptCost(rest)
		if err != nil {
			return hash{}, err
		}
		h := bcryptHash(prefix, cost)
		h.scheme, h.current = BcryptSHA256, nil
		h.derive = func(password, salt []byte, _ int) []byte {
			sum := sha256.Sum256(password)
			return bcryptKey([]byte(hex.EncodeToString(sum[:])), salt, cost)
		}
		return h.decodeBcrypt(rest)
	}
}

// parseWordPress is bcrypt of the base64 of HMAC-SHA-384 under a fixed key. WordPress trims
// passwords, when they are set and when they are asked for.
func parseWordPress(rest string) (hash, error) {
	cost, rest, err := cutBcryptCost(rest)
	if err != nil {
		return hash{}, err
	}
	h := bcryptHash("$wp$2y$", cost)
	h.scheme, h.current = BcryptSHA384, nil
	h.derive = func(password, salt []byte, _ int) []byte {
		mac := hmac.New(sha512.New384, []byte("wp-sha384"))
		mac.Write(bytes.Trim(password, " \t\n\r\v\x00"))
		return bcryptKey([]byte(base64.StdEncoding.EncodeToString(mac.Sum(nil))), salt, cost)
	}
	return h.decodeBcrypt(rest)
}

func cutBcryptCost(text string) (cost int, rest string, err error) {
	digits, rest, _ := strings.Cut(text, "$")
	if cost, err = number(digits); err != nil {
		return 0, "", err
	}
	if cost < 4 || cost > maxBcryptCost {
		return 0, "", fmt.Errorf("bcrypt cost is not between 4 and %d", maxBcryptCost)
	}
	return cost, rest, nil
}

func (h hash) decodeBcrypt(text string) (hash, error) {
	enc := bcryptEncoding()
	if len(text) != enc.EncodedLen(bcryptSalt)+enc.EncodedLen(bcryptDigest) {
		return hash{}, errMalformed
	}
	return h.decodePair(enc, text[:enc.EncodedLen(bcryptSalt)], text[enc.EncodedLen(bcryptSalt):])
}
