package main

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

func TestAClockIsCheckedByHowFarItIsOff(t *testing.T) {
	t.Parallel()
	for off, want := range map[time.Duration]string{
		0: checkOK, 900 * time.Millisecond: checkOK, -900 * time.Millisecond: checkOK,
		2 * time.Second: checkWarn, -2 * time.Second: checkWarn,
		time.Minute: checkFail, -time.Hour: checkFail,
	} {
		if got := checkClock(off, "database"); got.Status != want || (want != checkOK) != (got.Advice != "") {
			t.Errorf("%s off: %+v, want %s", off, got, want)
		} else if want != checkOK && strings.Contains(got.Found, "behind the database's") != (off > 0) {
			t.Errorf("%s off: %+v", off, got)
		}
	}
}

func TestASecretThatRepeatsItselfIsWeak(t *testing.T) {
	t.Parallel()
	for secret, strong := range map[string]bool{
		"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa":                 false,
		"abababababababababababababababababab":                             false,
		"00000000000000000000000000000001":                                 false,
		"secretsecretsecretsecretsecretse":                                 false,
		"Gk2xq0Y8cW3mZ7rT1vB5nD9hJ4pL6sQa":                                 true,
		"3q2+7wAAc29tZSByYW5kb20gYnl0ZXMgaGVyZSBmb3IgdGVzdHM9":             true,
		"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08": true,
	} {
		if bits := strength(secret); (bits >= 100) != strong {
			t.Errorf("%s: %.0f bits", secret, bits)
		}
	}
}

func TestDoctorTellsAPortOfOursFromSomebodyElses(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	testenv.Must(t, err)
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	d := &doctor{app: &app{}}
	addr := listener.Addr().String()
	if f := d.port(t.Context(), "APP_OPERATOR_ADDR", addr, false); f.Status != checkFail || !strings.Contains(f.Found,
		"in use by another program") ||
		f.Advice != "stop it, or set APP_OPERATOR_ADDR to another one" {
		t.Errorf("%+v", f)
	}
}

// An authctl that hangs must not be taken for another program, which an operator would stop.
func TestDoctorSaysThatAPortDoesNotAnswer(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0") // connections wait in its queue
	testenv.Must(t, err)
	defer listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	d := &doctor{app: &app{}}
	addr := listener.Addr().String()
	if f := d.port(ctx, "APP_PORT", addr, false); f.Status != checkFail ||
		f.Found != "what listens on "+addr+" does not answer" {
		t.Errorf("%+v", f)
	}
}

