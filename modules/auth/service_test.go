package auth

import (
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// A process may retry a failed start, so the failed one must close what it opened. The test is not
// parallel, because it counts all goroutines.
func TestAStartThatFailsLeavesNothingOpen(t *testing.T) {
	db := dbtest.SQLite(t)
	// database/sql lists the statements that are still open.
	open := func() int {
		return reflect.ValueOf(db).Elem().FieldByName("pool").Elem().FieldByName("dep").Len()
	}
	workers := func() int {
		stacks := make([]byte, 1<<24)
		return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "internal/password.(*Pool).")
	}
	before, busy := open(), workers()
	s, err := New(t.Context(), testConfig(), Deps{DB: db})
	testenv.Must(t, err)
	if open() == before {
		t.Fatal("a service has no statements, so this test cannot fail")
	}
	testenv.Eventually(t, "its workers are running", func() bool { return workers() > busy })
	testenv.Must(t, s.Close())
	for _, taken := range []string{"authctl_throttle_refused_total", "authctl_revocation_followers"} {
		registry := prometheus.NewRegistry()
		registry.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: taken, Help: "taken"}))
		if _, err := New(t.Context(), testConfig(), Deps{DB: db, Registry: registry}); err == nil {
			t.Fatalf("it starts although the metric %s is taken", taken)
		}
		if n := open(); n != before {
			t.Errorf("%d statements remain open", n-before)
		}
		testenv.Eventually(t, "the workers have ended", func() bool { return workers() == busy })
	}
}
