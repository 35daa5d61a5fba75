package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
)

// passing reports whether trouble of a kind may well be over with the next attempt.
func passing(kind string) bool { return !outbox.Trouble{Kind: kind}.NeedsPerson() }

// What is in trouble beside partitions, which have numbers.
const (
	databaseTrouble = -1
	targetTrouble   = -2 // it was not reached yet
)

// trouble says that something does not work once, then once a minute while it lasts, and
// once that it works again: not for each attempt of each partition. What the next attempt
// may well mend, a connection that a broker closed because it was idle, is not said before
// it has lasted a second.
type trouble struct {
	log *zap.Logger
	now func() time.Time
	met *metrics

	mu    sync.Mutex
	where map[int]hitch // by partition
	since time.Time
	said  map[string]time.Time
}

// hitch is what was last met in one place.
type hitch struct {
	kind  string
	err   error
	since time.Time // of the first one of its kind there
}

func (t *trouble) count(kind string) { t.met.errors.WithLabelValues(kind).Inc() }

func (t *trouble) begin(partition int, kind string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.where) == 0 {
		t.where, t.said, t.since = map[int]hitch{}, map[string]time.Time{}, t.now()
	}
	h := hitch{kind: kind, err: err, since: t.now()}
	if before, had := t.where[partition]; had && before.kind == kind {
		h.since = before.since
	}
	t.where[partition] = h
	if passing(kind) && t.now().Sub(t.since) < time.Second {
		return
	}
	if last, said := t.said[kind]; said && t.now().Sub(last) < time.Minute {
		return
	}
	t.said[kind] = t.now()
	message := "events cannot be published now; they wait in order"
	switch kind {
	case "database":
		message = "the relay cannot reach the database now; events wait in order"
	case "retry":
	default:
		message = "events cannot be published until someone acts; they wait in order"
	}
	t.log.Error(message, zap.String("kind", kind), zap.Error(err),
		zap.Duration("for", t.now().Sub(t.since).Round(time.Millisecond)))
}

// database counts and says an error of the database, and target one of the sink. What was
// being done is in the way of a partition, or of all of them.
func (t *trouble) database(err error) {
	kind := "database"
	if database.IsForbidden(err) {
		kind, err = "rights", forbidden(err)
	}
	t.count(kind)
	t.begin(databaseTrouble, kind, err)
}

func (t *trouble) target(partition int, err error) (kind string) {
	kind = "retry"
	if stalled, ok := errors.AsType[*Stalled](err); ok {
		kind = stalled.Kind
	}
	t.count(kind)
	t.begin(partition, kind, err)
	return kind
}

func forbidden(err error) error {
	return fmt.Errorf("this database role may not relay events: run deploy/postgres/grants.sql after each migration; "+
		"where relays run elsewhere, set OUTBOX_RELAY=off for serve: %w", err)
}

// sinkError is an error of the sink among those of the database.
type sinkError struct{ error }

func (e sinkError) Unwrap() error { return e.error }

func (t *trouble) over(partition int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, had := t.where[partition]; !had {
		return
	}
	delete(t.where, partition)
	if len(t.where) == 0 && len(t.said) > 0 {
		t.log.Info("events are published again", zap.Duration("after", t.now().Sub(t.since).Round(time.Millisecond)))
	}
}

// keep forgets the partitions that are not this relay's any more: another one publishes them,
// and says so.
func (t *trouble) keep(owned map[int]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	had := len(t.where)
	maps.DeleteFunc(t.where, func(partition int, _ hitch) bool { return partition >= 0 && !owned[partition] })
	if had > 0 && len(t.where) == 0 && len(t.said) > 0 {
		t.log.Info("the events that could not be published are another relay's now",
			zap.Duration("after", t.now().Sub(t.since).Round(time.Millisecond)))
	}
}

// worst is what should be told to people: what needs one, else what has lasted for longest.
// Trouble with the database is not told through it.
func (t *trouble) worst() (h hitch, any bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, partition := range slices.Sorted(maps.Keys(t.where)) {
		c := t.where[partition]
		if c.kind == "database" || passing(c.kind) && t.now().Sub(c.since) < time.Second {
			continue
		}
		if !any || passing(h.kind) && !passing(c.kind) || passing(h.kind) == passing(c.kind) && c.since.Before(h.since) {
			h, any = c, true
		}
	}
	return h, any
}

