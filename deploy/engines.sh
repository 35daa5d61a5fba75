#!/usr/bin/env bash
# Starts the engines for the tests: PostgreSQL, Redis and Kafka, on loopback, with their data
# outside the tree.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: deploy/engines.sh up [--dir DIR] [--demand]
       deploy/engines.sh env|status|down [--dir DIR]

up      starts the engines, or finds them running, and prints the variables that tests read.
        Engines run as containers if a container engine answers, otherwise as processes from the
        system's packages, which it installs if it may use apt-get, with Kafka from its Maven
        artifacts. It uses an engine that an AUTHCTL_TEST_… variable already names. It reports
        engines that it cannot get and leaves them out; with --demand that is a failure, and
        the packages are always installed, for tests that start and kill their own engines, and
        so are the programs that other tests run: nginx, Caddy, Chromium, npm, pip, a JDK and systemd.
env     prints the variables again, for:  eval "$(deploy/engines.sh env)"
status  says which engines run, and where.
down    stops what up has started in DIR, and removes DIR.

DIR defaults to a folder for this user under $TMPDIR or /tmp.
EOF
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=process.sh
. "$here/process.sh"

misused() { say "$1"; usage >&2; exit 2; }

is_root() { [ "$(id -u)" = 0 ]; }
as_root() { if is_root; then "$@"; else sudo -n "$@"; fi; }

# --- the folder -----------------------------------------------------------------------------
# It holds password, env (what up prints), report (what status prints), and either a folder for
# each engine that runs as a process, or the file containers.

make_dir() {
  if [ ! -d "$dir" ]; then
    mkdir -p "${dir%/*}"
    mkdir -m 711 "$dir"
  fi
  dir=$(cd "$dir" && pwd -P)
  # Under /tmp another user may have taken the name.
  [ -O "$dir" ] || die "$dir belongs to another user: choose one with --dir"
  if [ ! -f "$dir/password" ]; then
    (umask 077 && head -c 24 /dev/urandom | base64 | tr '+/' 'Aa' >"$dir/password")
  fi
  password=$(cat "$dir/password")
}

# found records an engine: where it is, for people and for tests.
found() { # ENGINE VARIABLE VALUE DESCRIPTION
  printf "export %s='%s'\n" "$2" "$3" >>"$dir/env"
  printf '%-10s  %s\n' "$1" "$4" >>"$dir/report"
}

missing=()
lacks() { # ENGINE REASON
  printf '%-10s  none (%s): %s\n' "$1" "$2" "$(stand_in "$1")" >>"$dir/report"
  missing+=("$1")
}

stand_in() {
  case $1 in
    PostgreSQL) printf 'tests run only on SQLite' ;;
    Redis) printf 'tests use an in-process stand-in (miniredis) where it suffices, or are skipped' ;;
    Kafka) printf 'tests use an in-process stand-in (kfake) where it suffices, or are skipped' ;;
  esac
}

given() { # ENGINE VARIABLE
  [ -n "${!2:-}" ] || return 1
  found "$1" "$2" "${!2}" "given by $2"
}

# --- containers -----------------------------------------------------------------------------

# compose runs a command on the project whose first port is in $dir/containers.
compose() {
  local port
  port=$(cat "$dir/containers")
  ENGINES_PASSWORD=$(cat "$dir/password") ENGINES_POSTGRES_PORT=$port ENGINES_REDIS_PORT=$((port + 1)) \
    ENGINES_KAFKA_PORT=$((port + 2)) \
    docker compose --project-name "authctl-engines-$port" --file "$here/engines.yml" "$@"
}

