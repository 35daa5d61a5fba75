package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sys/unix"

	"github.com/toppira/authctl/migrations"
	"github.com/toppira/authctl/modules/auth/authbench"
	"github.com/toppira/authctl/modules/outbox/outboxbench"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/engines"
	"github.com/toppira/authctl/platform/retry"
)

const (
	growthLimit  = 1.2
	growthCost   = 4 // of bcrypt, whose time is subtracted in any case
	growthRounds = 10
	growthProbes = 1000
	// The most that an account of the largest step takes, with everything that comes with it: bytes
	// of disk and of Redis's memory.
	diskPerAccount   = 2600
	memoryPerAccount = 850
)

// amounts says how much an installation has of each kind.
type amounts struct{ accounts, sessions, revocations, events int }

// share returns the amounts for a number of accounts.
func share(accounts int) amounts {
	return amounts{accounts, accounts / 2, accounts / 10, accounts / 2}
}

func (a amounts) String() string {
	var list []string
	for _, one := range []struct {
		n    int
		what string
	}{{a.accounts, "accounts"}, {a.sessions, "sessions"}, {a.revocations, "revocations"},
		{a.events, "events waiting"}} {
		if one.n > 0 {
			list = append(list, grouped(one.n)+" "+one.what)
		}
	}
	return strings.Join(list, ", ")
}

// grouped writes a number with commas.
func grouped(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// point is one thing to measure.
type point struct {
	name    string
	a       amounts
	onTop   bool // it begins with the database and the records of Redis that earlier points left
	leaves  bool // it leaves what it loaded for the last point
	records bool // sessions with their records in the database are measured as well
	final   bool // it is judged
}

// growthPoints are a curve of everything together, each kind alone, and the end of the curve, which
// reuses what is loaded.
func growthPoints(size int) []point {
	var points []point
	for _, n := range []int{1, 1_000, 100_000} {
		if n < size {
			points = append(points, point{name: "all, " + grouped(n), a: share(n)})
		}
	}
	all := share(size)
	return append(points,
		point{name: "revocations", a: amounts{revocations: all.revocations}, final: true},
		point{name: "backlog", a: amounts{events: all.events}, final: true},
		point{name: "sessions", a: amounts{sessions: all.sessions}, final: true, leaves: true, records: true},
		point{name: "accounts", a: amounts{accounts: all.accounts}, final: true, leaves: true},
		point{name: "all, " + grouped(size), a: all, final: true, onTop: true},
	)
}

// growth is a run.
type growth struct {
	o      options
	r      *report
	pg     *engines.Postgres
	loader *authbench.Loader
	secret string
	dir    string
	curve  []curvePoint
	missed int

	kept *side // what earlier points have left for the last one
}

type curvePoint struct {
	size    int
	name    string
	figures []judged
}

// benchGrowth measures requests and the relay on two installations in turns: one that has only the accounts
// that send requests, and one that is filled.
func benchGrowth(ctx context.Context, o options, r *report) (err error) {
	size := int(o.size)
	if size < 10 || size > 50_000_000 {
		return fmt.Errorf("--size is the number of accounts of the largest step, 10 to 5e7: %g is not", o.size)
	}
	if err := enough(size); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "  %s, each on its own and together; it takes some %s, %.1f GB of disk below %s and %.1f "+
		"GB of memory, and leaves nothing\n", share(size), growthTime(size, o.duration).Round(time.Minute),
		float64(size)*diskPerAccount/1e9+2,
		os.TempDir(), float64(size)*memoryPerAccount/1e9+2)
	o.cost = growthCost
	g := &growth{o: o, r: r, secret: uuid.NewString() + uuid.NewString()}
	if g.dir, err = os.MkdirTemp("", "authctl-bench-growth-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(g.dir)) }()
	whole, err := authbench.New(g.secret, growthCost, size, growthProbes)
	if err != nil {
		return err
	}
	buffers, wal := "1GB", "4GB"
	if size > 1_000_000 { // names come in random order, and their index is larger than a gigabyte
		buffers, wal = "3GB", "6GB"
	}
	g.pg, err = startPostgres(o.diskEnv, "shared_buffers = "+buffers, "max_wal_size = "+wal,
		"checkpoint_timeout = 15min", "maintenance_work_mem = 512MB")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.pg.Remove()) }()
	defer func() {
		if g.kept != nil {
			err = errors.Join(err, g.kept.close())
		}
	}()
	var failed error
	for _, p := range growthPoints(size) {
		fmt.Fprintf(os.Stderr, "  %s: %s\n", p.name, p.a)
		if g.loader = whole; !p.final {
			if g.loader, err = authbench.New(g.secret, growthCost, p.a.accounts, growthProbes); err != nil {
				return err
			}
		}
		if err := g.measure(ctx, p); err != nil {
			// The other points are worth the rest of the run.
			failed = errors.Join(failed, fmt.Errorf("%s: %w", p.name, err))
			fmt.Fprintf(os.Stderr, "    failed: %v\n", err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if err := errors.Join(failed, g.show(failed == nil)); err != nil {
		return err
	}
	if g.missed > 0 {
		return fmt.Errorf("%d figures are above %.1f × those of the empty installation", g.missed, growthLimit)
	}
	return nil
}

// growthTime is roughly how long a run takes.
func growthTime(size int, d time.Duration) time.Duration {
	points := time.Duration(len(growthPoints(size)) + 1)
	return points*(14*d+15*time.Second) + time.Duration(size)*90*time.Microsecond
}

// enough refuses a size that the machine has no room for.
func enough(size int) error {
	var st unix.Statfs_t
	if err := unix.Statfs(os.TempDir(), &st); err != nil {
		return fmt.Errorf("look at the free disk: %w", err)
	}
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return fmt.Errorf("look at the free memory: %w", err)
	}
	free := 0
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			free, _ = strconv.Atoi(strings.Fields(rest)[0])
		}
	}
	return fits(size, float64(st.Bavail)*float64(st.Bsize), float64(free)*1024)
}

