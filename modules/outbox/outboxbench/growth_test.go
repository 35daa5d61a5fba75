package outboxbench_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxbench"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// A backlog is what relays and commands find in an outbox. It stays while other events are
// published past it.
func TestABacklogStaysWhileOthersArePublished(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	fill := func(events, keys, have int) {
		t.Helper()
		err := outboxbench.Fill(t.Context(), db, outboxbench.Backlog{Events: events, Keys: keys, Have: have,
			Key: func(i int) string { return fmt.Sprintf("key-%032d", i) }, Progress: func(string, int, int) {}})
		if err != nil {
			t.Fatal(err)
		}
	}
	fill(0, 100, 0)
	fill(300, 100, 100) // with more keys than exist
	st, err := outbox.Status(t.Context(), db)
	if err != nil || st.Pending != 300 {
		t.Fatalf("%d events wait, want 300: %v", st.Pending, err)
	}
	targets, err := outbox.Deliveries(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range targets {
		if one.Name == "growth" && (one.Waiting != 300 || one.Active()) {
			t.Errorf("the target is %+v", one)
		}
	}
	f, err := outboxbench.StartFlow(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	took, err := f.Measure(t.Context(), 500*time.Millisecond, 100)
	if err != nil || len(took) < 20 {
		t.Errorf("%d events were published, %v", len(took), err)
	}
	testenv.Eventually(t, "what was published waits no longer", func() bool { // Stop hardly waits for that
		st, err := outbox.Status(t.Context(), db)
		return err == nil && st.Pending <= 300
	})
	if err := f.Stop(); err != nil {
		t.Error(err)
	}
	if st, err = outbox.Status(t.Context(), db); err != nil || st.Pending != 300 {
		t.Errorf("%d events wait, want 300: %v", st.Pending, err)
	}
	if err := outboxbench.Add(t.Context(), db, 1001, 2); err != nil {
		t.Fatal(err)
	}
	if st, err = outbox.Status(t.Context(), db); err != nil || st.Pending != 1301 {
		t.Errorf("%d events wait, want 1301: %v", st.Pending, err)
	}
}
