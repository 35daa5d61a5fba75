package auth

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/toppira/authctl/platform/database"
)

// rehearsal is the temporary database that a dry run writes to. It finds names that occur twice in an
// input of any length.
type rehearsal struct {
	dir string
	db  *database.DB
}

func openRehearsal(ctx context.Context) (*rehearsal, error) {
	dir, err := os.MkdirTemp("", "authctl-import-*") // mode 0700
	if err != nil {
		return nil, fmt.Errorf("make a folder for the dry run: %w", err)
	}
	r := &rehearsal{dir: dir}
	r.db, err = database.Open(ctx, database.Config{}, database.Options{DataDir: filepath.Join(dir, "data")})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open a database for the dry run: %w", err), os.RemoveAll(dir))
	}
	for _, table := range []string{
		`CREATE TABLE users (id text PRIMARY KEY, username text, username_canonical text UNIQUE, password_hash text, status text,
			session_epoch integer, created_at timestamp, updated_at timestamp, password_changed_at timestamp)`,
		`CREATE TABLE user_origin (user_id text PRIMARY KEY, source text, source_id text, hash_sha256 blob, created_at timestamp,
			address text, address_confirmed boolean, not_carried_over text, imported_at timestamp)`,
	} {
		if _, err := r.db.Write(ctx, table); err != nil {
			return nil, errors.Join(fmt.Errorf("make the tables of the dry run: %w", err), r.close())
		}
	}
	return r, nil
}

// write does what an import would do with the accounts. It only reads the real database.
func (r *rehearsal) write(ctx context.Context, real *database.DB, batch []*pendingUser) error {
	there, err := ownersOf(ctx, real, batch)
	if err != nil {
		return err
	}
	var absent []*pendingUser
	for _, n := range batch {
		there.check(n)
		if n.refused == nil && there.byName[n.canonical] == nil {
			absent = append(absent, n)
		}
	}
	if len(absent) == 0 {
		return nil
	}
	return r.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error { return insertAbsent(ctx, tx, absent) })
}

func (r *rehearsal) close() error { return errors.Join(r.db.Close(), os.RemoveAll(r.dir)) }
