package token

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/seal"
)

// ErrSealed is returned by [Open] when no secret opens the key.
var ErrSealed = errors.New("the signing key was sealed with another secret")

// sealPurpose is what package seal derives the keys for. What is sealed is PKCS #8.
const sealPurpose = "authctl signing key at rest v1"

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
	box, err := seal.New(sealPurpose, secret)
	if err != nil {
		return nil, fmt.Errorf("seal the signing key: %w", err)
	}
	return box.Seal(plain, sealedAs(k.KID(), k.Algorithm())), nil
}

// Open decrypts a key that [Key.Seal] made for the same kid and algorithm, with whichever of
// the secrets fits. reseal says that it was not the first one, the present one. The key that
// comes out has the kid it was asked for: the kid is its thumbprint.
func Open(sealed []byte, kid, algorithm string, secrets ...config.Secret) (key Key, reseal bool, err error) {
	defer func() {
		if err != nil {
			key, err = Key{}, fmt.Errorf("open the signing key %s: %w", kid, err)
		}
	}()
	if len(secrets) == 0 {
		return key, false, ErrSealed
	}
	box, err := seal.New(sealPurpose, secrets...)
	if err != nil {
		return key, false, err
	}
	plain, reseal, err := box.Open(sealed, sealedAs(kid, algorithm))
	if errors.Is(err, seal.ErrOtherSecret) {
		return key, false, ErrSealed
	}
	if err != nil {
		return key, false, err
	}
	private, err := x509.ParsePKCS8PrivateKey(plain)
	if err != nil {
		return key, false, err
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return key, false, errors.New("it cannot sign")
	}
	if key, err = newKey(algorithm, signer); err != nil {
		return key, false, err
	}
	if key.KID() != kid {
		return key, false, errors.New("it is another key")
	}
	return key, reseal, nil
}

func sealedAs(kid, algorithm string) string { return kid + "\x00" + algorithm }
