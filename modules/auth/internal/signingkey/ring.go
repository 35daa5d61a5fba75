// Package signingkey holds the keys that sign access tokens: sealed in the database, and in the
// memory of each server. An operator stages, promotes, retires and revokes them.
package signingkey

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/token"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/fault"
)

// What an operator may be told about signing keys.
var (
	ErrNotFound = fault.New(fault.NotFound, "key_not_found", "There is no such signing key")
	ErrStatus   = fault.New(fault.Conflict, "key_wrong_status", "The signing key is not at that stage")
	ErrTooNew   = fault.New(fault.Conflict, "key_too_new", "The signing key is not known everywhere yet")
	ErrInUse    = fault.New(fault.Conflict, "key_in_use", "Tokens of the signing key can still be live")
	ErrUnused   = fault.New(
		fault.Conflict,
		"keys_not_used",
		"With HS256 the shared secret signs; there are no keys to manage",
	)
)

// ErrWrongSecret says that the active signing key cannot be opened.
var ErrWrongSecret = errors.New("auth.token.secret is not the secret that the signing keys were sealed with")

// JWKSMaxAge is how long a verifier may keep the key set it fetched (Cache-Control max-age).
const JWKSMaxAge = 5 * time.Minute

const (
	// keyRefresh is how often a running server looks for changes of the keys.
	keyRefresh = 2 * time.Second
	// keySettle is when every server has noticed a change.
	keySettle = 2 * keyRefresh
	// keyLookup bounds how often an unknown kid makes the server look, and for how long.
	keyLookup = time.Second
	// keySkew is how far ahead of the clock a time of a key may be. One further ahead was
	// written by a clock that was wrong, and would hold an operator up until it has come.
	keySkew = time.Minute
)

// Status is where a signing key stands:
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

// keyRow is a key as it is stored.
type keyRow struct {
	Info
	public string // its JWK, for whoever reads the table; written, never read back
	sealed []byte
	// tokenTTL is the longest lifetime that a server gave to tokens of the key. Of a key from
	// before it was kept, it is the longest that the settings allow.
	tokenTTL time.Duration
}

func (r keyRow) published() bool {
	return r.Status == Staged || r.Status == Active || r.Status == Retiring
}

// Ring holds the signing keys: in the database, and as an immutable copy in memory that
// every request reads without a lock. With HS256 it holds the secrets and the database has
// no part in it.
type Ring struct {
	db  *database.DB
	cfg token.Config
	now func() time.Time // nil: see moment

	current atomic.Pointer[keySet]
	kept    atomic.Pointer[keptTTL] // what this process has last written, of the active key

	renewing chan struct{} // holds an element while the copy is renewed
	lookedUp time.Time     // when an unknown kid last made us look
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

// openRing returns a keyring for managing keys; it does no I/O. It works also when the
// secret is wrong, so that a key can be revoked whose secret is lost. It neither signs nor
// verifies. now may be nil.
func openRing(db *database.DB, cfg token.Config, now func() time.Time) *Ring {
	k := &Ring{db: db, cfg: cfg, now: now, renewing: make(chan struct{}, 1)}
	k.current.Store(&keySet{})
	return k
}

// Look returns a keyring that verifies with what keys there are and the secrets open.
func Look(ctx context.Context, db *database.DB, cfg token.Config, now func() time.Time) (*Ring, error) {
	k := openRing(db, cfg, now)
	if k.shared() {
		return k, k.share()
	}
	if err := k.refresh(ctx); err != nil && len(k.current.Load().jwks) == 0 { // not read at all
		return nil, err
	}
	return k, nil
}

// New returns a keyring ready to sign and verify. On a new database it makes the
// first key; of any number of processes that do so at once, one succeeds and the others
// take its key. Keys that a previous secret opened are sealed anew with the present one.
func New(ctx context.Context, db *database.DB, cfg token.Config, now func() time.Time) (*Ring, error) {
	k := openRing(db, cfg, now)
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
			return nil, fmt.Errorf(
				"%w: name the old secret in auth.token.previous_secrets (AUTH_TOKEN_PREVIOUS_SECRETS), or, if it is lost, find the active key with: authctl key list, and end it with: authctl key revoke KID --force",
				ErrWrongSecret,
			)
		}
		return nil, fmt.Errorf("load the signing keys: %w", err)
	}
	return k, k.reseal(ctx)
}

