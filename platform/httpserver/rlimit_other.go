//go:build !unix

package httpserver

func maxFiles() int { return 0 }