containers() {
  command -v docker >/dev/null || return 1
  # An installed client proves nothing, and it may hang on a dead socket.
  local limit=() wanted=() port
  if command -v timeout >/dev/null; then limit=(timeout 20); fi
  ${limit[@]+"${limit[@]}"} docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1 || return 1
  [ -n "${AUTHCTL_TEST_POSTGRES:-}" ] || wanted+=(postgres)
  [ -n "${AUTHCTL_TEST_REDIS:-}" ] || wanted+=(redis)
  [ -n "${AUTHCTL_TEST_KAFKA:-}" ] || wanted+=(kafka)
  [ ${#wanted[@]} -gt 0 ] || return 1
  port=$(free_ports 3)
  printf '%s\n' "$port" >"$dir/containers"
  if ! compose up --detach --wait --quiet-pull "${wanted[@]}" >&2; then
    say "the container engine answers but could not start the containers; going on without it"
    compose logs --tail 20 >&2 || true
    compose down --volumes >&2 || true
    rm -f "$dir/containers"
    return 1
  fi
  given PostgreSQL AUTHCTL_TEST_POSTGRES || found PostgreSQL AUTHCTL_TEST_POSTGRES \
    "postgres://postgres:$password@127.0.0.1:$port/postgres?sslmode=disable" "container, 127.0.0.1:$port"
  given Redis AUTHCTL_TEST_REDIS || found Redis AUTHCTL_TEST_REDIS \
    "redis://default:$password@127.0.0.1:$((port + 1))/0" "container, 127.0.0.1:$((port + 1))"
  given Kafka AUTHCTL_TEST_KAFKA || found Kafka AUTHCTL_TEST_KAFKA \
    "127.0.0.1:$((port + 2))" "container, 127.0.0.1:$((port + 2))"
}

# --- packages -------------------------------------------------------------------------------

# postgres_bin prints the folder of the newest PostgreSQL server here.
postgres_bin() {
  local bin newest=''
  for bin in "$(command -v postgres | xargs -r dirname)" $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V); do
    if [ -x "$bin/postgres" ] && [ -x "$bin/initdb" ] && [ -x "$bin/pg_isready" ]; then newest=$bin; fi
  done
  [ -n "$newest" ] && printf '%s' "$newest"
}

has_java() {
  local candidate
  for candidate in java /usr/lib/jvm/*/bin/java; do
    [ "$("$candidate" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)" -ge 17 ] 2>/dev/null && return
  done
  return 1
}

# install_packages installs missing packages, if that is allowed. If it fails, the search for the
# engine reports it.
install_packages() {
  local want=() java program guard=''
  postgres_bin >/dev/null || want+=(postgresql)
  command -v redis-server >/dev/null || want+=(redis-server)
  command -v pgbouncer >/dev/null || want+=(pgbouncer)
  command -v mvn >/dev/null || want+=(maven)
  has_java || want+=(java)
  # Programs that tests run together with the service. They are skipped without them.
  if [ -n "$demand" ]; then
    for program in nginx caddy chromium npm; do
      command -v "$program" >/dev/null || [ -x "/usr/sbin/$program" ] || want+=("$program")
    done
    python3 -m pip --version >/dev/null 2>&1 || want+=(python3-pip)
    command -v javac >/dev/null || want+=(default-jdk-headless)
    command -v systemd-analyze >/dev/null || want+=(systemd)
    command -v promtool >/dev/null || want+=(prometheus)
  fi
  if [ ${#want[@]} = 0 ] || ! command -v apt-get >/dev/null; then return 0; fi
  is_root || sudo -n true 2>/dev/null || return 0
  say "installing ${want[*]}"
  apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 "$@" </dev/null >>"$dir/apt.log" 2>&1; }
  apt update || say "apt-get update failed: see $dir/apt.log"
  for java in openjdk-21-jre-headless openjdk-17-jre-headless default-jre-headless; do
    apt-cache show "$java" >/dev/null 2>&1 && break
  done
  # Keep the packages from starting servers on their default ports.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    guard=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$guard" >/dev/null
    as_root chmod 755 "$guard"
  fi
  apt install -y --no-install-recommends "${want[@]/#java/$java}" || tail -n 5 "$dir/apt.log" >&2
  [ -z "$guard" ] || as_root rm -f "$guard"
}

# postgres_as runs a command as a user that PostgreSQL agrees to run as: it refuses root.
postgres_as() { # COMMAND [ARG]...
  if is_root; then
    alone setpriv --reuid=postgres --regid=postgres --init-groups "$@"
  fi
  alone "$@"
}

# answers waits until COMMAND succeeds, and fails when the process ends or takes a minute.
answers() { # PID COMMAND [ARG]...
  local pid=$1 deadline=$((SECONDS + 60))
  shift
  until "$@" >/dev/null 2>&1; do
    kill -0 "$pid" 2>/dev/null && [ $SECONDS -lt $deadline ] || return 1
    sleep 0.1
  done
}

start_postgres() {
  given PostgreSQL AUTHCTL_TEST_POSTGRES && return
  local bin data=$dir/postgres port
  bin=$(postgres_bin) || { lacks PostgreSQL 'no server installed, and none could be'; return; }
  if is_root && ! id postgres >/dev/null 2>&1; then
    lacks PostgreSQL 'it refuses to run as root, and there is no user postgres'
    return
  fi
  mkdir -m 700 "$data"
  (umask 077 && cp "$dir/password" "$dir/postgres.password")
  if is_root; then chown postgres: "$data" "$dir/postgres.password"; fi
  (cd "$data" && postgres_as "$bin/initdb" -D "$data" -U postgres --encoding=UTF8 --locale=C --no-sync \
    --auth=scram-sha-256 --pwfile="$dir/postgres.password") </dev/null >"$dir/postgres.log" 2>&1 ||
    { lacks PostgreSQL "initdb failed, see $dir/postgres.log"; return; }
  port=$(free_ports 1)
  (cd "$data" && postgres_as "$bin/postgres" -D "$data" -c listen_addresses=127.0.0.1 -c port="$port" \
    -c unix_socket_directories= -c max_connections=500 -c max_prepared_transactions=50 \
    -c max_locks_per_transaction=256) </dev/null >>"$dir/postgres.log" 2>&1 &
  printf '%s\n' "$!" >"$dir/postgres.pid"
  answers "$!" "$bin/pg_isready" -h 127.0.0.1 -p "$port" ||
    { lacks PostgreSQL "it does not answer, see $dir/postgres.log"; return; }
  found PostgreSQL AUTHCTL_TEST_POSTGRES "postgres://postgres:$password@127.0.0.1:$port/postgres?sslmode=disable" \
    "$("$bin/postgres" --version | sed 's/^[^0-9]*\([0-9.]*\).*/\1/'), a process, 127.0.0.1:$port"
}

start_redis() {
  given Redis AUTHCTL_TEST_REDIS && return
  local port data=$dir/redis
  command -v redis-server >/dev/null || { lacks Redis 'no server installed, and none could be'; return; }
  mkdir -m 700 "$data"
  port=$(free_ports 1)
  # In a file, because every process can read arguments.
  cat >"$data/redis.conf" <<EOF
bind 127.0.0.1
port $port
dir $data
requirepass $password
save ""
appendonly no
maxmemory-policy noeviction
EOF
  (cd "$data" && alone redis-server redis.conf) </dev/null >"$dir/redis.log" 2>&1 &
  printf '%s\n' "$!" >"$dir/redis.pid"
  REDISCLI_AUTH=$password answers "$!" redis-cli -e -h 127.0.0.1 -p "$port" ping ||
    { lacks Redis "it does not answer, see $dir/redis.log"; return; }
  found Redis AUTHCTL_TEST_REDIS "redis://default:$password@127.0.0.1:$port/0" \
    "$(redis-server --version | sed 's/.*v=\([0-9.]*\).*/\1/'), a process, 127.0.0.1:$port"
}

start_kafka() {
  given Kafka AUTHCTL_TEST_KAFKA && return
  local brokers
  if ! brokers=$("$here/kafka.sh" start --dir "$dir/kafka" 2>"$dir/kafka.log"); then
    tail -n 5 "$dir/kafka.log" >&2
    lacks Kafka "$(tail -n 1 "$dir/kafka.log" | sed 's/^kafka.sh: //')"
    return
  fi
  brokers=${brokers#BROKERS=}
  found Kafka AUTHCTL_TEST_KAFKA "$brokers" \
    "$(sed -n '/<artifactId>kafka_/{n;s/.*<version>\(.*\)<.*/\1/p;}' "$here/kafka/pom.xml"), a process, $brokers"
}

# --- commands -------------------------------------------------------------------------------

# stands reports whether everything that up has started in the folder still runs.
stands() {
  [ -f "$dir/env" ] || return 1
  if [ -f "$dir/containers" ]; then
    [ "$(compose ps --quiet --status running | wc -l)" = "$(grep -c container "$dir/report")" ] || return 1
  fi
  [ ! -d "$dir/postgres" ] || running "$dir/postgres.pid" "$dir/postgres" >/dev/null || return 1
  [ ! -d "$dir/redis" ] || running "$dir/redis.pid" "$dir/redis" >/dev/null || return 1
  [ ! -d "$dir/kafka" ] || running "$dir/kafka/broker-1.pid" "$dir/kafka" >/dev/null || return 1
}

up() {
  if [ -d "$dir" ]; then
    dir=$(cd "$dir" && pwd -P)
    if stands && ! grep -q ' none (' "$dir/report"; then
      cat "$dir/report" >&2
      cat "$dir/env"
      return
    fi
  fi
  down
  make_dir
  trap down EXIT
  trap 'exit 130' INT TERM HUP
  (umask 077 && : >"$dir/env")
  # Even with containers, some tests start and kill their own engine processes.
  if [ -n "$demand" ]; then install_packages; fi
  if ! containers; then
    [ -n "$demand" ] || install_packages
    start_postgres
    start_redis
    start_kafka
  fi
  cat "$dir/report" >&2
  if [ -n "$demand" ] && [ ${#missing[@]} -gt 0 ]; then
    die "--demand: these engines are missing: ${missing[*]}"
  fi
  trap - EXIT INT TERM HUP
  cat "$dir/env"
}

end() { # PID_FILE DIR SIGNAL
  local pid
  if ! pid=$(running "$1" "$2"); then return 0; fi
  kill "-$3" "$pid"
  while running "$1" "$2" >/dev/null; do sleep 0.05; done
}

down() {
  [ -d "$dir" ] || return 0
  dir=$(cd "$dir" && pwd -P)
  [ -f "$dir/password" ] || die "$dir was not made by engines.sh up"
  if [ -f "$dir/containers" ]; then compose down --volumes >&2; fi
  "$here/kafka.sh" stop --dir "$dir/kafka"
  end "$dir/redis.pid" "$dir/redis" KILL
  end "$dir/postgres.pid" "$dir/postgres" QUIT
  rm -rf "$dir"
}

command=${1:-}
[ $# -gt 0 ] && shift
dir=${TMPDIR:-/tmp}/authctl-engines-$(id -u) demand=''
while [ $# -gt 0 ]; do
  case $1 in
    --dir) [ $# -gt 1 ] || misused "--dir needs a value"; dir=$2; shift 2 ;;
    --demand) demand=1; shift ;;
    *) misused "unknown argument $1" ;;
  esac
done

case $command in
  up) up ;;
  down) down ;;
  env) cat "$dir/env" 2>/dev/null || die "nothing is up in $dir" ;;
  status)
    [ -f "$dir/report" ] || die "nothing is up in $dir"
    dir=$(cd "$dir" && pwd -P)
    cat "$dir/report"
    stands || die "some of the engines no longer run: start them again with deploy/engines.sh up"
    ;;
  -h | --help | help) usage ;;
  *) misused "what to do?" ;;
esac
