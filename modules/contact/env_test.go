package contact

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/database"
	"github.com/toppira/authctl/platform/database/dbtest"
)

// testEnv is a service with accounts on a real database, with what tests may need to reach past it.
type testEnv struct {
	*Service
	accounts *auth.Service
	clock    *clock
	metrics  *prometheus.Registry
	read     int // messages that were read
}

// clock is the time of a test.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// each runs the test on SQLite and on PostgreSQL.
func each(t *testing.T, cfg Config, test func(t *testing.T, env *testEnv)) {
	t.Helper()
	dbtest.Each(t, func(t *testing.T, db *database.DB) {
		test(t, newEnv(t, db, cfg, &clock{now: time.Now()}))
	})
}

func plain() Config { return Config{FromUsername: true, Required: "off", Notify: "changes"} }

func newEnv(t *testing.T, db *database.DB, cfg Config, c *clock) *testEnv {
	t.Helper()
	var set auth.Config
	if err := config.Load(&set, config.Options{Environ: []string{"AUTH_TOKEN_SECRET=" + testSecret.Reveal(),
		"AUTH_PASSWORD_BCRYPT_COST=4", "AUTH_TOKEN_ISSUER=https://auth.test"}}); err != nil {
		t.Fatal(err)
	}
	// For a busy machine.
	set.Password.QueueWait, set.Throttle.PostgresTimeout = time.Minute, time.Minute
	accounts, err := auth.New(t.Context(), set, auth.Deps{DB: db, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := accounts.Close(); err != nil {
			t.Error(err)
		}
	})
	metrics := prometheus.NewRegistry()
	s, err := New(cfg, Deps{DB: db, Auth: accounts, Secrets: []config.Secret{testSecret}, Registry: metrics,
		Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	return &testEnv{Service: s, accounts: accounts, clock: c, metrics: metrics}
}

// another is a second server on the same database.
func (env *testEnv) another(t *testing.T) *testEnv {
	t.Helper()
	return newEnv(t, env.db, env.cfg, env.clock)
}

const (
	goodPassword = "a quite good password"
	newPassword  = "another quite good one"
)

func phone() auth.Device {
	return auth.Device{UserAgent: "Firefox/140.0", IP: netip.MustParseAddr("192.0.2.7")}
}

// stranger is a device in its own network.
func stranger(n int) auth.Device {
	return auth.Device{UserAgent: "curl/8.5.0", IP: netip.AddrFrom4([4]byte{198, 51, byte(n >> 8), byte(n)})}
}

// counted returns the values of a counter that are not zero, as "purpose outcome=n".
func (env *testEnv) counted(t *testing.T, name string) string {
	t.Helper()
	families, err := env.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range []string{"purpose", "outcome"} {
				for _, pair := range m.GetLabel() {
					if pair.GetName() == l {
						labels = append(labels, pair.GetValue())
					}
				}
			}
			if n := m.GetCounter().GetValue(); n > 0 {
				words = append(words, fmt.Sprintf("%s=%v", strings.Join(labels, " "), n))
			}
		}
	}
	slices.Sort(words)
	return strings.Join(words, ", ")
}

// register makes an account and returns its tokens.
func (env *testEnv) register(t *testing.T, email string) auth.Caller {
	t.Helper()
	name := "user-" + strings.ReplaceAll(uuid.NewString(), "-", "")
	tokens, err := env.accounts.Register(t.Context(), auth.Credentials{Username: name, Password: goodPassword}, phone(),
		auth.NewContact{Email: email})
	if err != nil {
		t.Fatalf("register: %v", err)
	}
	caller, err := env.accounts.Authenticate(t.Context(), tokens.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	return caller
}

// verified makes an account with a verified contact.
func (env *testEnv) verified(t *testing.T, email string) auth.Caller {
	t.Helper()
	caller := env.register(t, email)
	m := env.message(t, PurposeVerify)
	if _, err := env.VerifyByProof(t.Context(), Proof{Token: m.LinkToken}, phone()); err != nil {
		t.Fatalf("verify: %v", err)
	}
	return caller
}

// messages returns the unread messages in order.
func (env *testEnv) messages(t *testing.T) []Message {
	t.Helper()
	rows, err := env.db.QueryContext(t.Context(), "SELECT event_id, data FROM outbox_message ORDER BY id")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var list []Message
	for rows.Next() {
		var id uuid.UUID
		var data []byte
		if err := rows.Scan(&id, &data); err != nil {
			t.Fatal(err)
		}
		m, err := env.sealer.Open(id, data)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, m)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	news := list[env.read:]
	env.read = len(list)
	return news
}

// message returns the one unread message.
func (env *testEnv) message(t *testing.T, purpose Purpose) Message {
	t.Helper()
	list := env.messages(t)
	if len(list) != 1 || list[0].Purpose != purpose {
		t.Fatalf("messages are %+v; want one of the purpose %s", list, purpose)
	}
	return list[0]
}

// sent returns the purposes and recipients of the unread messages.
func (env *testEnv) sent(t *testing.T) string {
	t.Helper()
	var words []string
	for _, m := range env.messages(t) {
		words = append(words, string(m.Purpose)+" "+m.Recipient)
	}
	return strings.Join(words, ", ")
}

// events returns the types of the announced events about the user, without auth. and .v1.
func (env *testEnv) events(t *testing.T, userID uuid.UUID) string {
	t.Helper()
	rows, err := env.db.QueryContext(t.Context(),
		"SELECT type, data FROM outbox_event WHERE key = ? ORDER BY key_seq", userID.String())
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var words []string
	for rows.Next() {
		var kind, data string
		if err := rows.Scan(&kind, &data); err != nil {
			t.Fatal(err)
		}
		if !json.Valid([]byte(data)) {
			t.Errorf("%s: %s", kind, data)
		}
		words = append(words, strings.TrimSuffix(strings.TrimPrefix(kind, "auth."), ".v1"))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(words, " ")
}

// canSignIn reports whether the password is right.
func (env *testEnv) canSignIn(t *testing.T, u auth.User, password string) bool {
	t.Helper()
	_, err := env.accounts.Login(t.Context(), auth.Credentials{Username: u.Username, Password: password}, phone())
	return err == nil
}

// contacts lists the addresses of an account, and which are verified.
func (env *testEnv) contacts(t *testing.T, userID uuid.UUID) string {
	t.Helper()
	list, err := env.Contacts(t.Context(), userID)
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, c := range list {
		word := c.Address
		if c.Verified() {
			word += " verified"
		}
		words = append(words, word)
	}
	return strings.Join(words, ", ")
}
