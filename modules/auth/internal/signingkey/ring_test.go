package signingkey

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/auth/internal/token"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// keyClock is a clock that only tests move.
type keyClock struct{ at atomic.Int64 }

func newKeyClock() *keyClock {
	c := &keyClock{}
	c.at.Store(time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *keyClock) now() time.Time { return time.Unix(0, c.at.Load()) }

func (c *keyClock) advance(d time.Duration) { c.at.Add(int64(d)) }

func keyConfig(algorithm string) token.Config {
	return token.Config{
		Secret: "the first secret that is long enough", Algorithm: algorithm, AccessTTL: 5 * time.Hour,
		Issuer: "https://auth.example.com", Audience: []string{"api"}, ClientID: "web",
	}
}

// eachDatabase gives the test a new database, which the test can open several times, as several
// processes do.
func eachDatabase(t *testing.T, test func(t *testing.T, open func() *database.DB)) {
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		dsn := "sqlite:" + filepath.Join(t.TempDir(), "keys.db")
		if _, err := migrations.Up(t.Context(), dbtest.Open(t, dsn)); err != nil {
			t.Fatal(err)
		}
		test(t, func() *database.DB { return dbtest.Open(t, dsn) })
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		dsn := dbtest.PostgresURL(t)
		test(t, func() *database.DB { return dbtest.Open(t, dsn) })
	})
}

