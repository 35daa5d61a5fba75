package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
)

// ErrOtherTarget says that the outbox publishes to another target than the relay's sink. What the
// relay sent there would count as published, and the target would never get it.
var ErrOtherTarget = errors.New("the outbox has another target")

// ErrRelaysAlive says that a change is not allowed while relays run.
var ErrRelaysAlive = errors.New("relays are running")

// ErrPartitionsChanged ends a relay: the target no longer has the number of partitions that the
// order of keys relies on. New events of a key could overtake old ones.
var ErrPartitionsChanged = errors.New("the number of partitions has changed")

// ErrShards ends a relay whose number of shards does not fit the target or the outbox.
var ErrShards = errors.New("the number of shards does not fit")

// Target is a place that the outbox publishes to, or has published to.
type Target struct {
	Name       string    `json:"name"`       // of its sink
	State      string    `json:"state"`      // active or former
	Partitions int       `json:"partitions"` // that the order of keys relies on; 0: not known yet
	Identity   string    `json:"identity"`   // see [relay.Sink]; empty: not known yet, or the target does not say
	Since      time.Time `json:"since,omitzero"`
}

const active = "active"

// besideDatabase is the identity of a file in the folder of the SQLite database. It stays the same
// when the folder is moved, copied or mounted elsewhere.
const besideDatabase = "beside the database"

func (t Target) String() string {
	kind, place, _ := strings.Cut(t.Name, ":")
	switch {
	case kind == "file":
		return "the file " + place
	case kind == "kafka" && t.Identity != "":
		return fmt.Sprintf("the Kafka topic %q of the cluster %s", place, t.Identity)
	case kind == "kafka":
		return fmt.Sprintf("the Kafka topic %q", place)
	}
	return t.Name
}

// OnKafka reports whether it is a topic of a Kafka cluster.
func (t Target) OnKafka() bool { return strings.HasPrefix(t.Name, "kafka:") }

// Targets lists the active target first and then the former ones.
func Targets(ctx context.Context, db database.IDB) ([]Target, error) {
	return database.Collect(ctx, db, "read the targets of the outbox", func(row database.Row) (t Target, err error) {
		var since int64
		err = row.Scan(&t.Name, &t.State, &t.Partitions, &t.Identity, &since)
		if since > 0 {
			t.Since = time.UnixMilli(since).UTC()
		}
		return t, err
	}, `SELECT name, state, coalesce(partitions, 0), identity, since_ms FROM outbox_target ORDER BY state, name`)
}

// AdmitTarget returns the outbox's target if it is the named one, and makes the named one the
// target if the outbox has none. Otherwise the error wraps [ErrOtherTarget] and says what to do. A
// nil identity means that it is not known yet.
func AdmitTarget(ctx context.Context, db *database.DB, name string, identity *string) (Target, error) {
	// Read first: in the usual case no lock is needed.
	t, is, err := compareTarget(ctx, db, name, identity)
	if err != nil || is == recorded {
		return t, err
	}
	err = bounded(ctx, db, func(ctx context.Context, tx database.Tx) error {
		if err := lockTargets(ctx, tx); err != nil {
			return err
		}
		if t, is, err = compareTarget(ctx, tx, name, identity); err != nil || is == recorded {
			return err
		}
		if is == first {
			if t.Since, err = moment(ctx, tx); err != nil {
				return err
			}
		}
		return activate(ctx, tx, t)
	})
	if err != nil && !errors.Is(err, ErrOtherTarget) {
		err = fmt.Errorf("record the target of the outbox: %w", err)
	}
	return t, err
}

// CheckTarget is [AdmitTarget] without writing anything.
func CheckTarget(ctx context.Context, db *database.DB, name string, identity *string) error {
	_, _, err := compareTarget(ctx, db, name, identity)
	return err
}

// comparison is the result of comparing a named target with the recorded one.
type comparison int

const (
	recorded comparison = iota // it is the target, and its row is complete
	partly                     // it is the target, and its row must be completed
	first                      // there is no target yet
)

