//go:build unix

package httpserver

import "golang.org/x/sys/unix"

// maxFiles is how many files the process may have open; 0 when unknown.
func maxFiles() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil || limit.Cur > 1<<30 {
		return 0
	}
	return int(limit.Cur)
}
