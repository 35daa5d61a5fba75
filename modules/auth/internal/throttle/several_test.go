package throttle

import (
	"errors"
	"testing"
	"time"

	"github.com/toppira/authctl/platform/cache/cachetest"
	"github.com/toppira/authctl/platform/testenv"
)

// The counters are in one slot of a cluster. While the node that has it is away, each process limits by itself,
// and nobody waits.
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

	slot := client.ClusterKeySlot(t.Context(), keyPrefix).Val()
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
	for i := range 20 { // each by the counters of the process, which are new to these accounts
		if !guess(t, one, Attempt{Account: name(i), Address: address(2 + i)}) {
			t.Errorf("attempt %d is refused while the node is away", i)
		}
	}
	testenv.Eventually(t, "limits are shared again", func() bool {
		w.clock.advance(2 * time.Second) // so long is Redis left alone
		state, err := other.State(t.Context(), "alice")
		if err != nil && !errors.Is(err, ErrNotShared) {
			t.Fatal(err)
		}
		return err == nil && state.Failures == free
	})
}