func startKeys(t testing.TB, db *database.DB, cfg token.Config, clock *keyClock) *Ring {
	t.Helper()
	k, err := New(t.Context(), db, cfg, nil, clock.now)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func signWith(t testing.TB, k *Ring) string {
	t.Helper()
	now := k.now()
	signed, err := k.Active().Sign(token.Claims{
		Issuer: k.cfg.Issuer, Audience: k.cfg.Audience, ClientID: k.cfg.ClientID,
		Subject: uuid.New(), ID: uuid.New(), SessionID: uuid.New(),
		IssuedAt: now, AuthTime: now, ExpiresAt: now.Add(k.cfg.AccessTTL),
	})
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func verifierOf(k *Ring) *token.Verifier { return k.cfg.Verifier(k.now, k.Public) }

// published lists the kids of the JWKS.
func published(t testing.TB, k *Ring) []string {
	t.Helper()
	body, etag := k.JWKS()
	var set struct {
		Keys []map[string]any `json:"keys"`
	}
	if err := json.Unmarshal(body, &set); err != nil || etag == "" {
		t.Fatalf("JWKS %s, ETag %q: %v", body, etag, err)
	}
	kids := []string{}
	for _, key := range set.Keys {
		if key["d"] != nil || key["k"] != nil {
			t.Fatalf("a private member is published: %s", body)
		}
		kids = append(kids, key["kid"].(string))
	}
	return kids
}

func mustKey(t testing.TB) func(info Info, err error) Info {
	return func(info Info, err error) Info {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
}

func keyStatus(t testing.TB, k *Ring, kid string) Info {
	t.Helper()
	list, err := k.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range list {
		if info.KID == kid {
			return info
		}
	}
	t.Fatalf("no key %s among %v", kid, list)
	return Info{}
}

func sealedKey(t testing.TB, db *database.DB, kid string) []byte {
	t.Helper()
	rows, err := readKeys(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	row, err := findKey(rows, kid)
	if err != nil {
		t.Fatal(err)
	}
	return row.sealed
}

func TestManyFirstStartsMakeOneKey(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, open func() *database.DB) {
		const processes = 8
		clock := newKeyClock()
		keyrings := make([]*Ring, processes)
		start := make(chan struct{})
		var wg sync.WaitGroup
		for i := range processes {
			db := open()
			wg.Go(func() {
				<-start
				k, err := New(t.Context(), db, keyConfig(token.ES256), nil, clock.now)
				if err != nil {
					t.Error(err)
				}
				keyrings[i] = k
			})
		}
		close(start)
		wg.Wait()
		if t.Failed() {
			return
		}
		list, err := keyrings[0].List(t.Context())
		if err != nil || len(list) != 1 || list[0].Status != Active || !list[0].ActiveAt.Equal(clock.now()) {
			t.Fatalf("keys %+v, %v; want one, active", list, err)
		}
		for _, k := range keyrings {
			if k.Active().KID() != list[0].KID {
				t.Errorf("a process signs with %s, not %s", k.Active().KID(), list[0].KID)
			}
			if _, err := verifierOf(k).Verify(signWith(t, keyrings[0])); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestARotationStepByStep(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		clock, must := newKeyClock(), mustKey(t)
		k := startKeys(t, db, keyConfig(token.ES256), clock)
		verify := verifierOf(k)
		first := k.Active().KID()
		old := signWith(t, k)
		_, etag := k.JWKS()

		clock.advance(time.Hour)
		staged := must(k.Stage(t.Context()))
		if staged.Status != Staged || staged.Algorithm != token.ES256 || !staged.StagedAt.Equal(clock.now()) {
			t.Errorf("staged: %+v", staged)
		}
		if got := published(t, k); len(got) != 2 || k.Active().KID() != first {
			t.Errorf("with a staged key, published %v, active %s", got, k.Active().KID())
		}
		if _, after := k.JWKS(); after == etag {
			t.Error("the key set changed, its ETag did not")
		}
		if _, err := k.Promote(t.Context(), staged.KID, false); !errors.Is(err, ErrTooNew) {
			t.Errorf("promote at once: %v", err)
		}
		clock.advance(JWKSMaxAge)
		if _, err := k.Promote(t.Context(), staged.KID, false); !errors.Is(err, ErrTooNew) {
			t.Errorf("promote when a server may have just noticed: %v", err)
		}
		if _, err := k.Retire(t.Context(), first, true); !errors.Is(err, ErrStatus) {
			t.Errorf("retire the active key: %v", err)
		}
		clock.advance(propagation)
		if !clock.now().Equal(keyStatus(t, k, staged.KID).PromotableAt) {
			t.Errorf("promotable at %v, it is %v", staged.PromotableAt, clock.now())
		}
		promoted := must(k.Promote(t.Context(), staged.KID, false))
		if promoted.Status != Active || !promoted.ActiveAt.Equal(clock.now()) || k.Active().KID() != staged.KID {
			t.Errorf("promoted: %+v", promoted)
		}
		if _, err := k.Promote(t.Context(), staged.KID, true); !errors.Is(err, ErrStatus) {
			t.Errorf("promote the active key: %v", err)
		}
		if got := published(t, k); len(got) != 2 {
			t.Errorf("after the promotion, published %v", got)
		}
		for _, signed := range []string{old, signWith(t, k)} {
			if _, err := verify.Verify(signed); err != nil {
				t.Error(err)
			}
		}

		if _, err := k.Retire(t.Context(), first, false); !errors.Is(err, ErrInUse) {
			t.Errorf("retire at once: %v", err)
		}
		clock.advance(5*time.Hour + propagation - time.Microsecond)
		if _, err := k.Retire(t.Context(), first, false); !errors.Is(err, ErrInUse) {
			t.Errorf("retire a moment too early: %v", err)
		}
		clock.advance(time.Microsecond)
		retired := must(k.Retire(t.Context(), first, false))
		if retired.Status != Retired || !retired.RetiredAt.Equal(promoted.ActiveAt) {
			t.Errorf("retired: %+v", retired)
		}
		if got := published(t, k); len(got) != 1 || got[0] != staged.KID {
			t.Errorf("after retiring, published %v", got)
		}
		if sealed := sealedKey(t, db, first); len(sealed) != 0 {
			t.Errorf("the private half of a retired key is still there: %d bytes", len(sealed))
		}
		for what, err := range map[string]error{
			"promote a retired key": second(k.Promote(t.Context(), first, true)),
			"retire it again":       second(k.Retire(t.Context(), first, true)),
		} {
			if !errors.Is(err, ErrStatus) {
				t.Errorf("%s: %v", what, err)
			}
		}
		for what, err := range map[string]error{
			"promote": second(k.Promote(t.Context(), "unknown", true)),
			"retire":  second(k.Retire(t.Context(), "unknown", true)),
		} {
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("%s an unknown key: %v", what, err)
			}
		}
		if _, _, err := k.Revoke(t.Context(), "unknown", true); !errors.Is(err, ErrNotFound) {
			t.Errorf("revoke an unknown key: %v", err)
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestForcingIsObeyed(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	clock, must := newKeyClock(), mustKey(t)
	k := startKeys(t, db, keyConfig(token.EdDSA), clock)
	first := k.Active().KID()
	signed := signWith(t, k)
	verify := verifierOf(k)
	if _, err := verify.Verify(signed); err != nil {
		t.Fatal(err)
	}
	must(k.Promote(t.Context(), must(k.Stage(t.Context())).KID, true))
	if _, err := verify.Verify(signed); err != nil {
		t.Errorf("a token of the retiring key: %v", err)
	}
	must(k.Retire(t.Context(), first, true))
	if _, err := verify.Verify(signed); !errors.Is(err, token.ErrUnknownKey) {
		t.Errorf("a token of the retired key: %v", err)
	}
}

func TestARevokedKeyIsReplacedAtOnce(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		clock := newKeyClock()
		k := startKeys(t, db, keyConfig(token.ES256), clock)
		verify := verifierOf(k)
		first := k.Active().KID()
		signed := signWith(t, k)
		if _, err := verify.Verify(signed); err != nil { // and now it is in the cache
			t.Fatal(err)
		}

		revoked, successor, err := k.Revoke(t.Context(), first, true)
		if err != nil || revoked.Status != Revoked || !revoked.RetiredAt.Equal(clock.now()) {
			t.Fatalf("revoked %+v, %v", revoked, err)
		}
		if successor.Status != Active || successor.KID != k.Active().KID() || successor.KID == first {
			t.Errorf("successor %+v, active %s", successor, k.Active().KID())
		}
		if _, err := verify.Verify(signed); !errors.Is(err, token.ErrUnknownKey) {
			t.Errorf("a token of the revoked key: %v", err)
		}
		if got := published(t, k); len(got) != 1 || got[0] != successor.KID {
			t.Errorf("published %v", got)
		}
		if sealed := sealedKey(t, db, first); len(sealed) != 0 {
			t.Error("the private half of a revoked key is still there")
		}

		again, none, err := k.Revoke(t.Context(), first, true)
		if err != nil || again != revoked || none != (Info{}) {
			t.Errorf("revoked again: %+v, %+v, %v", again, none, err)
		}

		// With staged keys, the oldest takes over.
		clock.advance(time.Second)
		oldest := mustKey(t)(k.Stage(t.Context()))
		clock.advance(time.Second)
		newest := mustKey(t)(k.Stage(t.Context()))
		if _, next, err := k.Revoke(t.Context(), successor.KID, true); err != nil || next.KID != oldest.KID ||
			k.Active().KID() != oldest.KID {
			t.Errorf("successor %+v, %v; want the key staged first", next, err)
		}
		// A staged key signs nothing, so it needs no successor.
		gone, none, err := k.Revoke(t.Context(), newest.KID, true)
		if err != nil || gone.Status != Revoked || !gone.RetiredAt.IsZero() || none != (Info{}) ||
			k.Active().KID() != oldest.KID {
			t.Errorf("revoked a staged key: %+v, %+v, %v", gone, none, err)
		}
	})
}

func TestChangesAtTheSameTimeLeaveOneActiveKey(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, open func() *database.DB) {
		clock := newKeyClock()
		a := startKeys(t, open(), keyConfig(token.EdDSA), clock)
		b := startKeys(t, open(), keyConfig(token.EdDSA), clock)
		var wg sync.WaitGroup
		for _, k := range []*Ring{a, b} {
			for range 4 {
				staged := mustKey(t)(k.Stage(t.Context()))
				wg.Go(func() {
					if _, err := k.Promote(t.Context(), staged.KID, true); err != nil && !errors.Is(err, ErrStatus) {
						t.Errorf("promote: %v", err)
					}
				})
				wg.Go(func() {
					if _, _, err := k.Revoke(t.Context(), k.Active().KID(), true); err != nil {
						t.Errorf("revoke: %v", err)
					}
				})
			}
		}
		wg.Wait()
		list, err := a.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		active := ""
		for _, info := range list {
			if info.Status == Active {
				active += info.KID
			}
		}
		for _, k := range []*Ring{a, b} {
			if err := k.refresh(t.Context()); err != nil || k.Active().KID() != active {
				t.Errorf("active in memory %s, in the database %s, %v", k.Active().KID(), active, err)
			}
		}
	})
}

// Two servers constantly sign, and verify each other's tokens, while the keys rotate again and
// again. Each server notices a step only when it reads the keys.
func TestRotationUnderLoadFailsNoToken(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, open func() *database.DB) {
		clock, must := newKeyClock(), mustKey(t)
		cfg := keyConfig(token.EdDSA)
		cfg.AccessTTL = 10 * time.Minute
		servers := []*Ring{startKeys(t, open(), cfg, clock), startKeys(t, open(), cfg, clock)}
		operator := Open(open(), cfg, nil, clock.now)
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var rounds [2]atomic.Int64
		// turn waits until both servers have signed and verified more tokens.
		turn := func() {
			for i := range rounds {
				for before := rounds[i].Load(); rounds[i].Load() < before+10 && !t.Failed(); {
					time.Sleep(time.Millisecond)
				}
			}
		}
		for i, k := range servers {
			other := verifierOf(servers[1-i])
			own := verifierOf(k)
			wg.Go(func() {
				for ctx.Err() == nil {
					signed := signWith(t, k)
					for _, v := range []*token.Verifier{other, own} {
						// The clock may have moved by hours meanwhile.
						if _, err := v.Verify(signed); err != nil && !errors.Is(err, token.ErrExpired) {
							t.Errorf("a token of %s: %v", k.Active().KID(), err)
							return
						}
					}
					rounds[i].Add(1)
				}
			})
		}
		for range 5 {
			old := servers[0].Active().KID()
			staged := must(operator.Stage(t.Context()))
			for _, k := range servers {
				if err := k.refresh(t.Context()); err != nil {
					t.Error(err)
				}
			}
			clock.advance(JWKSMaxAge + propagation)
			must(operator.Promote(t.Context(), staged.KID, false))
			turn()
			for _, k := range servers { // the servers notice one after the other
				if err := k.refresh(t.Context()); err != nil {
					t.Error(err)
				}
				turn()
			}
			clock.advance(cfg.AccessTTL + propagation)
			must(operator.Retire(t.Context(), old, false))
			for _, k := range servers {
				if err := k.refresh(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}
		stop()
		wg.Wait()
	})
}

func TestAnUnknownKeyIsLookedForOnceASecond(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, open func() *database.DB) {
		clock := newKeyClock()
		k := startKeys(t, open(), keyConfig(token.ES256), clock)
		elsewhere := startKeys(t, open(), keyConfig(token.ES256), clock)
		known := func(kid string) bool { _, ok := k.Public(kid); return ok }

		emergency := mustKey(t)(elsewhere.Stage(t.Context()))
		if !known(emergency.KID) {
			t.Error("a key that another server made is not found")
		}
		second := mustKey(t)(elsewhere.Stage(t.Context()))
		for range 1000 {
			if known(second.KID) {
				t.Fatal("it read the keys again within the second")
			}
		}
		if known("made-up") {
			t.Error("a made-up key is known")
		}
		clock.advance(lookupEvery)
		if !known(second.KID) {
			t.Error("a second later it does not read the keys")
		}
	})
}

func TestRunNoticesWhatAnotherServerDid(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, open func() *database.DB) {
		clock := newKeyClock()
		k := startKeys(t, open(), keyConfig(token.ES256), clock)
		operator := Open(open(), keyConfig(token.ES256), nil, clock.now)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- k.Run(ctx) }()

		_, successor, err := operator.Revoke(t.Context(), k.Active().KID(), true)
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(testenv.Patience); k.Active().KID() != successor.KID; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the server did not notice")
			}
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestTheSecretIsReplaced(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		clock := newKeyClock()
		cfg := keyConfig(token.ES256)
		before := startKeys(t, db, cfg, clock)
		staged := mustKey(t)(before.Stage(t.Context()))
		signed := signWith(t, before)

		next := cfg
		next.Secret = "the second secret that is long enough"
		_, err := New(t.Context(), db, next, nil, clock.now)
		if !errors.Is(err, ErrWrongSecret) || !strings.Contains(err.Error(), "AUTH_TOKEN_PREVIOUS_SECRETS") {
			t.Errorf("with another secret: %v", err)
		}
		for _, secret := range []config.Secret{cfg.Secret, next.Secret} {
			if err != nil && strings.Contains(err.Error(), secret.Reveal()) {
				t.Errorf("the error reveals a secret: %v", err)
			}
		}

		next.PreviousSecrets = cfg.Secret
		during := startKeys(t, db, next, clock)
		if _, err := verifierOf(during).Verify(signed); err != nil {
			t.Errorf("with the old secret named: %v", err)
		}
		// The old servers still run, and must be able to open what was sealed again.
		if err := before.refresh(t.Context()); err != nil || before.Active().KID() != during.Active().KID() {
			t.Errorf("an old server: %v", err)
		}

		next.PreviousSecrets = ""
		after := startKeys(t, db, next, clock)
		if _, err := verifierOf(after).Verify(signed); err != nil {
			t.Errorf("with the old secret dropped: %v", err)
		}
		if _, ok := after.Public(staged.KID); !ok {
			t.Error("the staged key was not sealed again")
		}
	})
}

