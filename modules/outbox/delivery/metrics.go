package delivery

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/metric"
)

// metrics are authctl_outbox_target_*, each with the name of the target. The gauges are the same at
// every deliverer: use the maximum, not the sum.
type metrics struct {
	waiting, oldestAge, held, parked, paused *prometheus.GaugeVec
	delivered, dropped, failed               *prometheus.CounterVec
	latency                                  *prometheus.HistogramVec
}

// newMetrics registers them, and one of outage, which says for how long the database cannot be used.
func newMetrics(reg prometheus.Registerer, outage func(lacksRights bool) time.Duration) (*metrics, error) {
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "authctl_outbox_target_" + name, Help: help},
			[]string{"target"})
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "authctl_outbox_target_" + name, Help: help},
			append([]string{"target"}, labels...))
	}
	m := &metrics{
		waiting: gauge("waiting", "Events that wait for the target."),
		oldestAge: gauge("oldest_age_seconds", "Age of the oldest event that waits for the target, except those of "+
			"parked keys."),
		held:      gauge("held_keys", "Keys whose first event the target did not take, and that are tried again."),
		parked:    gauge("parked_keys", "Keys of the target that are parked."),
		paused:    gauge("paused", "1 while the target is paused."),
		delivered: counter("delivered_total", "Events that the target took from this process."),
		dropped:   counter("dropped_total", "Events that had become pointless before the target took them."),
		failed:    counter("failed_total", "Attempts that the target did not take, by kind: retry or refused.", "kind"),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "authctl_outbox_target_latency_seconds", Help: "From the writing of an event to the moment the " +
				"target took it.",
			Buckets: []float64{.005, .025, .1, .25, 1, 5, 30, 300, 3600},
		}, []string{"target"}),
	}
	collectors := []prometheus.Collector{
		m.waiting, m.oldestAge, m.held, m.parked, m.paused, m.delivered, m.dropped, m.failed, m.latency,
	}
	for kind, lacksRights := range map[string]bool{"rights": true, "database": false} {
		collectors = append(collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "authctl_outbox_delivery_outage_seconds", Help: "For how long this process has not been able to " +
				"deliver to some target because of the database; 0: it can.",
			ConstLabels: prometheus.Labels{"kind": kind},
		}, func() float64 { return outage(lacksRights).Seconds() }))
	}
	return m, metric.Register(reg, "the metrics of targets", collectors...)
}

// show sets the gauges, and removes those of removed targets.
func (m *metrics) show(list []outbox.DeliveryState) {
	for _, g := range []*prometheus.GaugeVec{m.waiting, m.oldestAge, m.held, m.parked, m.paused} {
		g.Reset()
	}
	for _, t := range list {
		m.waiting.WithLabelValues(t.Name).Set(float64(t.Waiting))
		m.oldestAge.WithLabelValues(t.Name).Set(t.OldestAge.Seconds())
		m.held.WithLabelValues(t.Name).Set(float64(t.HeldKeys))
		m.parked.WithLabelValues(t.Name).Set(float64(t.ParkedKeys))
		paused := 0.0
		if !t.Active() {
			paused = 1
		}
		m.paused.WithLabelValues(t.Name).Set(paused)
		// So that they exist before the first delivery.
		m.delivered.WithLabelValues(t.Name)
		m.dropped.WithLabelValues(t.Name)
		m.failed.WithLabelValues(t.Name, "retry")
		m.failed.WithLabelValues(t.Name, "refused")
		m.latency.WithLabelValues(t.Name)
	}
}
