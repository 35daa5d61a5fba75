package password

import "golang.org/x/sys/unix"

// lowerPriority gives the calling thread, and only it, the lowest ordinary priority, and asks
// for slices of 0.1 ms: what wakes up meanwhile waits for the end of the slice, which is 3 ms
// otherwise. Kernels before 6.12 take no wishes about slices and ignore it. On Linux, 0 names
// the calling thread, not the process; neither needs privilege. Should it fail all the same,
// hashing merely competes as an equal.
//
// SCHED_IDLE would wait even less, but starves: a busy neighbour leaves it a fifth of what
// this gets.
func lowerPriority() {
	low := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: 19, Runtime: 100_000}
	if unix.SchedSetAttr(0, &low, 0) != nil {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 19)
	}
}
