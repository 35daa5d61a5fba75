// Package signingkey holds the keys that sign access tokens: sealed in the database, and in the
// memory of each server. An operator stages, promotes, retires and revokes them.
package signingkey

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/toppira/authctl/modules/auth/internal/token"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/fault"
	"github.com/toppira/authctl/platform/logging"
)

// What an operator may be told about signing keys.
var (
	ErrNotFound = fault.New(fault.NotFound, "key_not_found", "There is no such signing key")
	ErrStatus   = fault.New(fault.Conflict, "key_wrong_status", "The signing key is not at that stage")
	ErrTooNew   = fault.New(fault.Conflict, "key_too_new", "The signing key is not known everywhere yet")
	ErrInUse    = fault.New(fault.Conflict, "key_in_use", "Tokens of the signing key can still be live")
	ErrUnused   = fault.New(fault.Conflict, "keys_not_used",
		"With HS256 the shared secret signs; there are no keys to manage")
)

// ErrWrongSecret says that the active signing key cannot be opened.
var ErrWrongSecret = errors.New("auth.token.secret is not the secret that the signing keys were sealed with")

// ErrOtherSecret says that with HS256 the server that started last signs with another secret.
var ErrOtherSecret = errors.New("auth.token.secret is not the one of the server that started last")

// JWKSMaxAge is how long a verifier may keep the key set it fetched (Cache-Control max-age).
const JWKSMaxAge = 5 * time.Minute

const (
	// refreshEvery is how often a running server looks for changes of the keys.
	refreshEvery = 2 * time.Second
	// propagation is the delay after which every server has noticed a change.
	propagation = 2 * refreshEvery
	// lookupEvery bounds how often an unknown kid makes the server look, and for how long.
	lookupEvery = time.Second
	// maxSkew is how far ahead of the clock a time of a key may be. One further ahead was written
	// by a wrong clock, and an operator would have to wait for it.
	maxSkew = time.Minute
)

// Status is the stage of a signing key:
//
//	staged ──→ active ──→ retiring ──→ retired
//	   └─────────┴───────────┴────────────┴──→ revoked
//
// A staged key is published and signs nothing yet; the one active key signs; a retiring one
// only verifies; retired and revoked ones are gone from the key set, and their private
// halves from the database.
type Status string

const (
	Staged   Status = "staged"
	Active   Status = "active"
	Retiring Status = "retiring"
	Retired  Status = "retired"
	Revoked  Status = "revoked"
)

// Info is what an operator sees of a signing key.
type Info struct {
	KID       string    `json:"kid"`
	Algorithm string    `json:"algorithm"`
	Status    Status    `json:"status"`
	StagedAt  time.Time `json:"staged_at"`           // published since
	ActiveAt  time.Time `json:"active_at,omitzero"`  // signing since
	RetiredAt time.Time `json:"retired_at,omitzero"` // no longer signing since

	PromotableAt time.Time `json:"promotable_at,omitzero"` // of a staged key: every verifier knows it
	RetirableAt  time.Time `json:"retirable_at,omitzero"`  // of a retiring key: no token of it is live

	// ClockWasAhead says that the time which PromotableAt or RetirableAt counts from is yet to
	// come. Promoting or retiring the key puts the present moment in its place.
	ClockWasAhead bool `json:"clock_was_ahead,omitempty"`
}

// Ring holds the signing keys: in the database, and as an immutable copy in memory that
// every request reads without a lock. With HS256 it holds the secrets and the database has
// no part in it.
type Ring struct {
	db  *database.DB
	cfg token.Config
	now func() time.Time // nil: see moment
	log *zap.Logger
	// security notes what operators do.
	security *zap.Logger

	current atomic.Pointer[keySet]
	kept    atomic.Pointer[keptTTL] // what this process has last written, of the active key

	renewing *semaphore.Weighted // of one who renews the copy
	lookedUp time.Time           // when an unknown kid last made us look
}

// keptTTL is a lifetime of tokens that is kept with a key.
type keptTTL struct {
	kid string
	ttl time.Duration
}

