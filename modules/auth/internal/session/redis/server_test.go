package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	goredis "github.com/redis/go-redis/v9"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/modules/auth/internal/session/sessiontest"
	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/testenv"
)

const testGrace = time.Hour

func newCodec(t testing.TB) *session.Codec {
	t.Helper()
	codec, err := session.NewCodec("the secret of the Redis tests, which is long")
	if err != nil {
		t.Fatal(err)
	}
	return codec
}

func begin(t testing.TB, store session.Store, codec *session.Codec, user uuid.UUID) session.Token {
	t.Helper()
	token := codec.Mint(user, uuid.New(), 1)
	_, err := store.Create(t.Context(),
		session.Start{ID: token.SessionID(), UserID: user, Hash: token.Hash(), MaxAge: 720 * time.Hour,
			IdleTTL: 120 * time.Hour, Max: 50})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func rotate(store session.Store, codec *session.Codec, presented session.Token,
	grace time.Duration) (session.RotateResult, session.Token, error) {
	next, r := codec.Next(presented)
	r.Grace, r.IdleTTL = grace, 120*time.Hour
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience)
	defer cancel()
	rotated, err := store.Rotate(ctx, r)
	if err == nil && rotated.Outcome == session.Replayed {
		next, err = codec.OpenChain(presented, rotated.Links)
	}
	return rotated, next, err
}

// stop ends a session by reuse of its first token, and returns the newest token.
func stop(t testing.TB, store session.Store, codec *session.Codec, first session.Token) session.Token {
	t.Helper()
	_, next, err := rotate(store, codec, first, 0)
	if err != nil {
		t.Fatal(err)
	}
	must(t, store, codec, first, session.Reused)
	return next
}

func must(t testing.TB, store session.Store, codec *session.Codec, presented session.Token,
	want session.Outcome) session.Token {
	t.Helper()
	rotated, next, err := rotate(store, codec, presented, testGrace)
	if err != nil {
		t.Fatal(err)
	}
	if rotated.Outcome != want {
		t.Fatalf("answered %v, want %v", rotated.Outcome, want)
	}
	return next
}

func TestEveryKeyExpiresAndLiesInTheSlotOfItsUser(t *testing.T) {
	t.Parallel()
	client := cachetest.Open(t, cachetest.Start(t).URL())
	store, codec, user := New(client, Options{}), newCodec(t), uuid.New()
	begin(t, store, codec, user)
	first := begin(t, store, codec, user)
	must(t, store, codec, first, session.Rotated)
	stopped := begin(t, store, codec, user)
	stop(t, store, codec, stopped)
	reissued := begin(t, store, codec, user)
	fresh := codec.Mint(user, reissued.SessionID(), 2)
	if _, err := store.Reissue(t.Context(),
		session.Reissue{UserID: user, SessionID: reissued.SessionID(), Generation: 2,
			Hash: fresh.Hash(), Sealed: codec.SealReissued(fresh), Grace: testGrace,
			IdleTTL: 200 * time.Hour}); err != nil {
		t.Fatal(err)
	}

	keys := client.Keys(t.Context(), "*").Val()
	if len(keys) != 10 { // four records, two successors with their links, index, marks
		t.Errorf("%d keys: %v", len(keys), keys)
	}
	ttl := map[string]time.Duration{}
	for _, key := range keys {
		if !strings.HasPrefix(key, "authctl:session:{"+user.String()+"}:") {
			t.Errorf("%s is in another slot", key)
		}
		if ttl[key] = client.PTTL(t.Context(), key).Val(); ttl[key] <= 0 {
			t.Errorf("%s has no TTL", key)
		}
	}
	for _, key := range []string{store.successor(user, first.SessionID()), store.links(user, first.SessionID()) + "1"} {
		if got := ttl[key]; got > testGrace+2*time.Second {
			t.Errorf("%s is kept for %v", key, got)
		}
	}
	if got, longest := ttl[store.index(user)], ttl[store.record(user, reissued.SessionID())]; got < 719*time.Hour ||
		longest < 199*time.Hour {
		t.Errorf("the index lives %v, a member %v", got, longest)
	}
	for _, key := range []string{store.marks(user), store.record(user, stopped.SessionID())} {
		if ttl[key] < markTTL-time.Minute {
			t.Errorf("the mark %s is kept for %v", key, ttl[key])
		}
	}
}

