package sql

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/auth/internal/session/sessiontest"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// before is the store of the previous release, with its statements as they were at ff52971.
type before struct {
	*Store
	rotate *database.Stmt
}

const rotationBefore = `
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

func newBefore(t testing.TB, db *database.DB, skew func() time.Duration) before {
	t.Helper()
	now := nowSQLite
	if db.IsPostgres() {
		now = nowPostgres
	}
	text := strings.ReplaceAll(rotationBefore, "{reuse}", "(stopped_ms IS NULL AND NOT {current} AND NOT {previous})")
	text = strings.ReplaceAll(text, "{current}",
		"(stopped_ms IS NULL AND ($3 > generation OR $3 = generation AND hash = $4))")
	text = strings.ReplaceAll(text, "{previous}",
		"($3 = generation - 1 AND previous = $4 AND (hash = $5 OR {now} < replay_until_ms))")
	text = strings.ReplaceAll(text, "{now}", "("+now+" + $11)")
	if !db.IsPostgres() {
		text = strings.ReplaceAll(text, "$", "?")
	}
	stmt, err := db.PrepareContext(t.Context(), text)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stmt.Close() })
	return before{newTestStore(t, db, skew), stmt}
}

func (s before) Create(ctx context.Context, start session.Start) (session.Started, error) {
	started, err := s.Store.Create(ctx, start)
	if err == nil {
		_, err = s.db.Write(ctx, "UPDATE session SET linked = 0 WHERE id = ?", start.ID) // the column's default
	}
	return started, err
}

func (s before) Rotate(ctx context.Context, r session.Rotation) (session.RotateResult, error) {
	var sealed any
	if r.Grace >= time.Millisecond {
		sealed = r.SealedNext
	}
	rotated := session.RotateResult{}
	var verdict string
	var kept []byte
	ask := func(stmt *database.Stmt) error {
		return scan(stmt.QueryRowContext(ctx, r.SessionID.String(), r.UserID.String(), int64(r.Generation),
			r.PresentedHash[:], r.NextHash[:], sealed,
			r.Grace.Milliseconds(), r.IdleTTL.Milliseconds(), r.UserAgent, r.IP,
			s.skew().Milliseconds()), &rotated.Session, &verdict, &kept)
	}
	var err error
	if s.db.IsPostgres() {
		err = ask(s.rotate)
	} else {
		err = s.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
			return ask(tx.StmtContext(ctx, s.rotate))
		})
	}
	if database.IsNotFound(err) {
		return session.RotateResult{}, nil
	}
	switch verdict {
	case "turned":
		rotated.Outcome = session.Rotated
	case "replayed":
		rotated.Outcome, rotated.Links = session.Replayed, [][]byte{kept}
	case "reused":
		rotated.Outcome = session.Reused
	}
	return rotated, err
}

func (s before) Reissue(ctx context.Context, r session.Reissue) (one session.Session, err error) {
	err = s.db.Tx(ctx, func(ctx context.Context, tx database.Tx) error {
		query := "SELECT " + columns + " FROM session WHERE id = ? AND user_id = ? AND stopped_ms IS NULL AND idle_expires_ms > " + s.now() + database.ForUpdate(tx)
		err := scan(tx.QueryRowContext(ctx, query, r.SessionID, r.UserID), &one)
		switch {
		case database.IsNotFound(err):
			return session.ErrNotFound
		case err != nil || one.Generation == r.Generation && one.Hash == r.Hash:
			return err
		case one.Generation != r.Generation-1:
			return session.ErrConflict
		}
		now := s.now()
		return scan(tx.QueryRowContext(ctx,
			`UPDATE session SET generation = ?, hash = ?, previous = hash, replay_until_ms = `+now+` + ?, sealed = ?,
				last_used_ms = `+now+`, idle_expires_ms = CASE WHEN `+now+` + ? < expires_ms THEN `+now+` + ? ELSE expires_ms END
			WHERE id = ? RETURNING `+columns,
			r.Generation, r.Hash[:], r.Grace.Milliseconds(), blob(r.Sealed),
			r.IdleTTL.Milliseconds(), r.IdleTTL.Milliseconds(), r.SessionID), &one)
	})
	return one, err
}

func TestTwoReleasesShareADatabase(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(testing.TB) *database.DB{"sqlite": dbtest.SQLite,
		"postgres": dbtest.Postgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sessiontest.RunBeside(t, func(t testing.TB, skew func() time.Duration) sessiontest.Engine {
				db := open(t)
				return sessiontest.Engine{Store: newTestStore(t, db, skew), Peer: newBefore(t, db, skew)}
			})
		})
	}
}
