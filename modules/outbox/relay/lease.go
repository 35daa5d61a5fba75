package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/modules/outbox/internal/schema"
	"github.com/toppira/authctl/platform/database"
)

// shard is a shard whose lease this relay holds, and what the relay remembers of it. Relay.mu
// guards it, except lost.
type shard struct {
	id        int
	epoch     int64
	watermark int64            // no pending id is, or can ever appear, at or below it
	parked    map[string]int64 // keys, and the id from which they wait; replaced, never changed
	parkings  int              // how often this relay itself has parked a key
	busy      bool             // its events are being delivered
	leaving   bool             // to be handed to another relay
	lost      atomic.Bool      // for good: a new lease is a new shard
}

// parks reports whether the record must wait with its key.
func (sh *shard) parks(r *Record) bool {
	from, parked := sh.parked[r.Key]
	return parked && r.ID >= from
}

// park remembers that a key waits from an id.
func (sh *shard) park(key string, id int64) {
	sh.parked = merged(sh.parked, map[string]int64{key: id})
	sh.parkings++
}

// merged returns the keys of both, each with its lower id.
func merged(a, b map[string]int64) map[string]int64 {
	out := maps.Clone(a)
	if out == nil {
		out = map[string]int64{}
	}
	for key, id := range b {
		if from, parked := out[key]; !parked || id < from {
			out[key] = id
		}
	}
	return out
}

// claim is a row of outbox_shard.
type claim struct {
	shard            int
	epoch, watermark int64
	parkings         int  // of the shard, when the relay asked
	fresh            bool // taken just now
	expired          bool // … from a relay whose lease had expired
	void             bool // … although the lease ends in the future
}

// tick renews the leases of this relay, releases what exceeds its share, takes free shards up to
// its share, and reads what the owner of a shard must know. It is one transaction, so that the
// relay never holds a lease without having read that.
func (r *Relay) tick(ctx context.Context) error {
	asked := r.now() // before the query: the lease in the database begins later, and ends later
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Lease/2)
	defer cancel()

	late := 0
	r.mu.Lock()
	if !r.until.HoldsAt(asked) {
		// Others may have owned the shards since: what is remembered is out of date.
		late = r.dropAll()
		r.met.lost.Add(float64(late))
		r.met.owned.Set(0)
		r.met.living.Set(0) // this one does not count any more, and cannot tell who does
	}
	held := make([]claim, 0, len(r.held))
	for _, sh := range r.held {
		held = append(held, claim{shard: sh.id, epoch: sh.epoch, watermark: sh.watermark, parkings: sh.parkings})
	}
	rate := r.rate.perSecond(asked)
	r.mu.Unlock()

	var res tickResult
	err := r.db.Tx(ctx, func(ctx context.Context, tx database.Tx) (err error) {
		res, err = r.tickTx(ctx, tx, asked, held, rate)
		return err
	})
	if err != nil {
		return fmt.Errorf("renew the leases: %w", err)
	}
	if late > 0 { // while the database answers: that it was away is told elsewhere
		r.log.Warn("relay_shards_lost", zap.Int("shards", late))
	}
	r.applyTick(asked, held, res)
	return nil
}

type tickResult struct {
	nowMS    int64
	shards   int
	server   string // the database server that answered
	living   int
	claims   []claim // held now
	released []int
	parked   map[int]map[string]int64
}

