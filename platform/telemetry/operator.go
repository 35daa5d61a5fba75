package telemetry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"github.com/toppira/authctl/platform/config"
)

// Config is the setting of the operator listener.
type Config struct {
	OperatorAddr string `config:"app.operator_addr" default:"127.0.0.1:9090" doc:"Address of the operator listener: metrics, profiles, readiness in detail. It has no authentication: keep it off public networks. off means none."`
}

// Validate reports settings that cannot work.
func (c Config) Validate(report func(path, problem string)) {
	if c.disabled() {
		return
	}
	if problem := config.AddressProblem(c.OperatorAddr, true); problem != "" {
		report("app.operator_addr", problem+"; off means none")
	}
}

func (c Config) disabled() bool { return c.OperatorAddr == "" || c.OperatorAddr == "off" }

// Loopback reports that only this machine can reach the operator listener.
func (c Config) Loopback() bool {
	host, _, err := net.SplitHostPort(c.OperatorAddr)
	if err != nil {
		return c.disabled()
	}
	return config.IsThisMachine(host)
}

// AddrError says that the operator listener's address is not available. A developer's second
// process can do without the listener; in production the error must not go unnoticed. The caller
// decides.
type AddrError struct {
	Addr  string
	InUse bool
	Err   error
}

func (e *AddrError) Error() string {
	if e.InUse {
		return fmt.Sprintf("operator address %s is in use: set APP_OPERATOR_ADDR to another one, or to off", e.Addr)
	}
	return fmt.Sprintf("operator address %s: %v", e.Addr, e.Err)
}

func (e *AddrError) Unwrap() error { return e.Err }

// OperatorOptions are what the operator listener shows. All are optional.
type OperatorOptions struct {
	Registry  Registry
	Readiness *Readiness
	Stopping  func() bool      // while true, /readyz answers 503
	Level     *zap.AtomicLevel // read and set at /log/level
	Log       *zap.Logger
}

// Operator is the operator listener.
type Operator struct {
	listener net.Listener
	server   *http.Server
}

// Listen opens the operator listener. If it is off, Listen returns nil. If the address is not
// available, the error is an [AddrError].
func Listen(cfg Config, opt OperatorOptions) (*Operator, error) {
	if cfg.disabled() {
		return nil, nil
	}
	listener, err := net.Listen("tcp", cfg.OperatorAddr)
	if err != nil {
		return nil, &AddrError{Addr: cfg.OperatorAddr, InUse: errors.Is(err, syscall.EADDRINUSE), Err: err}
	}
	opt.Log = cmp.Or(opt.Log, zap.NewNop())
	return &Operator{
		listener: listener,
		server: &http.Server{
			Handler:           guard(cfg, opt.handler()),
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      2 * time.Minute, // a profile records for as long as it is asked to
			IdleTimeout:       time.Minute,
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          log.New(complaints{opt.Log}, "", 0),
		},
	}, nil
}

// complaints logs what net/http says of a connection or handler that failed.
type complaints struct{ log *zap.Logger }

func (c complaints) Write(text []byte) (int, error) {
	c.log.Error("operator_http_failed", zap.String("error", strings.TrimSpace(string(text))))
	return len(text), nil
}

// Addr is the address that it listens on.
func (o *Operator) Addr() net.Addr { return o.listener.Addr() }

// Run serves until ctx ends, and then waits a second for requests in progress.
func (o *Operator) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- o.server.Serve(o.listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve operators on %s: %w", o.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if o.server.Shutdown(stop) != nil {
		_ = o.server.Close()
	}
	<-served
	return nil
}

func (opt OperatorOptions) handler() http.Handler {
	mux := http.NewServeMux()
	if opt.Registry != nil {
		bounds := promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: 4, Timeout: 10 * time.Second}
		mux.Handle("GET /metrics", promhttp.InstrumentMetricHandler(opt.Registry,
			promhttp.HandlerFor(opt.Registry, bounds)))
	}
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/cmdline", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "arguments are not shown", http.StatusNotFound)
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		sendJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", opt.readyz)
	if opt.Level != nil {
		mux.Handle("GET /log/level", opt.Level)
		mux.Handle("PUT /log/level", opt.Level)
	}
	return mux
}

// report is the operator's /readyz.
type report struct {
	Ready    bool          `json:"ready"`
	Stopping bool          `json:"stopping,omitempty"`
	Checks   []checkReport `json:"checks"`
}

type checkReport struct {
	Name      string  `json:"name"`
	OK        bool    `json:"ok"`
	Critical  bool    `json:"critical"`
	LatencyMS float64 `json:"latency_ms"`
	Error     string  `json:"error,omitempty"`
}

func (opt OperatorOptions) readyz(w http.ResponseWriter, request *http.Request) {
	body := report{Ready: true, Checks: []checkReport{}}
	if opt.Readiness != nil {
		var results []Result
		results, body.Ready = opt.Readiness.Report(request.Context())
		for _, r := range results {
			check := checkReport{Name: r.Name, OK: r.Err == nil, Critical: r.Critical,
				LatencyMS: float64(r.Latency.Microseconds()) / 1000}
			if r.Err != nil {
				check.Error = r.Err.Error()
			}
			body.Checks = append(body.Checks, check)
		}
	}
	if opt.Stopping != nil && opt.Stopping() {
		body.Ready, body.Stopping = false, true
	}
	status := http.StatusOK
	if !body.Ready {
		status = http.StatusServiceUnavailable
	}
	sendJSON(w, status, body)
}

func sendJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // an error means that the client left
}

// guard keeps pages from using a browser on this machine to reach a loopback listener. A page can
// make the browser call it by another name (DNS rebinding), which shows in Host, or send requests
// without reading the answer, which shows in Origin.
func guard(cfg Config, next http.Handler) http.Handler {
	loopback := cfg.Loopback()
	return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if request.Header.Get("Origin") != "" || loopback && !localName(request.Host) {
			http.Error(w, "not for browsers", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, request)
	})
}

func localName(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	return config.IsThisMachine(strings.Trim(name, "[]"))
}
