package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/engines"
	"github.com/toppira/authctl/platform/retry"
)

const (
	soakPart    = 0.6 // of the full rate
	soakPeople  = 64
	soakRetain  = 7 * time.Minute // until ended sessions are forgotten, with the settings of the run
	soakSamples = 300             // in the whole run, roughly
	soakSettle  = 10 * time.Second
)

// soak is a run.
type soak struct {
	o      options
	began  time.Time
	pg     *engines.Postgres
	redis  *redisServer
	kafka  *engines.Kafka
	relay  *process
	db     *database.DB
	server *server
	names  []string
	opened undo

	mu      sync.Mutex
	series  map[string][][2]float64 // seconds since began, value
	faults  []fault
	current string // the current fault

	counts [4]atomic.Int64 // of operations, by outcome of soakOutcome
	wrongs map[string]int  // what failed without a fault, and how often
}

// fault is a time in which operations may fail.
type fault struct {
	name     string
	from, to float64
}

// benchSoak runs serve and relay for a while at part of their full rate, with faults, and checks whether
// anything grows that should not.
func benchSoak(ctx context.Context, o options, r *report) (err error) {
	if o.soak < time.Minute {
		return fmt.Errorf("--for is at least a minute: %s is not", o.soak)
	}
	s := &soak{o: o, series: map[string][][2]float64{}, wrongs: map[string]int{}}
	dir, err := os.MkdirTemp("", "authctl-bench-soak-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	defer func() { err = errors.Join(err, s.opened.run()) }()
	if err := s.open(ctx, dir); err != nil {
		return err
	}
	full := s.load(ctx, 0, max(10*time.Second, o.soak/60))
	rate := full * soakPart
	fmt.Fprintf(os.Stderr, "  at most %.0f requests a second; %.0f of them for %s\n", full, rate, o.soak)
	for i := range s.counts {
		s.counts[i].Store(0)
	}
	clear(s.wrongs)

	s.began = time.Now()
	running, stop := context.WithCancel(ctx)
	defer stop()
	var group sync.WaitGroup
	group.Go(func() { s.sample(running) })
	var failed error
	group.Go(func() { failed = s.breakThings(running) })
	s.load(ctx, rate, o.soak)
	stop()
	group.Wait()
	if err := errors.Join(ctx.Err(), failed); err != nil {
		return err
	}
	return s.judge(r, rate)
}

// open starts the engines and the two processes, and makes the accounts.
func (s *soak) open(ctx context.Context, dir string) (err error) {
	if s.kafka, err = engines.StartKafka(ctx, filepath.Join(dir, "kafka")); err != nil {
		return err
	}
	s.opened = append(s.opened, s.kafka.Stop)
	// As on a server: a commit is on disk when it is answered, and Redis loses a second at the most.
	if s.pg, err = startPostgres(s.o.diskEnv); err != nil {
		return err
	}
	s.opened = append(s.opened, s.pg.Remove)
	if s.redis, err = startRedis("--appendonly", "yes", "--appendfsync", "everysec"); err != nil {
		return err
	}
	s.opened = append(s.opened, s.redis.remove)
	s.db, err = openDatabase(ctx, s.pg.URL, 2)
	if err != nil {
		return err
	}
	s.opened = append(s.opened, s.db.Close)
	if _, err := migrations.Up(ctx, s.db); err != nil {
		return err
	}
	env := []string{
		"KAFKA_BROKERS=" + s.kafka.Brokers[0], "AUTH_TOKEN_SECRET=" + uuid.NewString() + uuid.NewString(),
		// Ended sessions are forgotten soon, so that their rows stop growing within the run.
		"AUTH_ACCESS_TOKEN_TTL=1m", "AUTH_SESSION_MAX_AGE=4m", "AUTH_REFRESH_TOKEN_TTL=2m",
	}
	s.relay, err = s.o.newProcess(filepath.Join(dir, "relay"), "relay", append(env, "DATABASE_URL="+s.pg.URL), "relay")
	if err != nil {
		return err
	}
	s.server, err = s.o.newServer(filepath.Join(dir, "serve"), "serve", s.pg.URL, s.redis.url, env...)
	if err != nil {
		return err
	}
	for _, p := range []*process{s.server.process, s.relay} {
		if err := os.MkdirAll(p.dir, 0o700); err != nil {
			return err
		}
		s.opened = append(s.opened, p.stop) // which does nothing if it does not run
		if err := p.start(ctx); err != nil {
			return err
		}
	}
	s.server.client.ReadTimeout, s.server.client.WriteTimeout = 15*time.Second, 15*time.Second
	s.names, _, err = s.server.users(soakPeople)
	return err
}

// seconds is the time since the run began.
func (s *soak) seconds() float64 { return time.Since(s.began).Seconds() }

// soakOutcome is the outcome of an operation.
type soakOutcome int

const (
	soakDone   soakOutcome = iota
	soakLater              // 503 or 429, which clients must expect
	soakFault              // it failed during a fault
	soakFailed             // it failed without one
)

// person is a client: it signs in, uses its session for a while, and signs out.
type person struct {
	name  string
	t     tokens
	used  int
	doubt bool // an answer was lost, or the store may have lost the session: the person may have to sign in again
}

// requestsOfSession is how many requests a session is used for.
const requestsOfSession = 120

// load makes people work for a while, at a total rate or, if it is 0, as fast as they can. It
// returns the rate of the successful operations.
func (s *soak) load(ctx context.Context, rate float64, d time.Duration) float64 {
	var next, finished atomic.Int64
	begin := time.Now()
	var group sync.WaitGroup
	for i := range soakPeople {
		group.Go(func() {
			p := &person{name: s.names[i], used: rand.IntN(requestsOfSession)}
			for ctx.Err() == nil && time.Since(begin) < d {
				if rate > 0 {
					due := begin.Add(time.Duration(float64(next.Add(1)) / rate * float64(time.Second)))
					if due.Sub(begin) > d || !retry.Sleep(ctx, time.Until(due)) {
						return
					}
				}
				if s.count(s.step(p)) == soakDone {
					finished.Add(1)
				}
			}
		})
	}
	group.Wait()
	return float64(finished.Load()) / time.Since(begin).Seconds()
}

// count counts the outcome of an operation.
func (s *soak) count(what string, status int, err error, doubt bool) soakOutcome {
	out := outcomeIn(status, err, doubt, s.inFault())
	s.counts[out].Add(1)
	if out == soakFailed {
		s.mu.Lock()
		if err != nil {
			s.wrongs[what+": "+err.Error()]++
		} else {
			s.wrongs[fmt.Sprintf("%s: %d", what, status)]++
		}
		s.mu.Unlock()
	}
	return out
}

// outcomeIn is the outcome of an answer. doubt means that the client must expect to have lost its
// session.
func outcomeIn(status int, err error, doubt, inFault bool) soakOutcome {
	switch {
	case err == nil && status >= 200 && status < 300:
		return soakDone
	case err == nil && (status == 503 || status == 429):
		return soakLater
	case err == nil && status == 401 && doubt, inFault:
		return soakFault
	}
	return soakFailed
}

func (s *soak) inFault() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current != ""
}

