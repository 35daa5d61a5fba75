# shellcheck shell=bash
# For the scripts beside it, which source it: ports, and processes that outlive the script
# that starts them, each in a folder of its own.

say() { printf '%s\n' "${0##*/}: $*" >&2; }
die() { say "$1"; exit "${2:-1}"; }

port_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# free_ports prints the first of COUNT free ports in a row, below the range that the system
# hands out by itself.
free_ports() { # COUNT
  local attempt i first
  for attempt in {1..50}; do
    first=$((20000 + (RANDOM % 1200) * 10))
    for ((i = 0; i < $1; i++)); do port_free $((first + i)) || continue 2; done
    printf '%s' "$first"
    return
  done
  die "found no $1 free ports in a row in $attempt attempts"
}

# alone becomes COMMAND, in a session of its own where that can be had: Ctrl-C at the terminal
# must reach only the script, which knows in what order to stop things.
alone() { # COMMAND [ARG]...
  if command -v setsid >/dev/null; then exec setsid "$@"; fi
  exec "$@"
}

# running prints the pid in a file, if that process lives. It must have DIR for its working
# directory: a pid left over from before may belong to anybody now.
running() { # PID_FILE DIR
  local pid
  pid=$(head -n 1 "$1" 2>/dev/null) && [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null || return 1
  if [ -d /proc/self ] && [ "$(readlink "/proc/$pid/cwd")" != "$2" ]; then return 1; fi
  printf '%s' "$pid"
}
