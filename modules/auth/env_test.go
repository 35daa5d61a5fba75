package auth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/toppira/authctl/modules/auth/internal/password"
	"github.com/toppira/authctl/modules/auth/internal/token"
	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// testEnv is a service on real backends, with what tests may need to reach past it.
type testEnv struct {
	*Service
	db    *database.DB
	redis cache.Client // nil when sessions are in the database
	log   *logBuffer
	cfg   Config
}

const testSecret = "a secret of the tests that is long enough for everything"

// testConfig uses the cheapest hashes, since hashing is not under test.
func testConfig() Config {
	return config.WithDefaults(Config{
		RefreshGrace: 10 * time.Second,
		Token: token.Config{Secret: testSecret, Issuer: "https://auth.test", Audience: []string{"test"},
			ClientID: "test"},
		Password: password.Config{BcryptCost: 4, Workers: 2, QueueWait: time.Minute},
	})
}

// each runs the test on every combination of backends: SQLite, PostgreSQL, PostgreSQL with Redis.
func each(t *testing.T, test func(t *testing.T, env *testEnv)) {
	t.Helper()
	eachWith(t, func(*Config) {}, test)
}

func eachWith(t *testing.T, set func(*Config), test func(t *testing.T, env *testEnv)) {
	t.Helper()
	cfg := testConfig()
	set(&cfg)
	t.Run("sqlite", func(t *testing.T) { t.Parallel(); test(t, newEnv(t, cfg, dbtest.SQLite(t), nil)) })
	t.Run("postgres", func(t *testing.T) { t.Parallel(); test(t, newEnv(t, cfg, dbtest.Postgres(t), nil)) })
	t.Run("postgres_redis", func(t *testing.T) {
		t.Parallel()
		test(t, newEnv(t, cfg, dbtest.Postgres(t), redisClient(t)))
	})
}

// redisClient connects to the shared Redis. Each test has new user ids, so tests do not interfere.
func redisClient(t testing.TB) *redis.Client {
	t.Helper()
	opt, err := redis.ParseURL(testenv.Redis(t))
	testenv.Must(t, err)
	client := redis.NewClient(opt)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func newEnv(t testing.TB, cfg Config, db *database.DB, rc cache.Client) *testEnv {
	t.Helper()
	env := &testEnv{db: db, redis: rc, log: &logBuffer{}, cfg: cfg}
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), env.log, zap.DebugLevel))
	var err error
	env.Service, err = New(t.Context(), cfg, Deps{DB: db, Redis: rc, Log: log})
	testenv.Must(t, err)
	t.Cleanup(func() {
		if err := env.Close(); err != nil {
			t.Error(err)
		}
	})
	return env
}

// Housekeep does once what Run does every minute.
func (env *testEnv) Housekeep(ctx context.Context) {
	env.retryReuse(ctx)
	env.tidy(ctx)
}

// another is a second server on the same backends.
func (env *testEnv) another(t testing.TB) *testEnv {
	t.Helper()
	return newEnv(t, env.cfg, env.db, env.redis)
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) Sync() error { return nil }

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

const goodPassword = "a quite good password"

func phone() Device {
	return Device{UserAgent: "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
		IP: netip.MustParseAddr("192.0.2.7")}
}

// newUser registers an account with a unique name.
func (env *testEnv) newUser(t testing.TB) (name string, tokens Tokens) {
	t.Helper()
	name = "user-" + strings.ReplaceAll(uuid.NewString(), "-", "")
	tokens, err := env.Register(t.Context(), Credentials{name, goodPassword}, phone())
	if err != nil {
		t.Fatalf("register: %v", err)
	}
	return name, tokens
}

func (env *testEnv) signIn(t testing.TB, name string) Tokens {
	t.Helper()
	tokens, err := env.Login(t.Context(), Credentials{name, goodPassword}, phone())
	if err != nil {
		t.Fatalf("login: %v", err)
	}
	return tokens
}

func (env *testEnv) caller(t testing.TB, tokens Tokens) Caller {
	t.Helper()
	caller, err := env.Authenticate(t.Context(), tokens.AccessToken)
	if err != nil {
		t.Fatalf("authenticate: %v", err)
	}
	return caller
}

func (env *testEnv) revoke(t testing.TB, f SessionFilter) error {
	t.Helper()
	_, err := env.RevokeSessions(t.Context(), f)
	return err
}

// live fails the test unless both tokens still work; it returns the successors.
func (env *testEnv) live(t testing.TB, tokens Tokens) Tokens {
	t.Helper()
	if _, err := env.Authenticate(t.Context(), tokens.AccessToken); err != nil {
		t.Errorf("the access token of a live session is refused: %v", err)
	}
	next, err := env.Refresh(t.Context(), tokens.RefreshToken, phone())
	if err != nil {
		t.Errorf("the refresh token of a live session is refused: %v", err)
	}
	return next
}

// over fails the test unless both tokens are refused.
func (env *testEnv) over(t testing.TB, tokens Tokens) {
	t.Helper()
	if _, err := env.Authenticate(t.Context(), tokens.AccessToken); !errors.Is(err, ErrSessionRevoked) {
		t.Errorf("the access token of an ended session: %v, want session_revoked", err)
	}
	if _, err := env.Refresh(t.Context(), tokens.RefreshToken, phone()); !errors.Is(err, ErrSessionRevoked) {
		t.Errorf("the refresh token of an ended session: %v, want session_revoked", err)
	}
}

// told is an event in the outbox.
type told struct {
	Type string
	Seq  int64
	Data map[string]any
}

// events returns the announced events about a user, in order.
func (env *testEnv) events(t testing.TB, userID uuid.UUID) []told {
	t.Helper()
	rows, err := env.db.QueryContext(context.Background(),
		"SELECT type, key_seq, data FROM outbox_event WHERE key = ? ORDER BY id", userID.String())
	testenv.Must(t, err)
	defer rows.Close()
	var list []told
	for rows.Next() {
		var e told
		var data string
		testenv.Must(t, rows.Scan(&e.Type, &e.Seq, &data))
		testenv.Must(t, json.Unmarshal([]byte(data), &e.Data))
		list = append(list, e)
	}
	testenv.Must(t, rows.Err())
	return list
}

// expectEvents compares the types of the announced events, without the auth. and the .v1.
func (env *testEnv) expectEvents(t testing.TB, userID uuid.UUID, want ...string) []told {
	t.Helper()
	list := env.events(t, userID)
	var got []string
	for i, e := range list {
		got = append(got, strings.TrimSuffix(strings.TrimPrefix(e.Type, "auth."), ".v1"))
		if e.Seq != int64(i+1) {
			t.Errorf("event %d has sequence %d", i+1, e.Seq)
		}
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("events\n got %v\nwant %v", got, want)
	}
	return list
}
