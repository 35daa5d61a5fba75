// Package httpservertest serves routes to tests, in each of the ways in which they can be
// served.
package httpservertest

import (
	"context"
	"net/http/httptest"
	"testing"

	"github.com/toppira/authctl/platform/httpserver"
)

// Start serves routes until the test ends, and returns where.
type Start func(t testing.TB, opt httpserver.Options, routes ...httpserver.Route) (base string)

// Each runs a test once for each way of serving.
func Each(t *testing.T, test func(t *testing.T, start Start)) {
	for name, start := range map[string]Start{"Fiber": Fiber, "net_http": NetHTTP} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, start)
		})
	}
}

// Fiber serves by [httpserver.Server], on a free port of the loopback.
func Fiber(t testing.TB, opt httpserver.Options, routes ...httpserver.Route) (base string) {
	t.Helper()
	server, err := httpserver.New(httpserver.Config{Host: "127.0.0.1"}, opt)
	if err != nil {
		t.Fatal(err)
	}
	server.Handle(routes...)
	if err := server.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return "http://" + server.Addr().String()
}

// NetHTTP serves by [httpserver.Handler].
func NetHTTP(t testing.TB, opt httpserver.Options, routes ...httpserver.Route) (base string) {
	t.Helper()
	handler, err := httpserver.Handler(httpserver.Config{}, opt, routes...)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.URL
}
