package database

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// pin opens a file so that its number is not given to another one. It opens it for nothing else: closing a file that
// is open for reading gives up the locks that SQLite has on it.
func pin(path string) (io.Closer, error) { return os.OpenFile(path, unix.O_PATH, 0) }

// openElsewhere reports whether another process has a database of SQLite open, which keeps a lock on certain bytes of
// it. This process must not have it open: see pin.
func openElsewhere(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: 0x40000002, Len: 510}
	return unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock) == nil && lock.Type != unix.F_UNLCK
}
