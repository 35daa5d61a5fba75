package campaign

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/outbox/outboxtest"
	"github.com/toppira/authctl/platform/database/dbtest"
	"github.com/toppira/authctl/platform/testenv"
)

// formerBinary builds the release that deploy/upgrade-from names, once.
var formerBinary = sync.OnceValues(func() (string, error) {
	text, err := os.ReadFile(filepath.Join(module, "deploy", "upgrade-from"))
	if err != nil {
		return "", err
	}
	var commit string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			commit = line
		}
	}
	source := filepath.Join(scratch, "former")
	if err := os.Mkdir(source, 0o700); err != nil {
		return "", err
	}
	archive := exec.Command("git", "archive", "--format=tar", commit)
	archive.Dir = module
	tar, err := archive.Output()
	if err != nil {
		return "", fmt.Errorf("the history of this checkout has no commit %s: %w", commit, err)
	}
	unpack := exec.Command("tar", "-x", "-C", source)
	unpack.Stdin = bytes.NewReader(tar)
	if out, err := unpack.CombinedOutput(); err != nil {
		return "", fmt.Errorf("unpack commit %s: %w\n%s", commit, err, out)
	}
	path := filepath.Join(scratch, "authctl-former")
	build := exec.Command("go", "build", "-o", path, "./cmd/authctl")
	build.Dir, build.Env = source, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build commit %s: %w\n%s", commit, err, out)
	}
	return path, nil
})

// upgrade is an installation on which two releases run.
type upgrade struct {
	*installation
	former *installation
	topic  string

	mu      sync.Mutex
	serving []*server
	done    atomic.Int64
	failed  atomic.Pointer[error]
}

func newUpgrade(t *testing.T, store string) *upgrade {
	t.Helper()
	former, err := formerBinary()
	if err != nil {
		if testenv.Demanded() {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	brokers, redisURL := testenv.Kafka(t), ""
	if store == "redis" {
		redisURL = testenv.Redis(t)
	}
	topic := "upgrade-" + uuid.NewString()
	w := installationOn(t, genuine(t), dbtest.EmptyURL(t, "TEMPLATE template0").Reveal(), redisURL, "KAFKA_BROKERS="+
		brokers, "KAFKA_TOPIC="+topic,
		"KAFKA_PARTITIONS=6")
	u := &upgrade{installation: w, topic: topic}
	w.command("outbox", "topic", "ensure")
	old := *w
	old.binary = former
	u.former = &old
	return u
}

// relay starts a relay of the release, and returns a function that ends it as a deployment would.
func (u *upgrade) relay(w *installation) (stop func()) {
	u.t.Helper()
	cmd := exec.Command(w.binary, "relay")
	cmd.Dir, cmd.Env = u.t.TempDir(), w.env
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		u.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			u.t.Errorf("the relay: %v\n%s", err, said.String())
		}
	})
	u.t.Cleanup(stop)
	return stop
}

// route sends people to these servers from now on.
func (u *upgrade) route(servers ...*server) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.serving = servers
}

// stop takes a server out of rotation and then ends it, as a deployment would.
func (u *upgrade) stop(s *server, left ...*server) {
	u.route(left...)
	_ = s.process.Process.Signal(syscall.SIGTERM)
	<-s.ended
}

func (u *upgrade) pick(n int64) *server {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.serving[n%int64(len(u.serving))]
}

// send sends a request to one of the servers, and to another one if the first has just been told to
// stop.
func (u *upgrade) send(method, path, bearer string, body any) (answer, error) {
	var failure error
	for range 3 {
		a, err := untilAvailable(func() (answer, error) {
			return u.pick(u.done.Add(1)).call(method, path, bearer, body)
		})
		if err == nil {
			return a, nil
		}
		failure = err
	}
	return answer{}, failure
}

// live is what one person does, over and over, with the same results on any server.
func (u *upgrade) live(ctx context.Context) error {
	name := "u" + strings.ReplaceAll(uuid.NewString(), "-", "")
	step := func(want int, d *device, method, path, bearer string, body any) error {
		a, err := u.send(method, path, bearer, body)
		if err != nil {
			return err
		}
		if a.Status != want {
			return fmt.Errorf("%s %s: %v, want %d: %s", method, path, a, want, a.Body)
		}
		if d != nil {
			d.keep(a)
		}
		return nil
	}
	mine := &device{name: name}
	if err := step(http.StatusCreated, mine, "POST", api+"/register", "",
		fields{"username": name, "password": password}); err != nil {
		return err
	}
	typed := password
	for n := 0; ctx.Err() == nil; n++ {
		other := &device{name: name}
		credentials := fields{"username": name, "password": typed}
		for _, err := range []error{
			step(http.StatusOK, other, "POST", api+"/login", "", credentials),
			step(http.StatusOK, mine, "POST", api+"/refresh", "", fields{"refresh_token": mine.refresh}),
			step(http.StatusOK, other, "POST", api+"/refresh", "", fields{"refresh_token": other.refresh}),
			step(http.StatusOK, nil, "GET", api+"/me", other.access, nil),
			step(http.StatusNoContent, nil, "DELETE", api+"/sessions/"+other.sid.String(), mine.access, nil),
			step(http.StatusUnauthorized, nil, "GET", api+"/me", other.access, nil),
			step(http.StatusUnauthorized, nil, "POST", api+"/refresh", "", fields{"refresh_token": other.refresh}),
		} {
			if err != nil {
				return fmt.Errorf("round %d: %w", n, err)
			}
		}
		if n%5 == 4 {
			next := fmt.Sprintf("%s %d", password, n)
			change := fields{"current_password": typed, "new_password": next}
			if err := step(http.StatusOK, mine, "POST", api+"/password", mine.access, change); err != nil {
				return err
			}
			typed = next
		}
	}
	return nil
}

