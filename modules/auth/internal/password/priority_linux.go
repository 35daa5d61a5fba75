package password

import "golang.org/x/sys/unix"

// lowerPriority gives the calling thread, and only it, the lowest ordinary priority. On
// Linux, 0 names the calling thread, not the process. Lowering needs no privilege; should
// it fail all the same, hashing merely competes as an equal.
func lowerPriority() { _ = unix.Setpriority(unix.PRIO_PROCESS, 0, 19) }
