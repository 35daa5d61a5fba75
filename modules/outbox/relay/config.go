package relay

import (
	"cmp"
	"time"

	"github.com/toppira/authctl/platform/config"
)

// MaxBatchBytes limits the size of a batch. It is below max.message.bytes of Kafka, which is 1 MiB
// unless somebody lowers it; then the relay sends batches in halves.
const MaxBatchBytes = 768 << 10

// Config is outbox.*.
type Config struct {
	Relay     string        `config:"outbox.relay" default:"inline" oneof:"inline,off" doc:"Whether serve relays events itself (inline) or leaves that to processes of authctl relay (off)."`
	Shards    int           `config:"outbox.shards" default:"96" min:"1" max:"4096" doc:"Number of parts into which relays divide the work. It must be a multiple of the topic's partitions. A change takes effect once no event is waiting."`
	Retention time.Duration `config:"outbox.retention" default:"168h" min:"1h" max:"87600h" doc:"How long published events stay in the database, for replay."`
	Lease     time.Duration `config:"outbox.lease" default:"5s" min:"1s" max:"1m" doc:"How soon other relays take over the work of one that died."`

	// These are not settings, and only tests set them.
	BatchEvents int           // the most events in a batch; 0: 1000, since more made nothing faster
	Drain       time.Duration // how long a relay that is told to stop waits for answers; 0: 5 s
}

func (c Config) withDefaults() Config {
	c = config.WithDefaults(c)
	c.BatchEvents = cmp.Or(c.BatchEvents, 1000)
	c.Drain = cmp.Or(c.Drain, 5*time.Second)
	return c
}
