package throttle

import (
	"errors"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/testenv"
)

// The counters are in one slot of a cluster. While its node is down, each process limits on its
// own, and no request waits.
func TestLimitsOutliveANodeOfTheirCluster(t *testing.T) {
	t.Parallel()
	c := cachetest.StartCluster(t)
	client := cachetest.OpenAny(t, c.URL())
	w := onRedisAt(t, client)
	one, other := w.node(defaults(t)), w.node(defaults(t))
	free := 0
	for guess(t, one, Attempt{Account: "alice", Address: address(1)}) {
		free++
	}
	if guess(t, other, Attempt{Account: "alice", Address: address(1)}) || free == 0 {
		t.Errorf("limits are not shared after %d guesses", free)
	}

	slot, err := client.Do(t.Context(), "cluster", "keyslot", keyPrefix).Int64()
	if err != nil {
		t.Fatal(err)
	}
	for i, node := range c.Primaries {
		keys, _ := c.Do(node, "cluster", "countkeysinslot", slot).(int64)
		if keys == 0 {
			continue
		}
		testenv.Eventually(t, "the replica has the counters", func() bool {
			have, _ := c.Do(c.Replicas[i], "cluster", "countkeysinslot", slot).(int64)
			return have == keys
		})
		node.Kill()
	}
	for i := range 20 { // judged by the process's own counters, which do not know these accounts
		if !guess(t, one, Attempt{Account: name(i), Address: address(2 + i)}) {
			t.Errorf("attempt %d is refused while the node is down", i)
		}
	}
	testenv.Eventually(t, "limits are shared again", func() bool {
		w.clock.advance(2 * time.Second) // for that long the process does not ask Redis
		state, err := other.State(t.Context(), "alice")
		if err != nil && !errors.Is(err, ErrNotShared) {
			t.Fatal(err)
		}
		return err == nil && state.Failures == free
	})
}
