// Package sql keeps sessions in the service's own database, PostgreSQL or SQLite: for one
// machine, or where there is no Redis.
//
// What the Redis store does in a script is one UPDATE here: it locks the row, looks at its
// latest version and changes it, and RETURNING says what happened.
package sql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/platform/database"
)

// Options are for tests.
type Options struct {
	Skew func() time.Duration // added to the database's clock; nil is zero
}

// Store is a [session.Store].
type Store struct {
	db     *database.DB
	skew   func() time.Duration
	rotate *sql.Stmt
}

// New prepares the one statement that is on a hot path. The caller closes the store before
// the database.
func New(ctx context.Context, db *database.DB, opt Options) (*Store, error) {
	s := &Store{db: db, skew: opt.Skew}
	if s.skew == nil {
		s.skew = func() time.Duration { return 0 }
	}
	query := rotateQuery(nowPostgres)
	if !db.IsPostgres() {
		query = strings.ReplaceAll(rotateQuery(nowSQLite), "$", "?")
	}
	var err error
	if s.rotate, err = db.PrepareContext(ctx, query); err != nil {
		return nil, fmt.Errorf("prepare the rotation of sessions: %w", err)
	}
	return s, nil
}

// Close releases the prepared statement.
func (s *Store) Close() error { return s.rotate.Close() }

// The start of the statement, in milliseconds.
const (
	nowPostgres = "CAST(extract(epoch FROM statement_timestamp()) * 1000 AS bigint)"
	nowSQLite   = "CAST(unixepoch('subsec') * 1000 AS integer)"
)

// columns are a session in the order of scan.
const columns = `id, user_id, generation, hash, epoch, device_name, user_agent, ip,
	auth_ms, created_ms, last_used_ms, expires_ms, idle_expires_ms`

// rotateQuery is the table of cases in package session's comment. Every condition is about
// the row as it was; RETURNING sees it as it is then.
//
//	$1 session  $2 user  $3 generation, $4 hash of the presented token  $5 hash of the successor
//	$6 successor, sealed  $7 grace, $8 idle limit in ms  $9 user agent  $10 ip  $11 skew in ms
func rotateQuery(now string) string { return expand(rotation, now) }

// expand writes out the conditions of the rotation.
func expand(text, now string) string {
	text = strings.ReplaceAll(text, "{reuse}", "(stopped_ms IS NULL AND NOT {current} AND NOT {previous})")
	text = strings.ReplaceAll(text, "{current}", "(stopped_ms IS NULL AND ($3 > generation OR $3 = generation AND hash = $4))")
	// The window is open, or this very call was sent before and took place.
	text = strings.ReplaceAll(text, "{previous}", "($3 = generation - 1 AND previous = $4 AND (hash = $5 OR {now} < replay_until_ms))")
	return strings.ReplaceAll(text, "{now}", "("+now+" + $11)")
}

const rotation = `
UPDATE session SET
	generation         = CASE WHEN {current} THEN CAST($3 AS bigint) + 1 ELSE generation END,
	hash               = CASE WHEN {current} THEN $5 ELSE hash END,
	previous           = CASE WHEN {current} THEN $4 ELSE previous END,
	replay_until_ms    = CASE WHEN {current} THEN {now} + $7 ELSE replay_until_ms END,
	sealed             = CASE WHEN {current} THEN $6 WHEN {previous} THEN sealed END,
	user_agent         = CASE WHEN {current} THEN $9 ELSE user_agent END,
	ip                 = CASE WHEN {current} THEN $10 ELSE ip END,
	last_used_ms       = CASE WHEN {current} THEN {now} ELSE last_used_ms END,
	idle_expires_ms    = CASE WHEN NOT {current} THEN idle_expires_ms WHEN {now} + $8 < expires_ms THEN {now} + $8 ELSE expires_ms END,
	stopped_ms         = CASE WHEN {reuse} THEN {now} ELSE stopped_ms END,
	stopped_generation = CASE WHEN {reuse} THEN $3 ELSE stopped_generation END,
	stopped_user_agent = CASE WHEN {reuse} THEN $9 ELSE stopped_user_agent END,
	stopped_ip         = CASE WHEN {reuse} THEN $10 ELSE stopped_ip END
WHERE id = $1 AND user_id = $2 AND (stopped_ms IS NOT NULL OR {now} < idle_expires_ms)
RETURNING
	CASE WHEN stopped_ms IS NOT NULL THEN 'reused' WHEN hash = $5 THEN 'turned' WHEN sealed IS NOT NULL THEN 'replayed' ELSE 'gone' END,
	sealed, ` + columns

