// Package telemetry is what operators see of a running process: metrics, profiles, and the
// readiness of each backend. It is on a separate listener, which is never the public one and by
// default cannot be reached from another machine.
package telemetry

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Build says what is running.
type Build struct {
	Version string
	Commit  string
}

// Registry takes metrics and shows them.
type Registry interface {
	prometheus.Registerer
	prometheus.Gatherer
}

// NewRegistry makes the registry of the process, with the usual metrics of a Go service.
func NewRegistry(build Build) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "authctl_build_info",
		Help: "What is running; the value is always 1.",
		ConstLabels: prometheus.Labels{
			"version": build.Version, "commit": build.Commit, "go_version": runtime.Version(),
		},
	})
	info.Set(1)
	registry.MustRegister(
		info,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return registry
}