func fits(size int, disk, memory float64) error {
	needDisk, needMemory := float64(size)*diskPerAccount+2e9, float64(size)*memoryPerAccount+2e9
	if needDisk > disk || needMemory > memory {
		return fmt.Errorf("--size %g needs %.1f GB of disk and %.1f GB of memory, and there are %.1f and %.1f: "+
			"choose a smaller one", float64(size), needDisk/1e9, needMemory/1e9, disk/1e9, memory/1e9)
	}
	return nil
}

// side is one of the two installations.
type side struct {
	name   string
	url    string
	drop   func() error
	db     *database.DB
	redis  *redisServer
	probes []authbench.Probe
	server *server
	access []string // tokens of the probes that need one
	relay  *outboxbench.Flow
}

func (s *side) close() error {
	var errs []error
	if s.relay != nil {
		errs = append(errs, s.relay.Stop())
	}
	if s.server != nil {
		errs = append(errs, s.server.process.stop())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	if s.drop != nil {
		errs = append(errs, s.drop())
	}
	if s.redis != nil {
		errs = append(errs, s.redis.remove())
	}
	s.relay, s.server, s.db, s.drop, s.redis = nil, nil, nil, nil, nil
	return errors.Join(errs...)
}

// fresh makes an installation with a migrated database and, unless one is given, an empty Redis.
func (g *growth) fresh(ctx context.Context, name string) (s *side, err error) {
	s = &side{name: name, probes: g.loader.Probes()}
	made := s // what is returned with an error is nil
	defer func() {
		if err != nil {
			err = errors.Join(err, made.close())
		}
	}()
	if s.url, s.drop, err = freshDatabase(ctx, g.pg.URL); err != nil {
		return nil, err
	}
	s.db, err = openDatabase(ctx, s.url, 0)
	if err != nil {
		return nil, err
	}
	if _, err = migrations.Up(ctx, s.db); err != nil {
		return nil, err
	}
	return s, nil
}

// progress prints the progress of loading, every few seconds.
func progress() func(what string, done, of int) {
	var table string
	var begun, told time.Time
	return func(what string, done, of int) {
		if what != table {
			table, begun, told = what, time.Now(), time.Now()
		}
		if took := time.Since(begun).Seconds(); done < of && time.Since(told) > 5*time.Second {
			told = time.Now()
			rate := float64(done) / took
			fmt.Fprintf(os.Stderr, "    %s: %s of %s, %.0f rows a second, %.0f s left\n", what, grouped(done),
				grouped(of), rate, float64(of-done)/rate)
		}
	}
}

// load fills an installation as far as it is not filled yet. Without amounts it adds only the
// probes.
func (g *growth) load(ctx context.Context, s *side, a, has amounts) error {
	tell := progress()
	l := g.loader.On(s.db, tell)
	steps := []struct {
		needed bool
		run    func() error
	}{
		{a.accounts > 0 && has.accounts == 0, func() error { return l.Accounts(ctx) }},
		{a.accounts == 0, func() error { return l.ProbesAlone(ctx) }},
		{a.accounts > 0 && a.sessions == 0, func() error { return l.BegunSessions(ctx, 0) }},
		{a.revocations > 0, func() error { return l.Revocations(ctx, a.revocations) }},
		// The last point has those of the one before, which has no sessions but the probes'.
		{a.sessions > 0, func() error {
			if _, err := s.db.ExecContext(ctx, "TRUNCATE begun_session, session"); err != nil {
				return err
			}
			return l.BegunSessions(ctx, a.sessions)
		}},
		// The last point has them in Redis, where those of the point before are.
		{a.sessions > 0 && has.accounts == 0, func() error { return l.SessionsInDatabase(ctx, a.sessions) }},
		{a.sessions == 0 && has.accounts == 0, func() error { return l.SessionsInDatabase(ctx, 0) }},
		{s.redis == nil, func() (err error) {
			if s.redis, err = startRedis("--appendonly", "no", "--enable-debug-command", "local"); err != nil {
				return err
			}
			if err := l.SessionsInRedis(ctx, s.redis.url, a.sessions); err != nil {
				return err
			}
			return s.redis.settle(ctx)
		}},
		{true, func() error {
			return outboxbench.Fill(ctx, s.db, outboxbench.Backlog{Events: a.events, Keys: a.accounts,
				Have: has.accounts, Progress: tell,
				Key: func(i int) string { return g.loader.AccountID(i).String() }})
		}},
		{true, func() error {
			for _, q := range []string{"VACUUM (ANALYZE)", "CHECKPOINT"} { // as after years of autovacuum
				if _, err := s.db.ExecContext(ctx, q); err != nil {
					return fmt.Errorf("%s: %w", q, err)
				}
			}
			return nil
		}},
	}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if step.needed {
			if err := step.run(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *growth) measure(ctx context.Context, p point) (err error) {
	empty, err := g.fresh(ctx, "empty")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, empty.close()) }()
	var full *side
	var has amounts
	if kept := g.kept; p.onTop && kept != nil {
		if g.kept = nil; kept.db != nil && kept.redis != nil {
			full, has.accounts = kept, p.a.accounts
		} else if err := kept.close(); err != nil { // an earlier point has failed
			return err
		}
	}
	if full == nil {
		if full, err = g.fresh(ctx, "filled"); err != nil {
			return err
		}
	}
	defer func() {
		if full != nil {
			err = errors.Join(err, full.close())
		}
	}()
	begun := time.Now()
	if err := g.load(ctx, empty, amounts{}, amounts{}); err != nil {
		return err
	}
	if err := g.load(ctx, full, p.a, has); err != nil {
		return err
	}
	var size float64
	if err := full.db.QueryRowContext(ctx,
		"SELECT pg_database_size(current_database()) / 1e9").Scan(&size); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "    loaded in %s, %.1f GB\n", time.Since(begun).Round(time.Second), size)

	figures, err := g.requests(ctx, p.name, empty, full, true)
	if err != nil {
		return err
	}
	if p.records {
		of, err := g.requests(ctx, p.name+" in PostgreSQL", empty, full, false)
		if err != nil {
			return err
		}
		g.report(p, p.name+" in PostgreSQL", of)
	}
	flow, err := g.flow(ctx, empty, full)
	if err != nil {
		return err
	}
	figures = append(figures, flow...)
	drained, err := g.drain(ctx, empty, full, p.a.events)
	if err != nil {
		return err
	}
	g.report(p, p.name, append(figures, drained...))
	if strings.HasPrefix(p.name, "all") {
		g.curve = append(g.curve, curvePoint{p.a.accounts, p.name, figures})
	}
	if p.leaves {
		return g.keep(full, &full)
	}
	return nil
}