var errNoActiveKey = errors.New("no key is active")

// Active returns the key that signs now.
func (k *Ring) Active() token.Key { return k.current.Load().active }

// Sign signs claims with the active key. Where tokens live longer than is kept with the key,
// their lifetime is kept first: whoever retires the key trusts it.
func (k *Ring) Sign(ctx context.Context, claims token.Claims) (string, error) {
	set := k.current.Load()
	if err := k.keepTTL(ctx, set); err != nil {
		return "", err
	}
	return set.active.Sign(claims)
}

func (k *Ring) keepTTL(ctx context.Context, set *keySet) error {
	ttl := k.cfg.AccessTTL
	if k.shared() || set.activeTTL >= ttl {
		return nil
	}
	kid := set.active.KID()
	if kept := k.kept.Load(); kept != nil && kept.kid == kid && kept.ttl >= ttl {
		return nil
	}
	seconds := int64((ttl + time.Second - 1) / time.Second)
	if _, err := k.db.Write(ctx, "UPDATE signing_key SET token_ttl = ? WHERE kid = ? AND token_ttl < ?", seconds, kid, seconds); err != nil {
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

// run follows changes of the keys until ctx ends.
func (k *Ring) Run(ctx context.Context, log *zap.Logger) error {
	if k.shared() {
		<-ctx.Done()
		return nil
	}
	if active := k.Active(); active.Algorithm() != k.cfg.Algorithm {
		log.Warn(
			"signing_algorithm_differs",
			zap.String("configured", k.cfg.Algorithm),
			zap.String("active", active.Algorithm()),
			zap.String("hint", "the active key stays in use; rotate with: authctl key stage, then authctl key promote"),
		)
	}
	tick := time.NewTicker(keyRefresh)
	defer tick.Stop()
	var told keyTroubles
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
		told.report(log, unusable, err)
		if after := k.Active().KID(); after != before {
			log.Info("signing_key_changed", zap.String("kid", after), zap.String("before", before))
		}
	}
}

// keyTroubles are what is wrong with the keys and was logged.
type keyTroubles struct {
	unread   bool             // the keys could not be read
	unusable map[string]error // by kid
}

// report logs each new trouble once, not every two seconds, and once when all of it is over.
func (told *keyTroubles) report(log *zap.Logger, unusable map[string]error, err error) {
	if err != nil {
		if !told.unread {
			log.Warn("signing_keys_not_refreshed", zap.Error(err))
		}
		told.unread = true // what is known of single keys stays so
		return
	}
	for kid, err := range unusable {
		if told.unusable[kid] == nil {
			log.Warn("signing_key_unusable", zap.String("kid", kid), zap.Error(err))
		}
	}
	if len(unusable) == 0 && (told.unread || len(told.unusable) > 0) {
		log.Info("signing_keys_refreshed_again")
	}
	*told = keyTroubles{unusable: unusable}
}

// List returns every key there ever was, oldest first.
func (k *Ring) List(ctx context.Context) ([]Info, error) {
	if k.shared() {
		return nil, ErrUnused
	}
	rows, err := readKeys(ctx, k.db)
	if err != nil {
		return nil, err
	}
	now, err := k.moment(ctx, k.db)
	if err != nil {
		return nil, err
	}
	list := make([]Info, 0, len(rows))
	for _, r := range rows {
		list = append(list, k.info(r, now))
	}
	return list, nil
}

// Stage makes a key of the configured algorithm and publishes it.
func (k *Ring) Stage(ctx context.Context) (Info, error) {
	if k.shared() {
		return Info{}, ErrUnused
	}
	row, err := k.generate(Staged)
	if err != nil {
		return Info{}, err
	}
	return k.change(ctx, row.KID, func(ctx context.Context, tx database.Tx, _ []keyRow, now time.Time) error {
		row.StagedAt = now
		return insertKey(ctx, tx, row)
	})
}

// Promote makes a staged key the active one and the active one a retiring one. Before every
// verifier can know the key it refuses with [ErrTooNew], unless force.
func (k *Ring) Promote(ctx context.Context, kid string, force bool) (Info, error) {
	if k.shared() {
		return Info{}, ErrUnused
	}
	return k.change(ctx, kid, func(ctx context.Context, tx database.Tx, rows []keyRow, now time.Time) error {
		row, err := findKey(rows, kid)
		if err != nil {
			return err
		}
		if row.Status != Staged {
			return ErrStatus.Detail(fmt.Sprintf("The key is %s; only a staged key can be promoted.", row.Status))
		}
		if at := k.info(row, now).PromotableAt; now.Before(at) && !force {
			return ErrTooNew.Detail(
				fmt.Sprintf(
					"Verifiers may hold a key set without it until %s. Forced, they refuse its tokens until then.",
					at.Format(time.RFC3339),
				),
			)
		}
		if _, err := k.open(row); err != nil {
			return err // no server with this secret could sign
		}
		return k.activate(ctx, tx, kid, now)
	})
}

// Retire takes a retiring key out of the key set and destroys its private half. While tokens
// it signed can live it refuses with [ErrInUse], unless force.
func (k *Ring) Retire(ctx context.Context, kid string, force bool) (Info, error) {
	if k.shared() {
		return Info{}, ErrUnused
	}
	return k.change(ctx, kid, func(ctx context.Context, tx database.Tx, rows []keyRow, now time.Time) error {
		row, err := findKey(rows, kid)
		if err != nil {
			return err
		}
		if row.Status != Retiring {
			return ErrStatus.Detail(fmt.Sprintf("The key is %s; only a retiring key can be retired.", row.Status))
		}
		if at := k.info(row, now).RetirableAt; now.Before(at) && !force {
			return ErrInUse.Detail(
				fmt.Sprintf(
					"Access tokens it signed can live until %s. Forced, they are refused from now on and their clients must refresh.",
					at.Format(time.RFC3339),
				),
			)
		}
		return endKey(ctx, tx, kid, Retired, row.RetiredAt)
	})
}

// Revoke takes any key out of the key set at once and destroys its private half: every
// access token it signed is refused from then on. When it was the active one, the staged key
// that has been published the longest takes its place, or else a new one; successor is that
// key. Revoking twice changes nothing.
func (k *Ring) Revoke(ctx context.Context, kid string) (revoked, successor Info, err error) {
	if k.shared() {
		return Info{}, Info{}, ErrUnused
	}
	// Made before the transaction, where a key takes time, and thrown away if not needed.
	spare, err := k.generate(Staged)
	if err != nil {
		return Info{}, Info{}, err
	}
	revoked, err = k.change(ctx, kid, func(ctx context.Context, tx database.Tx, rows []keyRow, now time.Time) error {
		row, err := findKey(rows, kid)
		if err != nil || row.Status == Revoked {
			return err
		}
		stopped := row.RetiredAt
		if row.Status == Active {
			stopped = now
		}
		if err := endKey(ctx, tx, kid, Revoked, stopped); err != nil || row.Status != Active {
			return err
		}
		next := slices.IndexFunc(rows, func(r keyRow) bool { // oldest first
			if r.Status != Staged {
				return false
			}
			_, err := k.open(r)
			return err == nil
		})
		if next < 0 {
			next, spare.StagedAt = len(rows), now
			rows = append(rows, spare)
			if err := insertKey(ctx, tx, spare); err != nil {
				return err
			}
		}
		successor = rows[next].Info
		successor.Status, successor.ActiveAt = Active, now
		return k.activate(ctx, tx, successor.KID, now)
	})
	if err != nil {
		return Info{}, Info{}, err
	}
	return revoked, successor, nil
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

// lookup renews the copy for a kid that is not in it. Requests that come while it does wait
// for the same answer; those that come within a second after it are refused at once, so that
// a flood of made-up kids costs the database one small query a second.
func (k *Ring) lookup(kid string) (token.Key, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), keyLookup)
	defer cancel()
	if !k.take(ctx) {
		return token.Key{}, false
	}
	defer k.release()
	if key, ok := k.current.Load().opened[kid]; ok {
		return key, true
	}
	if since := k.local().Sub(k.lookedUp); since >= 0 && since < keyLookup {
		return token.Key{}, false
	}
	_, _ = k.renew(ctx) // run reports what goes on failing; here the key stays unknown
	k.lookedUp = k.local()
	key, ok := k.current.Load().opened[kid]
	return key, ok
}

