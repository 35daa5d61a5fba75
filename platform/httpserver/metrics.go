package httpserver

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/toppira/authctl/platform/metric"
)

// meters are what Prometheus sees. Every label has a bounded set of values: patterns of the
// table, known methods, three-digit statuses.
type meters struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
	refused  *prometheus.CounterVec
	statuses [600]string
}

func newMeters(registry prometheus.Registerer, connections func() float64) (*meters, error) {
	m := &meters{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "authctl_http_requests_total",
			Help: "Requests answered, by route pattern (none: no such route), method and status.",
		}, []string{"route", "method", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "authctl_http_request_duration_seconds",
			Help:    "Time from a request having been read to its answer being ready.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"route", "method"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "authctl_http_requests_in_flight",
			Help: "Requests being answered now.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "authctl_http_connections_refused_total",
			Help: "Connections closed: over the limit in all (total), of one address (ip), or out of file " +
				"descriptors (files); and those that waited for their client longest and made room for others " +
				"(waiting).",
		}, []string{"limit"}),
	}
	for _, limit := range []string{"total", "ip", "files", "waiting"} { // from the start: the first one is an increase
		m.refused.WithLabelValues(limit)
	}
	for i := range m.statuses {
		m.statuses[i] = strconv.Itoa(i)
	}
	collectors := []prometheus.Collector{m.requests, m.duration, m.inFlight}
	if connections != nil { // a listener of our own, whose connections are known
		collectors = append(collectors, m.refused, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "authctl_http_connections",
			Help: "Open connections, idle ones included.",
		}, connections))
	}
	return m, metric.Register(registry, "HTTP metrics", collectors...)
}

// status is the label for a status; the table spares a string for each request.
func (m *meters) status(status int) string {
	if status < 0 || status >= len(m.statuses) {
		return "other"
	}
	return m.statuses[status]
}