// keySet is the keys at one moment. It is never changed.
type keySet struct {
	active token.Key
	opened map[string]token.Key // all that are published, by kid
	jwks   []byte
	etag   string

	activeTTL  time.Duration // kept with the active key
	longestTTL time.Duration // kept with any that is published
}

// Open returns a ring for operators, which neither signs nor verifies; it does no I/O. Running servers
// notice its changes within seconds. It also works with a wrong secret, so that a key can be revoked
// whose secret is lost. log and now may be nil.
func Open(db *database.DB, cfg token.Config, log *zap.Logger, now func() time.Time) *Ring {
	log = cmp.Or(log, zap.NewNop())
	k := &Ring{db: db, cfg: cfg, now: now, log: log, security: logging.Security(log),
		renewing: semaphore.NewWeighted(1)}
	k.current.Store(&keySet{})
	return k
}

// Look returns a ring that verifies with the keys that exist and that the secrets open.
func Look(ctx context.Context, db *database.DB, cfg token.Config, log *zap.Logger,
	now func() time.Time) (*Ring, error) {
	k := Open(db, cfg, log, now)
	if k.shared() {
		return k, k.share()
	}
	if err := k.refresh(ctx); err != nil && len(k.current.Load().jwks) == 0 { // not read at all
		return nil, err
	}
	return k, nil
}

// New returns a ring ready to sign and verify. On a new database it makes the first key; of any
// number of processes that do so at once, one succeeds and the others take its key. Keys that a
// previous secret opened are sealed again with the present one.
func New(ctx context.Context, db *database.DB, cfg token.Config, log *zap.Logger, now func() time.Time) (*Ring, error) {
	k := Open(db, cfg, log, now)
	if k.shared() {
		return k, k.share()
	}
	rows, err := readKeys(ctx, db)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(rows, func(r keyRow) bool { return r.Status == Active }) {
		if err := k.makeFirst(ctx); err != nil {
			return nil, err
		}
	}
	err = k.refresh(ctx)
	if active := k.Active(); active.KID() == "" {
		if errors.Is(err, token.ErrSealed) {
			return nil, fmt.Errorf("%w: name the old secret in auth.token.previous_secrets "+
				"(AUTH_TOKEN_PREVIOUS_SECRETS), or, if it is lost, find the active key with: authctl key list, "+
				"and revoke it with: authctl key revoke KID --force", ErrWrongSecret)
		}
		return nil, fmt.Errorf("load the signing keys: %w", err)
	}
	return k, k.reseal(ctx)
}

var errNoActiveKey = errors.New("no key is active")

// Active returns the key that signs now.
func (k *Ring) Active() token.Key { return k.current.Load().active }

// Signer returns the key that signs for one request. A lifetime of tokens longer than the one stored with the key
// is stored first: retiring the key relies on it, and so do the facts that tell followers what has ended.
// So the request takes its signer before it asks whether the session is live: whoever ends the session
// after that knows how long its token lives.
func (k *Ring) Signer(ctx context.Context) (token.Key, error) {
	set := k.current.Load()
	return set.active, k.keepTTL(ctx, set)
}

func (k *Ring) keepTTL(ctx context.Context, set *keySet) error {
	ttl := k.cfg.AccessTTL
	if set.activeTTL >= ttl {
		return nil
	}
	kid, which := set.active.KID(), "kid"
	if k.shared() {
		// The secret has no row. Where a key has signed before, its row is what tells how long
		// tokens live; where none has, the longest life that the settings allow counts.
		kid, which = string(Active), "status"
	}
	if kept := k.kept.Load(); kept != nil && kept.kid == kid && kept.ttl >= ttl {
		return nil
	}
	seconds := int64((ttl + time.Second - 1) / time.Second)
	if _, err := k.db.Write(ctx, "UPDATE signing_key SET token_ttl = ? WHERE "+which+" = ? AND token_ttl < ?", seconds,
		kid, seconds); err != nil {
		return fmt.Errorf("keep the lifetime of tokens with the signing key: %w", err)
	}
	k.kept.Store(&keptTTL{kid, ttl})
	return nil
}