// Create implements [session.Store].
func (s *Store) Create(ctx context.Context, start session.Start) (session.Started, error) {
	start = start.Clean()
	var started session.Started
	err := s.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		started = session.Started{}
		if start.Max > 0 {
			over, err := s.over(ctx, tx, start)
			if err != nil {
				return err
			}
			started.Over = over
		}
		now, maxAge, idle := s.now(), start.MaxAge.Milliseconds(), min(start.IdleTTL, start.MaxAge).Milliseconds()
		// A call sent again finds its own row.
		row := tx.QueryRowContext(ctx, `INSERT INTO session (id, user_id, epoch, generation, hash, previous, replay_until_ms,
				device_name, user_agent, ip, auth_ms, created_ms, last_used_ms, expires_ms, idle_expires_ms)
			VALUES (?, ?, ?, 1, ?, ?, 0, ?, ?, ?, `+now+`, `+now+`, `+now+`, `+now+` + ?, `+now+` + ?)
			ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch
			WHERE session.user_id = excluded.user_id AND session.generation = 1 AND session.hash = excluded.hash
			RETURNING `+columns,
			start.ID, start.UserID, start.Epoch, start.Hash[:], []byte{},
			start.DeviceName, start.UserAgent, start.IP, maxAge, idle)
		return scan(row, &started.Session)
	})
	if errors.Is(err, session.ErrTooMany) {
		return session.Started{}, session.ErrTooMany
	}
	if err != nil {
		return session.Started{}, fail("create session", err)
	}
	return started, nil
}

// over returns the sessions that one more puts above the limit, or refuses that one.
func (s *Store) over(ctx context.Context, tx database.Tx, start session.Start) ([]uuid.UUID, error) {
	if s.db.IsPostgres() { // SQLite has one writer anyway
		// Two sign-ins of a user at once would otherwise not see each other.
		if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock(?, hashtext(?))", lockClass, start.UserID.String()); err != nil {
			return nil, err
		}
	}
	rows, err := tx.QueryContext(ctx, `SELECT id FROM session
		WHERE user_id = ? AND id <> ? AND stopped_ms IS NULL AND idle_expires_ms > `+s.now()+` ORDER BY last_used_ms, id`,
		start.UserID, start.ID)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var ids []uuid.UUID
	for rows.Next() {
		var id uuid.UUID
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	over := max(0, len(ids)+1-start.Max)
	if over > 0 && start.RejectNew {
		return nil, session.ErrTooMany
	}
	return ids[:over], nil
}

// lockClass sets our advisory locks apart from others.
const lockClass = 0x73657373 // "sess"

// Rotate implements [session.Store].
func (s *Store) Rotate(ctx context.Context, r session.Rotation) (session.Rotated, error) {
	r = r.Clean()
	var sealed any // NULL when there is no window
	if r.Grace >= time.Millisecond {
		sealed = r.SealedNext
	}
	args := []any{r.SessionID.String(), r.UserID.String(), int64(r.Generation), r.PresentedHash[:], r.NextHash[:], sealed,
		r.Grace.Milliseconds(), r.IdleTTL.Milliseconds(), r.UserAgent, r.IP, s.skew().Milliseconds()}
	var rotated session.Rotated
	var err error
	if s.db.IsPostgres() {
		rotated, err = scanRotated(s.rotate.QueryRowContext(ctx, args...))
	} else {
		err = s.db.Tx(ctx, func(ctx context.Context, tx database.Tx) (err error) {
			rotated, err = scanRotated(tx.StmtContext(ctx, s.rotate).QueryRowContext(ctx, args...))
			return err
		})
	}
	if err != nil {
		return session.Rotated{}, fail("rotate session", err)
	}
	return rotated, nil
}

