#!/usr/bin/env bash
# Every check in one command: formatting, vet, lint, the build, and the tests with the race
# detector against real PostgreSQL, Redis and Kafka, which it starts itself.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: ./deploy/test.sh [--demand] [--keep] [GO_TEST_ARGUMENT]...

With arguments, such as  ./modules/outbox/... -run Relay,  only those tests run.

--demand  fail if an engine is missing, or a C compiler, which the race detector needs
          (AUTHCTL_TEST_DEMAND=1 does the same)
--keep    leave the engines up for the next run; deploy/engines.sh down stops them

Environment: AUTHCTL_CACHE is the folder for Kafka, the linter and packages that tests need (default
~/.cache/authctl).
EOF
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=process.sh
. "$here/process.sh"
cd "$here/.."

demand=${AUTHCTL_TEST_DEMAND:+--demand} keep='' go_args=()
while [ $# -gt 0 ]; do
  case $1 in
    --demand) demand=--demand ;;
    --keep) keep=1 ;;
    -h | --help) usage; exit ;;
    *) go_args=("$@"); break ;;
  esac
  shift
done
command -v go >/dev/null || die "needs Go: the version is in go.mod"

# The run uses engines that an earlier run left up, or else starts its own and stops them.
scratch=$(mktemp -d)
engines=$scratch/engines
chmod 711 "$scratch"
clean() {
  [ -z "$keep" ] && "$here/engines.sh" down --dir "$engines"
  rm -rf "$scratch"
}
trap clean EXIT
trap 'exit 130' INT TERM HUP
if [ -n "$keep" ] || "$here/engines.sh" status >/dev/null 2>&1; then
  keep=1
  env=$("$here/engines.sh" up ${demand:+"$demand"})
  say "the engines stay up: deploy/engines.sh down stops them"
else
  env=$("$here/engines.sh" up --dir "$engines" ${demand:+"$demand"})
fi
eval "$env"
if [ -n "$demand" ]; then export AUTHCTL_TEST_DEMAND=1; fi

# --- the steps ------------------------------------------------------------------------------

formatting() {
  local files
  files=$(gofmt -l .) || return
  [ -z "$files" ] || { printf 'not formatted (run gofmt -w):\n%s\n' "$files"; return 1; }
}

scripts() {
  if ! command -v shellcheck >/dev/null; then
    echo "shellcheck is not installed: skipped"
    return
  fi
  shellcheck -x deploy/*.sh deploy/postgres/*.sh .ci/run
}

build() {
  deploy/build.sh "$scratch/authctl" || return
  if ldd "$scratch/authctl" >/dev/null 2>&1; then echo "the binary is not static"; return 1; fi
  "$scratch/authctl" version
}

tests() {
  # With the race detector these are several times slower, and it finds nothing in them: the
  # data of SQLite, which is C translated to Go, is outside of Go's heap, and that of a hash
  # belongs to one caller.
  local race=(-race) package
  for package in modernc.org/libc modernc.org/sqlite/lib golang.org/x/crypto/{blowfish,scrypt}; do
    race+=("-gcflags=$package=-race=false")
  done
  if ! command -v "$(go env CC)" >/dev/null; then
    if [ -n "$demand" ]; then echo "the race detector needs a C compiler ($(go env CC))"; return 1; fi
    echo "no C compiler: tests run without the race detector"
    race=()
  fi
  # By default, a program with the race detector sleeps for a second before it exits.
  GORACE="atexit_sleep_ms=10 ${GORACE:-}" \
    go test ${race[@]+"${race[@]}"} -count=1 -shuffle=on -timeout 40m "$@"
}

# verify and deploy/helm are other modules, which ./... does not reach.
vet() { go vet ./... && go -C verify vet ./... && go -C deploy/helm vet ./...; }
verify() { (cd verify && tests ./...); }
# Without the race detector: nothing there is concurrent, and Kubernetes takes long to compile.
chart() { go -C deploy/helm test -count=1 -shuffle=on ./...; }

failed=()
step() { # NAME COMMAND [ARG]...
  local name=$1 begun=$SECONDS
  shift
  printf '\n--- %s\n' "$name"
  # set -e has no effect inside a condition, so the functions above return on errors themselves.
  if "$@"; then
    printf -- '--- %s: ok, %d s\n' "$name" $((SECONDS - begun))
  else
    printf -- '--- %s: FAILED, %d s\n' "$name" $((SECONDS - begun))
    failed+=("$name")
  fi
}

if [ ${#go_args[@]} -gt 0 ]; then
  step tests tests "${go_args[@]}"
else
  step formatting formatting
  step scripts scripts
  step vet vet
  step build build
  step lint deploy/lint.sh
  step verify verify
  step chart chart
  step tests tests ./...
fi

echo
if [ ${#failed[@]} -gt 0 ]; then
  echo "FAILED in $SECONDS s: ${failed[*]}"
  exit 1
fi
echo "all good in $SECONDS s"
