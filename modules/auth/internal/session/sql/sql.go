// Package sql keeps sessions in the service's own database, PostgreSQL or SQLite: for one
// machine, or where there is no Redis.
//
// What the Redis store does in a script is one UPDATE here for the current token of a session: it
// locks the row, looks at its latest version and changes it. Any other token is looked at by
// [session.Chain], which changes a row only under its lock.
package sql

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
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
	rotate *database.Stmt
}

// New prepares the one statement that is on a hot path. The caller closes the store before
// the database.
func New(ctx context.Context, db *database.DB, opt Options) (*Store, error) {
	s := &Store{db: db, skew: opt.Skew}
	if s.skew == nil {
		s.skew = func() time.Duration { return 0 }
	}
	var err error
	if s.rotate, err = db.PrepareContext(ctx, rotateQuery(db.IsPostgres())); err != nil {
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
const columns = `id, user_id, generation, hash, epoch, device_name, user_agent, ip, recorded,
	auth_ms, created_ms, last_used_ms, expires_ms, idle_expires_ms`

// rotateQuery turns the current token of a session, in the ordinary case: every condition is about
// the row as it was. It finds none when the token is another one, or when what is known of those
// before is not a matter of appending a link; rotateSlowly decides then.
//
//	$1 session  $2 user  $3 generation, $4 hash of the presented token  $5 hash of the successor
//	$6 successor, sealed  $7 grace, $8 idle limit in ms  $9 user agent  $10 ip  $11 skew in ms
func rotateQuery(postgres bool) string {
	text := rotation
	if postgres {
		text += alone
	}
	return expand(text, postgres) + " RETURNING " + columns
}

// expand writes out what differs between the databases.
func expand(text string, postgres bool) string {
	now, link := nowPostgres, "coalesce(links, '') || convert_to(last_used_ms::text || replay_until_ms::text, "+
		"'UTF8') || previous || sealed"
	if !postgres {
		now, link = nowSQLite, "CAST(coalesce(links, '') || last_used_ms || replay_until_ms || previous || sealed "+
			"AS blob)"
	}
	text = strings.NewReplacer("{link}", link, "{now}", "("+now+" + $11)", "{sealed}", strconv.Itoa(session.SealedSize),
		"{full}", strconv.Itoa((session.MaxLinks+session.MoreLinks-1)*linkSize)).Replace(text)
	if !postgres {
		text = strings.ReplaceAll(text, "$", "?")
	}
	return text
}

const rotation = `
UPDATE session SET
	generation      = generation + 1,
	linked          = generation + 1,
	hash            = $5,
	previous        = $4,
	replay_until_ms = {now} + $7,
	sealed          = $6,
	links           = CASE WHEN {now} < replay_until_ms AND sealed IS NOT NULL THEN {link} END,
	user_agent      = $9,
	ip              = $10,
	last_used_ms    = {now},
	idle_expires_ms = CASE WHEN {now} + $8 < expires_ms THEN {now} + $8 ELSE expires_ms END
WHERE id = $1 AND user_id = $2 AND stopped_ms IS NULL AND {now} < idle_expires_ms AND generation = $3 AND hash = $4
	AND linked = generation AND (sealed IS NULL OR length(sealed) = {sealed})
	AND (links IS NULL OR {now} < replay_until_ms AND sealed IS NOT NULL AND length(links) < {full})`

// alone is a condition that has PostgreSQL commit without waiting for a synchronous standby. A rotation that one lacks
// signs nobody out when it takes over (see package session). But one that waited would not be answered, and would hold
// its connection, and every repetition of the request, until its window is over.
const alone = " AND (SELECT " + waitForNone + ") <> ''"

// waitForNone sets that for a transaction, unless commits do not even wait for the disk.
const waitForNone = `set_config('synchronous_commit',
	CASE current_setting('synchronous_commit') WHEN 'off' THEN 'off' ELSE 'local' END, true)`

// alone is that condition, where the store is PostgreSQL.
func (s *Store) alone() string {
	if s.db.IsPostgres() {
		return alone
	}
	return ""
}

func (s *Store) Create(ctx context.Context, start session.Start) (session.Started, error) {
	var started session.Started
	err := s.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		started = session.Started{}
		if start.Max > 0 {
			excess, err := s.excess(ctx, tx, start)
			if err != nil {
				return err
			}
			started.Excess = excess
		}
		now, maxAge, idle := s.now(), start.MaxAge.Milliseconds(), min(start.IdleTTL, start.MaxAge).Milliseconds()
		// A call sent again finds its own row.
		row := tx.QueryRowContext(ctx, `INSERT INTO session (id, user_id, epoch, generation, linked, recorded, hash, previous, replay_until_ms,
				device_name, user_agent, ip, auth_ms, created_ms, last_used_ms, expires_ms, idle_expires_ms)
			VALUES (?, ?, ?, 1, 1, ?, ?, ?, 0, ?, ?, ?, `+now+`, `+now+`, `+now+`, `+now+` + ?, `+now+` + ?)
			ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch
			WHERE session.user_id = excluded.user_id AND session.generation = 1 AND session.hash = excluded.hash
			RETURNING `+columns,
			start.ID, start.UserID, start.Epoch, true, start.Hash[:], []byte{},
			start.DeviceName, start.UserAgent, start.IP, maxAge, idle)
		return scan(row, &started.Session)
	})
	if err != nil {
		return session.Started{}, fail("create session", err)
	}
	return started, nil
}

