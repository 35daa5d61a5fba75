package outbox

import (
	"maps"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Kinds are of what an attempt to publish can fail for: the labels of metrics. Of the first
// four a relay takes care by itself; the others wait for a person, see [Stalled].
var Kinds = []string{
	"retry", "refused", "not_owned", "database",
	"authentication", "authorization", "certificate", "clock", "compression", "target", "topic", "unexpected", "version",
}

// databaseTrouble stands beside the numbers of partitions.
const databaseTrouble = -1

// trouble says that something does not work once, then once a minute while it lasts, and
// once that it works again: not for each attempt of each partition. What the next attempt
// may well mend, a connection that a broker closed because it was idle, is not said before
// it has lasted a second.
type trouble struct {
	log *zap.Logger
	now func() time.Time
	met *metrics

	mu    sync.Mutex
	where map[int]string // kind, by partition
	since time.Time
	said  map[string]time.Time
}

func (t *trouble) count(kind string) { t.met.errors.WithLabelValues(kind).Inc() }

func (t *trouble) begin(partition int, kind string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.where) == 0 {
		t.where, t.said, t.since = map[int]string{}, map[string]time.Time{}, t.now()
	}
	t.where[partition] = kind
	passing := kind == "retry" || kind == "database"
	if passing && t.now().Sub(t.since) < time.Second {
		return
	}
	if last, said := t.said[kind]; said && t.now().Sub(last) < time.Minute {
		return
	}
	t.said[kind] = t.now()
	message := "events cannot be published now; they wait in order"
	switch kind {
	case "database":
		message = "the relay cannot reach the database now; events wait in order"
	case "retry":
	default:
		message = "events cannot be published until someone acts; they wait in order"
	}
	t.log.Error(message, zap.String("kind", kind), zap.Error(err), zap.Duration("for", t.now().Sub(t.since).Round(time.Millisecond)))
}

func (t *trouble) over(partition int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, had := t.where[partition]; !had {
		return
	}
	delete(t.where, partition)
	if len(t.where) == 0 && len(t.said) > 0 {
		t.log.Info("events are published again", zap.Duration("after", t.now().Sub(t.since).Round(time.Millisecond)))
	}
}

// keep forgets the partitions that are not this relay's any more: another one publishes them,
// and says so.
func (t *trouble) keep(owned map[int]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	had := len(t.where)
	maps.DeleteFunc(t.where, func(partition int, _ string) bool { return partition != databaseTrouble && !owned[partition] })
	if had > 0 && len(t.where) == 0 && len(t.said) > 0 {
		t.log.Info("the events that could not be published are another relay's now", zap.Duration("after", t.now().Sub(t.since).Round(time.Millisecond)))
	}
}
