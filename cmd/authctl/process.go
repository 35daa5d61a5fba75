package main

import (
	"context"
	_ "embed"
	"errors"
	"io"
	"strings"

	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/httpserver"
	"github.com/toppira/authctl/platform/telemetry"
	"github.com/toppira/authctl/platform/tracing"
	"github.com/toppira/authctl/platform/tuning"
)

// untilStopped runs a process that goes on until it is told to stop. It sets up the log, which a
// hangup opens again, metrics and traces, and closes what run has opened.
func untilStopped(
	ctx context.Context, stderr io.Writer, load func() (settings, error), run func(a *app) error,
) (err error) {
	hangup := hangups()
	defer tuning.RoomyHeap()()
	s, err := load()
	if err != nil {
		return err
	}
	a, err := newApp(s, stderr, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	defer a.onHangup(hangup)()
	build := buildInfo()
	a.registry = telemetry.NewRegistry(telemetry.Build{Version: build.Version, Commit: build.Revision})
	if a.tracer, err = tracing.Open(ctx, build.Version, a.log); err != nil {
		return err
	}
	a.closers = append(a.closers, a.tracer.Close)
	err = run(a)
	if !a.started && ctx.Err() != nil && errors.Is(err, context.Canceled) && !database.IsUncertain(err) {
		a.log.Info("stopped") // before it served: it did as it was told
		return nil
	}
	return err
}

// The OpenAPI document, made from the table of routes. A test fails when it is out of date; this
// writes it: go test ./cmd/authctl -run OpenAPI -update
//
//go:embed openapi/openapi.json
var openAPI []byte

// processRoutes are the routes of the process, which belong to no module.
func processRoutes(stopping func() bool, readiness *telemetry.Readiness) []httpserver.Route {
	routes := []httpserver.Route{{
		Method: "GET", Path: "/healthz", ID: "healthz", Group: "probes", Quiet: true,
		Summary: "Liveness probe", Success: "The process answers.", Do: httpserver.Public(healthz),
	}, {
		Method: "GET", Path: "/readyz", ID: "readyz", Group: "probes", Quiet: true,
		Summary: "Readiness probe", Success: "The process can do its work.",
		Description: "503 when the database or the session store is away, or the process is stopping. Kafka does not " +
			"matter, because events can wait.",
		Do: httpserver.Public(readyz(stopping, readiness)), Faults: []*fault.Fault{errNotReady},
	}}
	return append(routes, httpserver.Documentation("/docs/swagger", "authctl", openAPI)...)
}

// errNotReady is the answer of /readyz when the process is not ready.
var errNotReady = fault.New(fault.Unavailable, "not_ready", "The process cannot do its work right now")

// Probe is the answer of the probes.
type Probe struct {
	Status string `json:"status" enum:"ok" example:"ok"`
}

func healthz(context.Context, struct{}) (Probe, error) { return Probe{Status: "ok"}, nil }

func readyz(stopping func() bool, readiness *telemetry.Readiness) func(context.Context, struct{}) (Probe, error) {
	return func(ctx context.Context, _ struct{}) (Probe, error) {
		if stopping() {
			return Probe{}, errNotReady.Detail("The process is stopping.")
		}
		results, ready := readiness.Report(ctx)
		if ready {
			return Probe{Status: "ok"}, nil
		}
		var away []string
		for _, check := range results {
			if check.Critical && check.Err != nil {
				away = append(away, check.Name)
			}
		}
		return Probe{}, errNotReady.Detail("Away: " + strings.Join(away, ", ") + ".")
	}
}
