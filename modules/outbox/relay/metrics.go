package relay

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/metric"
)

// metrics are authctl_outbox_*. Those of the whole outbox (pending, oldest age, parked) are the same
// at every relay: use the maximum, not the sum.
type metrics struct {
	pending, oldestAge, parked, owned, living           prometheus.Gauge
	published, replayed, takeovers, sweepFound, refused prometheus.Counter
	lost, void                                          prometheus.Counter
	errors                                              *prometheus.CounterVec
	latency, batchEvents                                prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "authctl_outbox_" + name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "authctl_outbox_" + name, Help: help})
	}
	m := &metrics{
		pending:   gauge("pending", "Events to be published, in the whole outbox."),
		oldestAge: gauge("oldest_age_seconds", "Age of the oldest event to be published, replays aside."),
		parked:    gauge("parked", "Keys that are parked because one of their events was refused."),
		owned:     gauge("shards_owned", "Shards whose leases this relay holds."),
		living:    gauge("relays", "Relays that are alive, as far as this process can tell: 0 while it cannot."),
		published: counter("published_total", "Events this relay published."),
		replayed:  counter("replayed_total", "Events this relay published again because an operator asked for it."),
		takeovers: counter("takeovers_total", "Shards this relay took from a relay whose lease had expired."),
		lost:      counter("leases_lost_total", "Shards this relay lost because it did not renew in time."),
		void: counter("leases_void_total",
			"Shards this relay took from a relay that was gone although its lease ended in the future: "+
				"the database's clock was ahead or has been set back."),
		sweepFound: counter("sweep_found_total",
			"Events found below the watermark. Any is a defect: they are delivered late, "+
				"perhaps after later events of their key."),
		refused: counter("refused_total", "Events the target refused for good; their keys were parked."),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "authctl_outbox_publish_errors_total", Help: "Attempts to publish that failed, by kind.",
		}, []string{"kind"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "authctl_outbox_latency_seconds", Help: "From the writing of an event to the target's " +
				"acknowledgement.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, 1, 5, 30, 300, 3600},
		}),
		batchEvents: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "authctl_outbox_batch_events", Help: "Events in one published batch.",
			Buckets: []float64{1, 3, 10, 30, 100, 300, 1000, 3000, 10000},
		}),
	}
	for _, kind := range outbox.Kinds {
		m.errors.WithLabelValues(kind)
	}
	return m, metric.Register(reg, "the outbox's metrics", m.pending, m.oldestAge, m.parked, m.owned, m.living,
		m.published, m.replayed, m.takeovers, m.lost, m.void, m.sweepFound, m.refused, m.errors, m.latency,
		m.batchEvents)
}
