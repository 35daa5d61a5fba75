package database

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// IDB is what statements run on: a [*DB], a [Tx] or a [Conn].
//
// In a statement, ? is the next argument; ?1 and ?2 are the first and the second, where one is
// used more than once. Arguments are bound: they are sent apart from the text, so no value can
// change what a statement does. A slice for id IN (?) is wrapped in [List].
type IDB interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	isPostgres() bool
}

// Tx is a transaction of [DB.Tx].
type Tx struct {
	statements
	tx *sql.Tx
}

// StmtContext returns a statement of [DB.PrepareContext] that runs in the transaction and is
// closed with it.
func (tx Tx) StmtContext(ctx context.Context, stmt *Stmt) *Stmt {
	if stmt.on == nil {
		return &Stmt{stmt: tx.tx.StmtContext(ctx, stmt.stmt), query: stmt.query}
	}
	return &Stmt{on: stmt.on, run: tx.tx, query: stmt.query}
}

// Conn is one connection of the pool. Close gives it back.
type Conn struct {
	statements
	conn *sql.Conn
}

// Close gives the connection back to the pool.
func (c Conn) Close() error { return c.conn.Close() }

// runner is what *sql.DB, *sql.Tx and *sql.Conn have in common.
type runner interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// statements writes placeholders in the form of the engine.
type statements struct {
	run      runner
	postgres bool
}

func (s statements) isPostgres() bool { return s.postgres }

// ExecContext runs a statement that returns no rows.
func (s statements) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	query, args = bind(s.postgres, query, args)
	ctx, span := trace(ctx, s.postgres, query)
	res, err := s.run.ExecContext(ctx, query, args...)
	traced(span, err)
	return res, err
}

// QueryContext runs a query. The caller closes the rows.
func (s statements) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	query, args = bind(s.postgres, query, args)
	ctx, span := trace(ctx, s.postgres, query)
	rows, err := s.run.QueryContext(ctx, query, args...)
	traced(span, err)
	return rows, err
}

// QueryRowContext runs a query of at most one row.
func (s statements) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	query, args = bind(s.postgres, query, args)
	ctx, span := trace(ctx, s.postgres, query)
	row := s.run.QueryRowContext(ctx, query, args...)
	traced(span, row.Err())
	return row
}

// Stmt is a statement that is parsed once for many uses. Its placeholders are the engine's own,
// $1 on PostgreSQL and ?1 on SQLite. It takes no [List], and on SQLite no times. On PostgreSQL each
// connection prepares it at its first use.
type Stmt struct {
	query string
	stmt  *sql.Stmt // on SQLite

	on  *DB // on PostgreSQL
	run runner
}

// PrepareContext prepares a statement. The caller closes it.
func (db *DB) PrepareContext(ctx context.Context, query string) (*Stmt, error) {
	if db.postgres {
		return &Stmt{on: db, run: db.pool, query: query}, nil
	}
	stmt, err := db.pool.PrepareContext(ctx, query)
	return &Stmt{stmt: stmt, query: query}, err
}

// ExecContext runs a statement that returns no rows.
func (s *Stmt) ExecContext(ctx context.Context, args ...any) (res sql.Result, err error) {
	ctx, span := trace(ctx, s.on != nil, s.query)
	defer func() { traced(span, err) }()
	if s.on == nil {
		return s.stmt.ExecContext(ctx, args...)
	}
	return s.run.ExecContext(ctx, s.query, s.prepared(args)...)
}

// QueryContext runs a query. The caller closes the rows.
func (s *Stmt) QueryContext(ctx context.Context, args ...any) (*sql.Rows, error) {
	ctx, span := trace(ctx, s.on != nil, s.query)
	if s.on == nil {
		rows, err := s.stmt.QueryContext(ctx, args...)
		traced(span, err)
		return rows, err
	}
	rows, err := s.run.QueryContext(ctx, s.query, s.prepared(args)...)
	traced(span, err)
	return rows, err
}

