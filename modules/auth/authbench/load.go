package authbench

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sync/errgroup"

	"github.com/toppira/authctl/modules/auth/internal/session"
	redisstore "github.com/toppira/authctl/modules/auth/internal/session/redis"
	sqlstore "github.com/toppira/authctl/modules/auth/internal/session/sql"
	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
)

// Password is the password of every account.
const Password = "a password of the benchmark"

// Values of the default settings for sessions.
const (
	sessionMaxAge = 720 * time.Hour
	idleTTL       = 120 * time.Hour
)

// How far back rows reach: accounts for years, sessions for less than their lifetime.
const (
	accountsSince = 2 * 365 * 24 * time.Hour
	sessionsSince = 20 * 24 * time.Hour
)

// Probe is an account that requests are made for.
type Probe struct {
	ID       uuid.UUID
	Username string
	Refresh  string // the current refresh token of its session
}

// Loader fills one installation. Its methods can be called in any order, each once. The rows of the
// crowd depend only on their numbers.
type Loader struct {
	db      *database.DB
	crowd   int // accounts
	codec   *session.Codec
	hash    string // of Password
	now     time.Time
	probes  []Probe
	tokens  []session.Token
	loading func(what string, done, of int)
}

// New makes a loader for installations whose servers have this signing secret, with a crowd of
// accounts accounts and some probes. [Loader.On] selects the database.
func New(secret string, cost, crowd, probes int) (*Loader, error) {
	codec, err := session.NewCodec(config.Secret(secret))
	if err != nil {
		return nil, err
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(Password), cost)
	if err != nil {
		return nil, err
	}
	l := &Loader{codec: codec, hash: string(hash), now: time.Now(), crowd: max(1, crowd)}
	for p := range probes {
		id := l.place(kindProbe, p, 2*p+1, 2*probes, accountsSince)
		sid := l.place(kindProbeSession, p, 2*p+1, 2*probes, sessionsSince)
		token := l.codec.Mint(id, sid, 1)
		l.tokens = append(l.tokens, token)
		l.probes = append(l.probes,
			Probe{ID: id, Username: fmt.Sprintf("probe-%d@example.com", p), Refresh: token.Encode()})
	}
	return l, nil
}

// Probes returns the accounts for measured requests.
func (l *Loader) Probes() []Probe { return slices.Clone(l.probes) }

// On is a loader of the crowd, and of the probes with their original tokens, for a migrated
// PostgreSQL database. progress gets the number of written rows of a table.
func (l *Loader) On(db *database.DB, progress func(what string, done, of int)) *Loader {
	other := *l
	other.db, other.loading = db, progress
	return &other
}

const (
	kindAccount byte = iota + 1
	kindSession
	kindEnded
	kindProbe
	kindProbeSession
)

// place makes the id of the i-th row of a kind: a UUIDv7 from the past, at step of steps. The same
// arguments give the same id.
func (l *Loader) place(kind byte, i, step, steps int, since time.Duration) uuid.UUID {
	past := since.Milliseconds() * int64(max(1, steps)-step) / int64(max(1, steps))
	return v7(l.now.Add(-time.Duration(past)*time.Millisecond), uint64(kind)<<56|uint64(i))
}

// v7 is a UUIDv7 (RFC 9562 §5.7) whose random part comes from a number.
func v7(at time.Time, n uint64) (id uuid.UUID) {
	binary.BigEndian.PutUint64(id[:8], uint64(at.UnixMilli())<<16|mix(n)&0xffff)
	binary.BigEndian.PutUint64(id[8:], mix(n+1<<63))
	id[6] = 0x70 | id[6]&0x0f
	id[8] = 0x80 | id[8]&0x3f
	return id
}

