// Package httpservertest serves routes to tests, in each way in which they can be served.
package httpservertest

import (
	"context"
	"net/http/httptest"
	"testing"

	"github.com/toppira/authctl/platform/httpserver"
)

// Start serves routes until the test ends, and returns their address.
type Start func(t testing.TB, opt httpserver.Options, routes ...httpserver.Route) (base string)

// Each runs a test once for each way of serving.
func Each(t *testing.T, test func(t *testing.T, start Start)) {
	EachWith(t, httpserver.Config{}, test)
}

// EachWith is [Each] with these settings, except that servers listen on a free port of the
// loopback.
func EachWith(t *testing.T, cfg httpserver.Config, test func(t *testing.T, start Start)) {
	for name, start := range map[string]Start{"Fiber": fiberWith(cfg), "net_http": netHTTPWith(cfg)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, start)
		})
	}
}

// Fiber serves with [httpserver.Server], on a free port of the loopback.
func Fiber(t testing.TB, opt httpserver.Options, routes ...httpserver.Route) (base string) {
	t.Helper()
	return fiberWith(httpserver.Config{})(t, opt, routes...)
}

func fiberWith(cfg httpserver.Config) Start {
	cfg.Host, cfg.Port = "127.0.0.1", 0
	return func(t testing.TB, opt httpserver.Options, routes ...httpserver.Route) (base string) {
		t.Helper()
		server, err := httpserver.New(cfg, opt)
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
}

// NetHTTP serves with [httpserver.Handler].
func NetHTTP(t testing.TB, opt httpserver.Options, routes ...httpserver.Route) (base string) {
	t.Helper()
	return netHTTPWith(httpserver.Config{})(t, opt, routes...)
}

// netHTTPWith serves with [httpserver.Handler].
func netHTTPWith(cfg httpserver.Config) Start {
	return func(t testing.TB, opt httpserver.Options, routes ...httpserver.Route) (base string) {
		t.Helper()
		handler, err := httpserver.Handler(cfg, opt, routes...)
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewServer(handler)
		t.Cleanup(server.Close)
		return server.URL
	}
}
