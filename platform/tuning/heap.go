// Package tuning sets what the runtime and the kernel do with a server's process: how often
// it collects garbage, and how it shares the machine.
package tuning

import (
	"os"
	"runtime"
)

// RoomyHeap makes the collector run less often until the returned function is called. The
// collector waits until the heap has doubled, and the heap of a server is so small that a busy one
// would collect a hundred times a second. The array counts as heap, but is never touched, so it
// takes no memory; next to a large heap it makes no difference. It does nothing if GOGC or
// GOMEMLIMIT is set.
func RoomyHeap() (release func()) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return func() {}
	}
	ballast := make([]byte, 16<<20)
	return func() { runtime.KeepAlive(ballast) }
}
