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
	return base64.NewEncoding("./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789").WithPadding(
		base64.NoPadding)
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

const bcryptHMACPrefix = "$bcrypt-sha256$v=2,t=2b,r="

// bcryptHMAC is passlib's bcrypt-sha256 of version 2: bcrypt of the base64 of
// HMAC-SHA-256(salt as text, password). It takes passwords of any length and any bytes, and
// the salt in the HMAC keeps unsalted SHA-256 hashes, stolen elsewhere, from being tried in
// place of passwords.
func bcryptHMAC(prefix string, cost int) hash {
	return hash{
		scheme:     BcryptSHA256,
		bcryptCost: cost,
		derive: func(password, salt []byte, _ int) []byte {
			mac := hmac.New(sha256.New, []byte(bcryptEncoding().EncodeToString(salt)))
			mac.Write(password)
			return bcryptKey([]byte(base64.StdEncoding.EncodeToString(mac.Sum(nil))), salt, cost)
		},
		encode:  encodePasslib(prefix, cost),
		current: bcryptCurrent(cost),
	}
}

func bcryptCurrent(cost int) func(Config) bool {
	return func(c Config) bool { return c.Algorithm == string(Bcrypt) && cost >= c.BcryptCost }
}

// encodePasslib writes salt and digest as passlib does, with a $ between them.
func encodePasslib(prefix string, cost int) func(salt, digest []byte) string {
	return func(salt, digest []byte) string {
		enc := bcryptEncoding()
		return fmt.Sprintf("%s%d$%s$%s", prefix, cost, enc.EncodeToString(salt), enc.EncodeToString(digest))
	}
}

func djangoBcrypt(prefix string, cost int) hash {
	h := bcryptHash(prefix, cost)
	h.current = nil
	return h
}

// bcryptSHA256 is passlib's first version: bcrypt of the base64 of SHA-256.
func bcryptSHA256(prefix string, cost int) hash {
	return hash{
		scheme:     BcryptSHA256,
		bcryptCost: cost,
		derive: func(password, salt []byte, _ int) []byte {
			sum := sha256.Sum256(password)
			return bcryptKey([]byte(base64.StdEncoding.EncodeToString(sum[:])), salt, cost)
		},
		encode: encodePasslib(prefix, cost),
	}
}

// djangoBcryptSHA256 is bcrypt of the hexadecimal of SHA-256.
func djangoBcryptSHA256(prefix string, cost int) hash {
	h := djangoBcrypt(prefix, cost)
	h.scheme = BcryptSHA256
	h.derive = func(password, salt []byte, _ int) []byte {
		sum := sha256.Sum256(password)
		return bcryptKey([]byte(hex.EncodeToString(sum[:])), salt, cost)
	}
	return h
}

// wordPress is bcrypt of the base64 of HMAC-SHA-384 under a fixed key. WordPress trims
// passwords, when they are set and when they are asked for.
func wordPress(prefix string, cost int) hash {
	h := bcryptHash(prefix, cost)
	h.scheme, h.current = BcryptSHA384, nil
	h.derive = func(password, salt []byte, _ int) []byte {
		mac := hmac.New(sha512.New384, []byte("wp-sha384"))
		mac.Write(bytes.Trim(password, " \t\n\r\v\x00"))
		return bcryptKey([]byte(base64.StdEncoding.EncodeToString(mac.Sum(nil))), salt, cost)
	}
	return h
}

// parseBcrypt reads what follows the prefix of a scheme made of bcrypt: 12$, 22 characters of salt, 31 of digest.
func parseBcrypt(scheme func(prefix string, cost int) hash) parser {
	return func(prefix, rest string) (hash, error) {
		digits, pair, _ := strings.Cut(rest, "$")
		cost, err := number(digits)
		if err != nil {
			return hash{}, err
		}
		if cost < 4 || cost > maxBcryptCost {
			return hash{}, fmt.Errorf("bcrypt cost is not between 4 and %d", maxBcryptCost)
		}
		enc := bcryptEncoding()
		pair = strings.Replace(pair, "$", "", 1) // of passlib; parse refuses it in other schemes
		saltSize := enc.EncodedLen(bcryptSalt)
		if len(pair) != saltSize+enc.EncodedLen(bcryptDigest) {
			return hash{}, errMalformed
		}
		return scheme(prefix, cost).decodePair(enc, pair[:saltSize], pair[saltSize:])
	}
}