// take waits for its turn to renew the copy, and no longer than ctx.
func (k *Ring) take(ctx context.Context) bool {
	select {
	case k.renewing <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (k *Ring) release() { <-k.renewing }

// refresh is look with everything that is wrong in one error.
func (k *Ring) refresh(ctx context.Context) error {
	unusable, err := k.look(ctx)
	return errors.Join(append(slices.Collect(maps.Values(unusable)), err)...)
}

// lookBriefly is look that gives up when the next one is due.
func (k *Ring) lookBriefly(ctx context.Context) (unusable map[string]error, err error) {
	ctx, cancel := context.WithTimeout(ctx, keyRefresh)
	defer cancel()
	return k.look(ctx)
}

// look renews the copy and returns what is wrong with which key, by kid.
func (k *Ring) look(ctx context.Context) (unusable map[string]error, err error) {
	if !k.take(ctx) {
		return nil, fmt.Errorf("read the signing keys: %w", ctx.Err())
	}
	defer k.release()
	return k.renew(ctx)
}

// renew reads the keys into a new copy; the caller has taken its turn. A key that cannot be
// opened is left out and told of, by its kid; that there is no active one, under "". It is
// left out on purpose also for verifying, which the public half in the row would do for:
// whoever can write to the table, but does not know the secret, must not be able to bring in
// a key.
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
		if _, err := k.db.Write(ctx, "UPDATE signing_key SET sealed = ? WHERE kid = ? AND sealed = ?", sealed, r.KID, r.sealed); err != nil {
			return fmt.Errorf("reseal the signing key %s: %w", r.KID, err)
		}
	}
	return nil
}