func TestALostSecretIsRecoveredFromByRevoking(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	clock := newKeyClock()
	lost := startKeys(t, db, keyConfig(token.ES256), clock)
	staged := mustKey(t)(lost.Stage(t.Context()))
	cfg := keyConfig(token.ES256)
	cfg.Secret = "the second secret that is long enough"

	operator := Open(db, cfg, nil, clock.now)
	if _, err := operator.Promote(t.Context(), staged.KID, true); !errors.Is(err, token.ErrSealed) {
		t.Errorf("promote a key that nobody can open: %v", err)
	}
	_, successor, err := operator.Revoke(t.Context(), lost.Active().KID(), true)
	if err != nil || successor.KID == staged.KID {
		t.Fatalf("successor %+v, %v; want a new key, the staged one cannot be opened", successor, err)
	}
	k := startKeys(t, db, cfg, clock)
	if _, err := verifierOf(k).Verify(signWith(t, k)); err != nil || k.Active().KID() != successor.KID {
		t.Error(err)
	}
	if got := published(t, k); len(got) != 1 {
		t.Errorf("published %v; want only what can be opened", got)
	}
}

func TestAKeyPromotedUnderAnotherSecretDoesNotStopAServer(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	clock := newKeyClock()
	k := startKeys(t, db, keyConfig(token.ES256), clock)
	before := k.Active().KID()
	other := Open(db, keyConfig(token.ES256), nil, clock.now)
	other.cfg.Secret = "the second secret that is long enough"
	promoted := mustKey(t)(other.Promote(t.Context(), mustKey(t)(other.Stage(t.Context())).KID, true))

	if err := k.refresh(t.Context()); !errors.Is(err, token.ErrSealed) || !strings.Contains(err.Error(), promoted.KID) {
		t.Errorf("refresh: %v; want it to name the key", err)
	}
	if k.Active().KID() != before {
		t.Errorf("it signs with %q; want the key it had, which is still published", k.Active().KID())
	}
	mustKey(t)(other.Retire(t.Context(), before, true))
	if err := k.refresh(t.Context()); !errors.Is(err, token.ErrSealed) {
		t.Error(err)
	}
	if signed, err := k.Active().Sign(token.Claims{}); err == nil || k.Active().KID() != "" {
		t.Errorf("it signs on with a key that is no longer published: %s", signed)
	}
}

