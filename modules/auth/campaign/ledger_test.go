package campaign

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/platform/database"
)

// event is a row of the outbox.
type event struct {
	Type string
	Data struct {
		SessionID     uuid.UUID     `json:"sid"`
		KeptSessionID uuid.NullUUID `json:"kept_sid"`
		Reason        string        `json:"reason"`
	}
}

// events returns the announced events about a user, in order.
func (w *installation) events(name string) (list []event, err error) {
	// Our own connections break together with the database.
	for deadline := time.Now().Add(patience); ; {
		if list, err = w.readEvents(name); !database.IsUnavailable(err) || time.Now().After(deadline) {
			return list, err
		}
	}
}

func (w *installation) readEvents(name string) ([]event, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var key string
	// Only the first event has the name of a deleted user.
	err := w.db.QueryRowContext(ctx,
		"SELECT key FROM outbox_event WHERE type = 'auth.UserRegistered.v1' AND data LIKE ?",
		"%\""+name+"\"%").Scan(&key)
	if err != nil {
		return nil, fmt.Errorf("find the events of %s: %w", name, err)
	}
	rows, err := w.db.QueryContext(ctx, "SELECT type, data FROM outbox_event WHERE key = ? ORDER BY id", key)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []event
	for rows.Next() {
		var e event
		var data string
		if err := rows.Scan(&e.Type, &data); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(data), &e.Data); err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, rows.Err()
}

// ledger is what a reader of the events alone knows about a user's sessions: which began, and why
// each has ended.
type ledger map[uuid.UUID]string // the reason; empty while the session is live

func (w *installation) ledger(name string) (ledger, error) {
	list, err := w.events(name)
	if err != nil {
		return nil, err
	}
	l := ledger{}
	for _, e := range list {
		if _, begun := l[e.Data.SessionID]; !begun &&
			(e.Type == "auth.SessionRevoked.v1" || e.Type == "auth.RefreshTokenReuseDetected.v1") {
			return nil, fmt.Errorf("%s belongs to session %s, which was never announced", e.Type, e.Data.SessionID)
		}
		switch strings.TrimSuffix(strings.TrimPrefix(e.Type, "auth."), ".v1") {
		case "UserRegistered", "UserLoggedIn":
			l[e.Data.SessionID] = ""
		case "SessionRevoked":
			l[e.Data.SessionID] = e.Data.Reason
		case "AllSessionsRevoked":
			for sid, over := range l {
				if over == "" && !(e.Data.KeptSessionID.Valid && e.Data.KeptSessionID.UUID == sid) {
					l[sid] = e.Data.Reason
				}
			}
		}
	}
	return l, nil
}

// audit compares the announcements about the devices of one user with what the servers do: a
// session is refused everywhere, with every token, if and only if its end was announced. Where the
// store has lost its data, live sessions can only be checked by access token.
func (w *installation) audit(servers []*server, storeLost bool, devices ...*device) error {
	l, err := w.ledger(devices[0].name)
	if err != nil {
		return err
	}
	for i, d := range devices {
		reason, began := l[d.sid]
		if !began {
			return fmt.Errorf("device %d has tokens of a session that was never announced", i)
		}
		for n, s := range servers {
			var err error
			if reason == "" {
				err = s.expectLive(d, storeLost)
			} else {
				err = s.expectOver(d)
			}
			if err != nil {
				return fmt.Errorf("device %d on server %d, announced as %q: %w", i, n, cmp.Or(reason, "live"), err)
			}
		}
		if reason == "" {
			continue
		}
		if err := w.expectFact(d); err != nil {
			return fmt.Errorf("device %d, announced as %q: %w", i, reason, err)
		}
	}
	return nil
}

// expectFact returns an error unless followers of /oauth2/revocations are told that the device's
// session has ended, by itself or with its account.
func (w *installation) expectFact(d *device) error {
	_, payload, _ := strings.Cut(d.access, ".")
	payload, _, _ = strings.Cut(payload, ".")
	text, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return fmt.Errorf("the claims of an access token: %w", err)
	}
	var claims struct {
		Subject uuid.UUID `json:"sub"`
		Epoch   int64     `json:"session_epoch"`
	}
	if err := json.Unmarshal(text, &claims); err != nil {
		return fmt.Errorf("the claims of an access token: %w", err)
	}
	var facts int
	if err := w.db.QueryRowContext(context.Background(),
		`SELECT count(*) FROM revocation WHERE type = 'session' AND sid = ? OR
		type = 'account' AND user_id = ? AND session_epoch > ? AND (kept_sid IS NULL OR kept_sid <> ?)`,
		d.sid, claims.Subject, claims.Epoch, d.sid).Scan(&facts); err != nil {
		return fmt.Errorf("read the feed: %w", err)
	}
	if facts == 0 {
		return errors.New("followers are not told of its end")
	}
	return nil
}

