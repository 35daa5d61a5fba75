// Package telemetry is what operators see of a running process: metrics, profiles, and
// whether each thing it needs is there. All of it is on a listener of its own, which is
// never the public one and by default cannot be reached from another machine.
package telemetry

import (
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Build says what is running.
type Build struct {
	Version string // of the release; empty takes what the Go toolchain recorded
	Commit  string
}

// NewRegistry makes the process's registry with the metrics that every Go service has.
func NewRegistry(build Build) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "authctl_build_info",
		Help: "What is running; the value is always 1.",
		ConstLabels: func() prometheus.Labels {
			build, goVersion := build.complete()
			return prometheus.Labels{"version": build.Version, "commit": build.Commit, "go_version": goVersion}
		}(),
	})
	info.Set(1)
	registry.MustRegister(
		info,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return registry
}

func (b Build) complete() (Build, string) {
	recorded, ok := debug.ReadBuildInfo()
	if !ok {
		return b, ""
	}
	if b.Version == "" {
		b.Version = recorded.Main.Version
	}
	for _, setting := range recorded.Settings {
		if setting.Key == "vcs.revision" && b.Commit == "" {
			b.Commit = setting.Value
		}
	}
	return b, recorded.GoVersion
}