// excess returns the sessions that one more puts above the limit, or refuses that one.
func (s *Store) excess(ctx context.Context, tx database.Tx, start session.Start) ([]session.Excess, error) {
	if s.db.IsPostgres() { // SQLite has one writer anyway
		// Two sign-ins of a user at once would otherwise not see each other.
		if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock(?, hashtext(?))", lockClass,
			start.UserID.String()); err != nil {
			return nil, err
		}
	}
	others, err := database.Collect(ctx, tx, "list the user's sessions", func(
		row database.Row,
	) (one session.Excess, err error) {
		err = row.Scan(&one.ID, &one.Tentative)
		return one, err
	}, `SELECT id, recorded AND generation = 1 FROM session
		WHERE user_id = ? AND id <> ? AND stopped_ms IS NULL AND idle_expires_ms > `+s.now()+` ORDER BY last_used_ms, id`,
		start.UserID, start.ID)
	if err != nil {
		return nil, err
	}
	n := max(0, len(others)+1-start.Max)
	if n > 0 && start.RejectNew {
		return nil, session.ErrTooMany
	}
	return others[:n], nil
}

// lockClass sets our advisory locks apart from others.
const lockClass = 0x73657373 // "sess"

func (s *Store) Rotate(ctx context.Context, r session.Rotation) (session.RotateResult, error) {
	rotated, err := s.rotateSession(ctx, r)
	return rotated, fail("rotate session", err)
}

func (s *Store) rotateSession(ctx context.Context, r session.Rotation) (rotated session.RotateResult, err error) {
	if !s.db.IsPostgres() { // which has one writer: what comes after the statement sees what it saw
		err = s.db.Tx(ctx, func(ctx context.Context, tx database.Tx) (err error) {
			rotated, err = s.rotateAtOnce(ctx, tx.StmtContext(ctx, s.rotate), r)
			if database.IsNotFound(err) {
				rotated, err = s.rotateSlowly(ctx, tx, r)
			}
			return err
		})
		return rotated, err
	}
	if rotated, err = s.rotateAtOnce(ctx, s.rotate, r); !database.IsNotFound(err) {
		return rotated, err
	}
	// Most of what is left asks for no change, and needs no lock.
	rec, err := s.record(ctx, s.db, r.UserID, r.SessionID)
	answer, changes := rec.answer(r)
	if err != nil || !changes {
		return answer, err
	}
	err = s.db.Tx(ctx, func(ctx context.Context, tx database.Tx) (err error) {
		if _, err = tx.ExecContext(ctx, "SELECT FROM session WHERE id = ? FOR UPDATE", r.SessionID); err != nil {
			return err
		}
		rotated, err = s.rotateSlowly(ctx, tx, r)
		return err
	})
	return rotated, err
}

// rotateAtOnce returns sql.ErrNoRows when it is not the ordinary case.
func (s *Store) rotateAtOnce(ctx context.Context, stmt *database.Stmt,
	r session.Rotation) (session.RotateResult, error) {
	var sealed any // NULL when there is no window
	if r.Grace >= time.Millisecond {
		sealed = r.SealedNext
	}
	rotated := session.RotateResult{Outcome: session.Rotated}
	err := scan(stmt.QueryRowContext(ctx, r.SessionID.String(), r.UserID.String(), int64(r.Generation),
		r.PresentedHash[:], r.NextHash[:], sealed,
		r.Grace.Milliseconds(), r.IdleTTL.Milliseconds(), r.UserAgent, r.IP, s.skew().Milliseconds()), &rotated.Session)
	return rotated, err
}

