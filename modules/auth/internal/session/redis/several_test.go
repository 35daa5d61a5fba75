package redis

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/toppira/authctl/modules/auth/internal/session"
	"github.com/toppira/authctl/platform/cache"
	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/testenv"
)

// walk returns all sessions of a store.
func walk(t *testing.T, store *Store) ([]uuid.UUID, error) {
	t.Helper()
	var found []uuid.UUID
	for one, err := range store.Walk(t.Context(), session.Filter{}) {
		if err != nil {
			return found, err
		}
		found = append(found, one.ID)
	}
	return found, nil
}

func TestEverySessionOfAClusterIsListedOrTheListSaysThatItIsShort(t *testing.T) {
	t.Parallel()
	c := cachetest.StartCluster(t)
	client := cachetest.OpenAny(t, c.URL())
	store, codec := New(client, Options{}), newCodec(t)
	var tokens []session.Token
	for range 300 {
		tokens = append(tokens, begin(t, store, codec, uuid.New()))
	}
	found, err := walk(t, store)
	if err != nil || len(found) != len(tokens) {
		t.Errorf("%d of %d, %v", len(found), len(tokens), err)
	}

	// While slots move, and after one has moved: a list must not silently lack a session that has
	// moved.
	slot, err := client.Do(t.Context(), "cluster", "keyslot", store.user(tokens[0].UserID())).Int64()
	if err != nil {
		t.Fatal(err)
	}
	var from, to *cachetest.Server
	for _, node := range c.Primaries {
		if count, _ := c.Do(node, "cluster", "countkeysinslot", slot).(int64); count > 0 {
			from = node
		} else {
			to = node
		}
	}
	finish := c.Move(slot, from, to)
	if _, err := walk(t, store); !errors.Is(err, cache.ErrMoved) || !errors.Is(err, session.ErrUnavailable) {
		t.Errorf("while a slot is being moved: %v", err)
	}
	finish()
	testenv.Eventually(t, "all sessions are listed", func() bool {
		found, err := walk(t, store)
		return err == nil && len(found) == len(tokens)
	})
	moved, told := false, false
	for _, err := range store.Walk(t.Context(), session.Filter{}) {
		if !moved { // in the middle of the list
			c.Move(slot, to, from)()
			moved = true
		}
		told = told || errors.Is(err, cache.ErrMoved)
	}
	if !told {
		t.Error("a list claims to be complete although slots have moved meanwhile")
	}

	if n, err := store.Count(t.Context()); err != nil || n != len(tokens) {
		t.Errorf("%d of %d are counted, %v", n, len(tokens), err)
	}
	if err := store.Clear(t.Context(), func(int) {}); err != nil {
		t.Error(err)
	}
	for _, node := range c.Primaries {
		if n, _ := c.Do(node, "dbsize").(int64); n != 0 {
			t.Errorf("%d keys are left on a node", n)
		}
	}

	c.Replicas[2].Kill() // so that it does not take over before the walk
	c.Primaries[2].Kill()
	if _, err := walk(t, store); !errors.Is(err, session.ErrUnavailable) {
		t.Errorf("without a node: %v", err)
	}
}

func TestStoppedSessionsAreFoundOnTheNodesThatAnswer(t *testing.T) {
	t.Parallel()
	c := cachetest.StartCluster(t, "--cluster-require-full-coverage", "no") // the others answer for as long as it takes
	store, codec := New(cachetest.OpenAny(t, c.URL()), Options{}), newCodec(t)
	want := 0
	for i := range 60 {
		token := begin(t, store, codec, uuid.New())
		if i%2 == 0 {
			stop(t, store, codec, token)
			want++
		}
	}
	found := make(map[uuid.UUID]bool)
	look := func(limit int) {
		var marked []session.Marked
		// The others may take a node of a busy machine for failed, for a moment.
		testenv.Eventually(t, "the cluster answers", func() bool {
			var err error
			marked, err = store.Reused(t.Context(), limit)
			if err != nil && !errors.Is(err, session.ErrUnavailable) || len(marked) > limit {
				t.Fatalf("%d, %v", len(marked), err)
			}
			return err == nil
		})
		for _, m := range marked {
			found[m.Session.ID] = true
		}
	}
	look(1000)
	if len(found) != want {
		t.Errorf("%d of %d", len(found), want)
	}
	clear(found)
	c.Replicas[0].Kill() // so that it does not take over before the search
	c.Primaries[0].Kill()
	look(1000)
	if len(found) == 0 || len(found) == want {
		t.Errorf("%d of %d without a node", len(found), want)
	}
}

// When one node loses its data, the store reports it as if all data were lost.
func TestAStoreNoticesWhatOneNodeLoses(t *testing.T) {
	t.Parallel()
	c := cachetest.StartCluster(t)
	store := New(cachetest.OpenAny(t, c.URL()), Options{})
	// A node of a busy machine may answer late, and one that is late for long is replaced.
	remember := func() (m session.Memory) {
		t.Helper()
		testenv.Eventually(t, "two answers in a row are the same", func() bool {
			var err error
			if m, err = store.Memory(t.Context()); err != nil {
				return false
			}
			again, err := store.Memory(t.Context())
			return err == nil && again == m
		})
		return m
	}
	if first := remember(); !first.Emptied {
		t.Errorf("%+v", first)
	}
	for _, node := range c.Primaries {
		before := remember()
		c.Do(node, "flushall")
		testenv.Eventually(t, "a millisecond passes", func() bool {
			return time.Since(before.Since) > 2*time.Millisecond
		})
		if after := remember(); !after.Since.After(before.Since) || !after.Emptied {
			t.Errorf("after a flush: %+v, before %+v", after, before)
		}
	}
	before := remember()
	c.FailOver(1)
	if after := remember(); !after.Since.After(before.Since) {
		t.Errorf("after a replica has taken over: %+v, before %+v", after, before)
	}
}

// The same behind Sentinels, and when a single server restarts.
func TestAStoreNoticesAnotherPrimary(t *testing.T) {
	t.Parallel()
	w := cachetest.StartWatched(t)
	single := cachetest.Start(t)
	for name, tc := range map[string]struct {
		client  cache.Client
		replace func()
	}{
		"Sentinel": {cachetest.OpenAny(t, w.URL()), w.FailOver},
		"restart":  {cachetest.OpenAny(t, single.URL()), func() { single.Kill(); single.Restart() }},
	} {
		store := New(tc.client, Options{})
		before, err := store.Memory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if same, err := store.Memory(t.Context()); err != nil || same != before {
			t.Errorf("%s: %+v, then %+v, %v", name, before, same, err)
		}
		tc.replace()
		testenv.Eventually(t, name+": another history is noticed", func() bool {
			after, err := store.Memory(t.Context())
			return err == nil && after.Since.After(before.Since)
		})
	}
	// A user without the right to ask learns nothing, and nothing fails.
	single = cachetest.Start(t, "--user", "blind", "on", ">secret", "~*", "&*", "+@all", "-info")
	blind := New(cachetest.OpenAny(t, strings.Replace(single.URL(), "redis://", "redis://blind:secret@", 1)), Options{})
	before, err := blind.Memory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	single.Kill()
	single.Restart()
	if after, err := blind.Memory(t.Context()); err != nil || after != before {
		t.Errorf("%+v, then %+v, %v", before, after, err)
	}
}