// keep leaves what a point has loaded for the last one: the records of the sessions' point in
// Redis, and the database of the accounts' point.
func (g *growth) keep(s *side, owner **side) error {
	if g.kept == nil { // the sessions
		g.kept = &side{redis: s.redis, probes: s.probes}
		s.redis = nil
		return nil
	}
	g.kept.name, g.kept.url, g.kept.drop, g.kept.db = s.name, s.url, s.drop, s.db
	*owner = nil
	return s.redis.remove()
}

// operation is one kind of request.
type operation struct {
	name string
	do   func(s *side, worker, n int) outcome
}

// The first probe of each operation. The probes that sign in get more and more sessions.
const (
	signInsOf, refreshesOf, readsOf, listsOf = 0, growthProbes / 4, growthProbes / 2, growthProbes * 3 / 4
	perGroup                                 = growthProbes / 4
)

var operations = []operation{
	{"sign-in", func(s *side, w, n int) outcome {
		name := s.probes[signInsOf+(2*n+w)%perGroup].Username
		return s.server.outcomeOf(s.server.call("POST", "/api/v1/auth/login", map[string]string{"username": name,
			"password": authbench.Password}))
	}},
	{"register", func(s *side, w, _ int) outcome { return s.server.register(w) }},
	{"refresh", func(s *side, w, n int) outcome {
		p := &s.probes[refreshesOf+(2*n+w)%perGroup]
		t := tokens{Refresh: p.Refresh}
		out := s.server.refresh(&t)
		if out == done {
			p.Refresh = t.Refresh
		}
		return out
	}},
	{"me", func(s *side, w, n int) outcome {
		return s.server.me(tokens{Access: s.access[(2*n+w)%perGroup]})
	}},
	{"session list", func(s *side, w, n int) outcome {
		return s.server.outcomeOf(s.server.call("GET", "/api/v1/auth/sessions", nil, "Authorization",
			"Bearer "+s.access[perGroup+(2*n+w)%perGroup]))
	}},
}