func (r *Relay) tickTx(
	ctx context.Context, tx database.Tx, asked time.Time, held []claim, rate float64,
) (res tickResult, err error) {
	clock, lease := schema.Now(tx), r.cfg.Lease.Milliseconds()
	if err := schema.Bounded(ctx, tx, r.cfg.Lease/2); err != nil {
		return res, err
	}
	err = tx.QueryRowContext(ctx, "SELECT "+clock+", "+schema.ThisServer(tx)).Scan(&res.nowMS, &res.server)
	if err != nil {
		return res, err
	}
	if prior := r.server.Load(); prior != "" && prior != res.server {
		held = nil // another server: what is remembered may not have happened there
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO outbox_relay (id, name, started_ms, until_ms, rate, lease_ms)
		VALUES (?1, ?2, `+clock+`, `+clock+` + ?3, ?4, ?3) ON CONFLICT (id) DO UPDATE SET
			until_ms = excluded.until_ms, rate = excluded.rate, lease_ms = excluded.lease_ms`, r.id, r.name, lease, rate)
	if err != nil {
		return res, err
	}
	living, gone, err := r.seen.Look(ctx, tx, schema.Relays, r.id, asked, r.now, res.nowMS)
	if err != nil {
		return res, err
	}
	if err := outbox.StillTarget(ctx, tx, r.target); err != nil {
		return res, err
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM outbox_relay WHERE until_ms < `+clock+` - 60000 OR until_ms > `+clock+` AND id IN (?)`, schema.IDs(gone))
	if err != nil {
		return res, err
	}
	if err = tx.QueryRowContext(ctx, `SELECT count(*) FROM outbox_shard`).Scan(&res.shards); err != nil {
		return res, err
	}
	res.living = len(living)
	share := res.shards / max(1, len(living))
	if slices.IndexFunc(living, func(l schema.Living) bool { return l.ID == r.id }) < res.shards%max(1, len(living)) {
		share++
	}

	if res.claims, err = r.renew(ctx, tx, held, clock, lease); err != nil {
		return res, err
	}
	res.released = r.surplus(res.claims, share)
	for _, id := range res.released {
		if _, err := tx.ExecContext(ctx, `UPDATE outbox_shard SET owner = NULL, until_ms = 0 WHERE shard = ? AND owner = ?`, id, r.id); err != nil {
			return res, err
		}
	}
	res.claims = slices.DeleteFunc(res.claims, func(c claim) bool { return slices.Contains(res.released, c.shard) })
	if missing := share - len(res.claims); missing > 0 && len(res.released) == 0 && !r.draining.Load() {
		taken, err := r.take(ctx, tx, held, gone, missing, clock, lease)
		if err != nil {
			return res, err
		}
		res.claims = append(res.claims, taken...)
	}

	if len(res.released) > 0 {
		if err := schema.NotifyLeases(ctx, tx); err != nil {
			return res, err
		}
	}
	res.parked, err = parkedKeys(ctx, tx)
	return res, err
}

// overdue reports whether another relay has not renewed for a whole lease, and its shards have not
// been taken yet.
func (r *Relay) overdue() bool {
	for _, s := range r.seen {
		if !s.Taken && s.Gone(r.now()) {
			return true
		}
	}
	return false
}

// take claims free shards, those of one partition together, because their events share batches.
// The shards of relays that are gone are free, whenever their leases end.
func (r *Relay) take(
	ctx context.Context, tx database.Tx, held []claim, gone map[string]int64, limit int, clock string, lease int64,
) ([]claim, error) {
	skip := ""
	if r.db.IsPostgres() {
		skip = " FOR UPDATE SKIP LOCKED" // another relay is taking what is locked
	}
	mine := []int{-1}
	for _, c := range held {
		mine = append(mine, c.shard)
	}
	renewed := map[int]bool{} // since their owner was looked for
	free, err := database.Collect(ctx, tx, "find free shards", func(row database.Row) (c claim, err error) {
		var owner string
		var until int64
		err = row.Scan(&c.shard, &c.expired, &c.void, &owner, &until)
		renewed[c.shard] = c.void && until > gone[owner]
		return c, err
	}, `SELECT shard, owner IS NOT NULL AND owner <> ?1,
			owner IS NOT NULL AND owner <> ?1 AND until_ms > `+clock+`, coalesce(CAST(owner AS text), ''), until_ms FROM outbox_shard
		WHERE owner IS NULL OR until_ms <= `+clock+` OR owner IN (?5) OR (owner = ?1 AND shard NOT IN (?2))
		ORDER BY shard % ?3, shard LIMIT ?4`+skip, r.id, database.List(mine), r.partitions, limit, schema.IDs(gone))
	free = slices.DeleteFunc(free, func(c claim) bool { return renewed[c.shard] })
	if err != nil || len(free) == 0 {
		return nil, err
	}
	found := map[int]claim{}
	ids := make([]int, len(free))
	for i, c := range free {
		ids[i], found[c.shard] = c.shard, c
	}
	claims, err := database.Collect(ctx, tx, "take shards", scanClaim, `UPDATE outbox_shard
		SET owner = ?, epoch = epoch + 1, until_ms = `+clock+` + ? WHERE shard IN (?) RETURNING shard, epoch, low`,
		r.id, lease, database.List(ids))
	for i := range claims {
		c := found[claims[i].shard]
		claims[i].fresh, claims[i].expired, claims[i].void = true, c.expired, c.void
	}
	return claims, err
}