var troubleSeconds = prometheus.NewDesc("authctl_outbox_trouble_seconds",
	"For how long this relay has met nothing but errors of the kind in some partition; 0: it meets none.",
	[]string{"kind"}, nil)

// Describe implements [prometheus.Collector].
func (t *trouble) Describe(c chan<- *prometheus.Desc) { c <- troubleSeconds }

// Collect implements [prometheus.Collector].
func (t *trouble) Collect(c chan<- prometheus.Metric) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, kind := range outbox.Kinds {
		seconds := 0.0
		for _, h := range t.where {
			if h.kind == kind {
				seconds = max(seconds, t.now().Sub(h.since).Seconds())
			}
		}
		c <- prometheus.MustNewConstMetric(troubleSeconds, prometheus.GaugeValue, seconds, kind)
	}
}

const (
	troubleLook   = time.Second      // how soon the database hears of new trouble
	troubleRepeat = 10 * time.Second // and again while it lasts
	troubleKept   = 24 * time.Hour   // of relays that are gone
	maxErrorText  = 1000             // bytes
)

// reportTrouble tells the database what keeps this relay from publishing, for people who look
// from elsewhere: at once, and six times a minute while it lasts.
func (r *Relay) reportTrouble(ctx context.Context) {
	told := hitch{}
	var last time.Time
	failed := false
	for sleep(ctx, troubleLook) {
		h, any := r.trouble.worst()
		if h.kind == told.kind && (!any || r.now().Sub(last) < troubleRepeat) {
			continue
		}
		if err := r.tellTrouble(ctx, h, schema.TroubleHolds); err != nil {
			if !failed && ctx.Err() == nil {
				r.log.Warn("what keeps events from being published cannot be told to authctl outbox status", zap.Error(err))
			}
			failed = true
			continue
		}
		told, last, failed = h, r.now(), false
	}
}

// endTrouble leaves what ended the relay, or kept it from publishing, as its last word.
func (r *Relay) endTrouble(ctx context.Context, cause error) {
	h, any := r.trouble.worst()
	kinds := map[error]string{outbox.ErrOtherTarget: "target", outbox.ErrPartitionsChanged: "partitions", outbox.ErrShards: "shards"}
	for err, kind := range kinds {
		if errors.Is(cause, err) {
			h, any = hitch{kind: kind, err: cause, since: r.now()}, true
			r.trouble.begin(targetTrouble, kind, cause)
		}
	}
	if !any {
		h = hitch{}
	}
	// The log has it as well.
	_ = r.tellTrouble(ctx, h, 0)
}

// tellTrouble writes the row of this relay, which holds for so long, or removes it.
func (r *Relay) tellTrouble(ctx context.Context, h hitch, holds time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if h.kind == "" {
		_, err := r.db.Write(ctx, `DELETE FROM outbox_trouble WHERE relay = ?`, r.id)
		return err
	}
	clock := schema.Now(r.db)
	_, err := r.db.Write(ctx, `INSERT INTO outbox_trouble (relay, target, name, kind, error, since_ms, until_ms)
		VALUES (?, ?, ?, ?, ?, `+clock+` - ?, `+clock+` + ?)
		ON CONFLICT (relay, target) DO UPDATE SET kind = excluded.kind, error = excluded.error, since_ms = excluded.since_ms, until_ms = excluded.until_ms`,
		r.id, r.sink.Name(), r.name, h.kind, errorText(h.err), r.now().Sub(h.since).Milliseconds(), holds.Milliseconds())
	return err
}

// errorText is an error as a column takes it.
func errorText(err error) string {
	text := strings.NewReplacer("\x00", "?", "\n", " ").Replace(strings.ToValidUTF8(err.Error(), "?"))
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "") + "…"
	}
	return text
}

// forgetTroubles removes the last words of relays that are gone for long.
func forgetTroubles(ctx context.Context, db *database.DB) error {
	clock := schema.Now(db)
	_, err := db.Write(ctx, `DELETE FROM outbox_trouble WHERE until_ms < `+clock+` - ? OR until_ms > `+clock+` + ?`,
		troubleKept.Milliseconds(), (2 * schema.TroubleHolds).Milliseconds())
	return err
}
