package webhook

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/toppira/authctl/modules/outbox/delivery"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/seal"
)

// secretPrefix begins the secret of a webhook in the form of Standard Webhooks.
const secretPrefix = "whsec_"

// secretBytes is how long the secret of a webhook is: as long as the digest of the HMAC.
const secretBytes = 32

// NewSecret makes a secret in the form that libraries of Standard Webhooks take.
func NewSecret() config.Secret {
	secret := make([]byte, secretBytes)
	_, _ = rand.Read(secret) // never fails
	return config.Secret(secretPrefix + base64.StdEncoding.EncodeToString(secret))
}

// Seals opens and seals the secrets of webhooks.
type Seals struct{ box *seal.Box }

// NewSeals takes the secrets of the service, the present one first.
func NewSeals(secrets ...config.Secret) (*Seals, error) {
	box, err := seal.New("authctl webhook secret at rest v1", secrets...)
	if err != nil {
		return nil, fmt.Errorf("seal the secrets of webhooks: %w", err)
	}
	return &Seals{box}, nil
}

// Seal seals the secret of the target with that name.
func (s *Seals) Seal(target string, secret config.Secret) []byte {
	return s.box.Seal([]byte(secret.Reveal()), target)
}

// Reseal returns the secrets of a target sealed under the present secret of the service, and whether
// that is a change.
func (s *Seals) Reseal(t delivery.Target) (secrets []delivery.Secret, changed bool, err error) {
	for _, one := range t.Secrets {
		plain, reseal, err := s.box.Open(one.Sealed, t.Name)
		if err != nil {
			return nil, false, openError(t, err)
		}
		if reseal {
			one.Sealed, changed = s.box.Seal(plain, t.Name), true
		}
		secrets = append(secrets, one)
	}
	return secrets, changed, nil
}

func openError(t delivery.Target, err error) error {
	if errors.Is(err, seal.ErrOtherSecret) {
		err = errors.New("it was sealed with another secret of the service: put that one back, or name it in " +
			"AUTH_TOKEN_PREVIOUS_SECRETS, or make a new one with: authctl outbox target rotate-secret --drop-old " + t.Name)
	}
	return fmt.Errorf("open the secret of the webhook %s: %w", t.Name, err)
}

// keys opens the secrets of a target that are in force, newest first.
func (s *Seals) keys(t delivery.Target, now time.Time) ([][]byte, error) {
	var keys [][]byte
	for _, one := range t.Secrets {
		if !one.Until.IsZero() && !now.Before(one.Until) {
			continue
		}
		plain, _, err := s.box.Open(one.Sealed, t.Name)
		if err != nil {
			return nil, openError(t, err)
		}
		encoded, found := strings.CutPrefix(string(plain), secretPrefix)
		key, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil || !found || len(key) == 0 {
			return nil, fmt.Errorf("the secret of the webhook %s is damaged; make a new one with: "+
				"authctl outbox target rotate-secret --drop-old %s", t.Name, t.Name)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("the webhook %s has no secret; make one with: authctl outbox target rotate-secret %s", t.Name,
			t.Name)
	}
	return keys, nil
}

// sign returns the value of webhook-signature: a signature with each key.
func sign(keys [][]byte, id string, at time.Time, body []byte) string {
	signatures := make([]string, len(keys))
	for i, key := range keys {
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.", id, timestamp(at))
		_, _ = mac.Write(body) // never fails
		signatures[i] = "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	return strings.Join(signatures, " ")
}

// timestamp is a time as webhook-timestamp has it: in seconds since 1970.
func timestamp(at time.Time) string { return strconv.FormatInt(at.Unix(), 10) }
