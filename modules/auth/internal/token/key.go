package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/golang-jwt/jwt/v5"

	"github.com/toppira/authctl/platform/config"
)

// The algorithms (RFC 7518 §3.1, RFC 8037 §3.1).
const (
	ES256 = "ES256" // ECDSA on P-256 with SHA-256
	EdDSA = "EdDSA" // Ed25519
	RS256 = "RS256" // RSASSA-PKCS1-v1_5 with SHA-256, 3072 bits or more
	HS256 = "HS256" // HMAC-SHA-256 with the secret of the service
)

const minRSABits = 3072 // of keys made and kept here

// method returns how an algorithm signs, nil for one that is not used here.
func method(algorithm string) jwt.SigningMethod {
	switch algorithm {
	case ES256:
		return jwt.SigningMethodES256
	case EdDSA:
		return jwt.SigningMethodEdDSA
	case RS256:
		return jwt.SigningMethodRS256
	case HS256:
		return jwt.SigningMethodHS256
	}
	return nil
}

// Key signs access tokens with one algorithm. The zero Key signs
// nothing. It prints as its name.
type Key struct {
	public  PublicKey
	private any    // what the signing method takes
	header  string // the header of every token it signs, encoded, with the dot after it
}

// PublicKey verifies what a [Key] signed: of an asymmetric key the public half, of HS256 the
// secret itself. It prints as its name.
type PublicKey struct {
	kid       string
	algorithm string
	key       any               // what the signing method takes
	print     [sha256.Size]byte // of the key itself, whatever it is called
}

// Generate makes a new key. RS256 takes up to a second: not inside a transaction.
func Generate(algorithm string) (Key, error) {
	var private crypto.Signer
	var err error
	switch algorithm {
	case ES256:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case EdDSA:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case RS256:
		private, err = rsa.GenerateKey(rand.Reader, minRSABits)
	default:
		return Key{}, fmt.Errorf("no signing key is made for the algorithm %q", algorithm)
	}
	if err != nil {
		return Key{}, fmt.Errorf("make a signing key: %w", err)
	}
	return newKey(algorithm, private)
}

// newKey names the key by its thumbprint (RFC 7638), and refuses one that does not fit the
// algorithm.
func newKey(algorithm string, private crypto.Signer) (Key, error) {
	if k, ok := private.(*rsa.PrivateKey); ok && k.N.BitLen() < minRSABits {
		return Key{}, fmt.Errorf("an RSA key of %d bits; %d is the least", k.N.BitLen(), minRSABits)
	}
	public, err := newPublicKey("", algorithm, private.Public())
	if err != nil {
		return Key{}, err
	}
	public.kid = public.thumbprint()
	return finish(public, private), nil
}

// SharedKey is the key of HS256: the bytes of the secret as they are, which is what existing
// consumers verify with. Its kid tells secrets apart while one replaces another; it is
// derived one-way, and shows no more than any token does.
func SharedKey(secret config.Secret) (Key, error) {
	raw := []byte(secret.Reveal())
	if len(raw) < MinSecret {
		return Key{}, fmt.Errorf("the secret is shorter than %d bytes", MinSecret)
	}
	name, err := hkdf.Key(sha256.New, raw, nil, "authctl HS256 kid v1", 12)
	if err != nil {
		return Key{}, fmt.Errorf("name the shared key: %w", err)
	}
	public, err := newPublicKey("hs256-"+encodeBase64(name), HS256, raw)
	if err != nil {
		return Key{}, err
	}
	return finish(public, raw), nil
}

func finish(public PublicKey, private any) Key {
	header := `{"alg":"` + public.algorithm + `","kid":"` + public.kid + `","typ":"at+jwt"}`
	return Key{public: public, private: private, header: encodeBase64([]byte(header)) + "."}
}

// newPublicKey takes *ecdsa.PublicKey, ed25519.PublicKey, *rsa.PublicKey or, for HS256, bytes.
func newPublicKey(kid, algorithm string, key any) (PublicKey, error) {
	p := PublicKey{kid: kid, algorithm: algorithm, key: key}
	fits := false
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		fits = algorithm == ES256 && k.Curve == elliptic.P256()
	case ed25519.PublicKey:
		fits = algorithm == EdDSA && len(k) == ed25519.PublicKeySize
	case *rsa.PublicKey:
		fits = algorithm == RS256
	case []byte:
		fits = algorithm == HS256
	}
	if !fits {
		return PublicKey{}, fmt.Errorf("a key that is not for %s", algorithm)
	}
	if raw, ok := key.([]byte); ok {
		p.print = sha256.Sum256(raw)
		return p, nil
	}
	members, err := p.jwk()
	if err != nil {
		return PublicKey{}, err
	}
	p.print = members.thumbprint()
	return p, nil
}

// KID is the key's name: the kid of its tokens.
func (k Key) KID() string { return k.public.kid }

// Algorithm is the one algorithm the key is for.
func (k Key) Algorithm() string { return k.public.algorithm }

// Public returns what verifies the key's signatures.
func (k Key) Public() PublicKey { return k.public }

// Format keeps the private half out of every print and log.
func (k Key) Format(f fmt.State, verb rune) { k.public.Format(f, verb) }

// Equal reports the same name, algorithm and key.
func (p PublicKey) Equal(q PublicKey) bool {
	return p.kid == q.kid && p.algorithm == q.algorithm && p.print == q.print
}

// Format keeps the shared secret out of every print and log.
func (p PublicKey) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "[%s key %s]", p.algorithm, p.kid)
}

// thumbprint is the base64url SHA-256 thumbprint of RFC 7638.
func (p PublicKey) thumbprint() string { return encodeBase64(p.print[:]) }

func (p PublicKey) verify(signed string, signature []byte) bool {
	m := method(p.algorithm)
	return m != nil && m.Verify(signed, signature, p.key) == nil
}

// Sign returns the claims as a signed token. What it signs, Verify accepts.
func (k Key) Sign(c Claims) (string, error) {
	if k.private == nil {
		return "", errors.New("sign a token: no key")
	}
	payload, err := c.append(make([]byte, 0, 512))
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	signed := k.header + encodeBase64(payload)
	signature, err := method(k.public.algorithm).Sign(signed, k.private)
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	token := signed + "." + encodeBase64(signature)
	if len(token) > maxToken {
		return "", fmt.Errorf("sign a token: longer than %d bytes", maxToken)
	}
	return token, nil
}
