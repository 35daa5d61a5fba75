package feed

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/toppira/authctl/platform/database"
)

// Verifier is a follower as it names itself.
type Verifier struct {
	Client   string   // of auth.clients
	Name     string   // empty: it does not say
	Instance string   // tells processes of the same name apart
	Version  string   //
	Keys     []string // the ids of the signing keys that it holds; nil: it does not say
}

// Seen is a verifier as the database knows it.
type Seen struct {
	Verifier
	At  time.Time     // when it was last seen
	Ago time.Duration // the same by the database's clock
	Lag time.Duration // how old what it was told was then
}

const (
	// registerEvery is how often what followers say is written, and registerAgain how often it
	// is written of one that says the same.
	registerEvery = 2 * time.Second
	registerAgain = 20 * time.Second
	// seenAhead is by how much a verifier may seem to have been seen in the future: one that lives is
	// written again sooner. What seems to be further ahead was written by a clock that was ahead, nobody
	// knows when, and is void.
	seenAhead = 3 * registerAgain
	// verifierKept is how long a verifier is remembered.
	verifierKept = 24 * time.Hour
	// mostVerifiers bounds what a process keeps between two writes.
	mostVerifiers = 4 * maxFollowers
	// MostOfClient is how many verifiers of one client are remembered: those that were seen last.
	MostOfClient = 4096
)

// registry writes down who follows.
type registry struct {
	db *database.DB

	mu      sync.Mutex
	pending map[verifierKey]entry
	written map[verifierKey]writtenEntry
	flushed time.Time // when the last write began
	writing bool      // it has not ended
}

type verifierKey struct{ client, name, instance string }

// entry is a row of the table verifier.
type entry struct {
	Client   string  `json:"client"`
	Name     string  `json:"name"`
	Instance string  `json:"instance"`
	Version  string  `json:"version"`
	Keys     *string `json:"keys"`
	LagMS    int64   `json:"lag_ms"`
}

type writtenEntry struct {
	version, keys string
	at            time.Time
}

func (e entry) key() verifierKey { return verifierKey{e.Client, e.Name, e.Instance} }

func (e entry) same(w writtenEntry) bool { return e.Version == w.version && e.keys() == w.keys }

// keys is also different for one that does not tell.
func (e entry) keys() string {
	if e.Keys == nil {
		return "-"
	}
	return "=" + *e.Keys
}

// Note says that a verifier was told what had ended up to a moment. It does no I/O.
func (f *Feed) Note(v Verifier, asOf time.Time) {
	if v.Name != "" {
		f.registry.note(v, max(0, f.store.now().Sub(asOf)))
	}
}

func (r *registry) note(v Verifier, lag time.Duration) {
	e := entry{Client: v.Client, Name: v.Name, Instance: v.Instance, Version: v.Version, LagMS: lag.Milliseconds()}
	if v.Keys != nil {
		keys := slices.Clone(v.Keys)
		slices.Sort(keys)
		e.Keys = new(strings.Join(slices.Compact(keys), ","))
	}
	key := e.key()
	r.mu.Lock()
	defer r.mu.Unlock()
	if w, known := r.written[key]; known && e.same(w) && time.Since(w.at) < registerAgain {
		return
	}
	if r.pending == nil {
		r.pending = make(map[verifierKey]entry)
	}
	if _, known := r.pending[key]; known || len(r.pending) < mostVerifiers {
		r.pending[key] = e
	}
}

// due returns what was noted, if it is time to write it and the last write has ended.
func (r *registry) due() []entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.pending) == 0 || r.writing || time.Since(r.flushed) < registerEvery {
		return nil
	}
	list := slices.Collect(maps.Values(r.pending))
	r.pending, r.flushed, r.writing = nil, time.Now(), true
	return list
}

