package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/retry"
)

// transient reports whether the next attempt may well resolve an outage of the kind.
func transient(kind string) bool { return !outbox.Outage{Kind: kind}.NeedsPerson() }

// Outages that are of no partition. Partitions have numbers from 0 on.
const (
	databaseOutage = -1 // leases cannot be renewed
	targetOutage   = -2 // the target has not been reached yet
	fetchOutage    = -3 // events cannot be read, although leases can be renewed: rights may be missing for one of them
)

// outages logs an outage once, then once a minute while it lasts, and once when it is resolved,
// instead of every attempt of every partition. An outage that the next attempt may well resolve,
// such as a connection that a broker closed because it was idle, is logged after a second.
type outages struct {
	log      *zap.Logger
	now      func() time.Time
	met      *metrics
	patience time.Duration // with an attempt that is not answered

	lacksRights func(error) error // adds the remedy

	mu     sync.Mutex
	where  map[int]outage // by partition
	since  time.Time
	logged map[string]time.Time // by kind
}

// outage is the last error of one place.
type outage struct {
	kind  string
	err   error
	since time.Time // of the first error of its kind there
}

func (o *outages) count(kind string) { o.met.errors.WithLabelValues(kind).Inc() }

func (o *outages) begin(partition int, kind string, err error) {
	o.beganAt(partition, kind, err, o.now())
}

func (o *outages) beganAt(partition int, kind string, err error, since time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.where) == 0 {
		o.where, o.logged, o.since = map[int]outage{}, map[string]time.Time{}, since
	}
	now := outage{kind: kind, err: err, since: since}
	if before, had := o.where[partition]; had && before.kind == kind {
		now.since = before.since
	}
	o.where[partition] = now
	if transient(kind) && o.now().Sub(o.since) < time.Second {
		return
	}
	if last, logged := o.logged[kind]; logged && o.now().Sub(last) < time.Minute {
		return
	}
	o.logged[kind] = o.now()
	name, hint := "relay_stalled", "events wait in order until the cause is removed; see: authctl outbox status"
	switch kind {
	case "database":
		name, hint = "relay_database_away", "events wait in order"
	case "retry":
		name, hint = "relay_target_away", "events wait in order"
	}
	o.log.Error(name, zap.String("kind", kind), zap.Error(err), zap.Duration("lasted", o.duration()),
		zap.String("hint", hint))
}

func (o *outages) duration() time.Duration { return o.now().Sub(o.since).Round(time.Millisecond) }

// database counts and logs an error of the database that affects one partition, or all.
func (o *outages) database(where int, err error) {
	kind := "database"
	if database.IsForbidden(err) {
		kind, err = "rights", o.lacksRights(err)
	}
	o.count(kind)
	o.begin(where, kind, err)
}

// target counts and logs an error of the sink that affects one partition.
func (o *outages) target(partition int, err error) (kind string) {
	kind = "retry"
	if stalled, ok := errors.AsType[*Stalled](err); ok {
		kind = stalled.Kind
	}
	o.count(kind)
	o.begin(partition, kind, err)
	return kind
}

// awaiting makes one attempt at the target. If that gets no answer for a while, the outage begins before the attempt
// fails: a broker that is frozen still takes connections, and what is sent to it.
func (o *outages) awaiting(partition int, target outbox.Target, attempt func() error) error {
	begun, told := o.now(), make(chan struct{})
	timer := time.AfterFunc(o.patience, func() {
		defer close(told)
		o.mu.Lock()
		_, had := o.where[partition]
		o.mu.Unlock()
		if !had { // an attempt that has failed says more
			o.beganAt(partition, "retry", fmt.Errorf("%s has not answered for %s", target, o.patience), begun)
		}
	})
	err := attempt()
	if !timer.Stop() {
		<-told // so that whoever resolves it comes after
	}
	return err
}

// sinkError tells an error of the sink from one of the database.
type sinkError struct{ error }

func (e sinkError) Unwrap() error { return e.error }

func (o *outages) resolved(partition int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, had := o.where[partition]; !had {
		return
	}
	delete(o.where, partition)
	if len(o.where) == 0 && len(o.logged) > 0 {
		o.log.Info("relay_outage_ended", zap.Duration("lasted", o.duration()))
	}
}

