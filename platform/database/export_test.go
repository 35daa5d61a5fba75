package database

import (
	"context"
	"net"
	"time"
)

// Patience is how long connecting waits for each server, and for all servers.
func Patience(ctx context.Context, c Config) (each, all time.Duration, err error) {
	cc, err := c.postgresConfig(false)
	if err != nil {
		return 0, 0, err
	}
	all = patience(ctx, cc)
	return cc.ConnectTimeout, all, nil
}

// MaxConns is the maximum number of connections of the pool.
func (db *DB) MaxConns() int { return db.pool.Stats().MaxOpenConnections }

// Watch sets the times after which a server is tried and given up, for connections that are not in use.
func (db *DB) Watch(silence, trial, within time.Duration) {
	db.watch.silence, db.watch.trial, db.watch.within = silence, trial, within
}

// Unwatched is the connection that is watched.
func Unwatched(conn net.Conn) net.Conn { return conn.(*watched).Conn }

// LockedFor lets the write lock of SQLite, which was found held, have been held for so long.
func (db *DB) LockedFor(d time.Duration) { db.locked.since = time.Now().Add(-d) }