// After a fail-over the former primary may come back and take writes as well.
func TestDoctorNamesSeveralServersThatTakeWrites(t *testing.T) {
	t.Parallel()
	former := outboxtest.StartPostgres(t, "wal_level = replica")
	standby := former.Standby(t)
	host := func(s *outboxtest.Server) string {
		u, err := url.Parse(s.URL)
		testenv.Must(t, err)
		return u.Host
	}
	complaints := func(hosts ...string) (list []string) {
		t.Helper()
		d := &doctor{app: &app{}}
		d.Database = database.Config{URL: config.Secret("postgres://postgres@" + strings.Join(hosts, ",") + "/postgres")}
		for _, f := range d.databaseWorks(t.Context()) {
			if f.Status != checkOK {
				list = append(list, f.Status+": "+f.Found)
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		return list
	}
	a, b := host(former), host(standby)
	_, port, _ := net.SplitHostPort(a)
	for _, hosts := range [][]string{{a}, {a, b}, {b, a}, {a, "localhost:" + port}, {"127.0.0.1:1", a}} {
		if found := complaints(hosts...); found != nil {
			t.Errorf("%v, one of which takes writes: %q", hosts, found)
		}
	}
	standby.Promote(t)
	want := []string{checkFail + ": several servers take writes: " + b + ", " + a}
	if found := complaints(b, a); !slices.Equal(found, want) {
		t.Errorf("%q, want %q", found, want)
	}
	if found := complaints(a); found != nil {
		t.Errorf("one server: %q", found)
	}
}

// As after an upgrade of PostgreSQL by logical replication. The migrations have used one of the sequences.
func TestDoctorNoticesACopyWithoutSequences(t *testing.T) {
	t.Parallel()
	db := dbtest.Postgres(t)
	d := &doctor{app: &app{db: db}}
	if _, err := db.ExecContext(t.Context(), "SELECT setval('bun_migrations_id_seq', 1, false)"); err != nil {
		t.Fatal(err)
	}
	var found finding
	for _, f := range d.schema(t.Context()) {
		if strings.Contains(f.Found, "copied without its sequences") && f.Status == checkFail {
			found = f
		}
	}
	_, statement, ok := strings.Cut(found.Advice, ": ")
	if !ok {
		t.Fatal("doctor has not noticed it")
	}
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
	for _, f := range d.schema(t.Context()) {
		if f.Status != checkOK {
			t.Errorf("raised: %+v", f)
		}
	}
}

// A folder for a group has the bit by which its files are of that group. Whoever is not of the group and sets the
// mode as it is takes the bit away.
func TestDoctorLeavesTheDataFolderAsItIs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	testenv.Must(t, errors.Join(os.Chmod(dir, 0o770|os.ModeSetgid), os.Chtimes(dir, time.Time{}, time.Unix(1, 0))))
	d := &doctor{app: &app{}}
	d.App.DataDir = dir
	before, err := os.Stat(dir)
	testenv.Must(t, err)
	if list := d.dataFolder(t.Context()); len(list) != 1 || list[0].Advice != "chmod 700 "+dir {
		t.Errorf("found %v", list)
	}
	after, err := os.Stat(dir)
	testenv.Must(t, err)
	if before.Mode() != after.Mode() || !before.ModTime().Equal(after.ModTime()) {
		t.Errorf("%v, changed %v, became %v, changed %v", before.Mode(), before.ModTime(), after.Mode(), after.ModTime())
	}
}

func TestDoctorMissesARelayBeforeEventsWait(t *testing.T) {
	t.Parallel()
	const start = "start authctl relay, or authctl serve with OUTBOX_RELAY=inline"
	relays := []outbox.RelayState{{Name: "vm/1"}}
	for name, test := range map[string]struct {
		state outbox.State
		want  finding
	}{
		"new":     {outbox.State{}, fine("nothing waits; 0 relays run")},
		"at work": {outbox.State{LastID: 7, Relays: relays}, fine("nothing waits; 1 relay runs")},
		"no relay": {outbox.State{LastID: 7}, doubtful("nothing waits, but no relay runs, and the next event will wait",
			start)},
		"waiting": {outbox.State{LastID: 7, Pending: 2, OldestAge: 3 * time.Second},
			doubtful("2 events wait, the oldest for 3s, and no relay runs", start)},
		// What the last relay reported does not pass by itself: nobody tries again.
		"ended in an outage": {outbox.State{LastID: 7, Pending: 2, OldestAge: 3 * time.Second,
			Outages: []outbox.Outage{{Relay: "vm/1", Kind: "retry", Error: "connection refused"}}},
			doubtful("2 events wait, the oldest for 3s, and no relay runs", start)},
		"ended for good before events wait": {outbox.State{LastID: 7,
			Outages: []outbox.Outage{{Relay: "vm/1", Kind: "partitions", Error: "there are 8 partitions"}}},
			doubtful("nothing waits, but no relay runs, and the next event will wait", start)},
		"outage": {outbox.State{LastID: 7, Pending: 2, OldestAge: 3 * time.Second, Relays: relays,
			Outages: []outbox.Outage{{Relay: "vm/1", Kind: "retry", Error: "connection refused", Lasts: true}}},
			fine("2 events wait, the oldest for 3s")},
	} {
		got := checkWaiting(test.state)
		if last := got[len(got)-1]; last != test.want {
			t.Errorf("%s: %+v, want %+v", name, last, test.want)
		}
		if len(test.state.Outages) == 0 {
			continue
		}
		lasts := test.state.Outages[0].Lasts
		if advice := got[0].Advice; len(got) != 2 || lasts != strings.Contains(advice, "by themselves") ||
			lasts == strings.Contains(got[0].Found, "vm/1, which has ended, could not publish") {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// The number of partitions that relays hold to is in the database. One that fits the settings alone is no good.
func TestDoctorSeesThatPartitionsWereAdded(t *testing.T) {
	t.Parallel()
	db := dbtest.SQLite(t)
	identity := "cluster"
	to, err := outbox.AdmitTarget(t.Context(), db, "kafka:auth.events", &identity)
	if err == nil {
		err = outbox.PinPartitions(t.Context(), db, to, 6, 96)
	}
	testenv.Must(t, err)
	d := &doctor{app: &app{db: db}, schemaFits: true}
	for partitions, fits := range map[int]bool{6: true, 8: false} {
		found := d.partitionsFit(t.Context(), "kafka:auth.events", partitions)
		if fits != (len(found) == 0) ||
			!fits && (found[0].Status != checkFail || !strings.Contains(found[0].Found, "--accept-partitions 8")) {
			t.Errorf("%d partitions: %+v", partitions, found)
		}
	}
	if found := d.partitionsFit(t.Context(), "kafka:elsewhere", 8); found != nil {
		t.Errorf("another topic: %+v", found)
	}
}