// requests measures them at both installations in turns, with the records in Redis or in the
// database.
func (g *growth) requests(
	ctx context.Context, name string, empty, full *side, inRedis bool,
) (figures []judged, err error) {
	sides := []*side{empty, full}
	redisTokens := make([][]authbench.Probe, len(sides))
	for i, s := range sides {
		if redisTokens[i] = s.probes; !inRedis {
			s.probes = g.loader.Probes()
		}
		if err := g.startServe(ctx, s, inRedis); err != nil {
			return nil, err
		}
	}
	list := make([]paired, len(operations))
	for i, op := range operations {
		list[i].name = op.name
	}
	slice := g.o.duration / growthRounds
	failed := 0
	var hashes []time.Duration
	for round := range growthRounds + 1 { // the first one warms up
		if round > 0 {
			hashes = append(hashes, hashOnce(20)...)
		}
		for i, op := range operations {
			for turn := range sides {
				s := sides[(round+turn)%2]
				var n [2]int
				got := load(2, slice, func(w int) outcome {
					n[w]++
					return op.do(s, w, round*100_003+n[w])
				})
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				failed += int(got.failed + got.shed)
				list[i].add(round, s == empty, got.took)
			}
		}
	}
	hash := quantile(hashes, 0.5)
	for i := range list {
		if list[i].name == "sign-in" {
			list[i].name, list[i].less = "sign-in less the hash", [2]time.Duration{hash, hash}
		}
		figures = append(figures, list[i].judge(0.5), list[i].judge(0.99))
	}
	if failed > 0 {
		return nil, fmt.Errorf("%d requests failed at %s: %s %s", failed, name, &empty.server.process.output,
			&full.server.process.output)
	}
	facts, err := full.snapshot()
	if err != nil {
		return nil, err
	}
	if _, err := empty.snapshot(); err != nil {
		return nil, err
	}
	if facts > 0 {
		fmt.Fprintf(os.Stderr, "    %s facts in the snapshot of /oauth2/revocations\n", grouped(facts))
	}
	memory := [2]float64{}
	for i, s := range sides {
		memory[i], _ = s.server.process.memory()
	}
	figures = append(figures, mebibytes("memory of serve", memory[0], memory[1]))
	for i, s := range sides {
		if err := s.server.process.stop(); err != nil {
			return nil, err
		}
		if s.server = nil; !inRedis {
			s.probes = redisTokens[i]
		}
	}
	return figures, nil
}

