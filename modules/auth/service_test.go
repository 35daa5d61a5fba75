package auth

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// What a start has opened when it fails is closed: the process may try again.
func TestAStartThatFailsLeavesNoStatementBehind(t *testing.T) {
	t.Parallel()
	db, err := database.Open(t.Context(), database.Config{URL: config.Secret(dbtest.PostgresURL(t)), MaxConns: 1}, database.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	prepared := func() (n int) {
		if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%UPDATE session%'").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	registry := prometheus.NewRegistry()
	s, err := New(t.Context(), testConfig(), Deps{DB: db, Registry: registry})
	if err != nil {
		t.Fatal(err)
	}
	if n := prepared(); n != 1 {
		t.Errorf("%d statements are prepared by a service", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), testConfig(), Deps{DB: db, Registry: registry}); err == nil { // whose metrics are registered
		t.Fatal("it starts")
	}
	if n := prepared(); n != 0 {
		t.Errorf("%d statements are left", n)
	}
}