func scanRotated(row *sql.Row) (session.Rotated, error) {
	var verdict string
	var r session.Rotated
	err := scan(row, &r.Session, &verdict, &r.Sealed)
	if database.IsNotFound(err) {
		return session.Rotated{Outcome: session.Gone}, nil
	}
	if err != nil {
		return session.Rotated{}, err
	}
	switch verdict {
	case "turned":
		r.Outcome = session.Turned
	case "replayed":
		r.Outcome = session.Replayed
	case "reused":
		r.Outcome = session.Reused
	default:
		return session.Rotated{Outcome: session.Gone}, nil
	}
	if r.Outcome != session.Replayed {
		r.Sealed = nil
	}
	return r, nil
}

// Reissue implements [session.Store].
func (s *Store) Reissue(ctx context.Context, r session.Reissue) (session.Session, error) {
	var one session.Session
	err := s.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		query := "SELECT " + columns + " FROM session WHERE id = ? AND user_id = ? AND stopped_ms IS NULL AND idle_expires_ms > " + s.now() + database.ForUpdate(tx)
		err := scan(tx.QueryRowContext(ctx, query, r.SessionID, r.UserID), &one)
		if database.IsNotFound(err) {
			return session.ErrNotFound
		}
		if err != nil || one.Generation == r.Generation && one.Hash == r.Hash { // this very call, sent again
			return err
		}
		if one.Generation != r.Generation-1 {
			return session.ErrConflict
		}
		now := s.now()
		var sealed any // NULL when there is no window
		if r.Grace >= time.Millisecond {
			sealed = r.Sealed
		}
		row := tx.QueryRowContext(ctx, `UPDATE session SET generation = ?, hash = ?, previous = hash, replay_until_ms = `+now+` + ?, sealed = ?,
				auth_ms = CASE WHEN ? THEN `+now+` ELSE auth_ms END, last_used_ms = `+now+`,
				idle_expires_ms = CASE WHEN `+now+` + ? < expires_ms THEN `+now+` + ? ELSE expires_ms END
			WHERE id = ? RETURNING `+columns,
			r.Generation, r.Hash[:], r.Grace.Milliseconds(), sealed, r.Reauthenticated,
			r.IdleTTL.Milliseconds(), r.IdleTTL.Milliseconds(), r.SessionID)
		return scan(row, &one)
	})
	for _, expected := range []error{session.ErrNotFound, session.ErrConflict} {
		if errors.Is(err, expected) {
			return session.Session{}, expected
		}
	}
	if err != nil {
		return session.Session{}, fail("reissue session", err)
	}
	return one, nil
}

// Get implements [session.Store].
func (s *Store) Get(ctx context.Context, userID, id uuid.UUID) (session.Session, error) {
	live, err := s.query(ctx, "user_id = ? AND id = ?", userID, id)
	if err != nil {
		return session.Session{}, fail("read session", err)
	}
	if len(live) == 0 {
		return session.Session{}, session.ErrNotFound
	}
	return live[0], nil
}

// List implements [session.Store].
func (s *Store) List(ctx context.Context, userID uuid.UUID) ([]session.Session, error) {
	live, err := s.query(ctx, "user_id = ?", userID)
	if err != nil {
		return nil, fail("list sessions", err)
	}
	slices.SortFunc(live, session.NewestUse)
	return live, nil
}

// Delete implements [session.Store].
func (s *Store) Delete(ctx context.Context, userID uuid.UUID, ids ...uuid.UUID) error {
	if len(ids) == 0 {
		return nil
	}
	if _, err := s.db.Write(ctx, "DELETE FROM session WHERE user_id = ? AND id IN (?)", userID, database.List(ids)); err != nil {
		return fail("delete sessions", err)
	}
	return nil
}

// DeleteAll implements [session.Store].
func (s *Store) DeleteAll(ctx context.Context, userID uuid.UUID, epoch int64, keep uuid.NullUUID) error {
	kept := uuid.Nil // of no session
	if keep.Valid {
		kept = keep.UUID
	}
	if _, err := s.db.Write(ctx, "DELETE FROM session WHERE user_id = ? AND epoch < ? AND id <> ? AND stopped_ms IS NULL", userID, epoch, kept); err != nil {
		return fail("delete sessions", err)
	}
	return nil
}

