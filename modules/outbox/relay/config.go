package relay

import (
	"cmp"
	"time"

	"github.com/toppira/authctl/modules/outbox"
)

// Config is outbox.*.
type Config struct {
	Relay       string        `config:"outbox.relay" default:"inline" oneof:"inline,off" doc:"Whether serve relays events itself (inline) or leaves that to processes of authctl relay (off)."`
	Shards      int           `config:"outbox.shards" default:"96" min:"1" max:"4096" doc:"Into how many parts relays divide the work. A multiple of the topic's number of partitions. A change takes effect once no event is waiting."`
	Retention   time.Duration `config:"outbox.retention" default:"168h" min:"1h" max:"87600h" doc:"How long published events stay in the database, for replay."`
	Lease       time.Duration `config:"outbox.lease" default:"5s" min:"1s" max:"1m" doc:"How soon other relays take over the work of one that died."`
	BatchEvents int           `config:"outbox.batch_events" default:"1000" min:"1" max:"10000" doc:"Most events in one batch of a partition."`
	BatchBytes  int           `config:"outbox.batch_bytes" default:"786432" min:"262144" max:"16777216" doc:"Most bytes in one batch of a partition. Must stay below the topic's max.message.bytes."`
	Drain       time.Duration `config:"outbox.drain_timeout" default:"5s" min:"100ms" max:"1m" doc:"How long a relay that was told to stop waits for the answers to what it has sent."`
}

// Validate reports problems that single values cannot show.
func (c Config) Validate(report func(path, problem string)) {
	if c.BatchBytes > 0 && c.BatchBytes < outbox.MaxEventBytes {
		report("outbox.batch_bytes", "must hold the largest event, 262144 bytes")
	}
}

func (c Config) withDefaults() Config {
	c.Relay = cmp.Or(c.Relay, "inline")
	c.Shards = cmp.Or(c.Shards, 96)
	c.Retention = cmp.Or(c.Retention, 168*time.Hour)
	c.Lease = cmp.Or(c.Lease, 5*time.Second)
	c.BatchEvents = cmp.Or(c.BatchEvents, 1000)
	c.BatchBytes = cmp.Or(c.BatchBytes, 768<<10)
	c.Drain = cmp.Or(c.Drain, 5*time.Second)
	return c
}
