package delivery

import (
	"context"
	"encoding/json"
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

// place is one shard of one target.
type place struct{ target, shard int }

// lease is the right to deliver the events of one place. A new lease of the same place is a new
// value, so that nothing begun under the old one counts under the new one.
type lease struct {
	place
	epoch   int64
	leaving atomic.Bool // to be handed to another deliverer
	lost    atomic.Bool // for good
	flying  atomic.Int32

	recovery *recovery // of the target, that its keys know of; only the worker uses it
}

// noticeWithin is how soon a deliverer learns what an operator did to a target: it reads the targets when it
// renews its leases.
const noticeWithin = 2 * time.Second

// renewEvery is how often leases of a length are renewed.
func renewEvery(length time.Duration) time.Duration { return min(length/3, noticeWithin) }

// keepLeases renews the leases, and reads the targets.
func (d *Deliverer) keepLeases(ctx context.Context) {
	for {
		wait := renewEvery(d.cfg.Lease)
		err := d.tick(ctx)
		if err == nil {
			d.worked(nil)
		} else if ctx.Err() == nil {
			d.failed(nil, err)
			wait = 100 * time.Millisecond
		}
		d.tellOutage(ctx)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-d.leases:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// tickResult is what the database said.
type tickResult struct {
	clock    reading
	jump     time.Duration // of the database's clock since the last tick
	server   string
	targets  []outbox.Subscription // of kinds that have a sink here
	epochs   map[place]int64       // held now
	released []place
	expired  int
	made     []int // targets whose rows of leases exist now
}

// tick renews the leases of this deliverer, releases those that others should have, takes those that it
// should have, and reads the targets. All of it is one transaction, so a deliverer that holds a lease also
// knows whether the target is paused or removed.
func (d *Deliverer) tick(ctx context.Context) error {
	asked := d.now() // before the query: the lease in the database begins later, and ends later
	within := d.cfg.Lease / 2
	if d.slow { // it has locked its leases meanwhile: nobody takes them
		within = followWithin
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	late := 0
	if !d.until.HoldsAt(asked) {
		late = d.dropAll() // others may have owned the places since: what this one remembers is out of date
	}
	held := d.held()
	var res tickResult
	err := d.db.Tx(ctx, func(ctx context.Context, tx database.Tx) (err error) {
		res, err = d.tickTx(ctx, tx, asked, held)
		return err
	})
	if err != nil {
		return fmt.Errorf("renew the leases of targets: %w", err)
	}
	if late > 0 { // while the database answers: that it was away is told elsewhere
		d.log.Warn("deliverer_shards_lost", zap.Int("shards", late))
	}
	d.apply(asked, held, res)
	return nil
}

// held returns the leases of all workers.
func (d *Deliverer) held() map[place]*lease {
	d.mu.Lock()
	defer d.mu.Unlock()
	held := map[place]*lease{}
	for _, w := range d.workers {
		for _, l := range w.leases() {
			held[l.place] = l
		}
	}
	return held
}

// dropAll forgets every lease and returns how many there were.
func (d *Deliverer) dropAll() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.workers {
		for _, l := range w.leases() {
			l.lost.Store(true)
			n++
		}
		w.assign(w.subscription(), nil, 0)
	}
	return n
}

func (d *Deliverer) tickTx(
	ctx context.Context, tx database.Tx, asked time.Time, held map[place]*lease,
) (res tickResult, err error) {
	clock, length := schema.Now(tx), d.cfg.Lease.Milliseconds()
	if err := schema.Bounded(ctx, tx, d.cfg.Lease/2); err != nil {
		return res, err
	}
	var now reading
	from := d.now()
	err = tx.QueryRowContext(ctx, "SELECT "+clock+", "+schema.ThisServer(tx)).Scan(&now.ms, &res.server)
	if err != nil {
		return res, err
	}
	now.at = d.now()
	res.clock = now
	if prior := d.server.Load(); prior != "" && prior != res.server {
		held, d.made = nil, nil // another server: it may not have what this deliverer remembers
	}
	if prior := d.server.Load(); prior == res.server {
		if res.jump, err = d.followClock(ctx, tx, now); err != nil {
			return res, err
		}
		if last := d.clock.Load(); last.agrees(from, now) {
			res.clock = *last
		}
	}
	mayTake := d.kinds
	if d.draining.Load() {
		mayTake = []string{} // others should have all its places, each as soon as no attempt is under way for it
	}
	kinds, err := json.Marshal(mayTake)
	if err != nil {
		return res, err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO outbox_deliverer (id, name, kinds, started_ms, until_ms, lease_ms)
		VALUES (?1, ?2, ?3, `+clock+`, `+clock+` + ?4, ?4) ON CONFLICT (id) DO UPDATE SET until_ms = excluded.until_ms, kinds = excluded.kinds`,
		d.id, d.name, string(kinds), length)
	if err != nil {
		return res, err
	}
	living, gone, err := d.seen.Look(ctx, tx, schema.Deliverers, d.id, asked, d.now, now.ms)
	if err != nil {
		return res, err
	}
	able := map[string][]string{} // the living ones by kind of target
	for _, l := range living {
		var kinds []string
		if err := json.Unmarshal([]byte(l.Kinds), &kinds); err != nil {
			return res, err
		}
		for _, kind := range kinds {
			able[kind] = append(able[kind], l.ID)
		}
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM outbox_deliverer WHERE until_ms < `+clock+` - 60000 OR until_ms > `+clock+` AND id IN (?)`,
		schema.IDs(gone))
	if err != nil {
		return res, err
	}
	all, err := outbox.Subscriptions(ctx, tx)
	if err != nil {
		return res, err
	}
	mine := map[place]bool{} // what this deliverer should have
	for _, s := range all {
		if d.sinks[s.Kind] == nil {
			continue
		}
		res.targets = append(res.targets, s)
		res.made = append(res.made, s.ID)
		for shard := range schema.DeliveryShards(tx) {
			if ids := able[s.Kind]; len(ids) > 0 && ids[(s.ID+shard)%len(ids)] == d.id {
				mine[place{s.ID, shard}] = true
			}
		}
	}
	if err := d.makeLeases(ctx, tx, res.made); err != nil {
		return res, err
	}
	if res.epochs, err = d.renew(ctx, tx, held, clock, length); err != nil {
		return res, err
	}
	for p := range res.epochs {
		l := held[p]
		l.leaving.Store(!mine[p])
		if !mine[p] && l.flying.Load() == 0 {
			res.released = append(res.released, p)
		}
	}
	if len(res.released) > 0 {
		var rows [][]int64
		for _, p := range res.released {
			rows = append(rows, []int64{int64(p.target), int64(p.shard)})
			delete(res.epochs, p)
		}
		values, arg := schema.Rows(tx, rows, "target", "shard")
		_, err := tx.ExecContext(ctx, `UPDATE outbox_delivery_lease SET owner = NULL, until_ms = 0 FROM `+values+` AS v
			WHERE outbox_delivery_lease.target = v.target AND outbox_delivery_lease.shard = v.shard
				AND outbox_delivery_lease.owner = ?`, arg, d.id)
		if err != nil {
			return res, err
		}
	}
	if !d.draining.Load() {
		if res.expired, err = d.take(ctx, tx, mine, res.epochs, gone, clock, length); err != nil {
			return res, err
		}
	}
	if len(res.released) > 0 {
		err = schema.NotifyLeases(ctx, tx)
	}
	return res, err
}

// followClock notices that the database's clock has jumped, was set, or went on while this machine was suspended.
// Then it moves the times of the keys that wait at the places that were this deliverer's at the last tick, as far as
// they have had no other owner since: else a clock set ahead would park keys that were hardly tried, and one set
// back would let them wait. It returns by how much the clock has jumped.
func (d *Deliverer) followClock(ctx context.Context, tx database.Tx, now reading) (time.Duration, error) {
	last := d.clock.Load()
	if last == nil {
		return 0, nil
	}
	by := now.ms - last.on(now.at)
	jump := time.Duration(by) * time.Millisecond
	if jump.Abs() < leastJump {
		return 0, nil
	}
	if len(d.had) == 0 {
		return jump, nil
	}
	if err := d.lockLeases(ctx, tx); err != nil {
		return 0, err
	}
	rows := make([][]int64, 0, len(d.had))
	for p, epoch := range d.had {
		rows = append(rows, []int64{int64(p.target), int64(p.shard), epoch})
	}
	values, arg := schema.Rows(tx, rows, "target", "shard", "epoch")
	_, err := tx.ExecContext(ctx, `UPDATE outbox_held_key SET since_ms = since_ms + ?, asked_ms = asked_ms + ?,
			next_ms = CASE WHEN next_ms > 0 THEN next_ms + ? ELSE 0 END
		FROM `+values+` AS v JOIN outbox_delivery_lease l ON l.target = v.target AND l.shard = v.shard
			AND l.epoch = v.epoch AND l.owner = ?
		WHERE outbox_held_key.target = l.target AND outbox_held_key.shard = l.shard AND outbox_held_key.parked_ms IS NULL`,
		by, by, by, arg, d.id)
	if err != nil {
		d.slow = true
		return 0, fmt.Errorf("follow the database's clock: %w", err)
	}
	return jump, nil
}

// makeLeases makes the rows of the leases of targets that are new to this deliverer.
func (d *Deliverer) makeLeases(ctx context.Context, tx database.Tx, targets []int) error {
	var rows [][]int64
	for _, target := range targets {
		for shard := range schema.DeliveryShards(tx) {
			if !d.made[target] {
				rows = append(rows, []int64{int64(target), int64(shard)})
			}
		}
	}
	if len(rows) == 0 {
		return nil
	}
	table, arg := schema.Rows(tx, rows, "target", "shard")
	_, err := tx.ExecContext(ctx, `INSERT INTO outbox_delivery_lease (target, shard) SELECT target, shard FROM `+table+` AS v
		WHERE true ON CONFLICT DO NOTHING`, arg)
	return err
}

// lockLeases locks the leases of this deliverer, in the order in which everyone locks several.
func (d *Deliverer) lockLeases(ctx context.Context, tx database.Tx) error {
	if !d.db.IsPostgres() {
		return nil
	}
	_, err := tx.ExecContext(ctx, `SELECT 1 FROM outbox_delivery_lease WHERE owner = ? ORDER BY target, shard FOR UPDATE`, d.id)
	return err
}

// renew prolongs the leases that are still this deliverer's.
func (d *Deliverer) renew(
	ctx context.Context, tx database.Tx, held map[place]*lease, clock string, length int64,
) (map[place]int64, error) {
	epochs := map[place]int64{}
	if len(held) == 0 {
		return epochs, nil
	}
	if err := d.lockLeases(ctx, tx); err != nil {
		return nil, err
	}
	rows := make([][]int64, 0, len(held))
	for p, l := range held {
		rows = append(rows, []int64{int64(p.target), int64(p.shard), l.epoch})
	}
	values, arg := schema.Rows(tx, rows, "target", "shard", "epoch")
	_, err := database.Collect(ctx, tx, "keep leases", func(row database.Row) (p place, err error) {
		var epoch int64
		err = row.Scan(&p.target, &p.shard, &epoch)
		epochs[p] = epoch
		return p, err
	}, `UPDATE outbox_delivery_lease SET until_ms = `+clock+` + ? FROM `+values+` AS v
		WHERE outbox_delivery_lease.target = v.target AND outbox_delivery_lease.shard = v.shard
			AND outbox_delivery_lease.epoch = v.epoch AND outbox_delivery_lease.owner = ?
		RETURNING outbox_delivery_lease.target, outbox_delivery_lease.shard, outbox_delivery_lease.epoch`, length, arg, d.id)
	return epochs, err
}

// take takes the free leases that this deliverer should have, and adds them to epochs. It returns how
// many of them had expired.
func (d *Deliverer) take(
	ctx context.Context, tx database.Tx, mine map[place]bool, epochs map[place]int64, gone map[string]int64,
	clock string, length int64,
) (expired int, err error) {
	missing := 0
	for p := range mine {
		if _, have := epochs[p]; !have {
			missing++
		}
	}
	if missing == 0 {
		return 0, nil
	}
	skip := ""
	if d.db.IsPostgres() {
		skip = " FOR UPDATE SKIP LOCKED"
	}
	type free struct {
		place
		expired bool
		renewed bool // since its owner was looked for
	}
	list, err := database.Collect(ctx, tx, "find free leases", func(row database.Row) (f free, err error) {
		var owner string
		var until int64
		err = row.Scan(&f.target, &f.shard, &f.expired, &f.renewed, &owner, &until)
		f.renewed = f.renewed && until > gone[owner]
		return f, err
	}, `SELECT target, shard, owner IS NOT NULL AND owner <> ?1,
			owner IS NOT NULL AND owner <> ?1 AND until_ms > `+clock+`, coalesce(CAST(owner AS text), ''), until_ms FROM outbox_delivery_lease
		WHERE owner IS NULL OR until_ms <= `+clock+` OR owner IN (?2) OR owner = ?1 ORDER BY target, shard`+skip,
		d.id, schema.IDs(gone))
	if err != nil {
		return 0, err
	}
	var rows [][]int64
	for _, f := range list {
		if _, have := epochs[f.place]; have || !mine[f.place] || f.renewed {
			continue
		}
		rows = append(rows, []int64{int64(f.target), int64(f.shard)})
		if f.expired {
			expired++
		}
	}
	if len(rows) == 0 {
		return 0, nil
	}
	values, arg := schema.Rows(tx, rows, "target", "shard")
	_, err = database.Collect(ctx, tx, "take leases", func(row database.Row) (p place, err error) {
		var epoch int64
		err = row.Scan(&p.target, &p.shard, &epoch)
		epochs[p] = epoch
		return p, err
	}, `UPDATE outbox_delivery_lease SET owner = ?, epoch = outbox_delivery_lease.epoch + 1, until_ms = `+clock+` + ? FROM `+values+` AS v
		WHERE outbox_delivery_lease.target = v.target AND outbox_delivery_lease.shard = v.shard
		RETURNING outbox_delivery_lease.target, outbox_delivery_lease.shard, outbox_delivery_lease.epoch`, d.id, length, arg)
	return expired, err
}

// apply gives every worker its target and leases.
func (d *Deliverer) apply(asked time.Time, held map[place]*lease, res tickResult) {
	prior := d.server.Load()
	changed := prior != "" && prior != res.server
	if changed {
		d.log.Warn("deliverer_database_changed",
			zap.String("hint", "it is another server now: the leases are read again"))
	}
	d.made = map[int]bool{}
	for _, id := range res.made {
		d.made[id] = true
	}
	d.server.Store(res.server)
	d.had, d.slow = res.epochs, false
	d.clock.Store(&res.clock)
	if res.jump != 0 {
		d.log.Warn("deliverer_clock_jumped", zap.Duration("by", res.jump),
			zap.String("hint", "PostgreSQL's clock was set; the pauses of users that wait for a target follow it"))
	}
	d.until.Renew(asked, d.cfg.Lease)
	next := map[int][]*lease{}
	lost := 0
	for p, epoch := range res.epochs {
		l := held[p]
		if l == nil || l.epoch != epoch {
			l = &lease{place: p, epoch: epoch}
		}
		next[p.target] = append(next[p.target], l)
	}
	for p, l := range held {
		if epoch, have := res.epochs[p]; !have || epoch != l.epoch {
			l.lost.Store(true)
			if !slices.Contains(res.released, p) {
				lost++
			}
		}
	}
	if res.expired > 0 {
		d.log.Info("deliverer_shards_taken_over", zap.Int("shards", res.expired))
	}
	if lost > 0 && !changed { // on another server all are, and that was said
		d.log.Warn("deliverer_shards_lost", zap.Int("shards", lost))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	limit := min(maxOfTarget, maxRequests/max(1, len(res.targets)))
	known := map[int]bool{}
	for _, s := range res.targets {
		known[s.ID] = true
		w := d.workers[s.ID]
		if w == nil {
			if len(next[s.ID]) == 0 || d.draining.Load() {
				continue
			}
			w = newWorker(d, s)
			d.workers[s.ID] = w
			d.running.Go(w.run)
		}
		w.assign(s, next[s.ID], limit)
	}
	for id := range maps.Clone(d.workers) {
		if !known[id] { // removed
			d.workers[id].quit()
			delete(d.workers, id)
		}
	}
}
