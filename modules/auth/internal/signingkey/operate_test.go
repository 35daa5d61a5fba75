package signingkey

import (
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/modules/auth/internal/token"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
)

func TestTheNameOfAKeyIsNeverTakenForFlags(t *testing.T) {
	t.Parallel()
	k := Open(nil, keyConfig("EdDSA"), nil, time.Now)
	for range 1000 {
		row, err := k.generate(Staged)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(row.KID, "-") {
			t.Fatalf("a key is called %s", row.KID)
		}
	}
}

func TestAnOperatorRevokesAKeyInUseOnlyByForce(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, open func() *database.DB) {
		clock := newKeyClock()
		first := startKeys(t, open(), keyConfig("ES256"), clock).Active().KID()
		core, records := observer.New(zap.InfoLevel)
		keys := Open(open(), keyConfig("ES256"), zap.New(core), clock.now)

		if _, _, err := keys.Revoke(t.Context(), first, false); !errors.Is(err, ErrInUse) {
			t.Errorf("the active key: %v", err)
		}
		staged, err := keys.Stage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := keys.Promote(t.Context(), staged.KID, false); !errors.Is(err, ErrTooNew) {
			t.Errorf("a new key: %v", err)
		}
		if _, err := keys.Promote(t.Context(), staged.KID, true); err != nil {
			t.Fatal(err)
		}
		if _, _, err := keys.Revoke(t.Context(), first, false); !errors.Is(err, ErrInUse) {
			t.Errorf("a retiring key: %v", err)
		}
		clock.advance(keyConfig("ES256").AccessTTL + propagation)
		if revoked, successor, err := keys.Revoke(t.Context(), first, false); err != nil ||
			revoked.Status != Revoked || successor.KID != "" {
			t.Errorf("a retiring key without live tokens: %+v, %+v, %v", revoked, successor, err)
		}
		unused, err := keys.Stage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := keys.Revoke(t.Context(), unused.KID, false); err != nil {
			t.Errorf("a staged key: %v", err)
		}
		revoked, successor, err := keys.Revoke(t.Context(), staged.KID, true)
		if err != nil || revoked.Status != Revoked || successor.Status != Active {
			t.Errorf("by force: %+v, %+v, %v", revoked, successor, err)
		}
		if _, _, err := keys.Revoke(t.Context(), "nothing", false); !errors.Is(err, ErrNotFound) {
			t.Errorf("no key: %v", err)
		}

		// The security log has what was done, and no refused attempt.
		var told []string
		for _, r := range records.All() {
			told = append(told, r.Message+" "+r.ContextMap()["kid"].(string))
		}
		want := []string{
			"signing_key_staged " + staged.KID, "signing_key_promoted " + staged.KID, "signing_key_revoked " + first,
			"signing_key_staged " + unused.KID, "signing_key_revoked " + unused.KID,
			"signing_key_revoked " + staged.KID,
		}
		if strings.Join(told, "\n") != strings.Join(want, "\n") {
			t.Errorf("the log says\n%s\nwant\n%s", strings.Join(told, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestTheKeysAreCheckedWithEverySecretInForce(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, open func() *database.DB) {
		check := func(change func(*token.Config)) error {
			cfg := keyConfig("ES256")
			change(&cfg)
			return Open(open(), cfg, zap.NewNop(), nil).Check(t.Context())
		}
		if err := check(func(*token.Config) {}); err != nil {
			t.Errorf("without a key: %v", err)
		}
		startKeys(t, open(), keyConfig("ES256"), newKeyClock())
		const other config.Secret = "another secret that is long enough"
		if err := check(func(*token.Config) {}); err != nil {
			t.Errorf("with the secret: %v", err)
		}
		if err := check(func(c *token.Config) { c.Secret = other }); !errors.Is(err, ErrWrongSecret) {
			t.Errorf("with another secret: %v", err)
		}
		if err := check(func(c *token.Config) { c.Secret, c.PreviousSecrets = other, c.Secret }); err != nil {
			t.Errorf("with the secret as a previous one: %v", err)
		}
		if err := check(func(c *token.Config) { c.Secret, c.Algorithm = other, "HS256" }); err != nil {
			t.Errorf("with HS256: %v", err)
		}
	})
}
