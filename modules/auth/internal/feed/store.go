package feed

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/platform/database"
)

// Fact is one thing that has ended, as followers are told of it.
type Fact struct {
	Type         string        `json:"type"` // session, account or key
	SessionID    uuid.NullUUID `json:"sid,omitzero"`
	Subject      uuid.NullUUID `json:"sub,omitzero"`
	SessionEpoch *int64        `json:"session_epoch,omitempty"`
	KeptSID      uuid.NullUUID `json:"kept_sid,omitzero"`
	KeyID        string        `json:"kid,omitempty"`
	ExpiresAt    time.Time     `json:"expires_at"`
}

// row is a fact as it is stored.
type row struct {
	id   int64
	xid  uint64          // of the transaction that wrote it; on SQLite its id
	json json.RawMessage // the [Fact]
}

// look is what the table held at one moment.
type look struct {
	incarnation uint64
	contains    position
	asOf        time.Time // by the database's clock; what had ended by then is in it
	at          time.Time // when it was made, by this server's clock
	rows        []row
	more        bool // there are rows beyond the limit that was set
}

// store reads the table.
type store struct {
	db  *database.DB
	now func() time.Time

	// process stands for an SQLite database: its cursors are only valid in this process. While
	// the process runs, nobody can put another file in place of the database.
	process uint64
}

// incarnationPostgres tells the database from others, and from itself before it was restored or
// promoted. A backup is restored, and a standby promoted, under another server process, which
// started at another time. A dump is restored into another database, into a new table, or into
// one that was emptied, which changes its file. VACUUM FULL changes the file too: followers then
// take a new snapshot, and that is all. Rows that were put back in some other way are known by the
// restore fence that follows.
const incarnationPostgres = `concat_ws(' ', extract(epoch FROM pg_postmaster_start_time()),
	(SELECT oid FROM pg_database WHERE datname = current_database()), 'revocation'::regclass::oid, pg_relation_filenode('revocation'),
	(SELECT max(generation) FROM restore_fence WHERE done_ms IS NOT NULL))`

const columnsPostgres = "id, xid::text AS xid, type, user_id, sid, session_epoch, kept_sid, kid, expires_ms"
const columnsSQLite = "id, CAST(id AS text) AS xid, type, user_id, sid, session_epoch, kept_sid, kid, expires_ms"

// A statement has one snapshot, so that what it finds is exactly what the snapshot beside it
// says. The transaction begins before the snapshot is taken: what was answered before now() is
// in it, which is not true of statement_timestamp() (it moves on between Bind and Execute).
const momentPostgres = `(SELECT ` + incarnationPostgres + ` AS incarnation, pg_current_snapshot()::text AS contains,
	(extract(epoch FROM now()) * 1000000)::bigint AS at)`

// since returns what position does not contain, at most limit rows.
func (s store) since(ctx context.Context, p position, limit int) (look, error) {
	if !s.db.IsPostgres() {
		return s.askSQLite(ctx, "id >= ?1", limit, int64(p.next))
	}
	// What is sorted by the index is read by it, whatever PostgreSQL thinks of how many rows there are: after
	// a mass revocation many are of one transaction. Rows of transactions that are yet to come were
	// restored from another server.
	return s.ask(ctx, limit, "SELECT m.*, r.* FROM "+momentPostgres+` m LEFT JOIN (
		(SELECT `+columnsPostgres+` FROM revocation WHERE revocation.xid >= pg_snapshot_xmax(CAST(CAST(?1 AS text) AS pg_snapshot))
				AND revocation.xid < pg_snapshot_xmax(pg_current_snapshot()) ORDER BY revocation.xid LIMIT ?2)
		UNION ALL
		(SELECT q.* FROM pg_snapshot_xip(CAST(CAST(?1 AS text) AS pg_snapshot)) o (xid)
			CROSS JOIN LATERAL (SELECT `+columnsPostgres+` FROM revocation WHERE revocation.xid >= o.xid AND revocation.xid <= o.xid
				ORDER BY revocation.xid LIMIT ?2) q LIMIT ?2)
		) r ON true`, p.snapshot(), limit+1)
}

// moment returns a look that found nothing since it looked for nothing.
func (s store) moment(ctx context.Context) (look, error) {
	if !s.db.IsPostgres() {
		return s.askSQLite(ctx, "false", 1)
	}
	return s.ask(ctx, 1, "SELECT m.*, r.* FROM "+momentPostgres+
		" m LEFT JOIN (SELECT "+columnsPostgres+" FROM revocation WHERE false) r ON true")
}

