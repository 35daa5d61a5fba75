#!/bin/sh
# Builds the static binary. The same commit gives the same bytes on every machine. GOOS and
# GOARCH choose another platform.
#
#   deploy/build.sh [FILE]   FILE is relative to the module's root; default bin/authctl
set -eu
cd "$(dirname "$0")/.."
CGO_ENABLED=0 exec go build -trimpath -ldflags="-s -w" -o "${1:-bin/authctl}" ./cmd/authctl