// renew prolongs the leases that are still this relay's, and writes its watermarks.
func (r *Relay) renew(ctx context.Context, tx database.Tx, held []claim, clock string, lease int64) ([]claim, error) {
	if len(held) == 0 {
		return nil, nil
	}
	rows := make([][]int64, len(held))
	for i, c := range held {
		rows[i] = []int64{int64(c.shard), c.epoch, c.watermark}
	}
	values, arg := schema.Rows(tx, rows, "shard", "epoch", "low")
	if r.db.IsPostgres() { // in the order in which everyone locks several
		if _, err := tx.ExecContext(ctx, `SELECT 1 FROM outbox_shard WHERE owner = ? ORDER BY shard FOR UPDATE`, r.id); err != nil {
			return nil, err
		}
	}
	// A relay that has not seen the new epoch must not raise what was lowered with it.
	return database.Collect(ctx, tx, "keep shards", scanClaim, `UPDATE outbox_shard SET until_ms = `+clock+` + ?,
			low = CASE WHEN outbox_shard.epoch = v.epoch AND outbox_shard.low < v.low THEN v.low ELSE outbox_shard.low END
		FROM `+values+` AS v WHERE outbox_shard.shard = v.shard AND outbox_shard.owner = ?
		RETURNING outbox_shard.shard, outbox_shard.epoch, outbox_shard.low`, lease, arg, r.id)
}

func scanClaim(row database.Row) (c claim, err error) {
	err = row.Scan(&c.shard, &c.epoch, &c.watermark)
	return c, err
}