// wire counts what is sent.
type wire struct{ commands, pipelines atomic.Int64 }

func (w *wire) DialHook(next goredis.DialHook) goredis.DialHook { return next }
func (w *wire) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook {
	return func(ctx context.Context, cmd goredis.Cmder) error { w.commands.Add(1); return next(ctx, cmd) }
}
func (w *wire) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []goredis.Cmder) error { w.pipelines.Add(1); return next(ctx, cmds) }
}

func TestARotationIsOneRoundTrip(t *testing.T) {
	t.Parallel()
	client := cachetest.Open(t, cachetest.Start(t).URL())
	var sent wire
	client.AddHook(&sent)
	store, codec := New(client, Options{}), newCodec(t)
	token := must(t, store, codec, begin(t, store, codec, uuid.New()), session.Rotated)
	sent.commands.Store(0)
	next := must(t, store, codec, token, session.Rotated)
	must(t, store, codec, token, session.Replayed)
	if n := sent.commands.Load() + sent.pipelines.Load(); n != 2 {
		t.Errorf("two refreshes took %d round trips", n)
	}
	// A server that has lost the script gets it again.
	if err := client.ScriptFlush(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	must(t, store, codec, next, session.Rotated)
}

func TestAKilledServerIsUnavailableAndComesBackWithItsSessions(t *testing.T) {
	t.Parallel()
	server := cachetest.Start(t)
	store, codec := New(cachetest.Open(t, server.URL()), Options{}), newCodec(t)
	user := uuid.New()
	first := begin(t, store, codec, user)
	second := must(t, store, codec, first, session.Rotated)

	server.Kill()
	_, rotation := codec.Next(second)
	for what, call := range map[string]func(context.Context) error{
		"create": func(ctx context.Context) error {
			_, err := store.Create(ctx, session.Start{ID: uuid.New(), UserID: user})
			return err
		},
		"rotate": func(ctx context.Context) error { _, err := store.Rotate(ctx, rotation); return err },
		"get":    func(ctx context.Context) error { _, err := store.Get(ctx, user, first.SessionID()); return err },
		"list":   func(ctx context.Context) error { _, err := store.List(ctx, user); return err },
		"delete": func(ctx context.Context) error { return store.Delete(ctx, user, first.SessionID()) },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
		if err := call(ctx); !errors.Is(err, session.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", what, err)
		}
		cancel()
	}

	restart(t, server, store)
	if again := must(t, store, codec, first, session.Replayed); again != second {
		t.Error("another successor after the restart")
	}
	third := must(t, store, codec, second, session.Rotated)
	server.Kill()
	restart(t, server, store)
	for _, old := range []session.Token{first, second} { // the chain was saved
		if again := must(t, store, codec, old, session.Replayed); again != third {
			t.Error("not the newest token after the restart")
		}
	}
	stopped := begin(t, store, codec, user)
	newest := stop(t, store, codec, stopped)
	server.Kill()
	restart(t, server, store)
	must(t, store, codec, newest, session.Reused) // the mark was saved
	if marked, err := store.Reused(t.Context(), 10); err != nil || len(marked) != 1 {
		t.Errorf("%d marked after the restart: %v", len(marked), err)
	}
}

// A replica that lacks a session must not say that the session has ended, or the person would be
// signed out.
func TestAReplicaWithoutTheSessionIsUnavailable(t *testing.T) {
	t.Parallel()
	replica := cachetest.Start(t, "--replicaof", "127.0.0.1 1") // nobody can reach its primary
	store, codec := New(cachetest.Open(t, replica.URL()), Options{}), newCodec(t)
	token := codec.Mint(uuid.New(), uuid.New(), 1)
	if outcome, _, err := rotate(store, codec, token, testGrace); !errors.Is(err, session.ErrUnavailable) {
		t.Errorf("%v, %v", outcome, err)
	}
}

// restart returns once the client has noticed too: after many failures the client tries only once a
// second.
func restart(t *testing.T, server *cachetest.Server, store *Store) {
	t.Helper()
	server.Restart()
	for deadline := time.Now().Add(testenv.Patience); store.client.Ping(t.Context()).Err() != nil; {
		if time.Now().After(deadline) {
			t.Fatal("the store does not recover")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestASilentServerIsUnavailableWhenTheDeadlineComes(t *testing.T) {
	t.Parallel()
	server := cachetest.Start(t)
	store, codec := New(cachetest.Open(t, server.URL()), Options{}), newCodec(t)
	token := begin(t, store, codec, uuid.New())
	server.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, r := codec.Next(token)
	r.Grace, r.IdleTTL = testGrace, time.Hour
	if _, err := store.Rotate(ctx, r); !errors.Is(err, session.ErrUnavailable) {
		t.Errorf("a silent server: %v", err)
	}
	server.Resume()
	// The first call may have happened or not; the client cannot tell the difference.
	if _, _, err := rotate(store, codec, token, testGrace); err != nil {
		t.Error(err)
	}
	if sessions, err := store.List(t.Context(), token.UserID()); err != nil || len(sessions) != 1 ||
		sessions[0].Generation != 2 {
		t.Errorf("after a call that was cut off and its repetition: %v, %v", sessions, err)
	}
}

func TestAFlushedServerBringsNothingBack(t *testing.T) {
	t.Parallel()
	client := cachetest.Open(t, cachetest.Start(t).URL())
	store, codec := New(client, Options{}), newCodec(t)
	first := begin(t, store, codec, uuid.New())
	second := must(t, store, codec, first, session.Rotated)
	if err := client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	must(t, store, codec, second, session.Gone)
	must(t, store, codec, first, session.Gone)
	if n := client.DBSize(t.Context()).Val(); n != 0 {
		t.Errorf("%d keys came back", n)
	}
}

// The replica takes over without the latest rotations, whose answers clients have received.
func TestAFailOverSignsNobodyOut(t *testing.T) {
	t.Parallel()
	primary := cachetest.Start(t)
	replica := cachetest.Start(t, "--replicaof", "127.0.0.1 "+primary.Port())
	before, codec := New(cachetest.Open(t, primary.URL()), Options{}), newCodec(t)
	replicaClient := cachetest.Open(t, replica.URL())

	const devices = 10
	var stale, current [devices]session.Token
	for i := range devices {
		stale[i] = begin(t, before, codec, uuid.New())
	}
	for deadline := time.Now().Add(testenv.Patience); len(replicaClient.Keys(t.Context(), "*:s:*").Val()) < devices; {
		if time.Now().After(deadline) {
			t.Fatal("the replica does not follow")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := replicaClient.ReplicaOf(t.Context(), "NO", "ONE").Err(); err != nil {
		t.Fatal(err)
	}
	for i := range devices {
		current[i] = stale[i]
		for range 1 + i%3 {
			current[i] = must(t, before, codec, current[i], session.Rotated)
		}
	}
	primary.Kill()

	var clock sessiontest.Clock
	after := New(replicaClient, Options{Skew: clock.Skew})
	for i := range devices {
		next := must(t, after, codec, current[i], session.Rotated)
		if again := must(t, after, codec, current[i], session.Replayed); again != next {
			t.Error("two successors of a token that was ahead")
		}
		// The token that the replica took for current is now known to be old, but not how old.
		must(t, after, codec, stale[i], session.Superseded)
		must(t, after, codec, next, session.Rotated)
	}
	clock.Advance(testGrace + time.Minute)
	for i := range devices {
		must(t, after, codec, stale[i], session.Reused)
	}
	// If a stolen old token comes first, the owner's next refresh reveals it.
	stolen := begin(t, after, codec, uuid.New())
	owner := codec.Mint(stolen.UserID(), stolen.SessionID(), 2)
	thief := must(t, after, codec, stolen, session.Rotated)
	must(t, after, codec, owner, session.Reused)
	must(t, after, codec, thief, session.Reused)
}

func TestAnEvictedSuccessorRefusesWithoutStoppingTheSession(t *testing.T) {
	t.Parallel()
	client := cachetest.Open(t, cachetest.Start(t).URL())
	store, codec := New(client, Options{}), newCodec(t)
	first := begin(t, store, codec, uuid.New())
	second := must(t, store, codec, first, session.Rotated)
	client.Del(t.Context(), store.successor(first.UserID(), first.SessionID()))
	must(t, store, codec, first, session.Superseded)
	third := must(t, store, codec, second, session.Rotated)
	fourth := must(t, store, codec, third, session.Rotated)
	must(t, store, codec, first, session.Replayed)
	client.Del(t.Context(), store.links(first.UserID(), first.SessionID())+"2") // a link in the middle of the chain
	must(t, store, codec, first, session.Superseded)
	must(t, store, codec, third, session.Replayed)
	must(t, store, codec, fourth, session.Rotated)
}

func TestAChainHasABoundAndLeavesNothing(t *testing.T) {
	t.Parallel()
	client := cachetest.Open(t, cachetest.Start(t).URL())
	store, codec := New(client, Options{}), newCodec(t)
	token := begin(t, store, codec, uuid.New())
	for range 8 * session.MaxLinks {
		_, next, err := rotate(store, codec, token, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		token = next
	}
	links := client.Keys(t.Context(), store.links(token.UserID(), token.SessionID())+"*").Val()
	marks := client.ZCard(t.Context(), store.lost(token.UserID(), token.SessionID())).Val()
	if len(links) > session.MaxLinks+32 || marks > 260 {
		t.Errorf("%d links and %d marks are kept", len(links), marks)
	}
	for deadline := time.Now().Add(testenv.Patience); client.DBSize(t.Context()).Val() > 2; { // record and index
		if time.Now().After(deadline) {
			t.Fatalf("left after the window: %v", client.Keys(t.Context(), "*").Val())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestAnEvictedRecordDoesNotCountAndIsTidiedUp(t *testing.T) {
	t.Parallel()
	client := cachetest.Open(t, cachetest.Start(t).URL())
	store, codec, user := New(client, Options{}), newCodec(t), uuid.New()
	begin(t, store, codec, user)
	evicted := begin(t, store, codec, user)
	client.Del(t.Context(), store.record(user, evicted.SessionID()))
	started, err := store.Create(t.Context(),
		session.Start{ID: uuid.New(), UserID: user, MaxAge: time.Hour, IdleTTL: time.Hour, Max: 2, RejectNew: true})
	if err != nil || len(started.Excess) != 0 {
		t.Errorf("over: %v, %v", started.Excess, err)
	}
	if n := client.ZCard(t.Context(), store.index(user)).Val(); n != 2 {
		t.Errorf("%d in the index", n)
	}
}

func TestDamagedKeysAreOurFaultAndNotAnOutage(t *testing.T) {
	t.Parallel()
	client := cachetest.Open(t, cachetest.Start(t).URL())
	store, codec := New(client, Options{}), newCodec(t)
	for field, value := range map[string]string{"hash": "short", "created": "yesterday", "gen": "many"} {
		token := begin(t, store, codec, uuid.New())
		client.HSet(t.Context(), store.record(token.UserID(), token.SessionID()), field, value)
		if _, err := store.Get(t.Context(), token.UserID(), token.SessionID()); err == nil ||
			errors.Is(err, session.ErrUnavailable) || errors.Is(err, session.ErrNotFound) {
			t.Errorf("%s = %q: %v", field, value, err)
		}
	}
	token := begin(t, store, codec, uuid.New())
	client.Set(t.Context(), store.record(token.UserID(), token.SessionID()), "a string", 0)
	if _, _, err := rotate(store, codec, token, 0); err == nil || errors.Is(err, session.ErrUnavailable) {
		t.Errorf("a record of another type: %v", err)
	}
}

func TestEveryMarkIsFoundByAndByWithAnyLimit(t *testing.T) {
	t.Parallel()
	client := cachetest.Open(t, cachetest.Start(t).URL())
	store, codec := New(client, Options{}), newCodec(t)
	const stopped = 40
	for i := range 3 * stopped {
		token := begin(t, store, codec, uuid.New())
		if i%3 == 0 {
			stop(t, store, codec, token)
		}
	}
	found := 0
	for range 10 * stopped {
		marked, err := store.Reused(t.Context(), 3)
		if err != nil || len(marked) > 3 {
			t.Fatalf("%d marked: %v", len(marked), err)
		}
		for _, m := range marked {
			found++
			if err := store.Delete(t.Context(), m.Session.UserID, m.Session.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	if found != stopped {
		t.Errorf("found %d of %d", found, stopped)
	}
}

// When a connection breaks after the server has acted and before it has answered, the go-redis
// client retries. The caller sees one answer, and the session one rotation.
func TestARotationWhoseAnswerIsLostOnTheWayIsMadeGood(t *testing.T) {
	t.Parallel()
	server := cachetest.Start(t)
	proxy := newCutter(t, "127.0.0.1:"+server.Port())
	store, codec := New(cachetest.Open(t, "redis://"+proxy.addr), Options{}), newCodec(t)
	token := must(t, store, codec, begin(t, store, codec, uuid.New()), session.Rotated)
	for range 20 {
		proxy.cutNextAnswer.Store(true)
		// Without a grace window, a call that is not recognised would be reuse.
		rotated, next, err := rotate(store, codec, token, 0)
		if err != nil || rotated.Outcome != session.Rotated {
			t.Fatalf("%v, %v", rotated.Outcome, err)
		}
		if rotated.Session.Generation != next.Generation() {
			t.Fatalf("generation %d, want %d", rotated.Session.Generation, next.Generation())
		}
		token = next
	}
	if proxy.cuts.Load() != 20 {
		t.Errorf("%d answers were cut", proxy.cuts.Load())
	}
}

// cutter passes bytes on, and breaks the connection instead of an answer when told to.
type cutter struct {
	addr          string
	cutNextAnswer atomic.Bool
	cuts          atomic.Int64
}

func newCutter(t *testing.T, to string) *cutter {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	c := &cutter{addr: listener.Addr().String()}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go c.pass(client, to)
		}
	}()
	return c
}

func (c *cutter) pass(client net.Conn, to string) {
	defer client.Close()
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		defer server.Close()
		buffer := make([]byte, 64<<10)
		for {
			n, err := client.Read(buffer)
			if err != nil {
				return
			}
			if _, err := server.Write(buffer[:n]); err != nil {
				return
			}
		}
	}()
	buffer := make([]byte, 64<<10)
	for {
		n, err := server.Read(buffer)
		if err != nil {
			return
		}
		if c.cutNextAnswer.CompareAndSwap(true, false) {
			c.cuts.Add(1)
			return
		}
		if _, err := client.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// BenchmarkRotate compares a rotation with the smallest possible script in the same run. Only the
// ratio counts.
func BenchmarkRotate(b *testing.B) {
	client := cachetest.Shared(b)
	b.Run("bare script", func(b *testing.B) {
		bare := goredis.NewScript("return ARGV[1]")
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := bare.Run(b.Context(), client, []string{"authctl-bench:bare"}, "x").Err(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
	b.Run("rotate", func(b *testing.B) {
		store, codec := New(client, Options{Prefix: "authctl-bench:" + uuid.NewString() + ":"}), newCodec(b)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			token := begin(b, store, codec, uuid.New())
			for pb.Next() {
				rotated, next, err := rotate(store, codec, token, 10*time.Second)
				if err != nil || rotated.Outcome != session.Rotated {
					b.Errorf("%v, %v", rotated.Outcome, err)
					return
				}
				token = next
			}
			_ = store.Delete(b.Context(), token.UserID(), token.SessionID())
		})
	})
}

// Otherwise people could sign in and not refresh, and sessions would go on filling it.
func TestAFullServerTakesNoSession(t *testing.T) {
	t.Parallel()
	client := cachetest.Open(t, cachetest.Start(t).URL())
	store, codec, user := New(client, Options{}), newCodec(t), uuid.New()
	create := func(token session.Token) error {
		_, err := store.Create(t.Context(), session.Start{ID: token.SessionID(), UserID: user, Hash: token.Hash(),
			MaxAge: time.Hour, IdleTTL: time.Hour, Max: 50})
		return err
	}
	limit := func(bytes int) {
		t.Helper()
		if err := client.Do(t.Context(), "config", "set", "maxmemory", bytes).Err(); err != nil {
			t.Fatal(err)
		}
	}
	first, second := codec.Mint(user, uuid.New(), 1), codec.Mint(user, uuid.New(), 1)
	if err := create(first); err != nil {
		t.Fatal(err)
	}
	limit(1)
	if err := create(second); !errors.Is(err, session.ErrUnavailable) {
		t.Errorf("a session begins: %v", err)
	}
	limit(0)
	for range 2 { // the call may be repeated
		if err := create(second); err != nil {
			t.Error(err)
		}
	}
	if list, err := store.List(t.Context(), user); err != nil || len(list) != 2 {
		t.Errorf("%d sessions, %v", len(list), err)
	}
}

// One server at a time looks for stopped sessions, and the next one goes on where it was.
func TestServersShareTheSearchForStoppedSessions(t *testing.T) {
	t.Parallel()
	client := cachetest.Open(t, cachetest.Start(t).URL())
	one, two, codec := New(client, Options{}), New(client, Options{}), newCodec(t)
	for range 3 * scanCount {
		stop(t, one, codec, begin(t, one, codec, uuid.New()))
	}
	found := map[uuid.UUID]bool{}
	for i, store := range []*Store{one, two, one, two} {
		marked, err := store.Reused(t.Context(), 1)
		if err != nil || len(marked) != 1 || found[marked[0].Session.ID] {
			t.Fatalf("call %d: %+v, %v", i, marked, err)
		}
		found[marked[0].Session.ID] = true
	}
	turn := one.prefix + "scanning:" + cache.Tags()[0]
	if err := client.Do(t.Context(), "set", turn, 1).Err(); err != nil { // a third one looks
		t.Fatal(err)
	}
	if marked, err := two.Reused(t.Context(), 1); err != nil || len(marked) != 0 {
		t.Errorf("while another looks: %+v, %v", marked, err)
	}
	if err := client.Do(t.Context(), "del", turn).Err(); err != nil {
		t.Fatal(err)
	}
	if marked, err := two.Reused(t.Context(), 1); err != nil || len(marked) != 1 {
		t.Errorf("after it: %+v, %v", marked, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := two.Reused(ended, 1); !errors.Is(err, session.ErrUnavailable) {
		t.Errorf("with an ended context: %v", err)
	}
}

// With many keys the search takes a small part of the server's time: each of its steps holds everybody up.
func TestTheSearchForStoppedSessionsLeavesTheServerToOthers(t *testing.T) {
	t.Parallel()
	client := cachetest.Open(t, cachetest.Start(t).URL())
	store := New(client, Options{})
	_, err := client.Pipelined(t.Context(), func(p goredis.Pipeliner) error {
		for i := range 3 * scanAtOnce * scanCount {
			p.Set(t.Context(), store.prefix+strconv.Itoa(i), 1, 0)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if _, err := store.Reused(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begun)
	stats, err := client.Do(t.Context(), "info", "commandstats").Text()
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(stats, "cmdstat_scan:")
	var steps int
	if _, err := fmt.Sscanf(line, "calls=%d", &steps); err != nil || steps < 2*scanAtOnce {
		t.Fatalf("%d steps: %v", steps, err)
	}
	if pauses := time.Duration(steps-scanAtOnce-1) * scanPause; took < pauses {
		t.Errorf("%d steps took %s, with pauses of %s", steps, took, pauses)
	}
}
