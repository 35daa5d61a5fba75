//go:build !linux

package tuning

// Memory is known on Linux only.
func Memory() (limit uint64, known bool) { return 0, false }
