package outbox

import "github.com/toppira/authctl/modules/outbox/internal/schema"

// Partition returns the partition that the default partitioner of the Java client picks for the key
// in a topic of n partitions. Clients in other languages can compute it as well.
func Partition(key string, n int) int { return int(schema.Hash(key)) % n }
