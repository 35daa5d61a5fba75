package signingkey

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/modules/auth/internal/token"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// signsFor signs a token with the keyring's own lifetime.
func signsFor(t testing.TB, k *Ring) (string, error) {
	t.Helper()
	now := k.local()
	signer, err := k.Signer(t.Context())
	if err != nil {
		return "", err
	}
	return signer.Sign(token.Claims{
		Issuer: k.cfg.Issuer, Audience: k.cfg.Audience, ClientID: k.cfg.ClientID,
		Subject: uuid.New(), ID: uuid.New(), SessionID: uuid.New(),
		IssuedAt: now, AuthTime: now, ExpiresAt: now.Add(k.cfg.AccessTTL),
	})
}

func withTTL(ttl time.Duration) token.Config {
	cfg := keyConfig(token.EdDSA)
	cfg.AccessTTL = ttl
	return cfg
}

func TestAKeyIsRetiredWhenTheLongestLivedTokenOfAnyServerHasExpired(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, open func() *database.DB) {
		clock, must := newKeyClock(), mustKey(t)
		operator := Open(open(), withTTL(time.Hour), nil, clock.now) // with other settings than the servers'
		long, short := startKeys(
			t,
			open(),
			withTTL(10*time.Hour),
			clock,
		), startKeys(
			t,
			open(),
			withTTL(2*time.Hour),
			clock,
		)
		first := long.Active().KID()
		var last string
		for _, k := range []*Ring{short, long, short, long} {
			var err error
			if last, err = signsFor(t, k); err != nil {
				t.Fatal(err)
			}
		}
		staged := must(operator.Stage(t.Context()))
		must(operator.Promote(t.Context(), staged.KID, true))
		retiring := keyStatus(t, operator, first)
		if want := retiring.RetiredAt.Add(10*time.Hour + propagation); !retiring.RetirableAt.Equal(want) {
			t.Errorf("retirable at %v, want %v", retiring.RetirableAt, want)
		}
		clock.advance(time.Hour + propagation)
		if _, err := operator.Retire(t.Context(), first, false); !errors.Is(err, ErrInUse) {
			t.Errorf("while a token of it lives: %v", err)
		}
		if _, err := verifierOf(long).Verify(last); err != nil {
			t.Errorf("the token: %v", err)
		}
		clock.advance(9 * time.Hour)
		must(operator.Retire(t.Context(), first, false))

		// A server of a release without the column is assumed to issue tokens with the longest
		// possible lifetime.
		old, err := operator.generate(Staged)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := operator.db.Write(t.Context(),
			`INSERT INTO signing_key (kid, algorithm, status, public_jwk, sealed, staged_at, active_at)
			VALUES (?, ?, ?, ?, ?, ?, ?)`, old.KID, old.Algorithm, Staged, old.public, old.sealed, clock.now(), nil); err != nil {
			t.Fatal(err)
		}
		must(operator.Promote(t.Context(), old.KID, true))
		must(operator.Promote(t.Context(), must(operator.Stage(t.Context())).KID, true))
		if info := keyStatus(t, operator, old.KID); !info.RetirableAt.Equal(
			info.RetiredAt.Add(24*time.Hour + propagation),
		) {
			t.Errorf("a key of the previous release: %+v", info)
		}
	})
}

// Recording the lifetime costs one statement for each key, and happens before the first token is
// signed.
func TestALifetimeIsKeptBeforeTheFirstTokenAndOnce(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		clock := newKeyClock()
		k := startKeys(t, db, withTTL(time.Hour), clock)
		again := startKeys(t, db, withTTL(time.Hour), clock)
		if _, err := signsFor(t, k); err != nil {
			t.Fatal(err)
		}
		if err := again.refresh(t.Context()); err != nil { // it is recorded already
			t.Fatal(err)
		}
		never := startKeys(t, db, withTTL(2*time.Hour), clock)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		for _, k := range []*Ring{k, again} {
			if _, err := signsFor(t, k); err != nil {
				t.Errorf("with the lifetime kept: %v", err)
			}
		}
		if signed, err := signsFor(t, never); err == nil {
			t.Errorf("signed %s although its lifetime was not recorded", signed)
		}
	})
}

func TestAKeyTimeThatIsYetToComeHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, open func() *database.DB) {
		clock := newKeyClock()
		first := startKeys(t, open(), withTTL(time.Hour), clock).Active().KID()
		core, records := observer.New(zap.InfoLevel)
		keys := Open(open(), withTTL(time.Hour), zap.New(core), clock.now)
		const ahead = 100 * time.Hour

		clock.advance(ahead)
		staged, err := keys.Stage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		clock.advance(-ahead)
		if info := keyStatus(t, keys, staged.KID); !info.ClockWasAhead ||
			info.PromotableAt.After(clock.now().Add(JWKSMaxAge+propagation)) {
			t.Errorf("before it is put right: %+v", info)
		}
		if err := keys.Check(t.Context()); err == nil {
			t.Error("doctor is not told of it")
		}
		// It counts as staged at the first read, so that every verifier has time to learn it.
		if _, err := keys.Promote(t.Context(), staged.KID, false); !errors.Is(err, ErrTooNew) {
			t.Errorf("at once: %v", err)
		}
		if err := keys.Check(t.Context()); err != nil {
			t.Errorf("once it was put right: %v", err)
		}
		clock.advance(JWKSMaxAge + propagation)
		clock.advance(ahead)
		if _, err := keys.Promote(t.Context(), staged.KID, false); err != nil {
			t.Errorf("once verifiers know it: %v", err)
		}
		clock.advance(-ahead)
		if _, err := keys.Retire(t.Context(), first, false); !errors.Is(err, ErrInUse) {
			t.Errorf("retiring at once: %v", err)
		}
		clock.advance(time.Hour + propagation)
		if _, err := keys.Retire(t.Context(), first, false); err != nil {
			t.Errorf("retiring once its tokens have expired: %v", err)
		}
		if n := records.FilterMessage("signing_key_time_corrected").Len(); n != 2 {
			t.Errorf("%d corrections were recorded, want 2", n)
		}

		// A clock that is slightly ahead needs no correction.
		clock.advance(maxSkew)
		staged, err = keys.Stage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		clock.advance(-maxSkew)
		if info := keyStatus(t, keys, staged.KID); info.ClockWasAhead {
			t.Errorf("a minute ahead: %+v", info)
		}
	})
}

// While one caller reads the key set, another with an unknown kid does not wait for ever.
func TestALookForAnUnknownKeyEnds(t *testing.T) {
	t.Parallel()
	clock := newKeyClock()
	k := startKeys(t, dbtest.SQLite(t), keyConfig(token.EdDSA), clock)
	if !k.renewing.TryAcquire(1) {
		t.Fatal("the read has no turn")
	}
	defer k.renewing.Release(1)
	if _, ok := k.Public("unknown"); ok {
		t.Error("an unknown key is known")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := k.refresh(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a refresh whose caller has left: %v", err)
	}
}

func TestEachTroubleWithKeysIsToldOnce(t *testing.T) {
	t.Parallel()
	core, records := observer.New(zap.InfoLevel)
	log := zap.New(core)
	var logged problems
	sealed := map[string]error{"a": token.ErrSealed}
	for _, round := range []struct {
		unusable map[string]error
		err      error
		want     string
	}{
		{nil, nil, ""},
		{nil, errors.New("connection 1 was refused"), "signing_keys_not_refreshed"},
		{nil, errors.New("connection 2 was refused"), ""}, // other words for the same problem
		{sealed, nil, "signing_key_unusable"},
		{sealed, nil, ""},
		{nil, errors.New("connection 3 was refused"), "signing_keys_not_refreshed"},
		{map[string]error{"a": token.ErrSealed, "b": token.ErrSealed}, nil, "signing_key_unusable"},
		{map[string]error{"b": token.ErrSealed}, nil, ""},
		{nil, nil, "signing_keys_refreshed_again"},
		{nil, nil, ""},
		{sealed, nil, "signing_key_unusable"},
		{nil, nil, "signing_keys_refreshed_again"},
	} {
		logged.report(log, round.unusable, round.err)
		said := ""
		for _, r := range records.TakeAll() {
			said += r.Message
		}
		if said != round.want {
			t.Errorf("with %v, %v it says %q, want %q", round.unusable, round.err, said, round.want)
		}
	}
}