// LongestTTL is the longest lifetime of any token that can be live: servers may have other
// settings than this process.
func (k *Ring) LongestTTL() time.Duration {
	return max(k.cfg.AccessTTL, k.current.Load().longestTTL)
}

// Public returns a published key. An unknown kid makes it look in the database, in case the
// key is new, once a second at the most.
func (k *Ring) Public(kid string) (token.PublicKey, bool) {
	key, ok := k.current.Load().opened[kid]
	if !ok && !k.shared() {
		key, ok = k.lookup(kid)
	}
	return key.Public(), ok
}

// JWKS returns the published keys as a JWK set, and its entity tag. Both are shared: not to
// be changed.
func (k *Ring) JWKS() (body []byte, etag string) {
	set := k.current.Load()
	return set.jwks, set.etag
}

// Run follows changes of the keys until ctx ends.
func (k *Ring) Run(ctx context.Context) error {
	if k.shared() {
		k.noteSecret(ctx)
		<-ctx.Done()
		return nil
	}
	if active := k.Active(); active.Algorithm() != k.cfg.Algorithm {
		k.log.Warn("signing_algorithm_differs", zap.String("configured", k.cfg.Algorithm),
			zap.String("active", active.Algorithm()),
			zap.String("hint", "the active key stays in use; rotate with: authctl key stage, then authctl key promote"))
	}
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	var logged problems
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		before := k.Active().KID()
		unusable, err := k.lookBriefly(ctx)
		if ctx.Err() != nil {
			return nil
		}
		logged.report(k.log, unusable, err)
		if after := k.Active().KID(); after != before {
			k.log.Info("signing_key_changed", zap.String("kid", after), zap.String("before", before))
		}
	}
}

// problems are what is wrong with the keys and was logged.
type problems struct {
	unread   bool             // the keys could not be read
	unusable map[string]error // by kid
}

// report logs each new problem once, not every two seconds, and once when all are resolved.
func (logged *problems) report(log *zap.Logger, unusable map[string]error, err error) {
	if err != nil {
		if !logged.unread {
			log.Warn("signing_keys_not_refreshed", zap.Error(err))
		}
		logged.unread = true // what is known of single keys stays so
		return
	}
	for kid, err := range unusable {
		if logged.unusable[kid] == nil {
			log.Warn("signing_key_unusable", zap.String("kid", kid), zap.Error(err))
		}
	}
	if len(unusable) == 0 && (logged.unread || len(logged.unusable) > 0) {
		log.Info("signing_keys_refreshed_again")
	}
	*logged = problems{unusable: unusable}
}

// shared reports that the secret itself signs.
func (k *Ring) shared() bool { return k.cfg.Algorithm == token.HS256 }

// share makes the keys of HS256: the present secret signs, all of them verify.
func (k *Ring) share() error {
	set := &keySet{opened: make(map[string]token.Key)}
	for i, secret := range k.cfg.Secrets() {
		key, err := token.SharedKey(secret)
		if err != nil {
			return err
		}
		if i == 0 {
			set.active = key
		}
		set.opened[key.KID()] = key
	}
	var err error
	if set.jwks, set.etag, err = token.MarshalJWKS(nil); err != nil {
		return err
	}
	k.current.Store(set)
	return nil
}

// noteSecret tells the log if the server that started last has another secret, and then writes the name of this one's.
// With HS256 nothing in the database is sealed under the secret: each would go on, and refuse the tokens of the other.
func (k *Ring) noteSecret(ctx context.Context) {
	err := k.checkShared(ctx)
	if errors.Is(err, ErrOtherSecret) {
		k.log.Warn("secret_differs", zap.Error(err),
			zap.String("hint", "unless it was just replaced, give all servers the same AUTH_TOKEN_SECRET: with "+
				"different ones they refuse each other's tokens"))
		err = nil
	}
	var now, last time.Time
	if err == nil {
		now, err = k.moment(ctx, k.db)
	}
	if err == nil {
		_, last, err = notedSecret(ctx, k.db)
	}
	if err == nil {
		if !now.After(last) { // the clock was ahead then
			now = last.Add(time.Microsecond)
		}
		err = noteSecret(ctx, k.db, k.Active().KID(), now)
	}
	if err != nil && ctx.Err() == nil {
		k.log.Warn("secret_not_compared", zap.Error(err))
	}
}

