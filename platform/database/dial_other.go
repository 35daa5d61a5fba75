//go:build !linux

package database

import "net"

// dialer makes connections as the system does by default: see its form for Linux.
func dialer() *net.Dialer { return &net.Dialer{} }
