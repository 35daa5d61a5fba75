package password

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Import returns a hash made elsewhere in the form in which it is stored, and its scheme, or
// why it cannot be taken over. The words are for the person who imports and hold nothing of
// the hash. Storing what Import returned, and importing that, changes nothing.
//
// Hashes are read as their makers write them. Stored as they are:
//
//	$2a$ $2b$ $2y$                           bcrypt: Auth0, Supabase, Devise, PHP, Django's bcrypt$
//	$bcrypt-sha256$  bcrypt_sha256$          passlib, Django
//	$wp$2y$                                  WordPress from 6.8 on
//	$argon2id$ $argon2i$  argon2$            PHC string with v=19, Django
//	$scrypt$ln=,r=,p=  scrypt$               passlib, Django
//	$fbscrypt$v=1,n=,r=,p=1,ss=,sk=$         Firebase's scrypt
//	SALT:DIGEST in hexadecimal               better-auth's scrypt
//	$pbkdf2-sha256$i=,l=$ (-sha1, -sha512)   PHC string
//	$pbkdf2-sha256$29000$ ($pbkdf2$, …)      passlib
//	pbkdf2_sha256$600000$ (_sha1)            Django
//	{SSHA} {SSHA256} {SSHA384} {SSHA512}     LDAP
//
// Stored as PHC strings, which hold all that they hold: {bcrypt}, {argon2}, {scrypt} and
// {pbkdf2} of Spring Security, with and without @SpringSecurity_v5_8; ASP.NET Identity
// versions 2 and 3; Werkzeug's scrypt: and pbkdf2:; Atlassian's {PKCS5S2}; {PBKDF2_SHA256} of 389 Directory
// Server; {PBKDF2…}, {ARGON2} and {CRYPT} of directories, as far as they hold one of the above; Nextcloud's 3|.
//
// Firebase exports passwordHash and salt with each user and the rest once for the project:
// $fbscrypt$v=1,n=MEM_COST,r=ROUNDS,p=1,ss=SALT_SEPARATOR,sk=SIGNER_KEY$SALT$HASH, base64
// as exported (but - and _ written + and /). Keycloak's pbkdf2 is
// $pbkdf2-sha256$i=HASH_ITERATIONS,l=BYTES$SALT$VALUE (BYTES is the length of VALUE, the =
// at the end of both are left out), its argon2 the PHC string
// $argon2id$v=19$m=MEMORY,t=HASH_ITERATIONS,p=PARALLELISM$SALT$VALUE.
func Import(text string) (encoded string, scheme Scheme, err error) {
	if len(text) > maxEncoded {
		return "", "", fmt.Errorf("hash is longer than %d bytes", maxEncoded)
	}
	if encoded, err = convert(text); err != nil {
		return "", "", err
	}
	h, err := parse(encoded)
	if err != nil {
		return "", "", err
	}
	if encodedTwice(encoded, h.digest) {
		return "", "", errors.New("salt and digest are hexadecimal, or encoded twice, where this form has base64")
	}
	// A sign-in of one user must not occupy a worker for a minute. Whoever sets such
	// a cost for all users has chosen it.
	if h.bcryptCost > maxImportBcryptCost {
		return "", "", fmt.Errorf("bcrypt cost %d is more than the %d accepted of a hash made elsewhere", h.bcryptCost,
			maxImportBcryptCost)
	}
	return encoded, h.scheme, nil
}

// Assumed reports whether a hash that [Import] takes does not say how it was made, so that it is taken for
// what the default settings of better-auth or of Spring Security write. Other settings, and programs that
// call scrypt or PBKDF2 of Node themselves, write the same form, and no password ever matches it.
func Assumed(text string) bool { return betterAuthForm(text) || strings.HasPrefix(text, "{pbkdf2") }

// encodedTwice recognises salts and digests that base64 reads although they were not written
// in it. Such a hash looks well and no password ever matches it. By chance, none is like
// this.
func encodedTwice(encoded string, digest []byte) bool {
	const base64Letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=-_"
	if !slices.ContainsFunc(digest, func(b byte) bool { return !strings.ContainsRune(base64Letters, rune(b)) }) {
		return true
	}
	parts := strings.FieldsFunc(encoded, func(r rune) bool { return r == '$' || r == '}' })
	written := parts[len(parts)-1:] // the digest
	if strings.HasPrefix(encoded, "$") {
		written = parts[len(parts)-2:] // and the salt; others use it as it is written
	}
	return !betterAuthForm(encoded) && slices.ContainsFunc(written, func(part string) bool {
		const shortest = 16 // 8 bytes
		return len(part) >= shortest && len(part)%2 == 0 &&
			(lowerHex(part) || lowerHex(strings.ToLower(part)) && part == strings.ToUpper(part))
	})
}