// rotateSlowly decides about any token and does what it decided. The row is locked.
func (s *Store) rotateSlowly(ctx context.Context, tx database.IDB, r session.Rotation) (session.RotateResult, error) {
	rec, err := s.record(ctx, tx, r.UserID, r.SessionID)
	answer, changes := rec.answer(r)
	if err != nil || !changes {
		return answer, err
	}
	if answer.Outcome == session.Reused {
		_, err := tx.ExecContext(ctx, `UPDATE session SET stopped_ms = ?, stopped_generation = ?, stopped_user_agent = ?, stopped_ip = ?,
			sealed = NULL, links = NULL, marks = NULL WHERE id = ?`, rec.now, r.Generation, r.UserAgent, r.IP, r.SessionID)
		return answer, err
	}
	if s.db.IsPostgres() {
		if _, err := tx.ExecContext(ctx, "SELECT "+waitForNone); err != nil {
			return answer, err
		}
	}
	rec.chain.Turn(r, rec.now)
	answer.Session, err = s.write(ctx, tx, rec, r.IdleTTL, ", user_agent = ?, ip = ?", r.UserAgent, r.IP)
	return answer, err
}

// write stores a chain that was rotated just now. more sets further columns.
func (s *Store) write(ctx context.Context, tx database.IDB, rec record, idleTTL time.Duration, more string,
	args ...any) (one session.Session, err error) {
	c := rec.chain
	marks, err := encodeMarks(c.Marks)
	if err != nil {
		return one, err
	}
	idle := rec.now + idleTTL.Milliseconds()
	args = append([]any{c.Generation, c.Linked, c.Hash[:], c.Previous.Hash[:], c.Previous.Until,
		blob(c.Previous.Sealed), blob(encodeLinks(c.Links)), marks, rec.now, idle, idle}, args...)
	row := tx.QueryRowContext(ctx, `UPDATE session SET generation = ?, linked = ?, hash = ?, previous = ?, replay_until_ms = ?, sealed = ?, links = ?, marks = ?,
			last_used_ms = ?, idle_expires_ms = CASE WHEN ? < expires_ms THEN ? ELSE expires_ms END`+more+`
		WHERE id = ? RETURNING `+columns, append(args, rec.session.ID)...)
	return one, scan(row, &one)
}

// record is a row with all that decides about it, and the time by the database's clock.
type record struct {
	session session.Session
	chain   session.Chain
	stopped bool
	now     int64
}

// record returns the zero record when there is no session, or it has expired.
func (s *Store) record(ctx context.Context, db database.IDB, userID, id uuid.UUID) (record, error) {
	var rec record
	var previous, links []byte
	var marks *string
	var stopped *int64
	c := &rec.chain
	err := scan(db.QueryRowContext(ctx, "SELECT linked, previous, replay_until_ms, sealed, links, marks, stopped_ms, "+
		s.now()+", "+columns+" FROM session WHERE id = ? AND user_id = ?",
		id, userID), &rec.session, &c.Linked, &previous, &c.Previous.Until, &c.Previous.Sealed, &links, &marks,
		&stopped, &rec.now)
	if database.IsNotFound(err) {
		return record{}, nil
	}
	if err != nil {
		return record{}, err
	}
	if rec.stopped = stopped != nil; !rec.stopped && rec.now >= rec.session.IdleExpiresAt.UnixMilli() {
		return record{}, nil
	}
	copy(c.Previous.Hash[:], previous)
	c.Generation, c.Hash, c.Previous.At = rec.session.Generation, rec.session.Hash, rec.session.LastUsedAt.UnixMilli()
	if c.Links, err = decodeLinks(links); err != nil {
		return record{}, err
	}
	c.Marks, err = decodeMarks(marks)
	return rec, err
}

// answer is what a rotation is answered, and whether it changes the record, which is still to be done.
func (rec record) answer(r session.Rotation) (answer session.RotateResult, changes bool) {
	if rec.session.ID == uuid.Nil {
		return session.RotateResult{Outcome: session.Gone}, false
	}
	if rec.stopped {
		return session.RotateResult{Outcome: session.Reused, Session: rec.session}, false
	}
	outcome, links, repeated := rec.chain.Answer(r, rec.now)
	return session.RotateResult{Outcome: outcome, Session: rec.session, Links: links},
		outcome == session.Reused || outcome == session.Rotated && !repeated
}