// Reused implements [session.Store].
func (s *Store) Reused(ctx context.Context, limit int) ([]session.Marked, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT stopped_ms, stopped_generation, stopped_user_agent, stopped_ip, "+columns+
		" FROM session WHERE stopped_ms IS NOT NULL ORDER BY stopped_ms LIMIT ?", limit)
	if err != nil {
		return nil, fail("look for stopped sessions", err)
	}
	defer rows.Close()
	var marked []session.Marked
	for rows.Next() {
		var m session.Marked
		var stopped int64
		if err := scan(rows, &m.Session, &stopped, &m.Generation, &m.UserAgent, &m.IP); err != nil {
			return nil, fail("look for stopped sessions", err)
		}
		m.StoppedAt = instant(stopped)
		marked = append(marked, m)
	}
	if err := rows.Err(); err != nil {
		return nil, fail("look for stopped sessions", err)
	}
	return marked, nil
}

// Purge implements [session.Store]. It also drops sealed successors whose window is over.
func (s *Store) Purge(ctx context.Context, limit int) (int, error) {
	now := s.now()
	// The outer condition looks at a row that changed while it was waited for.
	res, err := s.db.Write(ctx, `DELETE FROM session WHERE stopped_ms IS NULL AND idle_expires_ms <= `+now+` AND id IN
		(SELECT id FROM session WHERE stopped_ms IS NULL AND idle_expires_ms <= `+now+` ORDER BY idle_expires_ms LIMIT ?)`, limit)
	if err != nil {
		return 0, fail("purge sessions", err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		return 0, fail("purge sessions", err)
	}
	_, err = s.db.Write(ctx, `UPDATE session SET sealed = NULL WHERE sealed IS NOT NULL AND replay_until_ms <= `+now+` AND id IN
		(SELECT id FROM session WHERE sealed IS NOT NULL AND replay_until_ms <= `+now+` ORDER BY replay_until_ms LIMIT ?)`, limit)
	if err != nil {
		return int(n), fail("drop sealed successors", err)
	}
	return int(n), nil
}

const walkPage = 500

// Walk implements [session.Store].
func (s *Store) Walk(ctx context.Context, f session.Filter) iter.Seq2[session.Session, error] {
	return func(yield func(session.Session, error) bool) {
		for after := uuid.Nil; ; {
			page, err := s.query(ctx, "id > ? AND (NOT ? OR id = ?) ORDER BY id LIMIT ?", after, f.ID.Valid, f.ID.UUID, walkPage)
			if err != nil {
				yield(session.Session{}, fail("walk sessions", err))
				return
			}
			for _, one := range page {
				if f.Match(one) && !yield(one, nil) {
					return
				}
			}
			if len(page) < walkPage {
				return
			}
			after = page[len(page)-1].ID
		}
	}
}

// Ping implements [session.Store].
func (s *Store) Ping(ctx context.Context) error {
	if err := s.db.PingContext(ctx); err != nil {
		return fail("ping the database", err)
	}
	return nil
}

// now is the database's clock as an expression.
func (s *Store) now() string {
	engine := nowSQLite
	if s.db.IsPostgres() {
		engine = nowPostgres
	}
	return fmt.Sprintf("(%s + %d)", engine, s.skew().Milliseconds())
}

// query reads the live sessions that a condition chooses.
func (s *Store) query(ctx context.Context, where string, args ...any) ([]session.Session, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT "+columns+" FROM session WHERE stopped_ms IS NULL AND idle_expires_ms > "+s.now()+" AND "+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var live []session.Session
	for rows.Next() {
		var one session.Session
		if err := scan(rows, &one); err != nil {
			return nil, err
		}
		live = append(live, one)
	}
	return live, rows.Err()
}

// scan reads what comes before the columns of a session, and these.
func scan(row interface{ Scan(...any) error }, one *session.Session, before ...any) error {
	var hash []byte
	var auth, created, used, expires, idle int64
	err := row.Scan(append(before, &one.ID, &one.UserID, &one.Generation, &hash, &one.Epoch, &one.DeviceName, &one.UserAgent, &one.IP,
		&auth, &created, &used, &expires, &idle)...)
	if err != nil {
		return err
	}
	if len(hash) != len(one.Hash) {
		return errors.New("a session has a hash of a wrong length")
	}
	one.Hash = session.Hash(hash)
	one.AuthTime, one.CreatedAt, one.LastUsedAt, one.ExpiresAt, one.IdleExpiresAt = instant(auth), instant(created), instant(used), instant(expires), instant(idle)
	return nil
}

func instant(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

func fail(what string, err error) error {
	if database.IsUnavailable(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w: %w", what, session.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
