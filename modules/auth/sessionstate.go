package auth

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/toppira/authctl/platform/batch"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/tracing"
)

// sessionState is what the database, the authority, says of an account and one session of it.
type sessionState struct {
	user    User
	epoch   int64
	keptSID uuid.NullUUID
	revoked bool      // this session, by its id
	endedAt time.Time // when sessions were last ended all at once; zero for never
}

// sessionState is what the account says of a session that is, or is not, revoked by its id.
func (a account) sessionState(revoked bool) sessionState {
	return sessionState{user: a.User, epoch: a.epoch, keptSID: a.keptSID, revoked: revoked}
}

// live reports whether a session begun under epoch may go on.
func (st sessionState) live(sid uuid.UUID, epoch int64) bool {
	return st.user.Status == StatusActive && !st.revoked &&
		(epoch >= st.epoch || st.keptSID.Valid && st.keptSID.UUID == sid)
}

// endedWithAll reports whether a session that the store no longer has was ended with all
// others, rather than having expired. Only the answer's words depend on it.
func (st sessionState) endedWithAll(sid uuid.UUID) bool {
	return began(sid).Before(st.endedAt) && !(st.keptSID.Valid && st.keptSID.UUID == sid)
}

// began is when a session began, which its id tells: it is a UUIDv7 made by [newID].
func began(sid uuid.UUID) time.Time { return time.Unix(sid.Time().UnixTime()) }

// tooOld reports whether a session is beyond auth.session_max_age as it is now. The store holds
// sessions to the age that was set when they began. When it was lowered since, the database may
// have forgotten that the session was revoked (see writeRevocations), and the store not.
func (s *Service) tooOld(sid uuid.UUID) bool {
	return !s.now().Before(began(sid).Add(s.cfg.SessionMaxAge))
}

// mayRefresh returns why no refresh token of the session is accepted, by what the database says; nil if one may be.
func (s *Service) mayRefresh(st sessionState, sid uuid.UUID) error {
	switch {
	case st.user.Status != StatusActive || st.revoked:
		return ErrSessionRevoked
	case s.tooOld(sid):
		return ErrSessionExpired
	}
	return nil
}

// stillLive refuses a caller whose session has ended since it was authenticated. It is checked
// under the lock on the account before a session is kept past the end of all others: an ended
// session that kept itself would be live again.
func (s *Service) stillLive(ctx context.Context, tx database.IDB, now account, caller Caller) error {
	revoked, err := revokedAmong(ctx, tx, []uuid.UUID{caller.SessionID})
	if err != nil {
		return err
	}
	if !now.sessionState(revoked[caller.SessionID]).live(caller.SessionID, caller.claims.SessionEpoch) {
		return ErrSessionRevoked
	}
	return nil
}

// sessionStates does the session check of every refresh and every authenticated request, with a
// prepared statement (docs/decisions).
type sessionStates struct {
	db    *database.DB
	batch *batch.Batcher[subject, *sessionState] // PostgreSQL
	stmt  *database.Stmt                         // SQLite, where there is no round trip to save
}

// subject is an account and a session of it.
type subject struct{ userID, sid uuid.UUID }

const sessionStateColumns = `u.username, u.status, u.created_at, u.updated_at, u.password_changed_at,
	u.session_epoch, u.kept_sid, u.sessions_ended_at, (SELECT r.sid FROM revoked_session r WHERE r.sid = q.sid) IS NOT NULL`

// A plan is kept for as long as its connection, while the tables grow. So nothing here leaves
// PostgreSQL a choice: the LIMIT and the scalar subqueries keep it from reading a whole table that
// was small once, and since it cannot see the arrays, it plans for none in particular.
const sessionStatesPostgres = `SELECT q.n, ` + sessionStateColumns + ` FROM unnest((SELECT $1::uuid[]), (SELECT $2::uuid[])) WITH ORDINALITY AS q (user_id, sid, n)
	CROSS JOIN LATERAL (SELECT * FROM users WHERE id = q.user_id LIMIT 1) u`

const sessionStateSQLite = `SELECT 1, ` + sessionStateColumns +
	` FROM (SELECT ? AS user_id, ? AS sid) q JOIN users u ON u.id = q.user_id`

func prepareSessionStates(ctx context.Context, db *database.DB) (sessionStates, error) {
	s := sessionStates{db: db}
	if db.IsPostgres() {
		s.batch = batch.New(batch.Config{Linger: 5 * time.Millisecond, Concurrency: 4, MaxBatch: 256,
			Timeout: detachTimeout}, s.askPostgres)
		return s, nil
	}
	var err error
	if s.stmt, err = db.PrepareContext(ctx, sessionStateSQLite); err != nil {
		return sessionStates{}, fmt.Errorf("prepare the session check: %w", err)
	}
	return s, nil
}

// of returns [ErrUserNotFound] when the account is gone.
func (s sessionStates) of(ctx context.Context, userID, sid uuid.UUID) (sessionState, error) {
	ctx, span := tracing.Start(ctx, "session check") // the statement may be one of many callers
	defer span.End()
	who := subject{userID, sid}
	var st *sessionState
	var err error
	if s.batch != nil {
		st, err = s.batch.Do(ctx, who)
	} else {
		st, err = s.askSQLite(ctx, who)
	}
	if err != nil {
		return sessionState{}, fmt.Errorf("check the session: %w", err)
	}
	if st == nil {
		return sessionState{}, ErrUserNotFound
	}
	return *st, nil
}

// askPostgres goes to pgx itself: database/sql starts a goroutine for each query, which costs
// more than the query does here.
func (s sessionStates) askPostgres(ctx context.Context, whom []subject) (all []*sessionState, err error) {
	userIDs, sids := make([][16]byte, len(whom)), make([][16]byte, len(whom))
	for i, who := range whom {
		userIDs[i], sids[i] = who.userID, who.sid
	}
	all = make([]*sessionState, len(whom))
	err = s.db.Postgres(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, sessionStatesPostgres, s.db.Prepared(), userIDs, sids)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			n, st, err := scanSessionState(rows)
			if err != nil {
				return err
			}
			st.user.ID = whom[n-1].userID
			all[n-1] = st
		}
		return rows.Err()
	})
	return all, err
}

func (s sessionStates) askSQLite(ctx context.Context, who subject) (*sessionState, error) {
	_, st, err := scanSessionState(s.stmt.QueryRowContext(ctx, who.userID.String(), who.sid.String()))
	if database.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	st.user.ID = who.userID
	return st, nil
}

// scanSessionState also returns which of the subjects the row is about, from 1.
func scanSessionState(row database.Row) (n int, st *sessionState, err error) {
	st = &sessionState{}
	var endedAt *time.Time
	u := &st.user
	if err := row.Scan(&n, &u.Username, &u.Status, &u.CreatedAt, &u.UpdatedAt, &u.PasswordChangedAt,
		&st.epoch, &st.keptSID, &endedAt, &st.revoked); err != nil {
		return 0, nil, err
	}
	if endedAt != nil {
		st.endedAt = *endedAt
	}
	u.CreatedAt, u.UpdatedAt, u.PasswordChangedAt = u.CreatedAt.UTC(), u.UpdatedAt.UTC(), u.PasswordChangedAt.UTC()
	return n, st, nil
}

// close waits for the checks under way.
func (s sessionStates) close() error {
	if s.batch != nil {
		s.batch.Close()
		return nil
	}
	return s.stmt.Close()
}