// QueryRowContext runs a query of at most one row.
func (s *Stmt) QueryRowContext(ctx context.Context, args ...any) (row *sql.Row) {
	ctx, span := trace(ctx, s.on != nil, s.query)
	defer func() { traced(span, row.Err()) }()
	if s.on == nil {
		return s.stmt.QueryRowContext(ctx, args...)
	}
	return s.run.QueryRowContext(ctx, s.query, s.prepared(args)...)
}

func (s *Stmt) prepared(args []any) []any { return append([]any{s.on.Prepared()}, args...) }

// Close releases the statement.
func (s *Stmt) Close() error {
	if s.on == nil {
		return s.stmt.Close()
	}
	return nil
}

// List makes a slice the argument of x IN (?) or x NOT IN (?). It may be empty. The text of the
// statement is the same for every length.
func List[T ~string | ~int | ~int64 | ~[16]byte](values []T) any {
	if values == nil {
		values = []T{}
	}
	return list{values}
}

type list struct{ values any }

// bind numbers the placeholders in the text and prepares the arguments for the driver. It does not
// change a text without arguments.
func bind(postgres bool, query string, args []any) (string, []any) {
	if len(args) == 0 {
		return query, nil
	}
	bound := make([]any, len(args))
	for i, arg := range args {
		bound[i] = value(postgres, arg)
	}
	text := make([]byte, 0, len(query)+2*len(args)+16)
	next, from := 1, 0
	for i := 0; i < len(query); {
		if query[i] != '?' {
			i += literal(query[i:])
			continue
		}
		text = append(text, query[from:i]...)
		end := i + 1
		for end < len(query) && '0' <= query[end] && query[end] <= '9' {
			end++
		}
		number := query[i+1 : end]
		n, err := strconv.Atoi(number)
		if err != nil { // a plain one
			n, next = next, next+1
			number = strconv.Itoa(n)
		}
		_, isList := argument(args, n).(list)
		text = placeholder(text, postgres, isList, number)
		i, from = end, end
	}
	return string(append(text, query[from:]...)), bound
}

// argument returns the n-th argument, counted from one. The engine reports one that is missing.
func argument(args []any, n int) any {
	if n < 1 || n > len(args) {
		return nil
	}
	return args[n-1]
}

func placeholder(text []byte, postgres, isList bool, number string) []byte {
	switch {
	case postgres && isList:
		if before, ok := strings.CutSuffix(string(text), "NOT IN ("); ok {
			text = append(text[:len(before)], "<> ALL ("...)
		} else if before, ok := strings.CutSuffix(string(text), "IN ("); ok {
			text = append(text[:len(before)], "= ANY ("...)
		}
		fallthrough
	case postgres:
		return append(append(text, '$'), number...)
	case isList:
		return append(append(append(text, "SELECT value FROM json_each(?"...), number...), ')')
	default:
		return append(append(text, '?'), number...)
	}
}

// literal is how many bytes to pass over: one, or all of a quoted text or a comment, in which
// a question mark is only that.
func literal(query string) int {
	end := ""
	switch {
	case query[0] == '\'', query[0] == '"':
		end = query[:1]
	case strings.HasPrefix(query, "--"):
		end = "\n"
	case strings.HasPrefix(query, "/*"):
		end = "*/"
	default:
		return 1
	}
	n := strings.Index(query[1:], end)
	if n < 0 {
		return len(query)
	}
	return 1 + n + len(end)
}

// sqliteTime is how times are written to SQLite, which has no type for them: in UTC, so that
// the texts sort as the times do.
const sqliteTime = "2006-01-02 15:04:05.999999-07:00"

// value is an argument as the driver takes it.
func value(postgres bool, arg any) any {
	if l, ok := arg.(list); ok {
		if postgres {
			return l.values
		}
		text, err := json.Marshal(l.values)
		if err != nil {
			return l.values // the driver refuses it and names the type
		}
		return string(text)
	}
	if postgres {
		return arg
	}
	if v, ok := arg.(driver.Valuer); ok {
		if plain, err := driver.DefaultParameterConverter.ConvertValue(v); err == nil {
			arg = plain
		}
	}
	switch t := arg.(type) {
	case time.Time:
		return t.UTC().Format(sqliteTime)
	case *time.Time:
		if t == nil {
			return nil
		}
		return t.UTC().Format(sqliteTime)
	}
	return arg
}