// step is the next request of a person.
func (s *soak) step(p *person) (what string, status int, err error, doubt bool) {
	doubt = p.doubt
	var body []byte
	switch {
	case p.t.Refresh == "":
		what = "sign-in"
		status, body, err = s.server.call("POST", "/api/v1/auth/login",
			map[string]string{"username": p.name, "password": password})
		if err == nil && status == 200 {
			p.t = tokens{}
			err = json.Unmarshal(body, &p.t)
			p.doubt = false
		}
	case p.used >= requestsOfSession:
		what = "sign-out"
		status, _, err = s.server.call("POST", "/api/v1/auth/logout", map[string]string{"refresh_token": p.t.Refresh})
		p.t, p.used = tokens{}, 0
	case p.used%10 == 3 || p.used%10 == 6 || p.used%10 == 9:
		what = "refresh"
		status, body, err = s.server.call("POST", "/api/v1/auth/refresh",
			map[string]string{"refresh_token": p.t.Refresh})
		if err == nil && status == 200 {
			err = json.Unmarshal(body, &p.t)
		}
	case p.used%10 == 5:
		what = "session list"
		status, _, err = s.server.call("GET", "/api/v1/auth/sessions", nil, "Authorization", "Bearer "+p.t.Access)
	default:
		what = "me"
		status, _, err = s.server.call("GET", "/api/v1/auth/me", nil, "Authorization", "Bearer "+p.t.Access)
	}
	if err != nil || status == 503 || s.inFault() && status >= 400 {
		p.doubt = true // the request may have been carried out
	}
	if p.used++; status == 401 {
		p.t, p.used = tokens{}, 0
	}
	return what, status, err, doubt
}

