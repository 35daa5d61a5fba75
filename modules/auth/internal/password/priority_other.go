//go:build !linux

package password

// lowerPriority does nothing where threads have no priority of their own. The pool is then
// bounded all the same, and spare Ps keep Go's own scheduler free.
func lowerPriority() {}