// page returns the next facts in the order of their ids, of those that have not expired by the database's
// clock and by this server's, and that since does not contain. Servers issue tokens by their own clocks.
func (s store) page(ctx context.Context, after int64, since position, limit int) (look, error) {
	if !s.db.IsPostgres() {
		return s.askSQLite(ctx, "id > ?1 AND id >= ?2 AND expires_ms > ?3", limit,
			after, int64(since.next), s.now().UnixMilli())
	}
	if since.next == 0 { // of a snapshot: the index leads from page to page
		return s.ask(ctx, limit, "SELECT m.*, r.* FROM "+momentPostgres+` m LEFT JOIN (
			SELECT `+columnsPostgres+`
				FROM revocation WHERE id > ?1 AND expires_ms > least(extract(epoch FROM now()) * 1000, ?3)
				ORDER BY id LIMIT ?2) r ON true ORDER BY r.id`, after, limit+1, s.now().UnixMilli())
	}
	return s.ask(ctx, limit, "SELECT m.*, r.* FROM "+momentPostgres+` m LEFT JOIN (
		SELECT `+columnsPostgres+` FROM (SELECT * FROM revocation WHERE revocation.xid >= CAST(CAST(?1 AS text) AS xid8) OFFSET 0) revocation
			WHERE id > ?2 AND NOT pg_visible_in_snapshot(revocation.xid, CAST(CAST(?3 AS text) AS pg_snapshot))
				AND expires_ms > least(extract(epoch FROM now()) * 1000, ?5)
			ORDER BY id LIMIT ?4) r ON true ORDER BY r.id`, fmt.Sprint(since.oldest()), after, since.snapshot(), limit+1,
		s.now().UnixMilli())
}

func (s store) ask(ctx context.Context, limit int, query string, args ...any) (l look, err error) {
	l.at = s.now().UTC().Truncate(time.Microsecond)
	l.rows, err = database.Collect(ctx, s.db, "read what has ended", func(from database.Row) (row, error) {
		var incarnation, contains string
		var at int64
		r, err := scanRow(from, &incarnation, &contains, &at)
		if err != nil || l.incarnation != 0 {
			return r, err
		}
		hash := fnv.New64a()
		_, _ = hash.Write([]byte(incarnation))
		l.incarnation, l.asOf = hash.Sum64(), time.UnixMicro(at).UTC()
		l.contains, err = parseSnapshot(contains)
		return r, err
	}, query, args...)
	return l.finish(limit, err)
}

func (s store) askSQLite(ctx context.Context, where string, limit int, args ...any) (l look, err error) {
	l.incarnation, l.asOf = s.process, s.now().UTC().Truncate(time.Microsecond)
	l.at = l.asOf
	l.rows, err = database.Collect(ctx, s.db, "read what has ended", func(from database.Row) (row, error) {
		return scanRow(from, &l.contains.next)
	}, `SELECT m.next, r.* FROM
		(SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'revocation'), 0) + 1 AS next) m
		LEFT JOIN (SELECT `+columnsSQLite+` FROM revocation WHERE `+where+` ORDER BY id LIMIT `+fmt.Sprint(limit+1)+`) r ON true`, args...)
	return l.finish(limit, err)
}

func (l look) finish(limit int, err error) (look, error) {
	if err != nil {
		return look{}, err
	}
	if l.incarnation == 0 {
		return look{}, errors.New("read what has ended: the database returned nothing")
	}
	l.rows = slices.DeleteFunc(l.rows, func(r row) bool { return r.id == 0 }) // the one row where nothing has ended
	if l.more = len(l.rows) > limit; l.more {
		l.rows = l.rows[:limit]
	}
	return l, nil
}

// scanRow reads what stands before a fact, and the fact, which may be missing.
func scanRow(from database.Row, before ...any) (r row, err error) {
	var f Fact
	var id, epoch, expires sql.NullInt64
	var xid, kind, kid sql.NullString
	into := append(before, &id, &xid, &kind, &f.Subject, &f.SessionID, &epoch, &f.KeptSID, &kid, &expires)
	if err := from.Scan(into...); err != nil {
		return row{}, err
	}
	if !id.Valid {
		return row{}, nil
	}
	if _, err := fmt.Sscan(xid.String, &r.xid); err != nil {
		return row{}, err
	}
	f.Type, f.KeyID, f.ExpiresAt = kind.String, kid.String, time.UnixMilli(expires.Int64).UTC()
	if epoch.Valid {
		f.SessionEpoch = &epoch.Int64
	}
	r.id = id.Int64
	r.json, err = json.Marshal(f)
	return r, err
}

// Purge forgets at most limit facts that have expired, by the database's clock and by this server's: one
// that is ahead for a while must not make tokens good again for followers that begin later.
func (f *Feed) Purge(ctx context.Context, limit int) (int64, error) {
	db := f.store.db
	some := `SELECT id FROM revocation WHERE expires_ms < ` + nowMS(db) + ` AND expires_ms < ?
		ORDER BY expires_ms LIMIT ?`
	query := `DELETE FROM revocation WHERE id IN (` + some + `)`
	if db.IsPostgres() { // which would join, and read the whole table for it
		query = `DELETE FROM revocation WHERE id = ANY (ARRAY(` + some + `))`
	}
	return db.Write(ctx, query, f.store.now().UnixMilli(), limit)
}