func (s *Store) Reissue(ctx context.Context, r session.Reissue) (session.Session, error) {
	var one session.Session
	err := s.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		if s.db.IsPostgres() {
			if _, err := tx.ExecContext(ctx, "SELECT FROM session WHERE id = ? FOR UPDATE", r.SessionID); err != nil {
				return err
			}
		}
		rec, err := s.record(ctx, tx, r.UserID, r.SessionID)
		if err != nil {
			return err
		}
		one = rec.session
		switch {
		case one.ID == uuid.Nil || rec.stopped:
			return session.ErrNotFound
		case one.Generation == r.Generation && one.Hash == r.Hash: // this very call, sent again
			return nil
		case one.Generation != r.Generation-1:
			return session.ErrConflict
		}
		rec.chain.Turn(session.Rotation{Generation: one.Generation, PresentedHash: one.Hash, NextHash: r.Hash,
			SealedNext: r.Sealed, Grace: r.Grace}, rec.now)
		one, err = s.write(ctx, tx, rec, r.IdleTTL, ", auth_ms = CASE WHEN ? THEN ? ELSE auth_ms END",
			r.Reauthenticated, rec.now)
		return err
	})
	return one, fail("reissue session", err)
}

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

func (s *Store) List(ctx context.Context, userID uuid.UUID) ([]session.Session, error) {
	live, err := s.query(ctx, "user_id = ?", userID)
	slices.SortFunc(live, session.NewestUse)
	return live, fail("list sessions", err)
}

func (s *Store) Delete(ctx context.Context, userID uuid.UUID, ids ...uuid.UUID) error {
	if len(ids) == 0 {
		return nil
	}
	_, err := s.db.Write(ctx, "DELETE FROM session WHERE user_id = ? AND id IN (?)", userID, database.List(ids))
	return fail("delete sessions", err)
}

func (s *Store) DeleteAll(ctx context.Context, userID uuid.UUID, epoch int64, keep uuid.NullUUID) error {
	kept := uuid.Nil // of no session
	if keep.Valid {
		kept = keep.UUID
	}
	_, err := s.db.Write(ctx, "DELETE FROM session WHERE user_id = ? AND epoch < ? AND id <> ? "+
		"AND stopped_ms IS NULL", userID, epoch, kept)
	return fail("delete sessions", err)
}

func (s *Store) Reused(ctx context.Context, limit int) ([]session.Marked, error) {
	marked, err := database.Collect(ctx, s.db, "read sessions", func(row database.Row) (m session.Marked, err error) {
		var stopped int64
		err = scan(row, &m.Session, &stopped, &m.Generation, &m.UserAgent, &m.IP)
		m.StoppedAt = instant(stopped)
		return m, err
	}, "SELECT stopped_ms, stopped_generation, stopped_user_agent, stopped_ip, "+
		columns+" FROM session WHERE stopped_ms IS NOT NULL ORDER BY stopped_ms LIMIT ?", limit)
	return marked, fail("look for stopped sessions", err)
}

func (s *Store) Purge(ctx context.Context, limit int) (int64, error) {
	now := s.now()
	// The outer condition looks at a row that changed while it was waited for.
	n, err := s.db.Write(ctx, `DELETE FROM session WHERE stopped_ms IS NULL AND idle_expires_ms <= `+now+` AND id IN
		(SELECT id FROM session WHERE stopped_ms IS NULL AND idle_expires_ms <= `+now+` ORDER BY idle_expires_ms LIMIT ?)`, limit)
	return n, fail("purge sessions", err)
}

func (s *Store) Forget(ctx context.Context, limit int) (int64, error) {
	now := s.now()
	// A window that ends too far ahead is void: a clock that was ahead wrote it.
	ended := "sealed IS NOT NULL AND (replay_until_ms <= " + now + " OR replay_until_ms > " + now + " + ?1)"
	n, err := s.db.Write(ctx, "UPDATE session SET sealed = NULL WHERE "+ended+" AND id IN (SELECT id "+
		"FROM session WHERE "+ended+" LIMIT ?2)"+s.alone(), session.MaxWindow.Milliseconds(), limit)
	if err != nil {
		return 0, fail("forget replaced tokens", err)
	}
	older, err := s.forgetLinks(ctx, limit)
	return max(n, older), fail("forget replaced tokens", err)
}

// forgetLinks drops the links whose windows are over. Few sessions have any: those that were
// rotated twice within a window.
func (s *Store) forgetLinks(ctx context.Context, limit int) (forgotten int64, err error) {
	for after := uuid.Nil; ; {
		page, err := s.linked(ctx, after, limit)
		if err != nil {
			return forgotten, err
		}
		for _, row := range page {
			after = row.id
			kept := session.Chain{Links: row.links, Marks: row.marks}
			if !kept.Prune(row.now) {
				continue
			}
			marks, err := encodeMarks(kept.Marks)
			if err != nil {
				return forgotten, err
			}
			// A row that was rotated meanwhile is looked at the next time.
			if _, err := s.db.Write(ctx, "UPDATE session SET links = ?, marks = ? WHERE id = ? AND generation = ?"+
				s.alone(), blob(encodeLinks(kept.Links)), marks, row.id, row.generation); err != nil {
				return forgotten, err
			}
			forgotten++
		}
		if len(page) < limit {
			return forgotten, nil
		}
	}
}

