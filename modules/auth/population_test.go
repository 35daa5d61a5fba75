package auth

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// populate writes accounts in the order of their creation. Their hashes show their position.
func (env *testEnv) populate(t testing.TB, n int, hash func(i int) string) {
	t.Helper()
	for start := 0; start < n; start += 1000 {
		var values []string
		var args []any
		for i := start; i < min(n, start+1000); i++ {
			id := uuid.NewString()
			values = append(values, "(?, ?, ?, ?, 'active', 0, ?, ?, ?)")
			now := time.Now().UTC()
			args = append(args, id, id, id, hash(i), now, now, now)
		}
		_, err := env.db.Write(t.Context(),
			`INSERT INTO users (id, username, username_canonical, password_hash, status, session_epoch,
			created_at, updated_at, password_changed_at) VALUES `+strings.Join(values, ", "), args...)
		testenv.Must(t, err)
	}
}

func TestTheSampleOfHashesIsEvenBoundedAndStable(t *testing.T) {
	t.Parallel()
	dbtestEach(t, func(t *testing.T, env *testEnv) {
		sample := func() []string {
			t.Helper()
			got, err := sampleHashes(t.Context(), env.db, 200)
			testenv.Must(t, err)
			return got
		}
		if got := sample(); len(got) != 0 {
			t.Errorf("of no accounts: %q", got)
		}
		env.populate(t, 3, func(i int) string { return fmt.Sprint("few ", i) })
		if got := count(sample()); len(got) != 3 {
			t.Errorf("of three accounts: %v", got)
		}
		// A quarter of them was imported much later, so their rows are next to each other in the
		// table.
		const all = 12_000
		env.populate(t, all, func(i int) string {
			if i >= all*3/4 {
				return "imported" + strings.Repeat("x", 100)
			}
			return "made here"
		})
		got := sample()
		if len(got) != 200 {
			t.Errorf("%d in the sample, want 200", len(got))
		}
		imported := 0
		for _, hash := range got {
			if strings.HasPrefix(hash, "imported") {
				imported++
			}
		}
		if imported < 30 || imported > 70 { // the mean is 50; the bounds are more than five standard deviations away
			t.Errorf("%d of 200 come from the imported quarter", imported)
		}
		if again := sample(); strings.Join(again, "\n") != strings.Join(got, "\n") {
			t.Error("the second sample of the same table differs")
		}
	})
}

func count(list []string) map[string]int {
	n := make(map[string]int)
	for _, s := range list {
		n[s]++
	}
	return n
}

// If imported accounts have expensive hashes, missing names must become as expensive, or the time
// reveals them.
func TestAServerLearnsTheKindsOfHashesThatAccountsHave(t *testing.T) {
	t.Parallel()
	env := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
	slow := "$pbkdf2-sha256$i=5000000,l=32$OcfYm7NWCiGkVKoVIiQEwA$1iksvPI71QBofTyWeHqg15+tVo4QMOw0yEMew6vz95U"
	env.populate(t, 10, func(int) string { return slow })
	verify := func() error {
		_, err := env.passwords.Verify(tight(t), "nobody", "password", func() (string, bool, error) {
			return "", false, nil
		})
		return err
	}
	for deadline := time.Now().Add(testenv.Patience); verify() != nil; {
		if time.Now().After(deadline) {
			t.Fatal("the machine is too busy for a cheap hash")
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- env.Run(ctx) }()
	for deadline := time.Now().Add(testenv.Patience); ; time.Sleep(10 * time.Millisecond) {
		if verify() != nil {
			break // an expensive hash would take longer than that
		}
		if time.Now().After(deadline) {
			t.Fatal("missing names still cost what they did before the import")
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A sample of a thousand would contain every twelfth account, and take all for cheap.
func TestAServerLearnsFromAsManyHashesAsItTakes(t *testing.T) {
	t.Parallel()
	env := newEnv(t, testConfig(), dbtest.SQLite(t), nil)
	env.populate(t, 12_000, func(i int) string {
		if i%12 == 0 {
			return importHash
		}
		return "$pbkdf2-sha256$i=5000000,l=32$OcfYm7NWCiGkVKoVIiQEwA$1iksvPI71QBofTyWeHqg15+tVo4QMOw0yEMew6vz95U"
	})
	if env.learnPopulation(t.Context()); strings.Contains(env.log.String(), "hash_population_not_read") {
		t.Fatal(env.log)
	}
	// Names of both kinds are soon found: the cheap ones answer, the expensive ones take seconds.
	for i := range 100 {
		_, err := env.passwords.Verify(tight(t), fmt.Sprint("nobody-", i), "password", func() (string, bool, error) {
			return "", false, nil
		})
		if errors.Is(err, context.DeadlineExceeded) {
			return
		}
		testenv.Must(t, err)
	}
	t.Error("no missing name is as expensive as eleven twelfths of the accounts")
}

// tight leaves enough time for a cheap hash, but not for an expensive one.
func tight(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}
