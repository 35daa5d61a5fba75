#!/usr/bin/env bash
# Runs Apache Kafka (KRaft; brokers are also controllers) from its Maven artifacts, on
# loopback, for tests. Needs Java 17 or newer, and Maven the first time.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: deploy/kafka.sh start --dir DIR [--brokers N] [--base-port PORT]
                             [--scram USER:PASSWORD] [--set KEY=VALUE]...
       deploy/kafka.sh start-broker --dir DIR ID
       deploy/kafka.sh stop --dir DIR
       deploy/kafka.sh install

start         makes a cluster of N brokers (default 1) under DIR, or starts the one that is there,
              and prints BROKERS=host:port,… once all of them serve. Brokers listen on PORT and
              up (default: free ports), their controllers on the N ports after that. Broker
              ID has DIR/broker-ID.pid, .log and .properties: kill it by its pid.
              --scram adds a SASL_PLAINTEXT listener (SCRAM-SHA-512) to each broker and also prints
              SCRAM_BROKERS=…. --set adds a broker setting, which overrides those of this script.
              Topics are not created automatically.
start-broker  starts one broker of DIR again, and returns once it serves.
stop          kills the brokers of DIR that still run. The data stays until DIR is removed.
install       fetches the jars and prints the folder that holds them.

Exit status 3: this machine cannot get Kafka (no Java 17, no Maven, or no artifacts).
Environment: AUTHCTL_CACHE is the folder for the jars (default ~/.cache/authctl),
KAFKA_JVM_OPTIONS are options for the virtual machines, separated by spaces.
EOF
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# shellcheck source-path=SCRIPTDIR source=process.sh
. "$here/process.sh"

misused() { say "$1"; usage >&2; exit 2; }

find_java() { # sets $java
  local candidate version
  for candidate in ${JAVA_HOME:+"$JAVA_HOME/bin/java"} java /usr/lib/jvm/*/bin/java; do
    version=$("$candidate" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1) || true
    java=$candidate
    [ "${version:-0}" -lt 17 ] || return 0
  done
  die "needs Java 17 or newer" 3
}

# install sets $jars. The name of the folder depends on the pom, so each version has its own folder,
# and the folder appears complete or not at all.
install() {
  local cache=${AUTHCTL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/authctl} sum attempt fresh
  sum=$(cksum <"$here/kafka/pom.xml" | cut -d ' ' -f 1)
  jars=$cache/kafka-$sum
  [ -d "$jars" ] && return
  command -v mvn >/dev/null || die "needs Maven (mvn) to fetch Kafka" 3
  mkdir -p "$cache"
  fresh=$(mktemp -d "$cache/kafka-new.XXXXXX")
  for attempt in 1 2 3; do
    if mvn -q -B -Dstyle.color=never -f "$here/kafka/pom.xml" dependency:copy-dependencies \
      -DoutputDirectory="$fresh" -DincludeScope=runtime </dev/null >&2; then
      # If another process was faster, its folder is as good.
      chmod 755 "$fresh"
      if mv -T "$fresh" "$jars" 2>/dev/null || mv "$fresh" "$jars" 2>/dev/null; then return; fi
      rm -rf "$fresh"
      [ -d "$jars" ] && return
    fi
    say "fetching Kafka failed (attempt $attempt of 3)"
    sleep $((attempt * 3))
  done
  rm -rf "$fresh"
  die "Kafka could not be fetched with Maven" 3
}

kafka() { # HEAP CLASS [ARG]...; becomes the process
  local heap=$1 options=()
  read -ra options <<<"${KAFKA_JVM_OPTIONS:-}"
  shift
  alone "$java" "-Xms$heap" "-Xmx$heap" -XX:+UseG1GC -XX:MaxGCPauseMillis=20 \
    -XX:-UsePerfData -Djava.awt.headless=true "-Djava.io.tmpdir=$dir" -Dlog4j2.level="${KAFKA_LOG_LEVEL:-INFO}" \
    ${options[@]+"${options[@]}"} -cp "$jars/*" "$@"
}

hosts() { # FIRST_PORT: the comma-separated addresses of one listener of every broker
  local i list=''
  for ((i = 0; i < brokers; i++)); do list+=${list:+,}127.0.0.1:$(($1 + i)); done
  printf '%s' "$list"
}

write_properties() { # ID
  local id=$1 i voters='' replicas=$((brokers < 3 ? brokers : 3))
  for ((i = 1; i <= brokers; i++)); do voters+=${voters:+,}$i@127.0.0.1:$((base_port + brokers + i - 1)); done
  local listeners=PLAINTEXT://127.0.0.1:$((base_port + id - 1))
  if [ -n "$scram" ]; then listeners+=,SCRAM://127.0.0.1:$((base_port + 2 * brokers + id - 1)); fi
  cat <<EOF
process.roles=broker,controller
node.id=$id
controller.quorum.voters=$voters
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listeners=$listeners,CONTROLLER://127.0.0.1:$((base_port + brokers + id - 1))
advertised.listeners=$listeners
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SCRAM:SASL_PLAINTEXT
log.dirs=$dir/broker-$id
# Settings of production, as far as the number of brokers allows.
auto.create.topics.enable=false
default.replication.factor=$replicas
min.insync.replicas=$((replicas > 2 ? 2 : 1))
offsets.topic.replication.factor=$replicas
transaction.state.log.replication.factor=$replicas
transaction.state.log.min.isr=$((replicas > 2 ? 2 : 1))
share.coordinator.state.topic.replication.factor=$replicas
share.coordinator.state.topic.min.isr=$((replicas > 2 ? 2 : 1))
# For a small broker that starts quickly.
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
EOF
  if [ -n "$scram" ]; then
    cat <<'EOF'
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.scram.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
EOF
  fi
  if [ ${#settings[@]} -gt 0 ]; then printf '%s\n' "${settings[@]}"; fi
}

make_cluster() {
  rm -rf "$dir"/broker-[0-9]* # left by an interrupted attempt
  if [ -z "$base_port" ]; then base_port=$(free_ports $((3 * brokers))); fi
  local id pid pids=() scram_arg=()
  local cluster
  cluster=$(head -c 16 /dev/urandom | base64 | tr '+/' 'Aa' | tr -d '=\n')
  if [ -n "$scram" ]; then scram_arg=(--add-scram "SCRAM-SHA-512=[name=${scram%%:*},password=${scram#*:}]"); fi
  for ((id = 1; id <= brokers; id++)); do
    write_properties "$id" >"$dir/broker-$id.properties"
    (kafka 128m kafka.tools.StorageTool format --cluster-id "$cluster" --config "$dir/broker-$id.properties" \
      ${scram_arg[@]+"${scram_arg[@]}"}) </dev/null >"$dir/broker-$id.log" 2>&1 &
    pids+=("$!")
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || die "formatting the storage failed: see $dir/broker-*.log"
  done
  { # a later start reads this
    printf 'BROKERS=%s\n' "$(hosts "$base_port")"
    if [ -n "$scram" ]; then printf 'SCRAM_BROKERS=%s\n' "$(hosts $((base_port + 2 * brokers)))"; fi
  } >"$dir/cluster.new"
  mv "$dir/cluster.new" "$dir/cluster"
}

broker() { running "$dir/broker-$1.pid" "$dir"; } # ID: prints its pid if it lives

launch() { # ID: starts a broker without waiting for it
  broker "$1" >/dev/null && return
  printf -- '--- start\n' >>"$dir/broker-$1.log"
  (cd "$dir" && kafka 512m kafka.Kafka "broker-$1.properties") </dev/null >>"$dir/broker-$1.log" 2>&1 &
  printf '%s\n' "$!" >"$dir/broker-$1.pid"
}

await() { # ID: returns once a broker serves
  local deadline=$((SECONDS + 180)) # a busy machine takes its time
  until awk '/^--- start/ { up = 0 } /Kafka Server started/ { up = 1 } END { exit !up }' "$dir/broker-$1.log"; do
    broker "$1" >/dev/null || { tail -n 15 "$dir/broker-$1.log" >&2; die "broker $1 ended: see $dir/broker-$1.log"; }
    [ $SECONDS -lt $deadline ] || die "broker $1 does not serve after 180 s: see $dir/broker-$1.log"
    sleep 0.2
  done
}

ids() { # the brokers of $dir
  local file
  for file in "$dir"/broker-*.properties; do
    [ -e "$file" ] || return 0
    file=${file##*/broker-}
    printf '%s\n' "${file%.properties}"
  done
}