// compareTarget returns the named target as its row should be.
func compareTarget(
	ctx context.Context, db database.IDB, name string, identity *string,
) (t Target, is comparison, err error) {
	list, err := Targets(ctx, db)
	if err != nil {
		return t, 0, err
	}
	named := Target{Name: name, State: active}
	if identity != nil {
		named.Identity = *identity
	}
	beside, err := isBesideDatabase(ctx, db, named)
	if err != nil {
		return t, 0, err
	}
	if beside {
		named.Identity = besideDatabase
	}
	if len(list) == 0 {
		return named, first, nil
	}
	t = list[0]
	if t.State != active {
		// Of several that were used before the target was recorded, the first relay decides.
		i := slices.IndexFunc(list, func(t Target) bool { return sameName(t, named) })
		if i < 0 {
			return t, 0, otherTarget(list, named)
		}
		t, is = list[i], partly
		t.State = active
	}
	switch {
	case beside && (t.Identity == besideDatabase || t.Identity == "" && sameName(t, named) || movedAway(t, named)):
		if t.Name != name || t.Identity != besideDatabase {
			t.Name, t.Identity, is = name, besideDatabase, partly
		}
	case !sameName(t, named):
		return t, 0, otherTarget([]Target{t}, named)
	case identity == nil || t.Identity == named.Identity:
	case t.Identity == "":
		t.Identity, is = named.Identity, partly
	default:
		return t, 0, otherTarget([]Target{t}, named)
	}
	return t, is, nil
}

// sameName reports whether two names mean one place. A file can have several names: its folder may
// be a link or a mount.
func sameName(a, b Target) bool {
	if a.Name == b.Name {
		return true
	}
	from, isFile := strings.CutPrefix(a.Name, "file:")
	to, areFiles := strings.CutPrefix(b.Name, "file:")
	return isFile && areFiles && filepath.Base(from) == filepath.Base(to) && sameFolder(from, to)
}

func sameFolder(a, b string) bool {
	if filepath.Dir(a) == filepath.Dir(b) {
		return true // also while it is moved away
	}
	first, err := os.Stat(filepath.Dir(a))
	if err != nil {
		return false
	}
	second, err := os.Stat(filepath.Dir(b))
	return err == nil && os.SameFile(first, second)
}

// isBesideDatabase reports whether a target is a file in the folder of the SQLite database.
func isBesideDatabase(ctx context.Context, db database.IDB, t Target) (bool, error) {
	path, isFile := strings.CutPrefix(t.Name, "file:")
	if !isFile || database.IsPostgres(db) {
		return false, nil
	}
	var file string
	err := db.QueryRowContext(ctx, `SELECT file FROM pragma_database_list WHERE name = 'main'`).Scan(&file)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return false, fmt.Errorf("find the folder of the database: %w", err)
	}
	return file != "" && sameFolder(path, file), nil
}

// movedAway reports whether a folder was moved rather than replaced, for a file of which only the
// path is known: then nothing is left at the old path.
func movedAway(was, named Target) bool {
	from, isFile := strings.CutPrefix(was.Name, "file:")
	if !isFile || was.Identity != "" || filepath.Base(from) != filepath.Base(named.Name) {
		return false
	}
	_, err := os.Stat(from)
	return errors.Is(err, os.ErrNotExist)
}

func otherTarget(have []Target, named Target) error {
	is := make([]string, len(have))
	for i, t := range have {
		is[i] = t.String()
		if t.Identity == besideDatabase { // the path may be the same where the database was moved
			is[i] += " beside the database"
		}
	}
	verb, first := "publishes to", "Name the brokers and the topic of the target (KAFKA_BROKERS, KAFKA_TOPIC)"
	if len(have) > 1 {
		verb = "has published to"
	} else if path, isFile := strings.CutPrefix(have[0].Name, "file:"); isFile {
		first = "Name no Kafka, and APP_DATA_DIR=" + filepath.Dir(path)
		if have[0].Identity == besideDatabase {
			first = "Name no Kafka, and in APP_DATA_DIR the folder of the database"
		}
	}
	why := ""
	if strings.HasPrefix(named.Name, "file:") && !strings.HasPrefix(have[0].Name, "file:") {
		why = ", since they name no Kafka"
	}
	return fmt.Errorf("%w: it %s %s, and these settings name %s%s. Nothing is published. %s; "+
		"or set OUTBOX_RELAY=off, so that serve leaves the events to other relays; "+
		"or, to publish to %s from now on, run: authctl outbox target set",
		ErrOtherTarget, verb, strings.Join(is, " and "), named, why, first, named)
}

// bounded runs fn in a transaction with locks for which relays and deliverers wait. If its process stops in the middle,
// such as a command whose terminal is suspended, the server ends it soon.
func bounded(ctx context.Context, db *database.DB, fn func(ctx context.Context, tx database.Tx) error) error {
	return db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		if err := schema.Bounded(ctx, tx, 5*time.Second); err != nil {
			return err
		}
		return fn(ctx, tx)
	})
}

// lockTargets serialises changes of the target.
func lockTargets(ctx context.Context, tx database.Tx) error {
	_, err := tx.ExecContext(ctx, `SELECT 1 FROM outbox_setting`+database.ForUpdate(tx))
	return err
}

