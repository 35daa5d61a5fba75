package database

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// pin opens a file so that its number is not given to another one. It opens it for nothing else: closing a file that
// is open for reading gives up the locks that SQLite has on it.
func pin(path string) (io.Closer, error) { return os.OpenFile(path, unix.O_PATH, 0) }