// Somebody who can write to the table but does not know the secret must not be able to sign.
func TestAKeyPutIntoTheTableIsNotTrusted(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		clock := newKeyClock()
		k := startKeys(t, db, keyConfig(token.ES256), clock)
		theirs := Open(db, keyConfig(token.ES256), nil, clock.now)
		theirs.cfg.Secret = "a secret that is the attacker's own"
		row, err := theirs.generate(Staged)
		if err != nil {
			t.Fatal(err)
		}
		row.Status = Retiring
		if err := insertKey(t.Context(), db, row); err != nil {
			t.Fatal(err)
		}
		if err := k.refresh(t.Context()); !errors.Is(err, token.ErrSealed) || !strings.Contains(err.Error(), row.KID) {
			t.Errorf("refresh: %v; want it to name the key", err)
		}
		clock.advance(time.Minute)
		if _, ok := k.Public(row.KID); ok {
			t.Error("the key verifies")
		}
		if got := published(t, k); len(got) != 1 {
			t.Errorf("published %v", got)
		}
		if _, err := verifierOf(k).Verify(signWith(t, k)); err != nil {
			t.Error(err)
		}
	})
}

func TestKeysOutliveTheDatabaseInMemory(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	clock := newKeyClock()
	k := startKeys(t, db, keyConfig(token.EdDSA), clock)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := k.refresh(t.Context()); err == nil {
		t.Error("refreshed without a database")
	}
	if _, err := verifierOf(k).Verify(signWith(t, k)); err != nil {
		t.Error(err)
	}
	if _, ok := k.Public("unknown"); ok {
		t.Error("an unknown key is known")
	}
}

