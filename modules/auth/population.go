package auth

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/toppira/authctl/modules/auth/internal/password"
	"github.com/toppira/authctl/platform/database"
)

// populationEvery is how often the stored hashes are sampled.
const populationEvery = 10 * time.Minute

// learnPopulation tells package password which kinds of hashes are stored, so that unknown names
// take as long to refuse as known ones, also where kinds are mixed: after an import, or a raised
// cost.
func (s *Service) learnPopulation(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, detachTimeout)
	defer cancel()
	sample, err := sampleHashes(ctx, s.db, password.SampleSize)
	if err == nil {
		s.passwords.Learn(sample)
	} else if !errors.Is(err, context.Canceled) {
		s.log.Warn("hash_population_not_read", zap.Error(err))
	}
}

// sampleHashes returns the password hashes of some n accounts, spread evenly over all. It
// reads a bounded part of a table of any size, and the same part of an unchanged table: the result
// must not change by chance, or differ between nodes.
func sampleHashes(ctx context.Context, db *database.DB, n int) ([]string, error) {
	// SQLite numbers the rows of a table. The accounts are those at n evenly spaced numbers. Each
	// end is a look-up of its own: SQLite reads the whole table for both in one SELECT.
	query := `WITH RECURSIVE span(lowest, size) AS MATERIALIZED (SELECT (SELECT min(rowid) FROM users),
				(SELECT max(rowid) FROM users) - (SELECT min(rowid) FROM users) + 1),
			step(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM step WHERE i + 1 < ?1)
		SELECT (SELECT password_hash FROM users WHERE rowid >= lowest + size * i / ?1 ORDER BY rowid LIMIT 1)
		FROM span, step WHERE size > 0`
	if db.IsPostgres() {
		// Of the blocks that the table has on disk some n are read whole, and of their rows
		// n kept. Which ones depends on numbers and ids alone.
		query = `SELECT password_hash FROM users
			TABLESAMPLE SYSTEM (least(100, 100.0 * ?1::bigint * current_setting('block_size')::bigint / greatest(pg_relation_size('users'), 1)))
			REPEATABLE (0) ORDER BY uuid_hash(id) LIMIT ?1::bigint`
	}
	return database.Collect(ctx, db, "sample the password hashes", database.Value[string], query, n)
}
