//go:build unix

package logging

import (
	"os"
	"syscall"
)

// giveToFolderOwner keeps a file that root has made, with a command, from shutting out the server
// that runs as another user: it belongs to whom the folder belongs to.
func giveToFolderOwner(f *os.File, dir string) {
	if os.Geteuid() != 0 {
		return
	}
	info, err := os.Stat(dir)
	if err != nil {
		return
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		_ = f.Chown(int(owner.Uid), int(owner.Gid)) // else the server says at its start what is wrong
	}
}
