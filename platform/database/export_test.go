package database

import (
	"context"
	"time"
)

// Patience is how long connecting waits for each server, and for all.
func Patience(ctx context.Context, c Config) (each, all time.Duration, err error) {
	cc, err := c.postgresConfig(false)
	if err != nil {
		return 0, 0, err
	}
	all = patience(ctx, cc)
	return cc.ConnectTimeout, all, nil
}

// MaxConns is how many connections the pool opens at most.
func (db *DB) MaxConns() int { return db.pool.Stats().MaxOpenConnections }
