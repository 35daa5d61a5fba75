//go:build !linux

package tuning

// ForgetStart does nothing here.
func ForgetStart() {}