// checkShared returns an [ErrOtherSecret] if the server that started last has a secret that none of these is.
func (k *Ring) checkShared(ctx context.Context) error {
	noted, _, err := notedSecret(ctx, k.db)
	if err != nil || noted == "" {
		return err
	}
	for _, secret := range k.cfg.Secrets() {
		key, err := token.SharedKey(secret)
		if err != nil {
			return err
		}
		if key.KID() == noted {
			return nil
		}
	}
	return ErrOtherSecret
}

// lookup renews the copy for a kid that is not in it. Requests that come while it does wait
// for the same answer; those that come within a second after it are refused at once, so that
// a flood of made-up kids costs the database one small query a second.
func (k *Ring) lookup(kid string) (token.Key, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), lookupEvery)
	defer cancel()
	if k.renewing.Acquire(ctx, 1) != nil {
		return token.Key{}, false
	}
	defer k.renewing.Release(1)
	if key, ok := k.current.Load().opened[kid]; ok {
		return key, true
	}
	if since := k.local().Sub(k.lookedUp); since >= 0 && since < lookupEvery {
		return token.Key{}, false
	}
	_, _ = k.renew(ctx) // run reports what goes on failing; here the key stays unknown
	k.lookedUp = k.local()
	key, ok := k.current.Load().opened[kid]
	return key, ok
}

// refresh is look with everything that is wrong in one error.
func (k *Ring) refresh(ctx context.Context) error {
	unusable, err := k.look(ctx)
	return errors.Join(append(slices.Collect(maps.Values(unusable)), err)...)
}

// lookBriefly is look that gives up when the next one is due.
func (k *Ring) lookBriefly(ctx context.Context) (unusable map[string]error, err error) {
	ctx, cancel := context.WithTimeout(ctx, refreshEvery)
	defer cancel()
	return k.look(ctx)
}

// look renews the copy and returns what is wrong with which key, by kid.
func (k *Ring) look(ctx context.Context) (unusable map[string]error, err error) {
	if err := k.renewing.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("read the signing keys: %w", err)
	}
	defer k.renewing.Release(1)
	return k.renew(ctx)
}

// renew reads the keys into a new copy; the caller has taken its turn. A key that cannot be opened is
// left out and returned by its kid; the lack of an active one, by "". It does not verify either,
// although its public half is in the row: who can write to the table, but does not know the secret,
// must not be able to add a key.
func (k *Ring) renew(ctx context.Context) (unusable map[string]error, err error) {
	rows, err := readKeys(ctx, k.db)
	if err != nil {
		return nil, err
	}
	old, set := k.current.Load(), &keySet{opened: make(map[string]token.Key)}
	unusable = make(map[string]error)
	var public []token.PublicKey
	for _, r := range rows {
		if !r.published() {
			continue
		}
		key, known := old.opened[r.KID]
		if !known {
			if key, err = k.open(r); err != nil {
				unusable[r.KID] = err
				continue
			}
		}
		set.opened[r.KID] = key
		public = append(public, key.Public())
		set.longestTTL = max(set.longestTTL, r.tokenTTL)
		if r.Status == Active {
			set.active, set.activeTTL = key, r.tokenTTL
		}
	}
	if set.active.KID() == "" {
		// Its predecessor goes on signing as long as it is published.
		set.active, set.activeTTL = set.opened[old.active.KID()], old.activeTTL
		unusable[""] = errNoActiveKey
	}
	if set.jwks, set.etag, err = token.MarshalJWKS(public); err != nil {
		return nil, err
	}
	k.current.Store(set)
	return unusable, nil
}

