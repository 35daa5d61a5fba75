// Package testenv finds the real PostgreSQL, Redis and Kafka that tests run against.
//
// Shared servers are named by environment variables, which deploy/test.sh sets:
//
//	AUTHCTL_TEST_POSTGRES  URL of a database whose user may create databases
//	AUTHCTL_TEST_REDIS     URL of a Redis
//	AUTHCTL_TEST_KAFKA     brokers, comma-separated
//	AUTHCTL_TEST_DEMAND    when set, a missing engine fails a test instead of skipping it
package testenv

import (
	"os"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/engines"
)

// Patience is how long a test waits for something that must happen. It tells a hang from a delay
// on a machine that is many times too busy, and measures nothing.
const Patience = 3 * time.Minute

// Eventually waits until the condition holds, and fails the test if it does not.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain: %s", Patience, what)
		}
	}
}

// FreePort returns a port of 127.0.0.1 that nothing listens on, and that no other test gets before this one has ended.
func FreePort(t testing.TB) int {
	t.Helper()
	port, reservation, err := engines.FreePort()
	Must(t, err)
	t.Cleanup(func() { _ = reservation.Close() })
	return port
}

// Postgres returns the URL of the shared PostgreSQL server.
func Postgres(t testing.TB) string { return need(t, "AUTHCTL_TEST_POSTGRES", "PostgreSQL") }

// Redis returns the URL of the shared Redis server. Each test uses its own keys.
func Redis(t testing.TB) string { return need(t, "AUTHCTL_TEST_REDIS", "Redis") }

// Kafka returns the brokers of the shared Kafka cluster. Each test makes its own topics.
func Kafka(t testing.TB) string { return need(t, "AUTHCTL_TEST_KAFKA", "Kafka") }

// Demanded reports whether a test must fail instead of being skipped when an engine is missing.
func Demanded() bool { return os.Getenv("AUTHCTL_TEST_DEMAND") != "" }

func need(t testing.TB, name, engine string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		Lacking(t, "no %s: set %s, or run deploy/test.sh, which starts one", engine, name)
	}
	return value
}

// Must ends the test if there is an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
