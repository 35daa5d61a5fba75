package token

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/toppira/authctl/platform/config"
)

// ErrSealed is returned by [Open] when no secret opens the key.
var ErrSealed = errors.New("the signing key was sealed with another secret")

// sealVersion begins every sealed key: HKDF-SHA-256, AES-256-GCM with a random nonce,
// PKCS #8 inside.
const sealVersion = 1

// Seal encrypts the private key under a key derived from the secret, bound to its kid and
// algorithm, so that it opens as no other.
func (k Key) Seal(secret config.Secret) ([]byte, error) {
	signer, ok := k.private.(crypto.Signer)
	if !ok {
		return nil, errors.New("seal the signing key: it has no private half of its own")
	}
	plain, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return nil, fmt.Errorf("seal the signing key: %w", err)
	}
	aead, err := sealer(secret)
	if err != nil {
		return nil, fmt.Errorf("seal the signing key: %w", err)
	}
	return aead.Seal([]byte{sealVersion}, nil, plain, sealedAs(k.KID(), k.Algorithm())), nil
}

// Open decrypts a key that [Key.Seal] made for the same kid and algorithm, with whichever of
// the secrets fits. reseal says that it was not the first one, the present one. The key that
// comes out has the kid it was asked for: the kid is its thumbprint.
func Open(sealed []byte, kid, algorithm string, secrets ...config.Secret) (key Key, reseal bool, err error) {
	if len(sealed) == 0 || sealed[0] != sealVersion {
		return Key{}, false, fmt.Errorf("open the signing key %s: not a sealed key of a known form", kid)
	}
	for i, secret := range secrets {
		aead, err := sealer(secret)
		if err != nil {
			return Key{}, false, fmt.Errorf("open the signing key %s: %w", kid, err)
		}
		plain, err := aead.Open(nil, nil, sealed[1:], sealedAs(kid, algorithm))
		if err != nil {
			continue
		}
		private, err := x509.ParsePKCS8PrivateKey(plain)
		if err != nil {
			return Key{}, false, fmt.Errorf("open the signing key %s: %w", kid, err)
		}
		signer, ok := private.(crypto.Signer)
		if !ok {
			return Key{}, false, fmt.Errorf("open the signing key %s: it cannot sign", kid)
		}
		key, err := newKey(algorithm, signer)
		if err != nil {
			return Key{}, false, fmt.Errorf("open the signing key %s: %w", kid, err)
		}
		if key.KID() != kid {
			return Key{}, false, fmt.Errorf("open the signing key %s: it is another key", kid)
		}
		return key, i > 0, nil
	}
	return Key{}, false, fmt.Errorf("open the signing key %s: %w", kid, ErrSealed)
}

func sealer(secret config.Secret) (cipher.AEAD, error) {
	if len(secret.Reveal()) < MinSecret {
		return nil, fmt.Errorf("the secret is shorter than %d bytes", MinSecret)
	}
	key, err := hkdf.Key(sha256.New, []byte(secret.Reveal()), nil, "authctl signing key at rest v1", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	// Nonces are random: a key is sealed a handful of times in the life of a secret.
	return cipher.NewGCMWithRandomNonce(block)
}

func sealedAs(kid, algorithm string) []byte { return []byte(kid + "\x00" + algorithm) }