func (k *Ring) open(r keyRow) (token.Key, error) {
	key, _, err := token.Open(r.sealed, r.KID, r.Algorithm, k.cfg.Secrets()...)
	return key, err
}

// reseal brings keys that a previous secret opens under the present one, so that the
// previous one can be dropped.
func (k *Ring) reseal(ctx context.Context) error {
	if k.cfg.PreviousSecrets == "" {
		return nil
	}
	rows, err := readKeys(ctx, k.db)
	if err != nil {
		return err
	}
	for _, r := range rows {
		if !r.published() {
			continue
		}
		key, stale, err := token.Open(r.sealed, r.KID, r.Algorithm, k.cfg.Secrets()...)
		if err != nil || !stale {
			continue // what cannot be opened is told of by run
		}
		sealed, err := key.Seal(k.cfg.Secret)
		if err != nil {
			return err
		}
		if _, err := k.db.Write(ctx, "UPDATE signing_key SET sealed = ? WHERE kid = ? AND sealed = ?", sealed, r.KID,
			r.sealed); err != nil {
			return fmt.Errorf("reseal the signing key %s: %w", r.KID, err)
		}
	}
	return nil
}

// generate makes a key that is not stored yet, and has no times. With HS256 it returns [ErrUnused].
func (k *Ring) generate(status Status) (keyRow, error) {
	if k.shared() {
		return keyRow{}, ErrUnused
	}
	key, err := token.Generate(k.cfg.Algorithm)
	for err == nil && strings.HasPrefix(key.KID(), "-") { // one in 64; a command line would take it for flags
		key, err = token.Generate(k.cfg.Algorithm)
	}
	if err != nil {
		return keyRow{}, err
	}
	public, err := token.MarshalJWK(key.Public())
	if err != nil {
		return keyRow{}, err
	}
	sealed, err := key.Seal(k.cfg.Secret)
	if err != nil {
		return keyRow{}, err
	}
	info := Info{KID: key.KID(), Algorithm: key.Algorithm(), Status: status}
	return keyRow{Info: info, public: string(public), sealed: sealed}, nil
}

func (k *Ring) makeFirst(ctx context.Context) error {
	row, err := k.generate(Active)
	if err != nil {
		return err
	}
	if row.StagedAt, err = k.moment(ctx, k.db); err != nil {
		return err
	}
	row.ActiveAt = row.StagedAt
	// The index signing_key_one_active lets one of several through.
	return k.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error { return insertKey(ctx, tx, row) })
}

func (k *Ring) info(r keyRow, now time.Time) Info {
	info := r.Info
	// What is yet to come counts as having come now.
	counted := func(at time.Time) time.Time {
		if info.ClockWasAhead = at.After(now.Add(maxSkew)); info.ClockWasAhead {
			return now
		}
		return at
	}
	switch r.Status {
	case Staged:
		// A server may have answered with the old set until it noticed.
		info.PromotableAt = counted(r.StagedAt).Add(JWKSMaxAge + propagation)
	case Retiring:
		// A server may have signed with it until it noticed.
		info.RetirableAt = counted(r.RetiredAt).Add(max(r.tokenTTL, k.cfg.AccessTTL) + propagation)
	}
	return info
}

// moment is the present one as keys are stamped with: by the clock of the database, which all
// processes share, so that it does not matter whose own is wrong.
func (k *Ring) moment(ctx context.Context, db database.IDB) (time.Time, error) {
	if k.now == nil && database.IsPostgres(db) {
		var now time.Time
		if err := db.QueryRowContext(ctx, "SELECT clock_timestamp()").Scan(&now); err != nil {
			return time.Time{}, fmt.Errorf("ask the database for the time: %w", err)
		}
		return now.UTC().Truncate(time.Microsecond), nil
	}
	return k.local().UTC().Truncate(time.Microsecond), nil
}

// local is the time of this process.
func (k *Ring) local() time.Time {
	if k.now == nil {
		return time.Now()
	}
	return k.now()
}
