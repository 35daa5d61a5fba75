package signingkey

import (
	"context"
	"database/sql"
	"slices"
	"time"

	"github.com/toppira/authctl/platform/database"
)

// keyRow is a key as it is stored.
type keyRow struct {
	Info
	public string // its JWK, for readers of the table; written, never read back
	sealed []byte
	// tokenTTL is the longest lifetime that a server gave to tokens of the key. Of a key from
	// before it was kept, it is the longest that the settings allow.
	tokenTTL time.Duration
}

func (r keyRow) published() bool {
	return r.Status == Staged || r.Status == Active || r.Status == Retiring
}

// insertKey does nothing when another key is active already and this one would be.
func insertKey(ctx context.Context, tx database.IDB, r keyRow) error {
	return database.Exec(ctx, tx, "insert the signing key", `INSERT INTO signing_key (kid, algorithm, status, public_jwk, sealed, staged_at,
		active_at, token_ttl) VALUES (?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT DO NOTHING`,
		r.KID, r.Algorithm, r.Status, r.public, r.sealed, r.StagedAt, nullTime(r.ActiveAt))
}

// endKey makes a key retired or revoked, also in r, and deletes its private half.
func endKey(ctx context.Context, tx database.IDB, r *keyRow, status Status, now time.Time) error {
	if r.Status == Active {
		r.RetiredAt = now
	}
	r.Status = status
	return database.Exec(ctx, tx, "make the signing key "+string(status),
		"UPDATE signing_key SET status = ?, retired_at = ?, sealed = ? WHERE kid = ?", status, nullTime(r.RetiredAt),
		[]byte{}, r.KID)
}

func nullTime(t time.Time) sql.NullTime { return sql.NullTime{Time: t, Valid: !t.IsZero()} }

// readKeys does not return what [noteSecret] has written.
func readKeys(ctx context.Context, db database.IDB) ([]keyRow, error) {
	return database.Collect(ctx, db, "read the signing keys", scanKey, `SELECT kid, algorithm, status, sealed, staged_at, active_at,
		retired_at, token_ttl FROM signing_key WHERE algorithm <> 'HS256' ORDER BY staged_at, kid`)
}

// noteSecret writes the name of the secret that signs with HS256. To everybody else the row is of a retired key.
func noteSecret(ctx context.Context, db *database.DB, kid string, now time.Time) error {
	_, err := db.Write(ctx, `INSERT INTO signing_key (kid, algorithm, status, public_jwk, sealed, staged_at) VALUES (?, 'HS256', 'retired', '', ?, ?)
		ON CONFLICT (kid) DO UPDATE SET staged_at = excluded.staged_at`, kid, []byte{}, now)
	return err
}

// notedSecret is the name that was written last, and when; empty if there is none.
func notedSecret(ctx context.Context, db database.IDB) (kid string, at time.Time, err error) {
	const last = "SELECT kid, staged_at FROM signing_key WHERE algorithm = 'HS256' ORDER BY staged_at DESC LIMIT 1"
	err = db.QueryRowContext(ctx, last).Scan(&kid, &at)
	if database.IsNotFound(err) {
		return "", time.Time{}, nil
	}
	return kid, at, err
}

// forgetSecrets deletes what [noteSecret] has written.
func forgetSecrets(ctx context.Context, tx database.IDB) error {
	return database.Exec(ctx, tx, "forget the former secret", "DELETE FROM signing_key WHERE algorithm = 'HS256'")
}

func scanKey(row database.Row) (r keyRow, err error) {
	var active, retired sql.NullTime
	var seconds int64
	err = row.Scan(&r.KID, &r.Algorithm, &r.Status, &r.sealed, &r.StagedAt, &active, &retired, &seconds)
	r.StagedAt, r.ActiveAt, r.RetiredAt = r.StagedAt.UTC(), active.Time.UTC(), retired.Time.UTC()
	r.tokenTTL = time.Duration(seconds) * time.Second
	return r, err
}

func findKey(rows []keyRow, kid string) (keyRow, error) {
	i := slices.IndexFunc(rows, func(r keyRow) bool { return r.KID == kid })
	if i < 0 {
		return keyRow{}, ErrNotFound
	}
	return rows[i], nil
}
