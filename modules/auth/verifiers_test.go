package auth

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/testenv"
)

func TestAKeyWaitsForTheVerifiersThatFollow(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, env *testEnv) {
		keys := env.keys
		staged, err := keys.Stage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		follow := func(name string, held ...string) {
			f, err := env.FollowRevocations(Follower{Client: "orders", Name: name, Keys: held})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.Next(t.Context(), "", 0); err != nil {
				t.Fatal(err)
			}
		}
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
		if !errors.Is(err, ErrKeyTooNew) || !strings.HasPrefix(refusal.Message, "1 of 2 verifiers do not hold it yet: orders-2 (seen ") {
			t.Fatalf("while one does not hold it: %v", err)
		}
		follow("orders-2", staged.KID)
		testenv.Eventually(t, "the verifiers hold it", func() bool { return heldByAll(t.Context(), env.db, staged.KID) == nil })
		// From there on it is the key set's age alone.
		if _, err := PromoteKey(t.Context(), env.db, keys, staged.KID, false); !errors.Is(err, ErrKeyTooNew) || strings.Contains(err.Error(), "orders") {
			t.Errorf("while the key set may be kept: %v", err)
		}
		follow("late")
		if _, err := PromoteKey(t.Context(), env.db, keys, staged.KID, true); err != nil {
			t.Errorf("by force: %v", err)
		}
		if _, err := PromoteKey(t.Context(), env.db, keys, "nothing", false); !errors.Is(err, ErrKeyNotFound) {
			t.Errorf("of a key that there is not: %v", err)
		}
		// Who has not been seen lately is not waited for.
		if _, err := env.db.Write(t.Context(), "UPDATE verifier SET keys = 'none', seen_ms = seen_ms - 120000"); err != nil {
			t.Fatal(err)
		}
		if err := heldByAll(t.Context(), env.db, staged.KID); err != nil {
			t.Errorf("of those who have gone: %v", err)
		}
	})
}
