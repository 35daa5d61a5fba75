#!/usr/bin/env bash
# Runs golangci-lint at a pinned version, built from its released source once for each
# version of Go. Arguments, such as --fix, go to golangci-lint run. It waits while another one runs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=v2.15.0
bin=${AUTHCTL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/authctl}/golangci-lint-$version-$(go env GOVERSION)
for attempt in 1 2 3; do
  [ -x "$bin/golangci-lint" ] && break
  echo "building golangci-lint $version" >&2
  GOBIN=$bin GOFLAGS='' go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$version" || sleep $((attempt * 3))
done
"$bin/golangci-lint" run --allow-serial-runners "$@"
if [ $# -eq 0 ]; then
  config=$PWD/.golangci.yml
  for module in verify deploy/helm; do # which ./... does not reach
    (cd "$module" && "$bin/golangci-lint" run --allow-serial-runners --config "$config")
  done
fi
