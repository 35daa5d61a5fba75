package password

import "golang.org/x/sys/unix"

// lowerPriority makes the calling thread, and only it, one that the kernel runs when nothing
// else wants to (sched(7), SCHED_IDLE): whatever wakes up takes the CPU from it at once,
// where a thread of the lowest ordinary priority would finish its slice. On Linux, 0 names
// the calling thread, not the process, and neither needs privilege. Should both fail,
// hashing merely competes as an equal.
func lowerPriority() {
	idle := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}
	if unix.SchedSetAttr(0, &idle, 0) != nil {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 19)
	}
}