// generate makes a key that is not stored yet, and has no times.
func (k *Ring) generate(status Status) (keyRow, error) {
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

// change runs fn in a transaction that no other change of keys runs beside, and returns what
// the key has become.
func (k *Ring) change(
	ctx context.Context,
	kid string,
	fn func(ctx context.Context, tx database.Tx, rows []keyRow, now time.Time) error,
) (Info, error) {
	var info Info
	err := k.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		if database.IsPostgres(tx) {
			// Readers go on; SQLite's transaction holds the whole database anyway.
			if _, err := tx.ExecContext(ctx, "LOCK TABLE signing_key IN SHARE ROW EXCLUSIVE MODE"); err != nil {
				return fmt.Errorf("lock the signing keys: %w", err)
			}
		}
		rows, err := readKeys(ctx, tx)
		if err != nil {
			return err
		}
		now, err := k.moment(ctx, tx)
		if err != nil {
			return err
		}
		if err := fn(ctx, tx, rows, now); err != nil {
			return err
		}
		if rows, err = readKeys(ctx, tx); err != nil {
			return err
		}
		row, err := findKey(rows, kid)
		info = k.info(row, now)
		return err
	})
	if err != nil {
		return Info{}, err
	}
	// The change is made; other servers notice by themselves, and so does this one if it
	// cannot read the keys right now.
	_, _ = k.lookBriefly(ctx)
	return info, nil
}

// activate puts the key in the place of the active one, if there is one.
func (k *Ring) activate(ctx context.Context, tx database.Tx, kid string, now time.Time) error {
	if _, err := tx.ExecContext(ctx, "UPDATE signing_key SET status = ?, retired_at = ? WHERE status = ?", Retiring, now, Active); err != nil {
		return fmt.Errorf("retire the active signing key: %w", err)
	}
	if _, err := tx.ExecContext(ctx, "UPDATE signing_key SET status = ?, active_at = ? WHERE kid = ?", Active, now, kid); err != nil {
		return fmt.Errorf("promote the signing key: %w", err)
	}
	return nil
}

