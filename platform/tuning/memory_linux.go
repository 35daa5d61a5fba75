package tuning

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Memory returns how many bytes this process may use: the memory of the machine, or the limit of its
// control group (version 2) if that is less. known is false where neither can be read.
func Memory() (limit uint64, known bool) {
	var machine unix.Sysinfo_t
	if err := unix.Sysinfo(&machine); err != nil {
		return 0, false
	}
	limit = uint64(machine.Totalram) * uint64(machine.Unit) //nolint:unconvert // 32 bits on some platforms
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return limit, true
	}
	return min(limit, groupMemory("/sys/fs/cgroup", string(groups))), true
}

// groupMemory returns the least limit of the control group and those around it. groups is the text of
// /proc/self/cgroup, see cgroups(7).
func groupMemory(root, groups string) uint64 {
	limit := ^uint64(0)
	for line := range strings.Lines(groups) {
		path, found := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !found {
			continue
		}
		for path = filepath.Clean("/" + path); ; path = filepath.Dir(path) {
			text, _ := os.ReadFile(filepath.Join(root, path, "memory.max"))
			if n, err := strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 64); err == nil { // not "max"
				limit = min(limit, n)
			}
			if path == "/" {
				break
			}
		}
	}
	return limit
}
