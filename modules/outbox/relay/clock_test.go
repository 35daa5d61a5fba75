package relay

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// onlooker is a relay whose renewals and clock the test controls.
type onlooker struct {
	*Relay
	at  time.Time
	reg *prometheus.Registry
}

func observe(t *testing.T, db *database.DB, cfg Config) *onlooker {
	t.Helper()
	o := &onlooker{at: time.Now(), reg: prometheus.NewRegistry()}
	r, err := New(db, &counting{partitions: 4}, cfg, Options{Registry: o.reg, Now: func() time.Time { return o.at }})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.tryOpen(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.store.close)
	o.Relay = r
	return o
}

// after advances the time with renewals in between, and returns how many leases the relay has then.
func (o *onlooker) after(t *testing.T, d time.Duration) int {
	t.Helper()
	for end := o.at.Add(d); ; {
		if err := o.tick(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !o.at.Before(end) {
			return len(o.held)
		}
		o.at = o.at.Add(min(time.Second, end.Sub(o.at)))
	}
}

// leased gives all shards to a relay until a time relative to the database's clock. The relay
// states the length of its leases, or does not, or has no row.
func leased(t *testing.T, db *database.DB, says string, until time.Duration) (id string) {
	t.Helper()
	id = uuid.NewString()
	if says != "no row" {
		_, err := db.Write(t.Context(),
			`INSERT INTO outbox_relay (id, name, started_ms, until_ms, lease_ms) VALUES (?, 'another', 0, `+schema.Now(db)+` + ?, `+says+`)`,
			id, until.Milliseconds())
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.Write(t.Context(), `UPDATE outbox_shard SET epoch = 1, owner = ?, until_ms = `+schema.Now(db)+
		` + ?`, id, until.Milliseconds()); err != nil {
		t.Fatal(err)
	}
	return id
}

// A dead relay has leases that end in days, because the clock was ahead when it wrote them or was
// set back later. Other relays take over after one lease by their own clocks, and report it.
func TestALeaseThatEndsTooLateIsVoid(t *testing.T) {
	t.Parallel()
	for says, lease := range map[string]time.Duration{"5000": 5 * time.Second, "NULL": schema.LongestLease,
		"no row": schema.LongestLease} {
		for _, until := range []time.Duration{100 * time.Hour, lease + 30*time.Second} {
			t.Run(fmt.Sprintf("lease %s, until %s", says, until), func(t *testing.T) {
				t.Parallel()
				dbtest.Each(t, func(t *testing.T, db *database.DB) {
					leased(t, db, says, until)
					st, err := outbox.Status(t.Context(), db)
					if err != nil || st.LeasesAhead != 96 || len(st.Relays) != 0 || st.Shards[0].Owner != "" {
						t.Fatalf("%d leases ahead, relays %+v, first shard %+v, %v", st.LeasesAhead, st.Relays,
							st.Shards[0], err)
					}
					o := observe(t, db, Config{})
					if n := o.after(t, lease-time.Second); n != 0 {
						t.Errorf("it took %d shards before a lease was over", n)
					}
					if n := o.after(t, 2*time.Second); n != 96 {
						t.Errorf("it has %d shards after a lease", n)
					}
					if n := outboxtest.Metric(t, o.reg, "authctl_outbox_leases_void_total"); n != 96 {
						t.Errorf("it counted %v void leases", n)
					}
					if st, err = outbox.Status(t.Context(), db); err != nil || st.LeasesAhead != 0 ||
						len(st.Relays) != 1 ||
						st.Shards[0].Epoch != 2 {
						t.Errorf("%d leases ahead, relays %+v, first shard %+v, %v", st.LeasesAhead, st.Relays,
							st.Shards[0], err)
					}
				})
			})
		}
	}
}

// A relay that keeps renewing keeps its leases, whatever the database's clock says.
func TestALeaseThatIsRenewedIsKept(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		id := leased(t, db, "5000", 100*time.Hour)
		o := observe(t, db, Config{})
		for range 10 {
			if n := o.after(t, 2*time.Second); n != 0 {
				t.Fatalf("it took %d shards of a relay that lives", n)
			}
			for _, q := range []string{`UPDATE outbox_relay SET until_ms = until_ms + 2000 WHERE id = ?`,
				`UPDATE outbox_shard SET until_ms = until_ms + 2000 WHERE owner = ?`} {
				if _, err := db.Write(t.Context(), q, id); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// A relay that was silent for a whole lease renews its leases right after another one has looked for who lives.
func TestALeaseThatIsRenewedLateIsKept(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		id := leased(t, db, "5000", time.Hour)
		var first, last int64 // PostgreSQL reads the clock for each row
		if err := db.QueryRowContext(t.Context(), `SELECT min(until_ms), max(until_ms) FROM outbox_shard`).
			Scan(&first, &last); err != nil {
			t.Fatal(err)
		}
		o := observe(t, db, Config{})
		for _, c := range []struct {
			seen int64
			want int
		}{{first - 1, 0}, {last, 96}} {
			err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
				taken, err := o.take(ctx, tx, nil, map[string]int64{id: c.seen}, 96, schema.Now(tx), 5000)
				if len(taken) != c.want {
					t.Errorf("it takes %d shards, want %d", len(taken), c.want)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
	})
}

// A relay whose machine was suspended for longer than a lease says that it has lost its shards.
func TestARelayThatWasSuspendedSaysSo(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		o := observe(t, db, Config{})
		logged, logs := observer.New(zap.WarnLevel)
		o.log = zap.New(logged)
		o.after(t, 0)
		o.at = o.at.Add(time.Minute)
		o.after(t, 0)
		lines := logs.All()
		if len(lines) != 1 || lines[0].Message != "relay_shards_lost" || lines[0].ContextMap()["shards"] != int64(96) {
			t.Errorf("the log has %v", lines)
		}
	})
}

// Who looks for free shards does not wait for a lock, as VACUUM FULL holds it: the leases are to be renewed, and who cannot
// do that says so.
func TestALookForFreeShardsWaitsForNoLock(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	o := observe(t, db, Config{Lease: time.Second})
	err := db.Tx(t.Context(), func(ctx context.Context, tx database.Tx) error {
		if _, err := tx.ExecContext(ctx, `LOCK TABLE outbox_shard`); err != nil {
			return err
		}
		if n, err := o.unowned(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it found %d: %v", n, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// An expired lease is taken at once, as always.
func TestALeaseThatHasRunOutIsTakenAtOnce(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		leased(t, db, "5000", -time.Millisecond)
		o := observe(t, db, Config{})
		if n := o.after(t, 0); n != 96 {
			t.Errorf("it has %d shards", n)
		}
		if n := outboxtest.Metric(t, o.reg, "authctl_outbox_leases_void_total"); n != 0 {
			t.Errorf("it counted %v void leases", n)
		}
	})
}

// A relay is killed, and then the database's clock is set back. Another relay takes over after one
// lease.
func TestAClockThatWasSetBackDelaysNoTakeOver(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		outboxtest.AddKeys(t, db, "a", "b", "c")
		leased(t, db, "1000", time.Hour)
		sink := &counting{partitions: 4, seen: make(chan Record, 10)}
		r, err := New(db, sink, Config{Lease: time.Second}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		stop := start(t, r)
		sink.wait(t, 3)
		stop()
	})
}

func TestTheLongestLeaseIsWhatTheSettingAllows(t *testing.T) {
	t.Parallel()
	f, _ := reflect.TypeFor[Config]().FieldByName("Lease")
	if d, err := time.ParseDuration(f.Tag.Get("max")); err != nil || d != schema.LongestLease {
		t.Errorf("outbox.lease may be %v, %v; the longest lease is %v", d, err, schema.LongestLease)
	}
}
