// Package seal encrypts what rests in the database under keys that are derived from the secrets of
// the service: signing keys, secrets of webhooks, messages.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/toppira/authctl/platform/config"
)

// MinSecret is the fewest bytes of a secret. What is derived from a secret is no stronger than it.
const MinSecret = 32

// ErrOtherSecret is the error of [Box.Open] when no secret fits.
var ErrOtherSecret = errors.New("it was sealed with another secret")

// version begins everything that is sealed: HKDF-SHA-256, AES-256-GCM with a random nonce.
const version = 1

// Box seals and opens values of one purpose.
type Box struct{ aeads []cipher.AEAD }

// New derives a key from each secret. The first secret seals, each of them opens. purpose keeps the
// keys of different uses apart: a constant that is never changed and used nowhere else, such as
// "authctl webhook secret v1".
func New(purpose string, secrets ...config.Secret) (*Box, error) {
	b := &Box{}
	for _, secret := range secrets {
		if len(secret.Reveal()) < MinSecret {
			return nil, fmt.Errorf("the secret is shorter than %d bytes", MinSecret)
		}
		key, err := hkdf.Key(sha256.New, []byte(secret.Reveal()), nil, purpose, 32)
		if err != nil {
			return nil, fmt.Errorf("derive a key: %w", err)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, fmt.Errorf("make a cipher: %w", err)
		}
		// Nonces are random, which is safe for 2³² values under one key.
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, fmt.Errorf("make a cipher: %w", err)
		}
		b.aeads = append(b.aeads, aead)
	}
	if len(b.aeads) == 0 {
		return nil, errors.New("there is no secret")
	}
	return b, nil
}

// Seal encrypts a value. name says whose it is: it opens under the same name alone, so that nobody
// can put it in the place of another.
func (b *Box) Seal(plain []byte, name string) []byte {
	sealed := b.aeads[0].Seal(nil, nil, plain, []byte(name))
	return append([]byte{version}, sealed...)
}

// Open decrypts what [Box.Seal] made under the same name, with whichever of the secrets fits. reseal
// says that it was not the first one: seal the value again before that secret is taken away.
func (b *Box) Open(sealed []byte, name string) (plain []byte, reseal bool, err error) {
	if len(sealed) == 0 || sealed[0] != version {
		return nil, false, errors.New("it is not sealed in a known form")
	}
	for i, aead := range b.aeads {
		if plain, err := aead.Open(nil, nil, sealed[1:], []byte(name)); err == nil {
			return plain, i > 0, nil
		}
	}
	return nil, false, ErrOtherSecret
}
