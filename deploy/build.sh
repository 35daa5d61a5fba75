#!/bin/sh
# Builds the binary: static, and the same bytes from the same commit on every machine. GOOS and
# GOARCH choose another platform.
#
#   deploy/build.sh [FILE]   FILE is relative to the module's root; default bin/authctl
set -eu
cd "$(dirname "$0")/.."
CGO_ENABLED=0 exec go build -trimpath -ldflags="-s -w" -o "${1:-bin/authctl}" ./cmd/authctl