// surplus marks the shards that exceed the share as leaving, so that the relay fetches nothing
// more of them, and returns those that can be released now because they are idle.
func (r *Relay) surplus(claims []claim, share int) (now []int) {
	claims = slices.Clone(claims)
	slices.SortFunc(claims, func(a, b claim) int { // the order of take
		if d := a.shard%r.partitions - b.shard%r.partitions; d != 0 {
			return d
		}
		return a.shard - b.shard
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, c := range claims {
		sh := r.held[c.shard]
		if sh == nil {
			continue
		}
		sh.leaving = i >= share
		if sh.leaving && !sh.busy {
			now = append(now, c.shard)
		}
	}
	return now
}

func (r *Relay) applyTick(asked time.Time, held []claim, res tickResult) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if prior := r.server.Load(); prior != "" && prior != res.server {
		r.log.Warn("relay_database_changed",
			zap.String("hint", "it is another server now: the leases are read again"))
		r.dropAll()
		r.stable.Store(0)
	}
	r.server.Store(res.server)
	r.clock.Store(res.nowMS - r.now().UnixMilli())
	for _, id := range res.released {
		if sh := r.held[id]; sh != nil {
			sh.lost.Store(true)
			delete(r.held, id)
		}
	}
	have, parkings := map[int]bool{}, map[int]int{}
	for _, c := range held {
		parkings[c.shard] = c.parkings
	}
	expired, void := 0, 0
	for _, c := range res.claims {
		have[c.shard] = true
		sh := r.held[c.shard]
		if c.fresh || sh == nil {
			sh = &shard{id: c.shard, epoch: c.epoch, watermark: c.watermark}
			r.held[c.shard] = sh
		}
		if sh.epoch != c.epoch { // an operator changed the shard: see [outbox.Replay]
			sh.epoch, sh.watermark = c.epoch, c.watermark
		}
		if sh.parkings == parkings[c.shard] {
			sh.parked = res.parked[c.shard]
		} else { // parked since the relay asked: the answer may be older
			sh.parked = merged(sh.parked, res.parked[c.shard])
		}
		if c.expired {
			expired++
		}
		if c.void {
			void++
		}
	}
	gone := 0
	for _, c := range held {
		if sh := r.held[c.shard]; sh != nil && !have[c.shard] {
			sh.lost.Store(true)
			delete(r.held, c.shard)
			gone++
		}
	}
	r.shards = res.shards
	r.until.Renew(asked, r.cfg.Lease)
	partitions := map[int]bool{}
	for id := range r.held {
		partitions[id%r.partitions] = true
	}
	r.outages.keep(partitions)
	r.met.takeovers.Add(float64(expired))
	r.met.void.Add(float64(void))
	r.met.lost.Add(float64(gone))
	r.met.owned.Set(float64(len(r.held)))
	r.met.living.Set(float64(res.living))
	if expired > 0 {
		r.log.Info("relay_shards_taken_over", zap.Int("shards", expired))
	}
	if void > 0 {
		r.log.Warn("relay_leases_void", zap.Int("shards", void),
			zap.String("hint", "a relay that is gone left leases that end too late: the database's clock was ahead or "+
				"has been set back; the shards are taken over"))
	}
	if gone > 0 {
		r.log.Warn("relay_shards_lost", zap.Int("shards", gone))
	}
	r.all = true
	poke(r.poked)
}

// errOtherServer says that the database is no longer the server that was read from. The new one may
// have given the same ids to other events.
var errOtherServer = errors.New("the database is another server now")

// dropAll forgets every lease and returns how many there were. Caller holds mu.
func (r *Relay) dropAll() int {
	n := len(r.held)
	for id, sh := range r.held {
		sh.lost.Store(true)
		delete(r.held, id)
	}
	return n
}

// releaseLeases gives up every lease at once, so that others need not wait until it expires.
func (r *Relay) releaseLeases(ctx context.Context) error {
	r.mu.Lock()
	r.dropAll()
	r.met.owned.Set(0)
	r.met.living.Set(0)
	r.mu.Unlock()
	if err := schema.Release(ctx, r.db, r.cfg.Lease/2, schema.Relays, r.id); err != nil {
		return fmt.Errorf("release the leases: %w", err)
	}
	return nil
}

// unowned counts the shards that any relay may take. It takes no longer than until the leases are to be renewed, which
// tells why the database does not answer.
func (r *Relay) unowned(ctx context.Context) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Lease/3)
	defer cancel()
	err = r.db.QueryRowContext(ctx, `SELECT count(*) FROM outbox_shard WHERE owner IS NULL OR until_ms <= `+schema.Now(r.db)).Scan(&n)
	return n, err
}

func parkedKeys(ctx context.Context, tx database.IDB) (map[int]map[string]int64, error) {
	out := map[int]map[string]int64{}
	_, err := database.Collect(ctx, tx, "read the parked keys", func(row database.Row) (shard int, err error) {
		var key string
		var event int64
		err = row.Scan(&shard, &key, &event)
		if out[shard] == nil {
			out[shard] = map[string]int64{}
		}
		out[shard][key] = event
		return shard, err
	}, `SELECT shard, key, event FROM outbox_parked_key`)
	return out, err
}