// expectOver returns an error if any token of an ended session is still accepted.
func (s *server) expectOver(d *device) error {
	for _, token := range []string{d.access, d.refresh} {
		live, err := s.active(token)
		if err != nil {
			return err
		}
		if live {
			return fmt.Errorf("introspection says that a token of an ended session is active")
		}
	}
	for _, path := range []string{"/me", "/sessions"} {
		a, err := s.getInTheEnd(path, d.access)
		if err != nil {
			return err
		}
		if a.Status != http.StatusUnauthorized {
			return fmt.Errorf("GET %s with an access token of an ended session: %v", path, a)
		}
	}
	a, err := s.refreshInTheEnd(d.refresh)
	if err != nil {
		return err
	}
	if a.Status != http.StatusUnauthorized {
		return fmt.Errorf("refresh of an ended session: %v", a)
	}
	return nil
}

// expectLive returns an error if any token of a live session is refused. It uses the session, so
// the device holds new tokens afterwards.
func (s *server) expectLive(d *device, storeLost bool) error {
	a, err := s.getInTheEnd("/me", d.access)
	if err != nil {
		return err
	}
	if !a.ok() {
		return fmt.Errorf("GET /me of a live session: %v", a)
	}
	if a, err = s.refreshInTheEnd(d.refresh); err != nil {
		return err
	}
	if storeLost {
		if !a.ok() && a.Code != "session_expired" {
			return fmt.Errorf("refresh of a session that the store has lost: %v", a)
		}
		return nil
	}
	if !a.ok() {
		return fmt.Errorf("refresh of a live session: %v", a)
	}
	d.keep(a)
	for _, token := range []string{d.access, d.refresh} {
		live, err := s.active(token)
		if err != nil {
			return err
		}
		if !live {
			return fmt.Errorf("introspection says that a token of a live session is not active")
		}
	}
	return nil
}

// sessions lists the sessions that the user's device sees.
func (s *server) sessions(d *device) ([]uuid.UUID, error) {
	a, err := s.getInTheEnd("/sessions", d.access)
	if err != nil {
		return nil, err
	}
	if !a.ok() {
		return nil, fmt.Errorf("GET /sessions: %v", a)
	}
	var body struct{ Sessions []struct{ ID uuid.UUID } }
	if err := json.Unmarshal(a.Body, &body); err != nil {
		return nil, err
	}
	var ids []uuid.UUID
	for _, one := range body.Sessions {
		ids = append(ids, one.ID)
	}
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return strings.Compare(a.String(), b.String()) })
	return ids, nil
}

// clock reads the clock, in milliseconds, of the engine that measures the sessions' grace windows.
func (w *installation) clock() int64 {
	w.t.Helper()
	query := "SELECT CAST(unixepoch('subsec') * 1000 AS integer)"
	if w.db.IsPostgres() {
		query = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)"
	}
	var ms int64
	if err := w.db.QueryRowContext(w.t.Context(), query).Scan(&ms); err != nil {
		w.t.Fatalf("read the engine's clock: %v", err)
	}
	return ms
}

// after waits until the engine's clock has advanced by d.
func (w *installation) after(d time.Duration) {
	w.t.Helper()
	begun := w.clock()
	eventually(w.t, "the engine's clock moves on", func() bool { return w.clock() > begun+d.Milliseconds() })
}

// expectEvents returns an error unless exactly these types were announced about the device's user
// after the sign-ins.
func (w *installation) expectEvents(d *device, types ...string) error {
	list, err := w.events(d.name)
	if err != nil {
		return err
	}
	var got []string
	for _, e := range list {
		switch short := strings.TrimSuffix(strings.TrimPrefix(e.Type, "auth."), ".v1"); short {
		case "UserRegistered", "UserLoggedIn":
		default:
			got = append(got, short)
		}
	}
	if !slices.Equal(got, types) {
		return fmt.Errorf("announced %v, want %v", got, types)
	}
	return nil
}
