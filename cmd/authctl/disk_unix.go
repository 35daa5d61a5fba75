//go:build linux || darwin || freebsd

package main

import "golang.org/x/sys/unix"

// freeSpace returns how many bytes this process may still write below the path.
func freeSpace(path string) (free uint64, known bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, false
	}
	return uint64(st.Bavail) * uint64(st.Bsize), true
}