// keep drops the outages of partitions that this relay no longer owns: their new owner reports
// them. Without any it fetches nothing.
func (o *outages) keep(owned map[int]bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	had := len(o.where)
	maps.DeleteFunc(o.where, func(partition int, _ outage) bool {
		return partition >= 0 && !owned[partition] || partition == fetchOutage && len(owned) == 0
	})
	if had > 0 && len(o.where) == 0 && len(o.logged) > 0 {
		o.log.Info("relay_outage_left_to_others", zap.Duration("lasted", o.duration()))
	}
}

// worst returns the outage to report: one that needs a person, else the one that has lasted
// longest. An outage of the database cannot be reported to it, and is never returned.
func (o *outages) worst() (worst outage, any bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, partition := range slices.Sorted(maps.Keys(o.where)) {
		c := o.where[partition]
		passes := transient(c.kind)
		if c.kind == "database" || passes && o.now().Sub(c.since) < time.Second {
			continue
		}
		if !any || transient(worst.kind) && !passes || transient(worst.kind) == passes && c.since.Before(worst.since) {
			worst, any = c, true
		}
	}
	return worst, any
}

var outageSeconds = prometheus.NewDesc("authctl_outbox_outage_seconds",
	"For how long this relay has met nothing but errors of the kind in some partition; 0: it meets none.",
	[]string{"kind"}, nil)

// Describe implements [prometheus.Collector].
func (o *outages) Describe(c chan<- *prometheus.Desc) { c <- outageSeconds }

// Collect implements [prometheus.Collector].
func (o *outages) Collect(c chan<- prometheus.Metric) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, kind := range outbox.Kinds {
		seconds := 0.0
		for _, at := range o.where {
			if at.kind == kind {
				seconds = max(seconds, o.now().Sub(at.since).Seconds())
			}
		}
		c <- prometheus.MustNewConstMetric(outageSeconds, prometheus.GaugeValue, seconds, kind)
	}
}

const (
	slowAnswer   = 3 * time.Second  // how late an answer of the target is when it counts as away
	reportEvery  = time.Second      // how soon the database learns of a new outage
	repeatReport = 10 * time.Second // and how often while it lasts
	keepReports  = 24 * time.Hour   // of relays that have ended
)

// reportOutage writes to the database what keeps this relay from publishing, for people who look
// from other machines: within a second, and six times a minute while it lasts.
func (r *Relay) reportOutage(ctx context.Context) {
	reported := outage{}
	var last time.Time
	failed := false
	for retry.Sleep(ctx, reportEvery) {
		worst, any := r.outages.worst()
		if worst.kind == reported.kind && (!any || r.now().Sub(last) < repeatReport) {
			continue
		}
		if err := r.writeOutage(ctx, worst, schema.OutageHolds); err != nil {
			if !failed && ctx.Err() == nil {
				r.log.Warn("relay_outage_not_reported", zap.Error(err),
					zap.String("hint", "authctl outbox status does not show what keeps events from being published"))
			}
			failed = true
			continue
		}
		reported, last, failed = worst, r.now(), false
	}
}

// reportLastOutage writes what ended the relay, or kept it from publishing, as its last report.
func (r *Relay) reportLastOutage(ctx context.Context, cause error) {
	worst, any := r.outages.worst()
	for kind, err := range map[string]error{
		"target": outbox.ErrOtherTarget, "partitions": outbox.ErrPartitionsChanged, "shards": outbox.ErrShards,
	} {
		if errors.Is(cause, err) {
			worst, any = outage{kind: kind, err: cause, since: r.now()}, true
			r.outages.begin(targetOutage, kind, cause)
		}
	}
	if !any {
		worst = outage{}
	}
	_ = r.writeOutage(ctx, worst, 0) // the log has it as well
}

// writeOutage writes the row of this relay, which expires after holds, or removes the row.
func (r *Relay) writeOutage(ctx context.Context, o outage, holds time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if o.kind == "" {
		return outbox.EndOutage(ctx, r.db, r.id)
	}
	return outbox.ReportOutage(ctx, r.db, r.id, outbox.Outage{
		Target: r.sink.Name(), Relay: r.name, Kind: o.kind, Error: outbox.ErrorText(o.err),
	}, r.now().Sub(o.since), holds)
}

// forgetOutages removes the last reports of relays that ended a while ago, and reports that a
// clock that was ahead has written.
func forgetOutages(ctx context.Context, db *database.DB) error {
	clock := schema.Now(db)
	_, err := db.Write(ctx, `DELETE FROM outbox_trouble WHERE until_ms < `+clock+` - ? OR until_ms > `+clock+` + ?`,
		keepReports.Milliseconds(), (2 * schema.OutageHolds).Milliseconds())
	return err
}
