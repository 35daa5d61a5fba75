// Package tuning sets what the runtime and the kernel do with a server's process: how often
// it collects garbage, and how it shares the machine.
package tuning

import (
	"os"
	"runtime"
)

// RoomyHeap lets the collector run less often until the returned function is called: it
// waits until the heap has doubled, and that of a quiet server is so small that a busy one
// would collect a hundred times a second. The array counts as heap but is never touched, so
// it takes no memory, and next to a large heap it makes no difference. Who has set GOGC or
// GOMEMLIMIT, which would count it too, knows better.
func RoomyHeap() (release func()) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return func() {}
	}
	ballast := make([]byte, 16<<20)
	return func() { runtime.KeepAlive(ballast) }
}