// activate writes the row of the target and marks every other one as former.
func activate(ctx context.Context, tx database.Tx, t Target) error {
	if t.Identity == besideDatabase { // it is one file, under whatever path it was known
		_, err := tx.ExecContext(ctx, `DELETE FROM outbox_target WHERE identity = ? AND name <> ?`, besideDatabase, t.Name)
		if err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, `UPDATE outbox_target SET state = 'former' WHERE state = 'active' AND name <> ?`, t.Name)
	if err != nil {
		return err
	}
	var partitions *int
	if t.Partitions > 0 {
		partitions = &t.Partitions
	}
	var since int64
	if !t.Since.IsZero() {
		since = t.Since.UnixMilli()
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO outbox_target (name, state, partitions, identity, since_ms) VALUES (?, 'active', ?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET state = excluded.state, partitions = excluded.partitions,
			identity = excluded.identity, since_ms = excluded.since_ms`,
		t.Name, partitions, t.Identity, since)
	return err
}

// moment reads the database's clock.
func moment(ctx context.Context, db database.IDB) (time.Time, error) {
	var ms int64
	err := db.QueryRowContext(ctx, `SELECT `+schema.Now(db)).Scan(&ms)
	return time.UnixMilli(ms).UTC(), err
}

// TargetChange is what [SetTarget] did or would do.
type TargetChange struct {
	From    *Target `json:"from"` // nil: the outbox had none
	To      Target  `json:"to"`
	Changed bool    `json:"changed"`
	Waiting int64   `json:"waiting"` // pending events, which go to the new target
	Parked  int64   `json:"parked"`  // keys whose events stay parked
}

// PlanTarget says what [SetTarget] would do, and fails as it would.
func PlanTarget(ctx context.Context, db *database.DB, to Target, shards int) (TargetChange, error) {
	change, err := planTarget(ctx, db, to, shards)
	return change, wrapSetTarget(err)
}

// SetTarget makes the outbox publish to another target. Published events stay where they are;
// pending ones go to the new target. It fails with [ErrRelaysAlive] while relays run.
func SetTarget(ctx context.Context, db *database.DB, to Target, shards int) (change TargetChange, err error) {
	err = bounded(ctx, db, func(ctx context.Context, tx database.Tx) error {
		if database.IsPostgres(tx) {
			// A relay that starts writes its row here before it reads the target.
			if _, err := tx.ExecContext(ctx, `LOCK TABLE outbox_relay IN SHARE ROW EXCLUSIVE MODE`); err != nil {
				return err
			}
		}
		if err := lockTargets(ctx, tx); err != nil {
			return err
		}
		if change, err = planTarget(ctx, tx, to, shards); err != nil || !change.Changed {
			return err
		}
		if change.To.Since, err = moment(ctx, tx); err != nil {
			return err
		}
		return activate(ctx, tx, change.To)
	})
	if err == nil && change.Changed {
		settle(ctx, db)
	}
	return change, wrapSetTarget(err)
}

// settle forgets what relays have last reported of the log, since an operator has changed what they ended of. A role
// without the right to do so leaves it to the next relay: until then it is shown.
func settle(ctx context.Context, db *database.DB) {
	_, _ = db.Write(ctx, `DELETE FROM outbox_trouble WHERE target <> ?`, DeliveryTargets)
}

func wrapSetTarget(err error) error {
	if err == nil || errors.Is(err, ErrRelaysAlive) || errors.Is(err, ErrPartitionsChanged) ||
		errors.Is(err, ErrShards) {
		return err
	}
	return fmt.Errorf("change the target of the outbox: %w", err)
}

func planTarget(ctx context.Context, db database.IDB, to Target, shards int) (change TargetChange, err error) {
	t, is, err := compareTarget(ctx, db, to.Name, &to.Identity)
	if err == nil && is != first {
		return TargetChange{From: &t, To: t}, nil
	}
	if err != nil && !errors.Is(err, ErrOtherTarget) {
		return change, err
	}
	if beside, err := isBesideDatabase(ctx, db, to); err != nil {
		return change, err
	} else if beside {
		to.Identity = besideDatabase
	}
	to.State = active
	change.To, change.Changed = to, true
	list, err := Targets(ctx, db)
	if err != nil {
		return change, err
	}
	for _, t := range list {
		if t.State == active {
			change.From = &t
		}
		same := t.Name == to.Name && (t.Identity == to.Identity || t.Identity == "")
		if same && t.Partitions > 0 && t.Partitions != to.Partitions {
			return change, Repartitioned(to, t.Partitions)
		}
	}
	if err := fits(to, shards); err != nil {
		return change, err
	}
	err = db.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM outbox_pending), (SELECT count(*) FROM outbox_parked_key)`).
		Scan(&change.Waiting, &change.Parked)
	if err != nil {
		return change, fmt.Errorf("count what waits: %w", err)
	}
	return change, noRelays(ctx, db, "the target can change only while none runs")
}

// StillTarget fails if the outbox no longer publishes to the target that a relay was admitted to.
// Call it in the transaction that writes the relay's row, after that: see [SetTarget].
func StillTarget(ctx context.Context, tx database.Tx, admitted Target) error {
	if admitted.Name == "" {
		return nil
	}
	var is Target
	err := tx.QueryRowContext(ctx, `SELECT name, identity FROM outbox_target WHERE state = 'active'`).Scan(&is.Name, &is.Identity)
	switch {
	case database.IsNotFound(err):
		return fmt.Errorf("%w: it has none any more, and this relay publishes to %s. Start the relay again",
			ErrOtherTarget, admitted)
	case err != nil:
		return fmt.Errorf("read the target of the outbox: %w", err)
	case is.Identity == besideDatabase && admitted.Identity == besideDatabase,
		is.Name == admitted.Name && (is.Identity == admitted.Identity || admitted.Identity == ""):
		return nil
	}
	return otherTarget([]Target{is}, admitted)
}

// PinPartitions records how many partitions the target has when it is first used, and compares the
// number later.
func PinPartitions(ctx context.Context, db *database.DB, now Target, partitions, shards int) error {
	now.Partitions = partitions
	if err := fits(now, shards); err != nil {
		return err
	}
	var pinned int
	err := db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE outbox_target SET partitions = ? WHERE name = ? AND partitions IS NULL`,
			partitions, now.Name)
		if err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, `SELECT partitions FROM outbox_target WHERE name = ?`, now.Name).Scan(&pinned)
	})
	if err != nil {
		return fmt.Errorf("record the number of partitions: %w", err)
	}
	if pinned != partitions {
		return Repartitioned(now, pinned)
	}
	return nil
}

// fits fails if the shards cannot be divided evenly among the partitions of a target.
func fits(t Target, shards int) error {
	if shards%t.Partitions == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s has %d partitions, and outbox.shards is %d, which is not a multiple of that. "+
		"Set outbox.shards to %d", ErrShards, t, t.Partitions, shards, (shards/t.Partitions+1)*t.Partitions)
}

// Repartitioned is the error for a target that no longer has the recorded number of partitions.
func Repartitioned(now Target, pinned int) error {
	return fmt.Errorf("%w: %s has %d partitions, and events were published to it with %d. Keys would move to other "+
		"partitions, where their new events could overtake old ones. Nothing is lost: events wait. Once "+
		"consumers have read everything published so far, accept the new number with: authctl outbox topic ensure "+
		"--accept-partitions %d",
		ErrPartitionsChanged, now, now.Partitions, pinned, now.Partitions)
}

// AcceptPartitions records a new number of partitions of the target, which the order of keys relies
// on from then on. Consumers must have read everything that was published with the old one. It
// fails with [ErrRelaysAlive] while relays run.
func AcceptPartitions(
	ctx context.Context, db *database.DB, name string, identity *string, partitions int,
) error {
	err := bounded(ctx, db, func(ctx context.Context, tx database.Tx) error {
		if err := lockTargets(ctx, tx); err != nil {
			return err
		}
		t, is, err := compareTarget(ctx, tx, name, identity)
		switch {
		case err != nil:
			return err
		case is == first || t.Partitions == 0:
			return errors.New("nothing was published there yet, so no number is recorded")
		case t.Partitions == partitions:
			return nil
		}
		if err := noRelays(ctx, tx, "they publish with the old number"); err != nil {
			return err
		}
		t.Partitions = partitions
		return activate(ctx, tx, t)
	})
	if err != nil {
		return fmt.Errorf("accept the number of partitions: %w", err)
	}
	settle(ctx, db)
	return nil
}

// LivingRelays returns the names of the relays that run.
func LivingRelays(ctx context.Context, db database.IDB) ([]string, error) {
	// A clock that was ahead wrote rows that end later than any lease can: see status.
	return database.Collect(ctx, db, "list the relays", database.Value[string],
		`SELECT name FROM outbox_relay WHERE until_ms > `+schema.Now(db)+`
			AND until_ms <= `+schema.Now(db)+` + coalesce(lease_ms, ?) + 1000 ORDER BY name`, schema.LongestLease.Milliseconds())
}

// noRelays returns [ErrRelaysAlive] with the names of the relays that run.
func noRelays(ctx context.Context, db database.IDB, why string) error {
	names, err := LivingRelays(ctx, db)
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return fmt.Errorf("%w: %s. Stop them first (a server that relays as well: restart it with "+
			"OUTBOX_RELAY=off); %s", ErrRelaysAlive, strings.Join(names, ", "), why)
	}
	return nil
}
