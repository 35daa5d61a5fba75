package auth

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/modules/auth/internal/feed"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/testenv"
)

func TestAKeyWaitsForTheVerifiersThatFollow(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		keys := env.keys
		staged, err := keys.Stage(t.Context())
		testenv.Must(t, err)
		followAs := func(name, instance string, held ...string) {
			f, err := env.FollowRevocations(Follower{Client: "orders", Name: name, Instance: instance, Keys: held})
			testenv.Must(t, err)
			defer f.Close()
			if _, err := f.Next(t.Context(), "", 0); err != nil {
				t.Fatal(err)
			}
		}
		follow := func(name string, held ...string) { followAs(name, "", held...) }
		old := keys.Active().KID()
		follow("orders-1", old, staged.KID)
		follow("orders-2", old)
		follow("plain")
		testenv.Eventually(t, "all are known", func() bool {
			list, err := Verifiers(t.Context(), env.db, time.Minute)
			return err == nil && len(list) == 3
		})
		_, err = PromoteKey(t.Context(), env.db, keys, staged.KID, false)
		refusal, _ := errors.AsType[*fault.Fault](err)
		if !errors.Is(err, ErrKeyTooNew) ||
			!strings.HasPrefix(refusal.Message, "1 of 2 verifiers do not hold it yet: orders-2 (seen ") {
			t.Fatalf("while one lacks it: %v", err)
		}
		follow("orders-2", staged.KID)
		testenv.Eventually(t, "the verifiers hold it", func() bool {
			return heldByAll(t.Context(), env.db, staged.KID) == nil
		})
		// Of two processes with the same name, each must hold the key, whichever was seen last.
		followAs("twins", "A", old)
		followAs("twins", "B", old, staged.KID)
		const oneTwin = "1 of 4 verifiers do not hold it yet: twins/A (seen "
		testenv.Eventually(t, "one twin lacks the key", func() bool {
			refusal, _ := errors.AsType[*fault.Fault](heldByAll(t.Context(), env.db, staged.KID))
			return refusal != nil && strings.HasPrefix(refusal.Message, oneTwin)
		})
		followAs("twins", "A", staged.KID)
		testenv.Eventually(t, "both twins hold the key", func() bool {
			return heldByAll(t.Context(), env.db, staged.KID) == nil
		})
		// From then on only the key set's age counts.
		if _, err := PromoteKey(t.Context(), env.db, keys, staged.KID, false); !errors.Is(err, ErrKeyTooNew) ||
			strings.Contains(err.Error(), "orders") {
			t.Errorf("while caches may hold the old key set: %v", err)
		}
		follow("late")
		if _, err := PromoteKey(t.Context(), env.db, keys, staged.KID, true); err != nil {
			t.Errorf("by force: %v", err)
		}
		if _, err := PromoteKey(t.Context(), env.db, keys, "nothing", false); !errors.Is(err, ErrKeyNotFound) {
			t.Errorf("with an unknown key: %v", err)
		}
		// Verifiers that were not seen lately do not count.
		if _, err := env.db.Write(t.Context(),
			"UPDATE verifier SET keys = 'none', seen_ms = seen_ms - 120000"); err != nil {
			t.Fatal(err)
		}
		if err := heldByAll(t.Context(), env.db, staged.KID); err != nil {
			t.Errorf("with verifiers that have gone: %v", err)
		}
		// If as many are remembered as possible, there may be others.
		fill := "INSERT INTO verifier (client, name, instance, version, keys, seen_ms, lag_ms) SELECT 'many', 'x', i, '', ?, ?, 0 FROM "
		if env.db.IsPostgres() {
			fill += "generate_series(1, ?) i"
		} else {
			fill += "(WITH RECURSIVE s (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < ?) SELECT i FROM s)"
		}
		if _, err := env.db.Write(t.Context(), fill, staged.KID, time.Now().UnixMilli(),
			feed.MostOfClient); err != nil {
			t.Fatal(err)
		}
		const most = "Only 4096 verifiers of the client many are remembered"
		refusal, _ = errors.AsType[*fault.Fault](heldByAll(t.Context(), env.db, staged.KID))
		if refusal == nil || !strings.HasPrefix(refusal.Message, most) {
			t.Errorf("with as many as are remembered: %v", refusal)
		}
	})
}
