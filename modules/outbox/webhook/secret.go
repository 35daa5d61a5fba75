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

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/seal"
)

// secretPrefix begins the secret of a webhook in the form of Standard Webhooks.
const secretPrefix = "whsec_"

// secretBytes is how long the secret of a webhook is: as long as the digest of the HMAC.
const secretBytes = 32

// NewSecret makes a secret in the form of Standard Webhooks.
func NewSecret() config.Secret {
	secret := make([]byte, secretBytes)
	_, _ = rand.Read(secret) // never fails
	return config.Secret(secretPrefix + base64.StdEncoding.EncodeToString(secret))
}

// Seals opens and seals the secrets of webhooks.
type Seals struct{ box *seal.Box }

// NewSeals takes the secrets of the service, the current one first.
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

// overlap is how long a replaced secret still signs.
const overlap = 24 * time.Hour

// maxSecrets limits the signatures of a request.
const maxSecrets = 4

// ErrTooManySecrets says that too many former secrets of a target still sign.
var ErrTooManySecrets = fmt.Errorf("%d secrets of the webhook sign already: wait until one ends, or stop the "+
	"former ones", maxSecrets)

// Rotate returns the secrets of a target with a new one first. Former ones sign for another day; those
// that can no longer be opened are left out.
func (s *Seals) Rotate(t outbox.Subscription, now time.Time) (secrets []outbox.Secret, made config.Secret, err error) {
	made = NewSecret()
	secrets = []outbox.Secret{{Sealed: s.Seal(t.Name, made)}}
	for _, one := range t.Secrets {
		if _, _, err := s.box.Open(one.Sealed, t.Name); err != nil || ended(one, now) {
			continue
		}
		if one.Until.IsZero() {
			one.Until = now.Add(overlap).UTC().Truncate(time.Second)
		}
		secrets = append(secrets, one)
	}
	if len(secrets) > maxSecrets {
		return nil, "", ErrTooManySecrets
	}
	return secrets, made, nil
}

// Reseal returns the secrets of a target sealed under the current secret of the service, and whether
// that is a change. Secrets that no longer sign are left out: perhaps they can no longer be opened.
func (s *Seals) Reseal(t outbox.Subscription, now time.Time) (secrets []outbox.Secret, changed bool, err error) {
	for _, one := range t.Secrets {
		if ended(one, now) {
			changed = true
			continue
		}
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

func openError(t outbox.Subscription, err error) error {
	if errors.Is(err, seal.ErrOtherSecret) {
		err = errors.New("it was sealed with another secret of the service: put that one back, or name it in " +
			"AUTH_TOKEN_PREVIOUS_SECRETS, or make a new one with: authctl outbox target rotate-secret " + t.Name)
	}
	return fmt.Errorf("open the secret of the webhook %s: %w", t.Name, err)
}

// keys opens the secrets of a target that are in force, newest first.
func (s *Seals) keys(t outbox.Subscription, now time.Time) ([][]byte, error) {
	var keys [][]byte
	for _, one := range t.Secrets {
		if ended(one, now) {
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
				"authctl outbox target rotate-secret %s", t.Name, t.Name)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("the webhook %s has no secret; make one with: authctl outbox target rotate-secret %s",
			t.Name, t.Name)
	}
	return keys, nil
}

// ended reports whether a secret no longer signs.
func ended(s outbox.Secret, now time.Time) bool { return !s.Until.IsZero() && !now.Before(s.Until) }

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

// timestamp is a time in the form of webhook-timestamp: seconds since 1970.
func timestamp(at time.Time) string { return strconv.FormatInt(at.Unix(), 10) }