// breakThings causes each fault in turn.
func (s *soak) breakThings(ctx context.Context) error {
	d := s.o.soak
	away := min(time.Minute, d/20)
	for _, f := range []struct {
		at   float64
		name string
		do   func() error
	}{
		{0.45, "Kafka", func() error {
			if err := s.kafka.Signal(1, syscall.SIGKILL); err != nil {
				return err
			}
			retry.Sleep(ctx, away)
			return s.kafka.Restart(1)
		}},
		{0.55, "Redis", func() error {
			s.redis.kill()
			retry.Sleep(ctx, min(5*time.Second, away))
			return s.redis.start()
		}},
		{0.65, "PostgreSQL", func() error {
			if err := s.pg.Stop("fast"); err != nil {
				return err
			}
			retry.Sleep(ctx, min(5*time.Second, away))
			return s.pg.Start()
		}},
		{0.73, "relay", func() error {
			s.relay.kill()
			retry.Sleep(ctx, min(5*time.Second, away))
			return s.relay.start(ctx)
		}},
	} {
		if !retry.Sleep(ctx, time.Duration(f.at*float64(d))-time.Since(s.began)) {
			return nil
		}
		s.mu.Lock()
		s.current = f.name
		from := s.seconds()
		s.mu.Unlock()
		fmt.Fprintf(os.Stderr, "  %4.0f s: %s stops\n", from, f.name)
		err := f.do()
		settled := s.settle(ctx)
		s.mu.Lock()
		s.current = ""
		s.faults = append(s.faults, fault{f.name, from, s.seconds()})
		s.mu.Unlock()
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if ctx.Err() == nil && !settled {
			return fmt.Errorf("%s is back, and events still wait after two minutes", f.name)
		}
		fmt.Fprintf(os.Stderr, "  %4.0f s: everything works again\n", s.seconds())
	}
	return nil
}

// settle returns a while after serve answers and no event waits.
func (s *soak) settle(ctx context.Context) bool {
	for deadline := time.Now().Add(2 * time.Minute); ; {
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		waiting, err := pending(short, s.db)
		cancel()
		if _, ready := get(s.server.base + "/readyz"); err == nil && ready == nil &&
			waiting < 1000 {
			return retry.Sleep(ctx, min(soakSettle, s.o.soak/40))
		}
		if time.Now().After(deadline) || !retry.Sleep(ctx, 200*time.Millisecond) {
			return false
		}
	}
}

// The judged series, and how much growth is negligible: pages of a table, a few descriptors.
var soakSeries = []struct {
	name, title, unit string
	limit, some       float64
	late              bool // flat only once ended sessions are forgotten
}{
	{"memory serve", "memory", "MiB", 1.15, 8, false},
	{"memory relay", "memory", "MiB", 1.15, 8, false},
	{"descriptors serve", "descriptors", "", 1.1, 8, false},
	{"descriptors relay", "descriptors", "", 1.1, 8, false},
	{"goroutines serve", "goroutines", "", 1.1, 10, false},
	{"goroutines relay", "goroutines", "", 1.1, 10, false},
	{"keys", "keys in Redis", "", 1.1, 200, true},
	{"tables", "tables but the log", "MiB", 1.15, 4, true},
	{"log", "log, bytes an event", "", 1.15, 50, true},
	{"backlog", "events waiting", "", 1.5, 100, false},
}

// sample reads the series until ctx ends.
func (s *soak) sample(ctx context.Context) {
	every := max(time.Second, s.o.soak/soakSamples)
	client := redis.NewClient(&redis.Options{Addr: s.redis.addr})
	defer client.Close()
	for retry.Sleep(ctx, every) {
		at := s.seconds()
		add := func(name string, v float64) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.series[name] = append(s.series[name], [2]float64{at, v})
		}
		for _, p := range []*process{s.server.process, s.relay} {
			if u, running := p.usage(); running {
				add("memory "+p.name, u.memory)
				add("descriptors "+p.name, u.descriptors)
				add("goroutines "+p.name, u.goroutines)
			}
		}
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		if n, err := client.DBSize(short).Result(); err == nil {
			add("keys", float64(n))
		}
		var tables, log, events, backlog float64
		err := s.db.QueryRowContext(short, `SELECT
			coalesce(sum(pg_total_relation_size(oid)) FILTER (WHERE relname NOT LIKE 'outbox\_event%'), 0)::float8,
			coalesce(sum(pg_total_relation_size(oid)) FILTER (WHERE relname LIKE 'outbox\_event%'), 0)::float8,
			(SELECT last_value FROM outbox_event_id)::float8, (SELECT count(*) FROM outbox_pending)::float8
			FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace`).Scan(&tables, &log, &events, &backlog)
		cancel()
		if err == nil {
			add("tables", tables/(1<<20))
			add("log", log/max(1, events))
			add("backlog", backlog)
		}
		add("requests", float64(s.counts[soakDone].Load()))
	}
}