// notation is a form that is read and not stored.
type notation struct {
	form    *regexp.Regexp
	convert func(parts []string) (string, error)
}

// notations are compiled when the first hash is imported.
var notations = sync.OnceValue(func() []notation {
	return []notation{
		{regexp.MustCompile(`^(?i:\{(SSHA(?:256|384|512)?)\})(.*)$`), saltedSHA},
		{regexp.MustCompile(`^\{PBKDF2(-SHA(?:1|256|512))?\}(\d+\$.*)$`), directoryPBKDF2},
		{regexp.MustCompile(`^\{PBKDF2_SHA256\}([A-Za-z0-9+/]{432})$`), old389PBKDF2},
		{regexp.MustCompile(`^\{PKCS5S2\}([A-Za-z0-9+/]{64})$`), atlassianPBKDF2},
		{regexp.MustCompile(`^\{pbkdf2\}([0-9a-f]{80})$`), springPBKDF2(PBKDF2SHA1, 8, 185_000)},
		{regexp.MustCompile(`^\{pbkdf2@SpringSecurity_v5_8\}([0-9a-f]{96})$`), springPBKDF2(PBKDF2SHA256, 16, 310_000)},
		{regexp.MustCompile(`^(?:\{scrypt(?:@SpringSecurity_v5_8)?\})?\$([0-9a-f]{5,6})\$([^$]+)\$([^$]+)$`), springScrypt},
		{regexp.MustCompile(`^scrypt:(\d+):(\d+):(\d+)\$([^$]+)\$([0-9a-f]+)$`), werkzeugScrypt},
		{regexp.MustCompile(`^pbkdf2:(sha1|sha256|sha512):(\d+)\$([^$]+)\$([0-9a-f]+)$`), werkzeugPBKDF2},
		{regexp.MustCompile(`^\$scrypt\$ln=(\d{2,}),(.*)$`), kratosScrypt},
		{regexp.MustCompile(`^(A[A-Za-z0-9+/]{60,}={0,2})$`), aspNET},
	}
})

