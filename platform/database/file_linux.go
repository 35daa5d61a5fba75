package database

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// openElsewhere reports whether another process has a database of SQLite open, which keeps a lock on certain bytes of
// it. This process must not have it open: the lock would end here.
func openElsewhere(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: 0x40000002, Len: 510}
	return unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock) == nil && lock.Type != unix.F_UNLCK
}