type linkedRow struct {
	id         uuid.UUID
	generation int64
	links      []session.Link
	marks      []session.Mark
	now        int64
}

// linked returns the next sessions that have links, in the order of their ids.
func (s *Store) linked(ctx context.Context, after uuid.UUID, limit int) ([]linkedRow, error) {
	return database.Collect(ctx, s.db, "read links", func(row database.Row) (one linkedRow, err error) {
		var links []byte
		var marks *string
		if err := row.Scan(&one.id, &one.generation, &links, &marks, &one.now); err != nil {
			return one, err
		}
		if one.links, err = decodeLinks(links); err != nil {
			return one, err
		}
		one.marks, err = decodeMarks(marks)
		return one, err
	}, "SELECT id, generation, links, marks, "+s.now()+" FROM session "+
		"WHERE links IS NOT NULL AND id > ? ORDER BY id LIMIT ?", after, limit)
}

// Missing implements [session.Store]. It is asked of what is not known to be there.
func (s *Store) Missing(ctx context.Context, refs []session.Ref) ([]session.Ref, error) {
	var missing []session.Ref
	for _, ref := range refs {
		switch _, err := s.Get(ctx, ref.UserID, ref.ID); {
		case errors.Is(err, session.ErrNotFound):
			missing = append(missing, ref)
		case err != nil:
			return nil, err
		}
	}
	return missing, nil
}

// Memory implements [session.Store]. What the database has lost is not known to have been.
func (s *Store) Memory(context.Context) (session.Memory, error) { return session.Memory{}, nil }

func (s *Store) Count(ctx context.Context) (n int, err error) {
	err = s.db.QueryRowContext(ctx, "SELECT count(*) FROM session").Scan(&n)
	return n, fail("count sessions", err)
}

const clearPage = 1000

// Clear implements [session.Store]. It goes through the ids in their order: what was deleted is not
// passed again.
func (s *Store) Clear(ctx context.Context, progress func(gone int)) error {
	gone := 0
	for after := uuid.Nil; ; {
		page, err := database.Collect(ctx, s.db, "read sessions", database.Value[uuid.UUID],
			"SELECT id FROM session WHERE id > ? ORDER BY id LIMIT ?", after, clearPage)
		if err != nil || len(page) == 0 {
			return fail("clear sessions", err)
		}
		last := page[len(page)-1]
		if _, err := s.db.Write(ctx, "DELETE FROM session WHERE id > ? AND id <= ?", after, last); err != nil {
			return fail("clear sessions", err)
		}
		after, gone = last, gone+len(page)
		progress(gone)
	}
}

const walkPage = 500

func (s *Store) Walk(ctx context.Context, f session.Filter) iter.Seq2[session.Session, error] {
	return func(yield func(session.Session, error) bool) {
		for after := uuid.Nil; ; {
			page, err := s.query(ctx, "id > ? AND (NOT ? OR id = ?) ORDER BY id LIMIT ?", after, f.ID.Valid, f.ID.UUID,
				walkPage)
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
	return database.Collect(ctx, s.db, "read sessions", func(row database.Row) (one session.Session, err error) {
		err = scan(row, &one)
		return one, err
	}, "SELECT "+columns+" FROM session WHERE stopped_ms IS NULL AND idle_expires_ms > "+s.now()+" AND "+where, args...)
}

// scan reads what comes before the columns of a session, and these.
func scan(row database.Row, one *session.Session, before ...any) error {
	var hash []byte
	var auth, created, used, expires, idle int64
	err := row.Scan(append(before, &one.ID, &one.UserID, &one.Generation, &hash, &one.Epoch, &one.DeviceName,
		&one.UserAgent, &one.IP, &one.Recorded, &auth, &created, &used, &expires, &idle)...)
	if err != nil {
		return err
	}
	if len(hash) != len(one.Hash) {
		return errors.New("a session has a hash of a wrong length")
	}
	one.Hash = session.Hash(hash)
	one.AuthTime, one.CreatedAt, one.LastUsedAt, one.ExpiresAt, one.IdleExpiresAt = instant(auth), instant(created),
		instant(used), instant(expires), instant(idle)
	return nil
}

func instant(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// fail says what failed, if anything did.
func fail(what string, err error) error {
	if err == nil {
		return nil
	}
	if database.IsUnavailable(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w: %w", what, session.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
