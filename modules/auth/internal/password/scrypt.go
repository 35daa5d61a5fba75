package password

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/scrypt"
	"golang.org/x/text/unicode/norm"
)

// scryptKey returns the function for 2^logN, r and p, or why they are not accepted.
func scryptKey(logN, r, p int) (func(password, salt []byte, size int) []byte, error) {
	if logN < 1 || r < 1 || p < 1 {
		return nil, errors.New("scrypt parameters are lower than its specification allows")
	}
	// Each alone first: the product must not overflow.
	const most = maxScryptMemory / 128
	if logN > 24 || r > most || p > most || r<<logN > most || p*r > most || p*r<<logN > maxScryptWork/128 {
		return nil, fmt.Errorf("scrypt parameters cost more than is accepted: %d MiB, %d MiB times lanes",
			maxScryptMemory>>20, maxScryptWork>>20)
	}
	return func(password, salt []byte, size int) []byte {
		key, err := scrypt.Key(password, salt, 1<<logN, r, p, size)
		if err != nil {
			return nil // cannot be: the parameters are within bounds
		}
		return key
	}, nil
}

func parseScrypt(_, rest string) (hash, error) {
	parts, err := split(rest, 3)
	if err != nil {
		return hash{}, err
	}
	n, err := numbers(parts[0], "ln", "r", "p")
	if err != nil {
		return hash{}, err
	}
	logN, r, p := n[0], n[1], n[2]
	h := hash{scheme: Scrypt, encode: func(salt, digest []byte) string { return phcScrypt(logN, r, p, salt, digest) }}
	if h.derive, err = scryptKey(logN, r, p); err != nil {
		return hash{}, err
	}
	return h.decodePair(base64.RawStdEncoding, parts[1], parts[2])
}

// parseDjangoScrypt reads N$salt$r$p$digest; the salt is used as it is written.
func parseDjangoScrypt(_, rest string) (hash, error) {
	parts, err := split(rest, 5)
	if err != nil {
		return hash{}, err
	}
	n, err := numbers(fmt.Sprintf("n=%s,r=%s,p=%s", parts[0], parts[2], parts[3]), "n", "r", "p")
	if err != nil {
		return hash{}, err
	}
	logN, err := log2(n[0])
	if err != nil {
		return hash{}, err
	}
	r, p := n[1], n[2]
	h := hash{scheme: Scrypt, salt: []byte(parts[1]), encode: func(salt, digest []byte) string {
		return fmt.Sprintf("scrypt$%d$%s$%d$%d$%s", 1<<logN, salt, r, p, base64.StdEncoding.EncodeToString(digest))
	}}
	if h.derive, err = scryptKey(logN, r, p); err != nil {
		return hash{}, err
	}
	if h.digest, err = decode(base64.StdEncoding, parts[4]); err != nil {
		return hash{}, err
	}
	return h, nil
}

// betterAuthForm reports whether the hash is as better-auth writes it: the hexadecimal of 16
// bytes of salt and 64 of digest, with a colon between them.
func betterAuthForm(encoded string) bool {
	salt, digest, found := strings.Cut(encoded, ":")
	return found && len(salt) == 32 && len(digest) == 128 && lowerHex(salt) && lowerHex(digest)
}

func lowerHex(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) })
}

// parseBetterAuth is scrypt of the password in NFKC; the salt is used as it is written.
func parseBetterAuth(encoded string) (hash, error) {
	salt, digest, _ := strings.Cut(encoded, ":")
	key, err := scryptKey(14, 16, 1)
	if err != nil {
		return hash{}, err
	}
	h := hash{
		scheme: Scrypt,
		salt:   []byte(salt),
		derive: func(password, salt []byte, size int) []byte { return key(norm.NFKC.Bytes(password), salt, size) },
		encode: func(salt, digest []byte) string { return fmt.Sprintf("%s:%x", salt, digest) },
	}
	if h.digest, err = hex.DecodeString(digest); err != nil {
		return hash{}, errMalformed
	}
	return h, nil
}

// parseFirebaseScrypt reads v=1,n=14,r=8,p=1,ss=SEPARATOR,sk=SIGNERKEY$SALT$DIGEST. Firebase
// derives a key under the salt followed by the project's separator and encrypts the
// project's signer key with it: the digest is that ciphertext.
func parseFirebaseScrypt(_, rest string) (hash, error) {
	parts, err := split(rest, 3)
	if err != nil {
		return hash{}, err
	}
	params, signerText, ok := strings.Cut(parts[0], ",sk=")
	params, separatorText, also := strings.Cut(params, ",ss=")
	n, err := numbers(params, "v", "n", "r", "p")
	if err != nil || !ok || !also || n[0] != 1 || n[3] != 1 {
		return hash{}, errMalformed
	}
	enc := base64.StdEncoding
	separator, err := decode(enc, separatorText)
	if err != nil {
		return hash{}, err
	}
	signer, err := decode(enc, signerText)
	if err != nil {
		return hash{}, err
	}
	logN, r := n[1], n[2]
	key, err := scryptKey(logN, r, 1)
	if err != nil {
		return hash{}, err
	}
	h := hash{
		scheme: FirebaseScrypt,
		derive: func(password, salt []byte, _ int) []byte {
			block, err := aes.NewCipher(key(password, slices.Concat(salt, separator), 64)[:32])
			if err != nil {
				return nil // cannot be: 32 bytes are a key
			}
			text := make([]byte, len(signer))
			cipher.NewCTR(block, make([]byte, aes.BlockSize)).XORKeyStream(text, signer)
			return text
		},
		encode: func(salt, digest []byte) string {
			return fmt.Sprintf("$fbscrypt$v=1,n=%d,r=%d,p=1,ss=%s,sk=%s$%s$%s", logN, r, enc.EncodeToString(separator),
				enc.EncodeToString(signer), enc.EncodeToString(salt), enc.EncodeToString(digest))
		},
	}
	return h.decodePair(enc, parts[1], parts[2])
}
