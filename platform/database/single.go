package database

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
	"github.com/uptrace/bun/dialect/sqlitedialect"
	"github.com/uptrace/bun/schema"
)

// Single is one connection of the pool for work that must happen on one connection, such as
// migrations. They need no second connection, and what they lock in a transaction is released
// with it, also behind a pooler that gives each transaction another connection.
type Single struct{ statements }

// Bun returns the connection for Bun's migrator. Only package migrations may use it, because Bun writes
// arguments into the text of a statement. A transaction of Bun is part of the one of [Single.Tx],
// and fails outside of it.
//
// It is not a method: every package that uses a [DB] would compile generic types of Bun.
func Bun(one Single) *bun.DB {
	var d schema.Dialect = sqlitedialect.New()
	if one.postgres {
		d = pgdialect.New()
	}
	return bun.NewDB(one.run.(*sql.DB), d)
}

// Single runs fn with one connection of the pool. It must use no other.
func (db *DB) Single(ctx context.Context, fn func(one Single) error) error {
	conn, err := db.pool.Conn(ctx)
	if err != nil {
		return err
	}
	err = conn.Raw(func(raw any) (err error) {
		c, ok := raw.(sessionConn)
		if !ok {
			return errors.New("the driver's connections cannot be lent")
		}
		pool := sql.OpenDB(&lender{conn: c})
		defer func() { err = errors.Join(err, pool.Close()) }()
		pool.SetMaxOpenConns(1)
		return fn(Single{statements{pool, db.postgres}})
	})
	return errors.Join(err, conn.Close())
}

// Tx runs fn in a transaction on the connection, and commits when it returns nil.
func (s Single) Tx(ctx context.Context, fn func() error) error {
	begin := "BEGIN IMMEDIATE"
	if s.postgres {
		begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
	}
	if _, err := s.ExecContext(ctx, begin); err != nil {
		return err
	}
	committed := false
	defer func() {
		if !committed {
			// The drivers do not reuse a connection on which this fails.
			late, cancel := context.WithTimeout(context.WithoutCancel(ctx), shortest)
			defer cancel()
			_, _ = s.ExecContext(late, "ROLLBACK")
		}
	}()
	if err := fn(); err != nil {
		return stopped(ctx, err)
	}
	if _, err := s.ExecContext(ctx, "COMMIT"); err != nil {
		if s.postgres {
			return uncertain(err)
		}
		return err
	}
	committed = true
	return nil
}

// sessionConn is what both drivers' connections can do.
type sessionConn interface {
	driver.Conn
	driver.ExecerContext
	driver.QueryerContext
	driver.ConnPrepareContext
}

// lender hands out a connection once. One that breaks is not replaced, because its locks are gone.
type lender struct {
	conn sessionConn
	lent bool
}

var errLost = errors.New("the connection to the database was lost")

func (l *lender) Driver() driver.Driver { return nil }

func (l *lender) Connect(context.Context) (driver.Conn, error) {
	if l.lent {
		return nil, errLost
	}
	l.lent = true
	return lent{l.conn}, nil
}

// lent is a connection that stays open when it is closed, and in a transaction.
type lent struct{ sessionConn }

func (lent) Close() error { return nil }

func (l lent) BeginTx(ctx context.Context, _ driver.TxOptions) (driver.Tx, error) {
	if _, err := l.ExecContext(ctx, "SAVEPOINT inner_transaction", nil); err != nil {
		return nil, err
	}
	return savepoint{l}, nil
}

// savepoint is a transaction within the one that is open.
type savepoint struct{ on lent }

func (s savepoint) Commit() error { return s.run("RELEASE SAVEPOINT inner_transaction") }

func (s savepoint) Rollback() error {
	return errors.Join(s.run("ROLLBACK TO SAVEPOINT inner_transaction"), s.Commit())
}

func (s savepoint) run(statement string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // driver.Tx hands over none
	defer cancel()
	if _, err := s.on.ExecContext(ctx, statement, nil); err != nil {
		return fmt.Errorf("end a part of the transaction: %w", err)
	}
	return nil
}
