package auth

import (
	"context"
	"time"

	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/retry"
)

// pace is how an import shares the database and the machine with running servers.
//
// On SQLite one transaction writes at a time, and the others poll for the lock every few
// milliseconds. A program that begins its next transaction at once leaves them no gap. So a batch is
// as large as can be written in a short time, and then the import rests: twice as long as it worked
// while others write too, else briefly. PostgreSQL has no such lock but shares disk and processors:
// there it rests as long as it works. The database shows whether others write.
type pace struct {
	now   func() time.Time
	sleep func(context.Context, time.Duration)
	watch func(ctx context.Context, rest func()) (others bool)
	// A batch should take batchTime to write; the rest after it lasts rests times the work.
	batchTime time.Duration
	rests     int

	size  int       // how many records the next transaction should have
	begun time.Time // when reading the present batch began
	alone int       // batches since others were seen writing
}

const (
	firstBatch = 100
	leastBatch = 50 // fewer would be all commit
	mostBatch  = 500
	// aloneAfter is the number of batches without other writers after which an import hardly rests.
	aloneAfter = 20
)

func newPace(db *database.DB, now func() time.Time) *pace {
	p := &pace{now: now, sleep: func(ctx context.Context, d time.Duration) { retry.Sleep(ctx, d) },
		batchTime: 20 * time.Millisecond, rests: 2, size: firstBatch, begun: now()}
	if db.IsPostgres() { // where nobody waits for the transaction, but all need the machine
		p.batchTime, p.rests = 100*time.Millisecond, 1
		last := int64(0)
		p.watch = func(ctx context.Context, rest func()) bool {
			rest()
			next := postgresTransactions(ctx, db)
			others := next-last != 1 // its own
			last = next
			return others
		}
	} else {
		p.watch = func(ctx context.Context, rest func()) bool { return watchSQLite(ctx, db, rest) }
	}
	return p
}

// wrote rests after a transaction. waited is how long it waited for others, took how long it ran.
func (p *pace) wrote(ctx context.Context, n int, waited, took time.Duration) {
	fits := int(int64(n) * int64(p.batchTime) / max(int64(took), 1))
	p.size = min(max(fits, p.size/2, leastBatch), 2*p.size, mostBatch)
	rest := time.Duration(p.rests) * (p.now().Sub(p.begun) - waited)
	if p.alone >= aloneAfter {
		rest /= 16
	}
	others := p.watch(ctx, func() { p.sleep(ctx, rest) })
	p.alone++
	if others {
		p.alone = 0
	}
	p.begun = p.now()
}

// watchSQLite reports whether others have written during the rest: then PRAGMA data_version changes
// for a connection that has not. A database that does not answer counts as busy.
func watchSQLite(ctx context.Context, db *database.DB, rest func()) (others bool) {
	conn, err := db.Conn(ctx)
	if err != nil {
		rest()
		return true
	}
	read := func() (version int64) {
		if err := conn.QueryRowContext(ctx, "PRAGMA data_version").Scan(&version); err != nil {
			return -1
		}
		return version
	}
	before := read()
	rest()
	others = before < 0 || read() != before
	_ = conn.Close() // it goes back to the pool
	return others
}

// postgresTransactions is the number of the next transaction that writes: each has one. It is 0 if the database does
// not answer.
func postgresTransactions(ctx context.Context, db *database.DB) (next int64) {
	_ = db.QueryRowContext(ctx, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").Scan(&next)
	return next
}
