//go:build !linux

package main

import "errors"

func runBurner(string) error { return errors.New("--slow-cpu needs Linux") }