func (k *Ring) info(r keyRow, now time.Time) Info {
	info := r.Info
	// What is yet to come counts as having come now.
	counted := func(at time.Time) time.Time {
		if info.ClockWasAhead = at.After(now.Add(keySkew)); info.ClockWasAhead {
			return now
		}
		return at
	}
	switch r.Status {
	case Staged:
		// A server may have answered with the old set until it noticed.
		info.PromotableAt = counted(r.StagedAt).Add(JWKSMaxAge + keySettle)
	case Retiring:
		// A server may have signed with it until it noticed.
		info.RetirableAt = counted(r.RetiredAt).Add(max(r.tokenTTL, k.cfg.AccessTTL) + keySettle)
	}
	return info
}

// Correct puts the present moment in the place of times of keys that are yet to come, which
// only a clock that was ahead can have written, and returns the kids. Such a time would hold
// up an operator until it has come, and what waits for it has begun by now.
func (k *Ring) Correct(ctx context.Context) ([]string, error) {
	if k.shared() {
		return nil, nil
	}
	list, err := k.List(ctx)
	if err != nil {
		return nil, err
	}
	var kids []string
	for _, info := range list {
		if info.ClockWasAhead {
			kids = append(kids, info.KID)
		}
	}
	if len(kids) == 0 {
		return nil, nil
	}
	now, err := k.moment(ctx, k.db)
	if err != nil {
		return nil, err
	}
	for _, column := range []string{"staged_at", "active_at", "retired_at"} {
		if _, err := k.db.Write(ctx, "UPDATE signing_key SET "+column+" = ? WHERE "+column+" > ? AND kid IN (?)", now, now, database.List(kids)); err != nil {
			return nil, fmt.Errorf("correct the times of signing keys: %w", err)
		}
	}
	return kids, nil
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

// insertKey does nothing when another key is active already and this one would be.
func insertKey(ctx context.Context, tx database.IDB, r keyRow) error {
	_, err := tx.ExecContext(
		ctx,
		`INSERT INTO signing_key (kid, algorithm, status, public_jwk, sealed, staged_at, active_at, token_ttl)
		VALUES (?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT DO NOTHING`,
		r.KID,
		r.Algorithm,
		r.Status,
		r.public,
		r.sealed,
		r.StagedAt,
		nullTime(r.ActiveAt),
	)
	if err != nil {
		return fmt.Errorf("insert the signing key: %w", err)
	}
	return nil
}

// endKey makes a key retired or revoked; nobody needs its private half again.
func endKey(ctx context.Context, tx database.IDB, kid string, status Status, stopped time.Time) error {
	_, err := tx.ExecContext(ctx, "UPDATE signing_key SET status = ?, retired_at = ?, sealed = ? WHERE kid = ?",
		status, nullTime(stopped), []byte{}, kid)
	if err != nil {
		return fmt.Errorf("make the signing key %s: %w", status, err)
	}
	return nil
}

func nullTime(t time.Time) sql.NullTime { return sql.NullTime{Time: t, Valid: !t.IsZero()} }

func readKeys(ctx context.Context, db database.IDB) ([]keyRow, error) {
	rows, err := db.QueryContext(
		ctx,
		`SELECT kid, algorithm, status, sealed, staged_at, active_at, retired_at, token_ttl
		FROM signing_key ORDER BY staged_at, kid`,
	)
	if err != nil {
		return nil, fmt.Errorf("read the signing keys: %w", err)
	}
	defer rows.Close()
	var list []keyRow
	for rows.Next() {
		var r keyRow
		var active, retired sql.NullTime
		var seconds int64
		if err := rows.Scan(&r.KID, &r.Algorithm, &r.Status, &r.sealed, &r.StagedAt, &active, &retired, &seconds); err != nil {
			return nil, fmt.Errorf("read the signing keys: %w", err)
		}
		r.StagedAt, r.ActiveAt, r.RetiredAt = r.StagedAt.UTC(), active.Time.UTC(), retired.Time.UTC()
		r.tokenTTL = time.Duration(seconds) * time.Second
		list = append(list, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the signing keys: %w", err)
	}
	return list, nil
}

func findKey(rows []keyRow, kid string) (keyRow, error) {
	i := slices.IndexFunc(rows, func(r keyRow) bool { return r.KID == kid })
	if i < 0 {
		return keyRow{}, ErrNotFound
	}
	return rows[i], nil
}
