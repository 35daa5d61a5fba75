#!/usr/bin/env bash
# Runs golangci-lint at a pinned version, and without arguments also actionlint over the workflows.
# Both are built from their released source once for each version of Go. Arguments, such as --fix,
# go to golangci-lint run. It waits while another one runs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=v2.15.0
actionlint=v1.7.12
bin=${AUTHCTL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/authctl}/golangci-lint-$version-$(go env GOVERSION)
build() { # PROGRAM MODULE@VERSION
  local attempt
  for attempt in 1 2 3; do
    [ -x "$bin/$1" ] && break
    echo "building $2" >&2
    GOBIN=$bin GOFLAGS='' go install "$2" || sleep $((attempt * 3))
  done
}
build golangci-lint "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$version"
"$bin/golangci-lint" run --allow-serial-runners "$@"
if [ $# -eq 0 ]; then
  build actionlint "github.com/rhysd/actionlint/cmd/actionlint@$actionlint"
  "$bin/actionlint"
  config=$PWD/.golangci.yml
  for module in verify deploy/helm; do # which ./... does not reach
    (cd "$module" && "$bin/golangci-lint" run --allow-serial-runners --config "$config")
  done
fi