// mix is the step of SplitMix64, which maps different numbers to different ones.
func mix(n uint64) uint64 {
	n += 0x9e3779b97f4a7c15
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// AccountID is the id of an account of the crowd. From the number of accounts on, it is the id of a
// missing one.
func (l *Loader) AccountID(i int) uuid.UUID {
	return l.place(kindAccount, i, i%l.crowd, l.crowd, accountsSince)
}

// order calls fn for a crowd of n and the probes in the order of their ids.
func (l *Loader) order(n int) (next func() (i int, probe, more bool)) {
	i, p, probes := 0, 0, len(l.probes)
	return func() (int, bool, bool) {
		switch {
		case p < probes && (2*p+1)*n <= 2*i*probes:
			p++
			return p - 1, true, true
		case i < n:
			i++
			return i - 1, false, true
		}
		return 0, false, false
	}
}

// fill copies a crowd of n and the probes into a table. It leaves nil rows out.
func (l *Loader) fill(ctx context.Context, table string, columns []string, n int,
	row func(i int, probe bool) []any) error {
	next := l.order(n)
	done := 0
	return l.db.CopyInto(ctx, table, columns, func() []any {
		for {
			i, probe, more := next()
			if !more {
				l.loading(table, n, n)
				return nil
			}
			if values := row(i, probe); values != nil {
				if done++; done%10_000 == 0 {
					l.loading(table, done, n)
				}
				return values
			}
		}
	})
}

// Accounts writes the accounts of the crowd and the probes.
func (l *Loader) Accounts(ctx context.Context) error { return l.accounts(ctx, l.crowd) }

// ProbesAlone writes the accounts of the probes, and the database's rows about their sessions.
func (l *Loader) ProbesAlone(ctx context.Context) error {
	if err := l.accounts(ctx, 0); err != nil {
		return err
	}
	return l.BegunSessions(ctx, 0)
}

func (l *Loader) accounts(ctx context.Context, n int) error {
	columns := []string{
		"id", "username", "username_canonical", "password_hash", "created_at", "updated_at", "password_changed_at",
	}
	return l.fill(ctx, "users", columns, n, func(i int, probe bool) []any {
		id, name := l.AccountID(i), ""
		if probe {
			id, name = l.probes[i].ID, l.probes[i].Username
		} else {
			// In random order, as names are.
			name = fmt.Sprintf("%013x-%d@example.com", mix(uint64(i))>>12, i)
		}
		at := time.Unix(id.Time().UnixTime())
		return []any{[16]byte(id), name, name, l.hash, at, at, at}
	})
}

// start is the session of a probe, or the i-th of n sessions. The accounts take turns.
func (l *Loader) start(i, n int, probe bool) session.Start {
	var t session.Token
	if probe {
		t = l.tokens[i]
	} else {
		t = l.codec.Mint(l.AccountID(i), l.place(kindSession, i, i, n, sessionsSince), 1)
	}
	return session.Start{
		ID: t.SessionID(), UserID: t.UserID(), Hash: t.Hash(), DeviceName: "Firefox on Linux", IP: "192.0.2.1",
		UserAgent: "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0",
		MaxAge:    sessionMaxAge, IdleTTL: idleTTL,
	}
}

// BegunSessions writes the database's rows about n sessions and those of the probes, wherever their
// records are.
func (l *Loader) BegunSessions(ctx context.Context, n int) error {
	columns := []string{"sid", "user_id", "epoch", "began_at", "expires_at"}
	return l.fill(ctx, "begun_session", columns, n, func(i int, probe bool) []any {
		sid, user := l.ids(i, n, probe)
		at := time.Unix(sid.Time().UnixTime())
		return []any{[16]byte(sid), [16]byte(user), int64(0), at, at.Add(sessionMaxAge + 6*time.Hour)}
	})
}

// ids returns the ids of a session and its account, without the token.
func (l *Loader) ids(i, n int, probe bool) (sid, user uuid.UUID) {
	if probe {
		return l.tokens[i].SessionID(), l.tokens[i].UserID()
	}
	return l.place(kindSession, i, i, n, sessionsSince), l.AccountID(i)
}

// SessionsInDatabase writes the records of n sessions and those of the probes for servers without Redis.
func (l *Loader) SessionsInDatabase(ctx context.Context, n int) (err error) {
	store, err := sqlstore.New(ctx, l.db, sqlstore.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	next, done := l.order(n), 0
	return store.Load(ctx, func() (session.Start, bool) {
		i, probe, more := next()
		if done++; done%10_000 == 0 || !more {
			l.loading("session", min(done, n), n)
		}
		if !more {
			return session.Start{}, false
		}
		return l.start(i, n, probe), true
	})
}

// SessionsInRedis writes the records of n sessions and those of the probes.
func (l *Loader) SessionsInRedis(ctx context.Context, url string, n int) (err error) {
	client, err := cache.Open(ctx, cache.Config{URL: config.Secret(url)}, cache.Options{AppName: "authctl-bench"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	store := redisstore.New(client, redisstore.Options{})
	const portion, writers = 500, 4
	group, writing := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	next, done, some := l.order(n), 0, make([]session.Start, 0, portion)
	for writing.Err() == nil {
		i, probe, more := next()
		if more {
			some = append(some, l.start(i, n, probe))
			done++
		}
		if len(some) == portion || !more {
			full := some
			group.Go(func() error { return store.Load(writing, full) })
			some = make([]session.Start, 0, portion)
			l.loading("sessions in Redis", min(done, n), n)
		}
		if !more {
			break
		}
	}
	return cmp.Or(group.Wait(), ctx.Err())
}

// Revocations writes n ended sessions, and the rows that the triggers would add.
func (l *Loader) Revocations(ctx context.Context, n int) error {
	columns := []string{"sid", "user_id", "reason", "revoked_at", "expires_at"}
	return l.fill(ctx, "revoked_session", columns, n, func(i int, probe bool) []any {
		if probe {
			return nil
		}
		sid := l.place(kindEnded, i, i, n, sessionsSince)
		at := time.Unix(sid.Time().UnixTime())
		return []any{[16]byte(sid), [16]byte(l.AccountID(i)), "logout", at, at.Add(sessionMaxAge + 6*time.Hour)}
	})
}