// mebibytes compares memory, with each MiB as a second of a Duration.
func mebibytes(what string, empty, full float64) judged {
	j := judged{what: what, empty: time.Duration(empty * 1e9), loaded: time.Duration(full * 1e9), moved: 1}
	j.ratio, j.met = verdict(full, empty, 1, growthLimit)
	return j
}

func hashOnce(n int) (took []time.Duration) {
	hash, err := bcrypt.GenerateFromPassword([]byte(authbench.Password), growthCost)
	for range n {
		begin := time.Now()
		if err == nil {
			err = bcrypt.CompareHashAndPassword(hash, []byte(authbench.Password))
		}
		took = append(took, time.Since(begin))
	}
	if err != nil {
		panic(err) // the password is short and the cost allowed
	}
	return took
}

func (g *growth) startServe(ctx context.Context, s *side, inRedis bool) (err error) {
	redis := ""
	if inRedis {
		redis = s.redis.url
	}
	if s.server, err = g.o.newServer(g.dir, "serve, "+s.name, s.url, redis, "AUTH_TOKEN_SECRET="+g.secret); err != nil {
		return err
	}
	if err := s.server.process.start(ctx); err != nil {
		return err
	}
	s.access = s.access[:0]
	for i := readsOf; i < growthProbes; i++ {
		t := tokens{Refresh: s.probes[i].Refresh}
		status, body, err := s.server.call("POST", "/api/v1/auth/refresh",
			map[string]string{"refresh_token": t.Refresh})
		if err != nil || status != 200 {
			return fmt.Errorf("a session that was loaded is not refreshed: %d %s %w", status, body, err)
		}
		if err := json.Unmarshal(body, &t); err != nil {
			return err
		}
		s.probes[i].Refresh = t.Refresh
		s.access = append(s.access, t.Access)
	}
	return nil
}

// snapshot reads everything that has ended, like a new follower.
func (s *side) snapshot() (facts int, err error) {
	for cursor := ""; ; {
		path := "/oauth2/revocations"
		if cursor != "" {
			path += "?after=" + url.QueryEscape(cursor)
		}
		status, body, err := s.server.call("GET", path, nil, "Authorization", basicAuth())
		if err != nil || status != 200 {
			return 0, fmt.Errorf("read what has ended: %d %s %w", status, body, err)
		}
		var page struct {
			Cursor      string            `json:"cursor"`
			More        bool              `json:"more"`
			Revocations []json.RawMessage `json:"revocations"`
		}
		if err := json.Unmarshal(body, &page); err != nil {
			return 0, err
		}
		facts += len(page.Revocations)
		if !page.More {
			return facts, nil
		}
		cursor = page.Cursor
	}
}

