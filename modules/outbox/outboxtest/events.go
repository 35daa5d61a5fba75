package outboxtest

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
)

// Event is an event of the key, about the thing that the key names.
func Event(key string) outbox.Event {
	return outbox.Event{
		Type: "test.Happened.v1", Key: key, Subject: key, Source: "https://auth.example", Data: json.RawMessage(`{"a": 1}`),
	}
}

// Add commits the events in one transaction.
func Add(t testing.TB, db *database.DB, events ...outbox.Event) {
	t.Helper()
	err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error { return outbox.Add(ctx, tx, events...) })
	if err != nil {
		t.Fatal(err)
	}
}

// AddKeys commits an event of each key in one transaction.
func AddKeys(t testing.TB, db *database.DB, keys ...string) {
	t.Helper()
	events := make([]outbox.Event, len(keys))
	for i, key := range keys {
		events[i] = Event(key)
	}
	Add(t, db, events...)
}

// Metric is the value of a counter or gauge without labels.
func Metric(t testing.TB, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}