func TestANewAlgorithmComesWithTheNextKey(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	clock, must := newKeyClock(), mustKey(t)
	signed := signWith(t, startKeys(t, db, keyConfig(token.ES256), clock))
	for _, algorithm := range []string{token.EdDSA, token.RS256} {
		k := startKeys(t, db, keyConfig(algorithm), clock)
		if k.Active().Algorithm() == algorithm {
			t.Errorf("%s is in use although no such key was published", algorithm)
		}
		must(k.Promote(t.Context(), must(k.Stage(t.Context())).KID, true))
		if k.Active().Algorithm() != algorithm {
			t.Errorf("the next key is for %s", k.Active().Algorithm())
		}
		for _, signed := range []string{signed, signWith(t, k)} {
			if _, err := verifierOf(k).Verify(signed); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestTheSharedSecretHasNoKeysToManage(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	clock := newKeyClock()
	cfg := keyConfig(token.HS256)
	old := startKeys(t, db, cfg, clock)
	signed := signWith(t, old)
	if body, etag := old.JWKS(); string(body) != `{"keys":[]}` || etag == "" {
		t.Errorf("JWKS %s, ETag %s", body, etag)
	}

	next := cfg
	next.Secret = "the second secret that is long enough"
	if _, err := verifierOf(startKeys(t, db, next, clock)).Verify(signed); !errors.Is(err, token.ErrUnknownKey) {
		t.Errorf("under another secret: %v", err)
	}
	next.PreviousSecrets = cfg.Secret
	k := startKeys(t, db, next, clock)
	for _, signed := range []string{signed, signWith(t, k)} {
		if _, err := verifierOf(k).Verify(signed); err != nil {
			t.Error(err)
		}
	}

	_, _, revoke := k.Revoke(t.Context(), "x", true)
	for what, err := range map[string]error{
		"list":    second(k.List(t.Context())),
		"stage":   second(k.Stage(t.Context())),
		"promote": second(k.Promote(t.Context(), "x", true)),
		"retire":  second(k.Retire(t.Context(), "x", true)),
		"revoke":  revoke,
	} {
		if !errors.Is(err, ErrUnused) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if rows, err := readKeys(t.Context(), db); err != nil || len(rows) != 0 {
		t.Errorf("%d rows, %v; want none", len(rows), err)
	}
}

// With HS256 nothing in the database is sealed, so that a server with another secret would go on unnoticed.
func TestAServerWithAnotherSharedSecretIsNoticed(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, open func() *database.DB) {
		clock := newKeyClock()
		const first, second, third config.Secret = "the first secret that is long enough",
			"the second secret that is long enough", "the third secret that is long enough"
		for i, start := range []struct {
			secret, previous config.Secret
			differs          bool
		}{
			{first, "", false},
			{first, "", false},
			{second, "", true},
			{second, "", false},
			{first, second, false}, // while it is replaced
			{second, first, false},
			{first, second, false},
			{third, "", true},
		} {
			cfg := keyConfig(token.HS256)
			cfg.Secret, cfg.PreviousSecrets = start.secret, start.previous
			core, records := observer.New(zap.WarnLevel)
			k, err := New(t.Context(), open(), cfg, zap.New(core), clock.now)
			if err != nil {
				t.Fatal(err)
			}
			if err := k.Check(t.Context()); errors.Is(err, ErrOtherSecret) != start.differs {
				t.Errorf("start %d: %v", i, err)
			}
			k.noteSecret(t.Context())
			if n := records.FilterMessage("secret_differs").Len(); (n == 1) != start.differs || records.Len() != n {
				t.Errorf("start %d logs %v", i, records.All())
			}
			if err := k.Check(t.Context()); err != nil {
				t.Errorf("after start %d: %v", i, err)
			}
			if rows, err := readKeys(t.Context(), k.db); err != nil || len(rows) > 0 {
				t.Errorf("there are keys: %v, %v", rows, err)
			}
			clock.advance(time.Second - time.Duration(i%2)*time.Hour) // or set back: it was ahead
		}
	})
}

func TestWithoutASecretNoKeyIsMade(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []string{token.ES256, token.HS256} {
		for _, secret := range []config.Secret{"", "short"} {
			cfg := keyConfig(algorithm)
			cfg.Secret = secret
			db := dbtest.SQLite(t)
			if _, err := New(t.Context(), db, cfg, nil, newKeyClock().now); err == nil {
				t.Errorf("%s started with the secret %q", algorithm, secret.Reveal())
			}
			if rows, err := readKeys(t.Context(), db); err != nil || len(rows) != 0 {
				t.Errorf("%d rows, %v; want none", len(rows), err)
			}
		}
	}
}

func TestKeyInfoOnTheWire(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	k := Open(nil, keyConfig(token.ES256), nil, newKeyClock().now)
	staged, err := json.Marshal(k.info(keyRow{Info: Info{KID: "k", Algorithm: "ES256", Status: Staged, StagedAt: at}},
		at))
	if want := `{"kid":"k","algorithm":"ES256","status":"staged","staged_at":"2026-11-24T12:00:00Z","promotable_at":"2026-11-24T12:05:04Z"}`; err != nil || string(staged) != want {
		t.Errorf("got %s, %v; want %s", staged, err, want)
	}
	retiring := k.info(keyRow{Info: Info{Status: Retiring, RetiredAt: at}}, at)
	if want := at.Add(5*time.Hour + 4*time.Second); !retiring.RetirableAt.Equal(want) {
		t.Errorf("retirable at %v; want %v", retiring.RetirableAt, want)
	}
}