start() {
  mkdir -p "$dir"
  dir=$(cd "$dir" && pwd -P)
  find_java
  install
  # If the script ends before the cluster serves, it stops what it has started.
  trap stop EXIT
  trap 'exit 130' INT TERM HUP
  [ -f "$dir/cluster" ] || make_cluster
  local id
  for id in $(ids); do launch "$id"; done
  for id in $(ids); do await "$id"; done
  trap - EXIT INT TERM HUP
  cat "$dir/cluster"
}

start_broker() { # ID
  [ -f "$dir/broker-$1.properties" ] || misused "there is no broker $1 in $dir"
  dir=$(cd "$dir" && pwd -P)
  find_java
  install
  launch "$1"
  await "$1"
}

# stop kills the brokers. The operating system, not the process, holds what a broker acknowledged,
# so a later start finds it.
stop() {
  [ -d "$dir" ] || return 0
  dir=$(cd "$dir" && pwd -P)
  local id pid
  for id in $(ids); do
    if pid=$(broker "$id"); then kill -KILL "$pid" 2>/dev/null || true; fi
  done
  for id in $(ids); do
    while broker "$id" >/dev/null; do sleep 0.05; done
    rm -f "$dir/broker-$id.pid"
  done
}

command=${1:-}
[ $# -gt 0 ] && shift
dir='' brokers=1 base_port='' scram='' settings=() id=''
while [ $# -gt 0 ]; do
  case $1 in
    --dir | --brokers | --base-port | --scram | --set)
      [ $# -gt 1 ] || misused "$1 needs a value"
      case $1 in
        --dir) dir=$2 ;;
        --brokers) brokers=$2 ;;
        --base-port) base_port=$2 ;;
        --scram) scram=$2 ;;
        --set) settings+=("$2") ;;
      esac
      shift 2
      ;;
    [1-9]*) id=$1; shift ;;
    *) misused "unknown argument $1" ;;
  esac
done
[[ $brokers =~ ^[1-9]$ ]] || misused "--brokers must be 1 to 9"
[[ $base_port =~ ^[0-9]*$ ]] || misused "--base-port must be a port"
[[ -z $scram || $scram == ?*:?* ]] || misused "--scram must be USER:PASSWORD"
case $command in
  start | stop | start-broker) [ -n "$dir" ] || misused "$command needs --dir" ;;
esac

case $command in
  start) start ;;
  start-broker) [ -n "$id" ] || misused "start-broker needs a broker's ID"; start_broker "$id" ;;
  stop) stop ;;
  install) find_java; install; printf '%s\n' "$jars" ;;
  -h | --help | help) usage ;;
  *) misused "name a command" ;;
esac