// flow measures the relay at both installations in turns.
func (g *growth) flow(ctx context.Context, empty, full *side) (figures []judged, err error) {
	sides := []*side{empty, full}
	for _, s := range sides {
		if s.relay, err = outboxbench.StartFlow(ctx, s.db); err != nil {
			return nil, err
		}
	}
	const rate = 250
	list := paired{name: "relay"}
	slice := 2 * g.o.duration / growthRounds
	for round := range growthRounds + 1 {
		for turn := range sides {
			s := sides[(round+turn)%2]
			took, err := s.relay.Measure(ctx, slice, rate)
			if err != nil {
				return nil, fmt.Errorf("the relay of the %s installation: %w", s.name, err)
			}
			list.add(round, s == empty, took)
		}
	}
	for _, s := range sides {
		if err := s.relay.Stop(); err != nil {
			return nil, err
		}
		s.relay = nil
	}
	return []judged{list.judge(0.5), list.judge(0.99)}, nil
}

// workOfEmpty is how many events the relay of the empty installation publishes at most. A process
// that has done nothing has not used the room that its heap may take before garbage is collected,
// however small the installation is.
const workOfEmpty = 20_000

// drain makes authctl relay publish all waiting events to a file. It compares the relay's memory
// with that of a relay that publishes new events, where none have waited.
func (g *growth) drain(ctx context.Context, empty, full *side, events int) (figures []judged, err error) {
	var peak [2]float64
	var idle float64
	for i, s := range []*side{empty, full} {
		waiting, err := pending(ctx, s.db)
		if err != nil {
			return nil, err
		}
		dir := filepath.Join(g.dir, s.name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		relay, err := g.o.newProcess(dir, "relay, "+s.name,
			[]string{"DATABASE_URL=" + s.url, "AUTH_TOKEN_SECRET=" + g.secret, "KAFKA_BROKERS="}, "relay")
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		if err := relay.start(ctx); err != nil {
			return nil, errors.Join(err, relay.stop())
		}
		if s == empty && events > 0 {
			retry.Sleep(ctx, 2*time.Second) // until it has its leases
			u, _ := relay.usage()
			idle = u.peak
			err = outboxbench.Add(ctx, s.db, min(events, workOfEmpty), 1)
		}
		err = errors.Join(err, untilPublished(ctx, s.db, relay))
		took := time.Since(begin)
		u, _ := relay.usage()
		peak[i] = u.peak
		if err := errors.Join(err, relay.stop(), os.RemoveAll(dir)); err != nil {
			return nil, err
		}
		if s == full && waiting > 10_000 {
			fmt.Fprintf(os.Stderr, "    %s events published in %s, %.0f a second\n", grouped(waiting),
				took.Round(time.Second), float64(waiting)/took.Seconds())
		}
	}
	if figures = []judged{mebibytes("memory of relay, peak", peak[0], peak[1])}; idle > 0 {
		beside := mebibytes("memory of relay, peak, compared with one that has published nothing", idle, peak[1])
		beside.met = ""
		figures = append(figures, beside)
	}
	return figures, nil
}

// pending counts the events of the log that wait.
func pending(ctx context.Context, db *database.DB) (n int, err error) {
	err = db.QueryRowContext(ctx, "SELECT count(*) FROM outbox_pending").Scan(&n)
	return n, err
}

// untilPublished waits until no event of the log waits. It gives up when a relay publishes nothing
// for a minute.
func untilPublished(ctx context.Context, db *database.DB, relay *process) error {
	last, since, told := 0, time.Now(), time.Now()
	for {
		var some bool
		if err := db.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM outbox_pending)`).Scan(&some); err != nil || !some {
			return err
		}
		if time.Since(told) > 10*time.Second { // counting costs time
			waiting, err := pending(ctx, db)
			if err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "    %s events wait\n", grouped(waiting))
			if told = time.Now(); waiting != last {
				last, since = waiting, told
			}
			if told.Sub(since) > time.Minute {
				return fmt.Errorf("%s publishes nothing: %s", relay.name, &relay.output)
			}
		}
		if !retry.Sleep(ctx, 250*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// report adds the figures of a point.
func (g *growth) report(p point, name string, figures []judged) {
	for _, j := range figures {
		show := short
		if strings.HasPrefix(j.what, "memory") {
			show = func(d time.Duration) string { return fmt.Sprintf("%.0f MiB", d.Seconds()) }
		}
		l := line{part: g.r.part, what: name + ": " + j.what, figure: show(j.loaded), bound: "empty " + show(j.empty),
			ratio: fmt.Sprintf("%.2f", j.ratio)}
		if p.final {
			if l.met = j.met; l.met != "" {
				l.goal = fmt.Sprintf("≤ %.1f", growthLimit)
			}
			if j.met == "MISSED" {
				g.missed++
			}
		}
		g.r.lines = append(g.r.lines, l)
		// In case the end is not reached.
		fmt.Fprintf(os.Stderr, "    %s: %s, %s: %s %s\n", j.what, l.figure, l.bound, l.ratio, l.met)
	}
}

// show prints the curve, and draws it if nothing is missing.
func (g *growth) show(whole bool) error {
	if len(g.curve) == 0 {
		return nil
	}
	fmt.Printf("Filled ÷ empty, measured in turns, as everything grows together:\n\n%s\n", g.table())
	if g.o.picture == "" || !whole {
		return nil
	}
	return g.chart().write(filepath.Join(g.o.picture, "growth.svg"))
}

func (g *growth) table() string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "\t")
	for _, c := range g.curve {
		fmt.Fprintf(w, "%s\t", grouped(c.size))
	}
	fmt.Fprint(w, "\n")
	for i, j := range g.curve[0].figures {
		fmt.Fprintf(w, "%s\t", j.what)
		for _, c := range g.curve {
			fmt.Fprintf(w, "%.2f\t", c.figures[i].ratio)
		}
		fmt.Fprint(w, "\n")
	}
	_ = w.Flush() // to memory
	return b.String()
}

// chart draws latencies of both installations over the size.
func (g *growth) chart() chart {
	c := chart{title: "As the work grows", columns: 2,
		notes: []string{"by accounts, with half as many sessions and events that",
			"wait, and a tenth as many revocations"}}
	last := g.curve[len(g.curve)-1].size
	c.xTo = log10(last)
	for _, p := range g.curve {
		c.ticks = append(c.ticks, tick{log10(p.size), power(p.size)})
	}
	for i := 0; i+1 < len(g.curve[0].figures); {
		name, isP50 := strings.CutSuffix(g.curve[0].figures[i].what, " p50")
		if !isP50 {
			i++
			continue
		}
		p := panel{title: name, unit: "ms", log: true}
		for k, q := range []string{"p50", "p99"} {
			filled, empty := plotLine{name: q, color: k}, plotLine{color: k, dashed: true}
			if k == 1 {
				empty.name = "empty"
			}
			for _, at := range g.curve {
				x := log10(at.size)
				filled.points = append(filled.points, [2]float64{x, at.figures[i+k].loaded.Seconds() * 1000})
				empty.points = append(empty.points, [2]float64{x, at.figures[i+k].empty.Seconds() * 1000})
			}
			p.lines = append(p.lines, filled, empty)
		}
		c.panels = append(c.panels, p)
		i += 2
	}
	return c
}

// power writes a power of ten as such.
func power(n int) string {
	if text := strconv.Itoa(n); n >= 1000 && strings.Trim(text[1:], "0") == "" &&
		slices.Contains([]byte("123456789"), text[0]) {
		exponent := strconv.Itoa(len(text) - 1)
		if text[0] == '1' {
			return "10^" + exponent
		}
		return text[:1] + "·10^" + exponent
	}
	return strconv.Itoa(n)
}

func log10(n int) float64 { return math.Log10(float64(max(1, n))) }