// write writes what was due.
func (r *registry) write(ctx context.Context, log *zap.Logger, list []entry) {
	bounded, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	err := writeVerifiers(bounded, r.db, list)
	if err != nil && ctx.Err() == nil { // the feed is not closed
		log.Warn("verifiers_not_written", zap.Error(err))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writing = false
	if err != nil {
		return // they come again
	}
	if r.written == nil || len(r.written) > mostVerifiers {
		r.written = make(map[verifierKey]writtenEntry)
	}
	for _, e := range list {
		r.written[e.key()] = writtenEntry{e.Version, e.keys(), time.Now()}
	}
}

// nowMS is the database's clock as an expression.
func nowMS(db database.IDB) string {
	if database.IsPostgres(db) {
		return "(SELECT (extract(epoch FROM now()) * 1000)::bigint)"
	}
	return "(SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS integer))"
}

func writeVerifiers(ctx context.Context, db *database.DB, list []entry) error {
	// Processes that write some of the same must do so in the same order.
	slices.SortFunc(list, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.Client, b.Client), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Instance, b.Instance))
	})
	text, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("encode the verifiers: %w", err)
	}
	from := `SELECT value ->> 'client', value ->> 'name', value ->> 'instance', value ->> 'version', value ->> 'keys', ` + nowMS(db) + `,
		value ->> 'lag_ms' FROM json_each(?) WHERE true`
	if db.IsPostgres() {
		from = `SELECT client, name, instance, version, keys, ` + nowMS(db) + `, lag_ms FROM json_to_recordset(CAST(CAST(? AS text) AS json))
			AS x (client text, name text, instance text, version text, keys text, lag_ms bigint)`
	}
	_, err = db.Write(ctx, `INSERT INTO verifier (client, name, instance, version, keys, seen_ms, lag_ms) `+from+`
		ON CONFLICT (client, name, instance) DO UPDATE SET version = excluded.version, keys = excluded.keys,
			seen_ms = excluded.seen_ms, lag_ms = excluded.lag_ms`, string(text))
	if err != nil {
		return fmt.Errorf("write the verifiers: %w", err)
	}
	return forgetSurplus(ctx, db, list)
}

// forgetSurplus keeps the table small when a client says that it is another instance each time.
func forgetSurplus(ctx context.Context, db *database.DB, list []entry) error {
	clients := make(map[string]bool)
	for _, e := range list {
		clients[e.Client] = true
	}
	lock := ""
	if db.IsPostgres() { // other processes write some of these rows, in another order
		lock = " FOR UPDATE OF v SKIP LOCKED"
	}
	_, err := db.Write(ctx, `DELETE FROM verifier WHERE (client, name, instance) IN (SELECT v.client, v.name, v.instance
		FROM verifier v JOIN (SELECT client, name, instance, row_number() OVER
				(PARTITION BY client ORDER BY seen_ms DESC, name, instance) AS place FROM verifier WHERE client IN (?)) o
			ON v.client = o.client AND v.name = o.name AND v.instance = o.instance
		WHERE o.place > ?`+lock+`)`, database.List(slices.Sorted(maps.Keys(clients))), MostOfClient)
	if err != nil {
		return fmt.Errorf("forget surplus verifiers: %w", err)
	}
	return nil
}

// Verifiers lists those that were seen within a time, by client, name and instance.
func Verifiers(ctx context.Context, db database.IDB, within time.Duration) ([]Seen, error) {
	return database.Collect(ctx, db, "read the verifiers", func(from database.Row) (v Seen, err error) {
		var keys *string
		var at, ago, lag int64
		err = from.Scan(&v.Client, &v.Name, &v.Instance, &v.Version, &keys, &at, &ago, &lag)
		if keys != nil {
			v.Keys = strings.FieldsFunc(*keys, func(r rune) bool { return r == ',' })
		}
		v.At, v.Lag = time.UnixMilli(at).UTC(), time.Duration(lag)*time.Millisecond
		v.Ago = time.Duration(max(0, ago)) * time.Millisecond
		return v, err
	}, `SELECT client, name, instance, version, keys, seen_ms, `+nowMS(db)+` - seen_ms, lag_ms
		FROM verifier WHERE seen_ms > `+nowMS(db)+` - ? AND seen_ms <= `+nowMS(db)+` + ?
		ORDER BY client, name, instance`, within.Milliseconds(), seenAhead.Milliseconds())
}

// PurgeVerifiers forgets at most limit verifiers that were not seen for a day, or whose time is void.
func (f *Feed) PurgeVerifiers(ctx context.Context, limit int) (int64, error) {
	return f.store.db.Write(ctx, `DELETE FROM verifier WHERE (client, name, instance) IN
		(SELECT client, name, instance FROM verifier WHERE seen_ms < `+nowMS(f.store.db)+` - ? OR seen_ms > `+nowMS(f.store.db)+` + ? LIMIT ?)`,
		verifierKept.Milliseconds(), seenAhead.Milliseconds(), limit)
}
