package httpserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/toppira/authctl/platform/tracing"
)

// MaxBody is the largest request body in bytes. It is part of the API's contract.
const MaxBody = 16 << 10

// Options are what the settings do not say. All are optional.
type Options struct {
	Log         *zap.Logger
	Registry    prometheus.Registerer
	Unavailable func(error) bool // reports errors of a backend that is down: 503 instead of 500
	Now         func() time.Time
	Tracer      *tracing.Tracer
	HTTPS       bool // clients use https although this listener speaks http: a proxy terminates TLS

	// Mount is the path that a proxy takes off every request, without a slash at its end. Where one
	// does not, the answer says so.
	Mount string
}

// core is what serving by Fiber and by net/http have in common.
type core struct {
	cfg         Config
	log         *zap.Logger
	now         func() time.Time
	unavailable func(error) bool
	trusted     proxies
	mount       string
	hsts        string   // the header's value; empty if it must not be sent
	origins     []string // as browsers send them
	corsHeaders []string // app.cors_headers in lower case
	metrics     *meters
	tracer      *tracing.Tracer

	table        []*route
	oauthDirs    []string
	ownHeaders   []string // of requests, that pages may send
	shownHeaders []string // of answers, that pages may read
	exchanges    sync.Pool

	base    context.Context // of all requests; ends when a stop can wait no longer
	abort   context.CancelFunc
	waiting context.Context // of those that wait; ends when a stop begins to close connections
	letGo   context.CancelFunc

	unreadForward, unknownProxy reminder
}

func newCore(cfg Config, opt Options, connections func() float64) (*core, error) {
	var problem error
	cfg.Validate(func(path, text string) { problem = errors.Join(problem, fmt.Errorf("%s: %s", path, text)) })
	if problem != nil {
		return nil, problem
	}
	s := &core{
		cfg:          cfg.withDefaults(),
		log:          opt.Log,
		now:          opt.Now,
		unavailable:  opt.Unavailable,
		tracer:       opt.Tracer,
		mount:        opt.Mount,
		hsts:         strictTransport(cfg.TLS.CertFile != "" || opt.HTTPS, cfg.HSTSSubdomains),
		ownHeaders:   slices.Clone(commonHeaders),
		shownHeaders: slices.Clone(commonShown),
		exchanges:    sync.Pool{New: func() any { return new(exchange) }},
	}
	s.log = cmp.Or(s.log, zap.NewNop())
	if s.now == nil {
		s.now = time.Now
	}
	for _, text := range cfg.TrustedProxies {
		prefix, _ := ParseNetwork(text) // Validate has looked
		s.trusted = append(s.trusted, prefix)
	}
	for _, text := range cfg.Origins {
		origin, _ := parseOrigin(text)
		s.origins = append(s.origins, origin)
	}
	for _, name := range cfg.CORSHeaders {
		s.corsHeaders = append(s.corsHeaders, strings.ToLower(name))
	}
	registry := opt.Registry
	if registry == nil {
		registry = prometheus.NewRegistry()
	}
	var err error
	if s.metrics, err = newMeters(registry, connections); err != nil {
		return nil, err
	}
	s.base, s.abort = context.WithCancel(context.Background())
	s.waiting, s.letGo = context.WithCancel(s.base)
	return s, nil
}