// windows are the faults, for [slopeOf].
func (s *soak) windows() [][2]float64 {
	var list [][2]float64
	for _, f := range s.faults {
		list = append(list, [2]float64{f.from, f.to})
	}
	return list
}

// ofOneProcess cuts a series to one process: a restarted relay is young, and what the former one
// has accumulated is gone with it.
func (s *soak) ofOneProcess(name string) [][2]float64 {
	points := s.series[name]
	if !strings.HasSuffix(name, " relay") {
		return points
	}
	for _, f := range s.faults {
		if f.name == "relay" {
			points = slices.DeleteFunc(slices.Clone(points), func(p [2]float64) bool { return p[0] >= f.from })
		}
	}
	return points
}

// judge adds the verdicts to the report, prints the series and draws them.
func (s *soak) judge(r *report, rate float64) error {
	total := s.o.soak.Seconds()
	bad := 0
	fmt.Printf("%.0f requests a second for %s; faults:", rate, s.o.soak)
	for _, f := range s.faults {
		fmt.Printf(" %s %.0f–%.0f s;", f.name, f.from, f.to)
	}
	fmt.Print("\n\n")
	for _, one := range soakSeries {
		from := total / 10 // until caches and pools are warm
		met := ""
		if one.late {
			// Ended sessions are kept for a while; after that as many go as come.
			if from = max(from, soakRetain.Seconds()); total-from < 2*soakRetain.Seconds() {
				met = fmt.Sprintf("not judged: --for %s is too short, since everything is kept for %s", s.o.soak,
					soakRetain)
				from = total / 10
			}
		}
		sl := slopeOf(s.ofOneProcess(one.name), from, s.windows())
		if met == "" {
			switch {
			case sl.seen < 3:
				met = "not judged: faults fill the first third or the last"
			case sl.flat(one.limit, one.some):
				met = "met"
			default:
				met = "MISSED"
				bad++
			}
		}
		r.lines = append(r.lines, line{part: r.part, what: one.name, figure: "last third " + brief(sl.last),
			bound: "first third " + brief(sl.first),
			ratio: fmt.Sprintf("%.2f", sl.ratio), goal: fmt.Sprintf("≤ %.2f", one.limit), met: met})
		fmt.Printf("%-18s %s %s to %s\n", one.name, spark(s.series[one.name], 60), brief(sl.first), brief(sl.last))
	}
	fmt.Println()
	const faults = 4
	r.plain("faults that ended in time", strconv.Itoa(len(s.faults)), strconv.Itoa(faults), len(s.faults) == faults)
	if len(s.faults) < faults {
		bad++
	}
	for i, what := range []string{"requests done", "answered 503 or 429", "failed during a fault",
		"failed without one"} {
		l := line{part: r.part, what: what, figure: grouped(int(s.counts[i].Load()))}
		if soakOutcome(i) == soakFailed {
			l.goal, l.met = "0", met(s.counts[i].Load() == 0)
			if s.counts[i].Load() > 0 {
				bad++
			}
		}
		r.lines = append(r.lines, l)
	}
	reasons := slices.SortedFunc(maps.Keys(s.wrongs),
		func(a, b string) int { return cmp.Compare(s.wrongs[b], s.wrongs[a]) })
	for _, reason := range reasons[:min(10, len(reasons))] {
		fmt.Printf("%6d × %s\n", s.wrongs[reason], reason)
	}
	if s.o.picture != "" {
		if err := s.chart().write(filepath.Join(s.o.picture, "soak.svg")); err != nil {
			return err
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d goals are missed", bad)
	}
	return nil
}

func (s *soak) chart() chart {
	minutes := s.o.soak.Minutes()
	c := chart{title: fmt.Sprintf("%s at 60 %% of the full rate", s.o.soak), columns: 1, xTo: s.o.soak.Seconds(),
		notes: []string{"by minutes; shaded: Kafka, Redis and PostgreSQL are", "stopped, the relay is killed"}}
	for _, part := range []float64{0, 0.25, 0.5, 0.75, 1} {
		c.ticks = append(c.ticks, tick{part * c.xTo, brief(part * minutes)})
	}
	byTitle := map[string]int{}
	for _, one := range soakSeries {
		l := plotLine{points: s.series[one.name]}
		if _, process, found := strings.Cut(one.name, " "); found {
			l.name = process
		}
		if i, there := byTitle[one.title]; there {
			l.color = 1
			c.panels[i].lines = append(c.panels[i].lines, l)
			continue
		}
		byTitle[one.title] = len(c.panels)
		c.panels = append(c.panels, panel{title: one.title, unit: one.unit, lines: []plotLine{l}, bands: s.windows()})
	}
	return c
}