// wrapper is a word in braces before a hash that says itself what it is: of Spring Security's
// DelegatingPasswordEncoder, and of directories. Nextcloud has a number and a bar.
var wrapper = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(?:[123]\||\{(?:bcrypt|argon2|argon2@SpringSecurity_v5_8)\}|(?i:\{(?:CRYPT|BLF-CRYPT|ARGON2(?:ID?)?)\}))(\$.*)$|^\{ldap\}(\{.*)$`)
})

// convert returns the hash in a form that is stored.
func convert(text string) (string, error) {
	if parts := wrapper().FindStringSubmatch(text); parts != nil {
		text = parts[1] + parts[2]
	}
	for _, n := range notations() {
		if parts := n.form.FindStringSubmatch(text); parts != nil {
			return n.convert(parts[1:])
		}
	}
	return text, nil
}

func saltedSHA(parts []string) (string, error) {
	return "{" + strings.ToUpper(parts[0]) + "}" + parts[1], nil
}

// directoryPBKDF2 is OpenLDAP's, which is passlib's with other words before it. 389 Directory Server, and FreeIPA with
// it, reads the same and writes plain base64.
func directoryPBKDF2(parts []string) (string, error) {
	if parts[0] == "-SHA1" {
		parts[0] = ""
	}
	return "$pbkdf2" + strings.ToLower(parts[0]) + "$" + strings.NewReplacer("+", ".", "=", "").Replace(parts[1]), nil
}

// old389PBKDF2 is what 389 Directory Server made before: the iterations, 64 bytes of salt, and 256 of digest, of
// which the first block tells whether a password is right.
func old389PBKDF2(parts []string) (string, error) {
	b, err := decode(base64.StdEncoding, parts[0])
	if err != nil {
		return "", err
	}
	const salt = 4
	const digest = salt + 64
	iterations := binary.BigEndian.Uint32(b)
	if iterations > 1<<31-1 {
		return "", errMalformed
	}
	return phcPBKDF2(PBKDF2SHA256, int(iterations), b[salt:digest], b[digest:digest+sha256.Size]), nil
}

// atlassianPBKDF2 is that of Jira, Confluence and Crowd: always 10,000 iterations of SHA-1, and 16 bytes of
// salt before the digest.
func atlassianPBKDF2(parts []string) (string, error) {
	b, err := decode(base64.StdEncoding, parts[0])
	if err != nil {
		return "", err
	}
	return phcPBKDF2(PBKDF2SHA1, 10_000, b[:16], b[16:]), nil
}

// springPBKDF2 reads the salt and the digest after it; the iterations are those of the
// encoder, which writes none.
func springPBKDF2(scheme Scheme, saltSize, iterations int) func([]string) (string, error) {
	return func(parts []string) (string, error) {
		b, err := hex.DecodeString(parts[0])
		if err != nil {
			return "", errMalformed
		}
		return phcPBKDF2(scheme, iterations, b[:saltSize], b[saltSize:]), nil
	}
}

// springScrypt reads the parameters in one number: log N, r and p.
func springScrypt(parts []string) (string, error) {
	n, err := strconv.ParseUint(parts[0], 16, 32)
	if err != nil {
		return "", errMalformed
	}
	salt, err := decode(base64.StdEncoding, parts[1])
	if err != nil {
		return "", err
	}
	digest, err := decode(base64.StdEncoding, parts[2])
	if err != nil {
		return "", err
	}
	return phcScrypt(int(n>>16), int(n>>8&0xff), int(n&0xff), salt, digest), nil
}

// werkzeugScrypt uses the salt as it is written.
func werkzeugScrypt(parts []string) (string, error) {
	n, err := numbers(fmt.Sprintf("n=%s,r=%s,p=%s", parts[0], parts[1], parts[2]), "n", "r", "p")
	if err != nil {
		return "", err
	}
	logN, err := log2(n[0])
	if err != nil {
		return "", err
	}
	digest, err := hex.DecodeString(parts[4])
	if err != nil {
		return "", errMalformed
	}
	return phcScrypt(logN, n[1], n[2], []byte(parts[3]), digest), nil
}

func werkzeugPBKDF2(parts []string) (string, error) {
	iterations, err := number(parts[1])
	if err != nil {
		return "", err
	}
	digest, err := hex.DecodeString(parts[3])
	if err != nil {
		return "", errMalformed
	}
	return phcPBKDF2(Scheme("pbkdf2-"+parts[0]), iterations, []byte(parts[2]), digest), nil
}

// kratosScrypt writes N where the others write its logarithm.
func kratosScrypt(parts []string) (string, error) {
	n, err := number(parts[0])
	if err != nil {
		return "", err
	}
	if logN, err := log2(n); err == nil && n > 32 {
		n = logN
	}
	return fmt.Sprintf("$scrypt$ln=%d,%s", n, parts[1]), nil
}

// aspNET reads ASP.NET Identity's version 3, which holds its parameters, and 2, which has
// always the same.
func aspNET(parts []string) (string, error) {
	b, err := decode(base64.StdEncoding, parts[0])
	if err != nil {
		return "", err
	}
	const saltSize = 16
	if b[0] == 0 && len(b) == 1+saltSize+32 {
		return phcPBKDF2(PBKDF2SHA1, 1000, b[1:1+saltSize], b[1+saltSize:]), nil
	}
	schemes := []Scheme{PBKDF2SHA1, PBKDF2SHA256, PBKDF2SHA512}
	const header = 1 + 3*4
	if b[0] != 1 {
		return "", unknown(parts[0])
	}
	prf, iterations, size := binary.BigEndian.Uint32(b[1:]), binary.BigEndian.Uint32(b[5:]),
		binary.BigEndian.Uint32(b[9:])
	if int64(prf) >= int64(len(schemes)) || iterations > 1<<31-1 || int64(size) > int64(len(b)-header) {
		return "", errMalformed
	}
	return phcPBKDF2(schemes[prf], int(iterations), b[header:header+int(size)], b[header+int(size):]), nil
}

func phcPBKDF2(scheme Scheme, iterations int, salt, digest []byte) string {
	enc := base64.RawStdEncoding
	return fmt.Sprintf("$%s$i=%d,l=%d$%s$%s", scheme, iterations, len(digest), enc.EncodeToString(salt),
		enc.EncodeToString(digest))
}

func phcScrypt(logN, r, p int, salt, digest []byte) string {
	enc := base64.RawStdEncoding
	return fmt.Sprintf("$scrypt$ln=%d,r=%d,p=%d$%s$%s", logN, r, p, enc.EncodeToString(salt),
		enc.EncodeToString(digest))
}

func log2(n int) (int, error) {
	if n < 2 || n&(n-1) != 0 {
		return 0, errMalformed
	}
	return bits.Len(uint(n)) - 1, nil
}

// refused are the forms that are known and not read, and why not.
var refused = sync.OnceValue(func() []refusal {
	return []refusal{
		{regexp.MustCompile(`^\$2x?\$`), "bcrypt $2$ and $2x$ were made by a faulty implementation"},
		{regexp.MustCompile(`^\$argon2d\$`), "argon2d is not meant for passwords; argon2id and argon2i are accepted"},
		{regexp.MustCompile(`^\$argon2`), "argon2 is accepted as $argon2id$v=19$ or $argon2i$v=19$ only"},
		{regexp.MustCompile(`^argon2\$`), "argon2 is accepted with v=19 only"},
		{regexp.MustCompile(`^\{noop\}|^(?i)\{(PLAIN|CLEAR|CLEARTEXT)\}`), "it is the password itself, not a hash ({noop} of Spring Security, {CLEARTEXT} of directories)"},
		{regexp.MustCompile(`^\{(sha256|MD4|MD5|SHA-1|SHA-256)\}(\{|[0-9a-f]{32,}$)`), "it is a digest of Spring Security's oldest encoders, which are not accepted"},
		{regexp.MustCompile(`^\{(bcrypt|argon2|pbkdf2|scrypt)`), "it is in the form of Spring Security, but not as one of its encoders with default settings writes it"},
		{regexp.MustCompile(`^(?i)\{(SHA(-?\d+)?|MD5)\}`), "hash has no salt"},
		{regexp.MustCompile(`^(?i)\{SMD5\}`), "MD5 is not accepted ({SMD5} of directories)"},
		{regexp.MustCompile(`^(?i)\{[A-Z0-9-]+\}\$[156y]\$`), "it is a hash of crypt(3) in a directory, which is not accepted"},
		{regexp.MustCompile(`^\$P\$|^\$H\$`), "phpass is not accepted: it is MD5 (WordPress before 6.8, phpBB, Drupal 6)"},
		{regexp.MustCompile(`^U?\$S\$`), "it is Drupal 7's phpass with SHA-512, which is not accepted"},
		{regexp.MustCompile(`^\$wp`), "WordPress is accepted as $wp$2y$ only"},
		{regexp.MustCompile(`^\$1\$|^\$apr1\$|^\$md5`), "MD5-crypt is not accepted (crypt(3), Apache's htpasswd)"},
		{regexp.MustCompile(`^\$sha1\$`), "SHA1-crypt is not accepted (NetBSD's crypt(3))"},
		{regexp.MustCompile(`^\$[56]\$`), "SHA-crypt is not accepted (crypt(3))"},
		{regexp.MustCompile(`^\$7\$`), "scrypt is accepted as $scrypt$ln=,r=,p=$ only"},
		{regexp.MustCompile(`^\$g?y\$`), "yescrypt is not accepted (crypt(3))"},
		{regexp.MustCompile(`^SCRAM-SHA-`), "it is a SCRAM verifier of PostgreSQL or Kafka, which is not accepted"},
		{regexp.MustCompile(`^\*[0-9A-F]{40}$`), "it is MySQL's own PASSWORD(), which is not accepted"},
		{regexp.MustCompile(`^(md5|sha1|sha256|sha512|unsalted_md5|crypt)\$`), "it is a plain digest of old Django or Werkzeug, which is not accepted"},
		{regexp.MustCompile(`^\$scram\$`), "it is passlib's SCRAM verifier, which is not accepted"},
		{regexp.MustCompile(`^grub\.pbkdf2\.|^\$p5k2\$`), "it is PBKDF2 in a form that is not read (GRUB's, or $p5k2$)"},
		{regexp.MustCompile(`^\{PKCS5S2\}`), "it is in the form of Atlassian's products, but not as they write it"},
		{regexp.MustCompile(`^\{FSHP`), "FSHP is not accepted"},
		{regexp.MustCompile(`^(scrypt|pbkdf2):`), "it is in the form of Werkzeug, but not as its generate_password_hash writes it"},
		{regexp.MustCompile(`^fakeHash:`), "it was made by the emulator of Firebase"},
		{regexp.MustCompile(`^(?i)[0-9A-F]{32}$`), "it is a plain digest of 128 bits, MD5 by its size, which is not accepted"},
		{regexp.MustCompile(`^(?i)[0-9A-F]{40}$`), "it is a plain digest of 160 bits, SHA-1 by its size, which is not accepted"},
		{regexp.MustCompile(`^(?i)([0-9A-F]{64}|[0-9A-F]{128})$`), "it is a plain digest, SHA-2 by its size, which is not accepted"},
		{regexp.MustCompile(`^(?i)[0-9A-F]{32}:[0-9A-F.]{1,64}$`), "it is an MD5 digest with a salt, which is not accepted"},
	}
})

type refusal struct {
	form *regexp.Regexp
	why  string
}

// unknown says of a hash that is not read whose it is, as far as that shows.
func unknown(encoded string) error {
	for _, known := range refused() {
		if known.form.MatchString(encoded) {
			return errors.New(known.why)
		}
	}
	return errors.New("hash is of no known scheme")
}
