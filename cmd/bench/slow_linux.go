package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// burnFor is the length of a burner's turn including its pause: so short that work of some
// milliseconds becomes evenly slower instead of stopping and going.
const burnFor = 500 * time.Microsecond

// runBurner takes its turn on each core before anything else does, and then pauses, until its input ends.
func runBurner(left string) error {
	percent, err := strconv.Atoi(left)
	if err != nil || percent < 10 || percent > 100 {
		return fmt.Errorf("--slow-cpu is the percentage of each core that is left, 10 to 100: %q is not", left)
	}
	burn := burnFor * time.Duration(100-percent) / 100
	ready := make(chan error, runtime.NumCPU())
	runtime.GOMAXPROCS(runtime.NumCPU() + 1)
	for core := range runtime.NumCPU() {
		go func() { // for the life of the process
			runtime.LockOSThread()
			var one unix.CPUSet
			one.Set(core)
			first := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
			err := errors.Join(unix.SchedSetaffinity(0, &one), unix.SchedSetAttr(0, &first, 0))
			if ready <- err; err != nil {
				return
			}
			pause := unix.NsecToTimespec((burnFor - burn).Nanoseconds())
			for {
				for begin := time.Now(); time.Since(begin) < burn; {
				}
				// Told of a pause, Go's scheduler would wake a thread of this process, at ordinary priority, after
				// each one: that would be half of what interrupts the work that is measured.
				_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&pause)), 0, 0)
			}
		}()
	}
	for range runtime.NumCPU() {
		if err := <-ready; err != nil {
			return err
		}
	}
	fmt.Println("burning")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