// people keeps a few people busy until it is told to stop.
func (u *upgrade) people() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			if err := u.live(ctx); err != nil {
				u.failed.CompareAndSwap(nil, &err)
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); all.Wait() })
	u.t.Cleanup(stop)
	return stop
}

// goOn waits until people have done that much more, however long it takes.
func (u *upgrade) goOn(during string) error {
	until := u.done.Load() + int64(rounds(300, 5000))
	for last, at := u.done.Load(), time.Now(); u.done.Load() < until; time.Sleep(20 * time.Millisecond) {
		if err := u.failed.Load(); err != nil {
			return fmt.Errorf("%s: %w", during, *err)
		}
		if now := u.done.Load(); now != last {
			last, at = now, time.Now()
		} else if time.Since(at) > patience {
			return fmt.Errorf("%s: no progress for %v", during, patience)
		}
	}
	return nil
}

// audit compares the topic with what the database wrote.
func (u *upgrade) audit() error {
	ctx := u.t.Context()
	pending := -1
	eventually(u.t, "all events are published", func() bool {
		err := u.db.QueryRowContext(ctx, "SELECT count(*) FROM outbox_pending").Scan(&pending)
		return err == nil && pending == 0
	})
	rows, err := u.db.QueryContext(ctx, "SELECT event_id, key, key_seq FROM outbox_event")
	if err != nil {
		return err
	}
	defer rows.Close()
	var written []outboxtest.Written
	for rows.Next() {
		w := outboxtest.Written{Outcome: outboxtest.Committed}
		if err := rows.Scan(&w.ID, &w.Key, &w.Seq); err != nil {
			return err
		}
		written = append(written, w)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	seen, err := outboxtest.ReadKafka(ctx, strings.Split(testenv.Kafka(u.t), ","), u.topic)
	if err != nil {
		return err
	}
	report := outboxtest.Check(written, seen)
	u.t.Log(report)
	if !report.Sound(len(written)/10) || report.Written == 0 {
		return errors.New(report.String())
	}
	return nil
}

// The schema is upgraded first, then the servers and relays one after the other, and nobody
// notices.
func TestAnUpgradeUnderLoadIsNotNoticed(t *testing.T) {
	t.Parallel()
	for _, store := range []string{"redis", "postgres"} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			u := newUpgrade(t, store)
			u.former.command("migrate", "up")
			stopFormerRelay := u.relay(u.former)
			former := u.former.serve()
			u.route(former)
			idle := former.register()
			stop := u.people()
			steps := []struct {
				name string
				do   func()
			}{
				{"before", func() {}},
				{"after the schema went up", func() { u.command("migrate", "up") }},
				{"side by side", func() { u.relay(u.installation); u.route(former, u.serve()) }},
				{"without the former relay", stopFormerRelay},
				{"without the former server", func() { u.stop(former, u.pick(1)) }},
			}
			for _, step := range steps {
				step.do()
				testenv.Must(t, u.goOn(step.name))
			}
			stop()
			if err := u.pick(0).expectLive(idle, false); err != nil {
				t.Errorf("somebody who was signed in all the time: %v", err)
			}
			if err := u.audit(); err != nil {
				t.Error(err)
			}
		})
	}
}

// The servers and relays are downgraded first, and then the schema.
func TestAStepBackUnderLoadIsNotNoticed(t *testing.T) {
	t.Parallel()
	for _, store := range []string{"redis", "postgres"} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			u := newUpgrade(t, store)
			u.former.command("migrate", "up")
			u.command("migrate", "up") // its own group, so that down undoes it alone
			stopRelay := u.relay(u.installation)
			present := u.serve()
			u.route(present)
			idle := present.register()
			stop := u.people()
			var former *server
			steps := []struct {
				name string
				do   func()
			}{
				{"before", func() {}},
				{"side by side", func() { former = u.former.serve(); u.relay(u.former); u.route(present, former) }},
				{"without the present relay", stopRelay},
				{"without the present server", func() { u.stop(present, former) }},
			}
			for _, step := range steps {
				step.do()
				testenv.Must(t, u.goOn(step.name))
			}
			stop()
			if err := u.audit(); err != nil {
				t.Error(err)
			}
			if err := former.expectLive(idle, false); err != nil {
				t.Errorf("somebody who was signed in all the time: %v", err)
			}
			u.stop(former, former)
			u.command("migrate", "down", "--yes", "--force")
			u.route(u.former.serve())
			if err := u.pick(0).expectLive(idle, false); err != nil {
				t.Errorf("with the former schema: %v", err)
			}
		})
	}
}
